"""A node's life in phases, for tests that kill it: each phase in a process of its own, over the same folder.

Run as a process, it forks one child for each line of JSON on its standard input, so that a case costs no
start of the interpreter, and prints how the child ended. What a phase does follows from what is stored, and
every byte of it is determined: a phase that was killed and runs again must end where one ends that was not.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from consensus.block import Block
from consensus.codec import decode, encode
from consensus.crypto import CHUNK_BYTES
from consensus.genesis import build_genesis_state
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.task import Transfer
from consensus.types import Address, Amount, Hash32, Height, Millis
from consensus.vote import Checkpoint, Vote, sign_vote
from node import crashpoints
from node.blobs import BlobStore
from node.clock import ManualClock
from node.core import Core
from node.ledger import schema
from node.ledger.chainstore import HeadChange, Ledger
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.ledger.migration import migrate_store
from node.ledger.prune import prune_steps
from node.ledger.rebuild import rebuild_ledger
from node.ledger.rollback import roll_back
from node.ledger.store import KeyValueStore, MemoryStore
from node.proposer import Proposer
from node.signstate import SignStateStore
from tests.integration.test_chain import KEYS, build_core, build_genesis

CHAIN_ID = compute_chain_id(build_genesis(ManualClock()))
SINK = Address(b"\x77" * 32)
BEFORE_SYNC = 3
"""Height that the node reaches alone, on a fork that it leaves later."""
SYNCED = 8
"""Height of its peer."""
AFTER_SYNC = 11
"""Height that it reaches on top."""
BASE = 5
"""Bodies below it are deleted."""
NOW = Millis(1_800_000_000_000)


def _advance_to(clock: ManualClock, time: int) -> None:
    clock.advance(max(0, time - clock.now_ms()) / 1000)


def _open_core(directory: Path, store: KeyValueStore, who: int) -> tuple[Core, ManualClock]:
    clock = ManualClock()
    core = build_core(clock, store, KEYS[who], directory)
    _advance_to(clock, core.chain.head.time)
    return core, clock


def _build_data(name: str) -> bytes:
    """More than two chunks of bytes that no other name has."""
    return hashlib.shake_128(name.encode()).digest(2 * CHUNK_BYTES + 1000)


def _produce(core: Core, clock: ManualClock, height: int) -> None:
    """Blocks of one transfer each, at the first second that the rules allow."""
    while core.chain.head.height < height:
        assert core.admit(core.sign(Transfer(SINK, Amount(core.chain.head.height + 1)))).accepted
        for _ in range(100):
            clock.advance(1.0)
            if Proposer(core).propose():
                break


def build_vote(target: int) -> Vote:
    """For some block at a height; the signature is a true one."""
    hashed = Hash32(hashlib.sha256(str(target).encode()).digest())
    source = Checkpoint(Height(0), CHAIN_ID)
    return sign_vote(KEYS[0], CHAIN_ID, source, Checkpoint(Height(target), hashed))


def _put_records(ledger: Ledger, height: int) -> None:
    signed = SignStateStore(ledger, KEYS[0].address)
    for number in range(signed.signed.target + 1, height + 1):
        signed.record(build_vote(number))
    for kind in ("opening", "verdict", "claim", "weights"):
        for number in range(1, height + 1):
            key = f"{kind}/{number}".encode()
            if ledger.get_record(key) is None:
                ledger.put_record(key, _build_data(kind)[: 50 * number])


def prepare(directory: Path) -> None:
    """What the peer has: its chain, as one file, and a blob."""
    core, clock = _open_core(directory / "peer", MemoryStore(), 1)
    _produce(core, clock, SYNCED)
    blocks = [core.chain.ledger.get_block(block) for block in core.chain.ledger.get_hashes(1, SYNCED)]
    write_blocks(directory / "peer.blocks", [block for block in blocks if block is not None])
    core.blobs.put_bytes(_build_data("the peer's"))


def write_blocks(path: Path, blocks: list[bytes]) -> None:
    path.write_bytes(b"".join(len(block).to_bytes(4, "big") + block for block in blocks))


def read_blocks(path: Path) -> Iterator[bytes]:
    data, at = path.read_bytes(), 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : end]
        at = end


def produce(directory: Path) -> None:
    """Before the node has seen its peer: blocks of its own, records, a blob."""
    store = LevelStore(directory / "ledger")
    core, clock = _open_core(directory, store, 0)
    _produce(core, clock, BEFORE_SYNC)
    _put_records(core.chain.ledger, BEFORE_SYNC)
    core.blobs.put_bytes(_build_data("own"))
    store.close()


def sync(directory: Path) -> None:
    """The peer's chain comes, block by block, and takes the place of the node's own; and the peer's blob."""
    store = LevelStore(directory / "ledger")
    core, clock = _open_core(directory, store, 0)
    _advance_to(clock, NOW)
    for block in read_blocks(directory / "peer.blocks"):
        core.take_block(block)
    assert core.chain.head.height == SYNCED
    _fetch(BlobStore(directory / "peer" / "blobs"), core.blobs)
    _put_records(core.chain.ledger, SYNCED)
    store.close()


