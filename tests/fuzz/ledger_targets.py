"""Targets: snapshot files, and the note that a migration leaves."""

import io
from collections.abc import Iterable
from functools import cache

from benchmarks.voted_chain import VotedChain, build_genesis, build_keys
from consensus.types import Hash32
from consensus.work import NoProofVerifier
from node.chain import Chain
from node.clock import SystemClock
from node.ledger.migration import PROGRESS_RECORD, _load_progress
from node.ledger.portable import SnapshotError, Verification
from node.ledger.restore import CountingSink
from node.ledger.schema import LedgerDamaged
from node.ledger.store import MemoryStore
from node.snapshots import build_snapshot
from node.sync.serving import FinalityProver
from tests.fuzz.target import Target, require

BLOCKS = 6


@cache
def build_chain() -> VotedChain:
    keys = build_keys(2)
    chain = VotedChain(build_genesis(keys), {key.address: key for key in keys})
    chain.grow(BLOCKS)
    return chain


@cache
def build_file() -> bytes:
    voted = build_chain()
    chain = Chain(voted.genesis, MemoryStore(), SystemClock(), NoProofVerifier(Hash32(bytes(32))))
    for data in voted.encoded:
        chain.submit(data)
    return b"".join(build_snapshot(chain, FinalityProver(chain))[1])


def run_snapshot(data: bytes) -> None:
    """`Verification.run`: SnapshotError alone leaves it; what it takes is final in the chain, with all
    ancestors and the whole state."""
    voted, sink = build_chain(), CountingSink()
    head, block, _ = Verification(voted.genesis, sink).run(io.BytesIO(data))
    height = block.header.height
    require(block.header == voted.get_header(height) == head.proof.source, "took another block")
    require(sink.headers == height - 1, "took a block without its ancestors")
    require(sink.nodes > 0, "took a block without its state")


def run_progress(data: bytes) -> None:
    """`_load_progress`: LedgerDamaged alone leaves it; a table and the last key that was converted."""
    store = MemoryStore()
    store.write_batch([(PROGRESS_RECORD, data)])
    table, last = _load_progress(store, 1)
    require(table >= 0 and type(last) is bytes, "another progress")


def build_notes() -> Iterable[bytes]:
    for version, table, last in ((1, 0, b"m"), (1, 3, b""), (2, 1, bytes(33))):
        yield version.to_bytes(4, "big") + table.to_bytes(4, "big") + last


def build_targets() -> list[Target]:
    return [
        Target("ledger.migration", run_progress, (LedgerDamaged,), build_notes, max_bytes=256),
        Target(
            "ledger.snapshot",
            run_snapshot,
            (SnapshotError,),
            lambda: [build_file()],
            max_bytes=16_384,
            base=2**22,
            frames=200,
        ),
    ]
