"""The snapshot file: a final state with everything that proves it, from genesis on.

    "bmif snapshot 1\\n"   then frames: kind (1 byte), length (4 bytes, big-endian), content
    1  `SnapshotHead`: what proves the block final
    2  headers from height 1 up to the one below it, 1,024 a frame, each behind its length (4 bytes)
    3  the block itself
    4  its state's nodes, each before what it names, left before right; 256 a frame, each behind its length
    0  the end: empty, and nothing follows

There is one file for a snapshot and its proof. Nothing in it is believed: headers are proved by the one
above, nodes by the one that names them, the block by votes of sets that lead from genesis. `Verification`
keeps no more than a path of the tree in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Protocol

from consensus.block import Block, Header
from consensus.codec import CodecError, decode, encode
from consensus.crypto import hash_domain
from consensus.errors import InvalidBlock
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash
from consensus.light import FinalityProof, LightError, SetChange, verify_finality_proof, verify_set_change
from consensus.params import Genesis
from consensus.tree import TreeError, get_children
from consensus.types import ZERO_HASH, Hash32
from consensus.validation import check_block, decode_block
from consensus.vote import Checkpoint

MAGIC = b"bmif snapshot 1\n"
HEADERS_A_FRAME = 1_024
NODES_A_FRAME = 256
MAX_FRAME_BYTES = 64 * 1024 * 1024


class SnapshotError(ValueError):
    """The file is damaged, of another chain, or not proved; nothing of it was used."""


class Kind(IntEnum):
    END = 0
    HEAD = 1
    HEADERS = 2
    BLOCK = 3
    NODES = 4


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """By what the block is known to be final."""

    chain_id: Hash32
    changes: tuple[SetChange, ...]
    """From the genesis set to that of the proof, in order."""
    proof: FinalityProof


class SnapshotSink(Protocol):
    """Takes what was verified, in the order of the file."""

    def take_headers(self, headers: Sequence[Header]) -> None: ...

    def take_nodes(self, nodes: dict[Hash32, bytes]) -> None: ...


# --- writing ----------------------------------------------------------------------------------


def encode_frame(kind: Kind, content: bytes = b"") -> bytes:
    return bytes([kind]) + len(content).to_bytes(4, "big") + content


def join_items(items: Sequence[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


def encode_snapshot(
    head: SnapshotHead,
    headers: Iterator[Header],
    block: bytes,
    get_node: Callable[[Hash32], bytes | None],
) -> Iterator[bytes]:
    """The file piece by piece; each piece takes some milliseconds.

    Raises: SnapshotError if a node of the state is missing.
    """
    yield MAGIC + encode_frame(Kind.HEAD, encode(head))
    for batch in _batch((encode(header) for header in headers), HEADERS_A_FRAME):
        yield encode_frame(Kind.HEADERS, join_items(batch))
    yield encode_frame(Kind.BLOCK, block)
    for batch in _batch(_walk(head.proof.source.state_root, get_node), NODES_A_FRAME):
        yield encode_frame(Kind.NODES, join_items(batch))
    yield encode_frame(Kind.END)


def _batch(items: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _walk(root: Hash32, get_node: Callable[[Hash32], bytes | None]) -> Iterator[bytes]:
    waiting = [] if root == ZERO_HASH else [root]
    while waiting:
        node = waiting.pop()
        data = get_node(node)
        if data is None:
            raise SnapshotError(f"state node {node.hex()} is not held any more")
        waiting += reversed(get_children(data))
        yield data


# --- reading ----------------------------------------------------------------------------------


def read_frames(file: BinaryIO) -> Iterator[tuple[Kind, bytes]]:
    """All frames but the end. Raises: SnapshotError for anything but whole frames and one end."""
    if file.read(len(MAGIC)) != MAGIC:
        raise SnapshotError("this is no snapshot file of version 1")
    while True:
        start = file.read(5)
        if len(start) != 5:
            raise SnapshotError("the file ends early")
        length = int.from_bytes(start[1:], "big")
        if start[0] > max(Kind) or length > MAX_FRAME_BYTES:
            raise SnapshotError(f"a frame of kind {start[0]} and {length} bytes")
        kind, content = Kind(start[0]), file.read(length)
        if len(content) != length:
            raise SnapshotError("the file ends early")
        if kind is Kind.END:
            if length or file.read(1):
                raise SnapshotError("the file goes on after its end")
            return
        yield kind, content


def split_items(content: bytes, at_most: int) -> list[bytes]:
    """The items of a frame. Raises: SnapshotError."""
    items, at = list[bytes](), 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "big")
        if end > len(content) or len(items) == at_most:
            raise SnapshotError("a frame's items do not fit it")
        items.append(content[at + 4 : end])
        at = end
    if not items:
        raise SnapshotError("an empty frame")
    return items


class Verification:
    """Reads a snapshot file once, and believes nothing that it does not prove."""

    def __init__(self, genesis: Genesis, sink: SnapshotSink, trusted: Checkpoint | None = None) -> None:
        """`trusted`: a final block that the operator names; if it is not above the snapshot it must be
        among its ancestors, or the snapshot itself."""
        self._genesis = genesis
        self._sink = sink
        self._trusted = trusted
        state = build_genesis_state(genesis)
        self._validators = state.get_validator_set()
        self._chain_id = compute_block_hash(build_genesis_header(genesis, state))

    def run(self, file: BinaryIO) -> tuple[SnapshotHead, Block, bytes]:
        """What is proved: head, block and the block's bytes; headers and nodes went to the sink.

        Raises: SnapshotError saying what is wrong.
        """
        frames = read_frames(file)
        head = self._take_head(*next(frames, (Kind.END, b"")))
        frame = self._take_headers(frames, head)
        if frame is None or frame[0] is not Kind.BLOCK:
            raise SnapshotError("the block is missing")
        block = self._take_block(frame[1], head)
        self._take_nodes(frames, head)
        return head, block, frame[1]

    def _take_head(self, kind: Kind, content: bytes) -> SnapshotHead:
        if kind is not Kind.HEAD:
            raise SnapshotError("the file does not begin with its proof")
        try:
            head = decode(SnapshotHead, content)
        except CodecError as error:
            raise SnapshotError(f"the proof can't be read: {error}") from error
        if head.chain_id != self._chain_id:
            raise SnapshotError(
                f"it is of another chain, {head.chain_id.hex()}; this genesis is of {self._chain_id.hex()}"
            )
        validators = self._validators
        try:
            for change in head.changes:
                validators = verify_set_change(validators, change, self._chain_id)
            checkpoint = verify_finality_proof(validators, head.proof, self._chain_id)
        except LightError as error:
            raise SnapshotError(f"it does not prove its block final: {error}") from error
        trusted = self._trusted
        if trusted is not None and trusted.height == checkpoint.height and trusted != checkpoint:
            raise SnapshotError(
                f"block {checkpoint.hash.hex()} at height {checkpoint.height} is not the one of "
                "trusted_checkpoint: the file, or whoever gave the checkpoint, is of another branch"
            )
        return head

    def _take_headers(
        self, frames: Iterator[tuple[Kind, bytes]], head: SnapshotHead
    ) -> tuple[Kind, bytes] | None:
        """All ancestors, linked from genesis to the block; returns the frame after them."""
        top = head.proof.source
        parent, height, is_full = self._chain_id, 0, True
        fixed = {change.target.height: compute_block_hash(change.target) for change in head.changes}
        if self._trusted is not None:
            fixed[self._trusted.height] = self._trusted.hash
        frame = next(frames, None)
        while frame is not None and frame[0] is Kind.HEADERS:
            headers = []
            items = split_items(frame[1], HEADERS_A_FRAME)
            if not is_full:
                raise SnapshotError("a frame of headers is not full")
            is_full = len(items) == HEADERS_A_FRAME
            for item in items:
                header, height = self._read_header(item), height + 1
                if header.height != height or header.parent != parent or height >= top.height:
                    raise SnapshotError(f"the header at height {height} does not follow the one below")
                parent = compute_block_hash(header)
                if fixed.get(header.height, parent) != parent:
                    raise SnapshotError(
                        f"the block at height {height} is not the one of trusted_checkpoint or of a proof"
                    )
                headers.append(header)
            self._sink.take_headers(headers)
            frame = next(frames, None)
        if height != top.height - 1 or parent != top.parent:
            raise SnapshotError("the headers do not lead from genesis to the block")
        return frame

    def _read_header(self, data: bytes) -> Header:
        try:
            header = decode(Header, data)
        except CodecError as error:
            raise SnapshotError(f"a header can't be read: {error}") from error
        if header.chain_id != self._chain_id:
            raise SnapshotError("a header is of another chain")
        return header

    def _take_block(self, content: bytes, head: SnapshotHead) -> Block:
        try:
            block = decode_block(content, self._genesis.params)
            check_block(block, self._genesis.params, self._chain_id)
        except InvalidBlock as error:
            raise SnapshotError(f"the block is not valid: {error}") from error
        if block.header != head.proof.source:
            raise SnapshotError("the block is not the one that is proved")
        return block

    def _take_nodes(self, frames: Iterator[tuple[Kind, bytes]], head: SnapshotHead) -> None:
        """The whole state, each node the next one that is named."""
        root = head.proof.source.state_root
        expected, is_full = ([] if root == ZERO_HASH else [root]), True
        for kind, content in frames:
            items = split_items(content, NODES_A_FRAME) if kind is Kind.NODES else []
            if not items or not is_full:
                raise SnapshotError("a frame is out of its order, or not full")
            is_full = len(items) == NODES_A_FRAME
            nodes: dict[Hash32, bytes] = {}
            for data in items:
                node = hash_domain("tree", data)
                if not expected or node != expected.pop():
                    raise SnapshotError(f"state node {node.hex()} is not the next one that is named")
                try:
                    expected += reversed(get_children(data))
                except TreeError as error:
                    raise SnapshotError(f"state node {node.hex()}: {error}") from error
                nodes[node] = data
            self._sink.take_nodes(nodes)
        if expected:
            raise SnapshotError("the state is not complete")