def _fetch(peer: BlobStore, blobs: BlobStore) -> None:
    for ref in peer.get_refs():
        manifest = peer.get_manifest(ref.root)
        assert manifest is not None
        if blobs.has(ref.root):
            continue
        partial = blobs.open_partial(manifest)
        for index in partial.missing:
            chunk = peer.read_chunk(ref.root, index)
            assert chunk is not None
            partial.write_chunk(index, chunk)
        partial.finish()


def resume(directory: Path) -> None:
    """After the sync: blocks on the peer's chain."""
    store = LevelStore(directory / "ledger")
    core, clock = _open_core(directory, store, 0)
    _produce(core, clock, AFTER_SYNC)
    store.close()


def _is_done(ledger: Ledger, step: bytes) -> bool:
    return ledger.get_record(b"maintained/" + step) is not None


def _open_store(directory: Path) -> LevelStore:
    """The store of a ledger of any age, brought to this version."""
    store = LevelStore(directory / "ledger")
    if store.get(schema.VERSION_KEY) is not None:
        migrate_store(store, CHAIN_ID)
    return store


def maintain(directory: Path) -> None:
    """What no block does: a ledger of an older version, a head moved back and forth, blocks forgotten, old
    ones pruned, blobs removed."""
    store = _open_store(directory)
    ledger = Ledger.open(store, CHAIN_ID)
    if not _is_done(ledger, b"migrated"):
        old = schema.encode_meta(schema.Meta(CHAIN_ID, ledger.head, ledger.height))[:-1]
        puts = [(schema.VERSION_KEY, schema.encode_version(1)), (schema.META_KEY, b"\x93" + old[1:])]
        store.write_batch(puts)
        migrate_store(store, CHAIN_ID)
        ledger = Ledger.open(store, CHAIN_ID)
        ledger.put_record(b"maintained/migrated", b"")
    if not _is_done(ledger, b"head"):
        ledger.put_record(b"maintained/head", ledger.get_block(ledger.head) or b"")
    block = decode(Block, ledger.get_record(b"maintained/head") or b"")
    head = compute_block_hash(block.header)
    if not _is_done(ledger, b"back"):
        if ledger.head == head:
            ledger.set_head(HeadChange((), (head,)))
        ledger.put_record(b"maintained/back", b"")
    if not _is_done(ledger, b"forgotten"):
        if ledger.head != head and ledger.has_block(head):
            ledger.set_head(HeadChange((head,)))
        roll_back(ledger, AFTER_SYNC - 1, Checkpoint(Height(0), CHAIN_ID))
        ledger.put_record(b"maintained/forgotten", b"")
    if ledger.head != head:
        # Its state is still there: nothing was swept.
        ledger.put_block(block, {}, head=HeadChange((head,)))
    for _ in prune_steps(ledger, BASE):
        pass
    blobs = BlobStore(directory / "blobs")
    for ref in BlobStore(directory / "peer" / "blobs").get_refs():
        path = blobs.get_path(ref.root)
        if path is not None:  # rotten; it is found, and comes again
            with path.open("r+b") as file:
                file.write(b"\x00\xff")
            assert blobs.verify(ref.root) == (0,)
    _fetch(BlobStore(directory / "peer" / "blobs"), blobs)
    for ref in blobs.get_refs():
        if ref.root != BlobStore(directory / "peer" / "blobs").get_refs()[0].root:
            blobs.remove(ref.root)
    store.close()


