"""Snapshot files: what one proves, whatever is done to it, and ledgers that are made from them."""

import io
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.voted_chain import VotedChain, build_keys
from consensus.codec import decode, encode
from consensus.params import Validator
from consensus.payload import SetValidators
from consensus.task import Transfer
from consensus.types import Amount, Hash32, Height
from consensus.vote import Checkpoint
from node.ledger import portable
from node.ledger.chainstore import SIGN_STATE_UNKNOWN
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.ledger.portable import (
    MAGIC,
    Kind,
    SnapshotError,
    SnapshotHead,
    Verification,
    encode_frame,
    join_items,
    read_frames,
    split_items,
)
from node.ledger.prune import prune_steps
from node.ledger.restore import CountingSink, restore_ledger
from node.ledger.schema import LedgerError
from node.signstate import SignStateStore
from node.snapshots import build_snapshot
from tests.integration.peers import World
from tests.integration.syncing import PAYERS, VALIDATORS, ChainNode, build_chain, running, syncing

LENGTH = 40
SEED = 20_261_123


@pytest.fixture(scope="module", autouse=True)
def small_frames() -> Iterator[None]:
    """So that a small state takes many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "NODES_A_FRAME", 16)
        patch.setattr(portable, "HEADERS_A_FRAME", 8)
        yield


@pytest.fixture(scope="module")
def source() -> VotedChain:
    """With two changes of validators."""
    chain = build_chain()
    for height in range(LENGTH):
        payers = PAYERS[2 * height : 2 * height + 2]
        transactions = [chain.sign(payer, Transfer(payers[0].address, Amount(7))) for payer in payers]
        if height in (8, 20):
            members = VALIDATORS[:3] if height == 8 else VALIDATORS
            stakes = tuple(
                Validator(key.address, 100) for key in sorted(members, key=lambda key: key.address)
            )
            transactions.append(chain.govern(PAYERS[-1], SetValidators(stakes)))
        chain.add(transactions)
    return chain


@pytest.fixture(scope="module")
def filled(source: VotedChain) -> ChainNode:
    node = ChainNode("filled", source.genesis)
    node.fill(source.encoded)
    return node


@pytest.fixture(scope="module")
def content(filled: ChainNode) -> bytes:
    return make(filled)


def make(node: ChainNode, height: int | None = None) -> bytes:
    _, pieces = build_snapshot(node.chain, node.service.prover, height)
    return b"".join(pieces)


def verify(source: VotedChain, content: bytes, trusted: Checkpoint | None = None) -> SnapshotHead:
    return Verification(source.genesis, CountingSink(), trusted).run(io.BytesIO(content))[0]


def test_a_file_proves_its_block_from_genesis_on(source: VotedChain, content: bytes) -> None:
    head = verify(source, content)
    top = head.proof.checkpoint
    assert LENGTH - 3 <= top.height < LENGTH
    assert top == source.get_checkpoint(top.height)
    assert [change.target_set.validators.number for change in head.changes] == [1, 2]
    # There is one file for a snapshot and its proof.
    assert len(list(read_frames(io.BytesIO(content)))) > 20


@pytest.mark.parametrize("height", [3, 12, 25, LENGTH - 3])
def test_a_file_of_an_earlier_block(source: VotedChain, filled: ChainNode, height: int) -> None:
    head = verify(source, make(filled, height))
    assert head.proof.checkpoint == source.get_checkpoint(head.proof.checkpoint.height)
    assert height - 4 <= head.proof.checkpoint.height <= height


def test_no_file_of_what_is_not_proved_or_not_held(source: VotedChain, filled: ChainNode) -> None:
    with pytest.raises(SnapshotError, match="no block is proved final yet"):
        make(ChainNode("young", source.genesis))
    pruned = filled.copy("pruned")
    for number in range(2):
        pruned.service.prover.get_change(number)
    for _ in prune_steps(pruned.chain.ledger, 30):
        pass
    with pytest.raises(
        SnapshotError, match="near height 20 is proved final by the votes in blocks from height 30"
    ):
        make(pruned, 20)
    assert verify(source, make(pruned)).proof.checkpoint.height >= LENGTH - 3


async def test_a_restored_node_follows_the_chain_and_gives_the_same_file(
    source: VotedChain, filled: ChainNode, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    restored = restore_ledger(io.BytesIO(content), path, source.genesis)
    store = LevelStore(path)
    node = ChainNode("restored", source.genesis, store)
    ledger = node.chain.ledger
    top = restored.checkpoint
    assert (ledger.head, ledger.height, ledger.base) == (top.hash, top.height, top.height)
    assert restored.headers == top.height - 1
    assert node.chain.head_state.root == source.states[top.height].root
    assert check_ledger(ledger, deep=True) == []
    # Nobody knows what its key has signed.
    assert ledger.get_record(SIGN_STATE_UNKNOWN) is not None
    assert SignStateStore(ledger, VALIDATORS[0].address).is_unknown
    assert make(node) == content
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(World(tmp_path, False), filled.copy("a"), node))
        await stack.enter_async_context(syncing(node))
        await node.wait_until(lambda: node.chain.head_hash == source.head.hash)
    assert not node.get_faults()
    assert node.service.get_finality(0).changes == filled.service.get_finality(0).changes
    store.close()


def test_an_existing_ledger_is_not_touched(source: VotedChain, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    LevelStore(path).close()
    before = sorted((entry.name, entry.read_bytes()) for entry in path.iterdir())
    with pytest.raises(LedgerError, match="with what this node signed: move it away first"):
        restore_ledger(io.BytesIO(content), path, source.genesis)
    assert sorted((entry.name, entry.read_bytes()) for entry in path.iterdir()) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger"]


# --- what must be refused ---------------------------------------------------------------------


def rewrite(content: bytes, change: Callable[[list[tuple[Kind, bytes]]], object]) -> bytes:
    frames = list(read_frames(io.BytesIO(content)))
    change(frames)
    return MAGIC + b"".join(encode_frame(*frame) for frame in frames) + encode_frame(Kind.END)


def find(frames: list[tuple[Kind, bytes]], kind: Kind) -> int:
    return next(at for at, frame in enumerate(frames) if frame[0] is kind)


def change_head(**parts: object) -> Callable[[list[tuple[Kind, bytes]]], object]:
    def change(frames: list[tuple[Kind, bytes]]) -> None:
        head = decode(SnapshotHead, frames[0][1])
        new = {name: value(head) if callable(value) else value for name, value in parts.items()}
        frames[0] = (Kind.HEAD, encode(replace(head, **new)))  # type: ignore[arg-type]

    return change


def change_items(
    kind: Kind, change: Callable[[list[bytes]], object]
) -> Callable[[list[tuple[Kind, bytes]]], object]:
    def do(frames: list[tuple[Kind, bytes]]) -> None:
        at = find(frames, kind)
        items = split_items(frames[at][1], 10_000)
        change(items)
        frames[at] = (kind, join_items(items))

    return do


def drop_votes(head: SnapshotHead) -> object:
    return replace(head.proof, votes=head.proof.votes[:2])


def in_headers(change: Callable[[list[bytes]], object]) -> Callable[[list[tuple[Kind, bytes]]], object]:
    return change_items(Kind.HEADERS, change)


def in_nodes(change: Callable[[list[bytes]], object]) -> Callable[[list[tuple[Kind, bytes]]], object]:
    return change_items(Kind.NODES, change)


def repeat_second(items: list[bytes]) -> None:
    items[2] = items[1]


def put_foreign(items: list[bytes]) -> None:
    items[5] = b"\x00" + bytes(40)


def repeat_block(frames: list[tuple[Kind, bytes]]) -> None:
    frames.insert(-1, frames[find(frames, Kind.BLOCK)])


REFUSED: dict[str, tuple[Callable[[list[tuple[Kind, bytes]]], object], str]] = {
    "no head": (lambda frames: frames.pop(0), "does not begin with its proof"),
    "head twice": (lambda frames: frames.insert(0, frames[0]), "do not lead from genesis"),
    "garbage for a head": (lambda frames: frames.__setitem__(0, (Kind.HEAD, b"\xc1")), "proof can't be read"),
    "another chain": (change_head(chain_id=Hash32(bytes(32))), "of another chain, 0000"),
    "a change left out": (change_head(changes=lambda head: head.changes[1:]), "does not prove"),
    "too few votes": (change_head(proof=drop_votes), "does not prove"),
    "headers left out": (lambda frames: frames.pop(find(frames, Kind.HEADERS)), "does not follow"),
    "a header left out": (in_headers(lambda items: items.pop()), "not full"),
    "a header twice": (in_headers(repeat_second), "does not follow"),
    "a header too much": (in_headers(lambda items: items.append(items[0])), "do not fit"),
    "no header": (in_headers(lambda items: items.clear()), "empty frame"),
    "no block": (lambda frames: frames.pop(find(frames, Kind.BLOCK)), "the block is missing"),
    "the block twice": (repeat_block, "out of its order"),
    "nodes left out": (lambda frames: frames.pop(), "not complete"),
    "first nodes left out": (lambda frames: frames.pop(find(frames, Kind.NODES)), "not the next one"),
    "a node of elsewhere": (in_nodes(put_foreign), "not the next one"),
    "nodes in another order": (in_nodes(lambda items: items.reverse()), "not the next one"),
    "a node left out": (in_nodes(lambda items: items.pop()), "out of its order"),
    "nodes twice": (lambda frames: frames.append(frames[-1]), "not"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_prove_itself_is_refused(
    source: VotedChain, content: bytes, tmp_path: Path, what: str
) -> None:
    change, text = REFUSED[what]
    with pytest.raises(SnapshotError, match=text):
        restore_ledger(io.BytesIO(rewrite(content, change)), tmp_path / "ledger", source.genesis)
    assert list(tmp_path.iterdir()) == []


def test_no_byte_can_be_changed_or_missing(source: VotedChain, content: bytes) -> None:
    numbers = random.Random(SEED)
    print(f"seed {SEED}")
    assert rewrite(content, lambda frames: None) == content
    for end in [0, 10, 20, *(numbers.randrange(len(content)) for _ in range(10)), len(content) - 1]:
        with pytest.raises(SnapshotError):
            verify(source, content[:end])
    with pytest.raises(SnapshotError, match="goes on after its end"):
        verify(source, content + b"\x00")
    for _ in range(60):
        at = numbers.randrange(len(content))
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << numbers.randrange(8)
        with pytest.raises(SnapshotError):
            verify(source, bytes(spoilt))


def test_of_another_chain(content: bytes, tmp_path: Path) -> None:
    other = build_chain(others=build_keys(3, "other"))
    with pytest.raises(SnapshotError, match="of another chain"):
        restore_ledger(io.BytesIO(content), tmp_path / "ledger", other.genesis)


def test_the_operators_checkpoint(source: VotedChain, content: bytes) -> None:
    top = verify(source, content).proof.checkpoint
    verify(source, content, top)
    verify(source, content, source.get_checkpoint(10))
    # What is above it can only be checked once the node is there.
    verify(source, content, Checkpoint(Height(1000), Hash32(bytes(32))))
    for height in (10, int(top.height)):
        with pytest.raises(SnapshotError, match="not the one of trusted_checkpoint"):
            verify(source, content, Checkpoint(Height(height), Hash32(bytes(32))))