def rebuild(directory: Path) -> None:
    """The ledger moves aside; a new one has its records, and the chain from a peer."""
    genesis = build_genesis(ManualClock())
    nodes = dict(build_genesis_state(genesis).tree.new_nodes())
    path = directory / "ledger"
    if not path.is_dir() or not _is_rebuilt(path):
        rebuild_ledger(path, CHAIN_ID, nodes, NOW)
    store = LevelStore(path)
    core, clock = _open_core(directory, store, 0)
    core.chain.ledger.put_record(b"rebuilt", b"")
    _advance_to(clock, NOW)
    for block in read_blocks(directory / "chain.blocks"):
        core.take_block(block)
    assert core.chain.head.height == AFTER_SYNC
    store.close()


def _is_rebuilt(path: Path) -> bool:
    store = LevelStore(path)
    ledger = Ledger.open(store, CHAIN_ID)
    is_rebuilt = ledger.get_record(b"rebuilt") is not None
    store.close()
    return is_rebuilt


def report(directory: Path) -> None:
    """What a start finds, written beside the ledger."""
    found: dict[str, object] = {"head": None}
    if (directory / "ledger" / "CURRENT").exists():
        store = _open_store(directory)
        core, _ = _open_core(directory, store, 0)
        ledger = core.chain.ledger
        blobs = {}
        for ref in core.blobs.get_refs():
            blobs[ref.root.hex()] = core.blobs.verify(ref.root)
        found = {
            "head": ledger.head.hex(),
            "height": ledger.height,
            "base": ledger.base,
            "root": core.chain.head_state.root.hex(),
            "balance": core.chain.head_state.get_account(SINK).balance,
            "records": {key.hex(): value.hex() for key, value in ledger.iterate_records(b"")},
            "blobs": blobs,
            "damages": [str(damage) for damage in check_ledger(ledger, deep=True)],
        }
        store.close()
    (directory / "report.json").write_text(json.dumps(found), encoding="utf-8")


def export(directory: Path) -> None:
    """The head chain as a peer would give it."""
    store = LevelStore(directory / "ledger")
    ledger = Ledger.open(store, CHAIN_ID)
    blocks = [ledger.load_block(block) for block in ledger.get_hashes(1, ledger.height)]
    write_blocks(directory / "chain.blocks", [encode(block) for block in blocks if block is not None])
    store.close()


PHASES: dict[str, Callable[[Path], None]] = {
    phase.__name__: phase for phase in (prepare, produce, sync, resume, export, maintain, rebuild, report)
}


def run(directory: Path, phase: str, crash: str | None) -> int:
    """The wait status of a child that ran the phase."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            crashpoints.arm(crash)
            PHASES[phase](directory)
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(code)
    return os.waitpid(child, 0)[1]


def warm_up() -> None:
    """Fill caches that every child would fill anew. No LevelDB: its threads would not survive the fork."""
    with tempfile.TemporaryDirectory() as directory:
        core, clock = _open_core(Path(directory), MemoryStore(), 0)
        _produce(core, clock, 2)
        check_ledger(core.chain.ledger, deep=True)
        assert core.chain.ledger.load_block(core.chain.head_hash) is not None


def main() -> None:
    warm_up()
    for line in sys.stdin:
        job = json.loads(line)
        print(run(Path(job["directory"]), job["phase"], job["crash"]), flush=True)


if __name__ == "__main__":
    main()
