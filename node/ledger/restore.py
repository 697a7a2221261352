"""`bmif ledger restore`: a new ledger from a snapshot file, in its place only once all of it is proved."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from consensus.block import Header
from consensus.codec import encode
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash
from consensus.params import Genesis
from consensus.state import State
from consensus.tree import Tree
from consensus.types import Hash32
from consensus.vote import Checkpoint
from node.history import WeightHistory
from node.ledger.chainstore import SIGN_STATE_UNKNOWN, Ledger
from node.ledger.files import holds_files, put_in_place
from node.ledger.level import LevelStore
from node.ledger.mark import sync_files
from node.ledger.portable import SnapshotHead, Verification
from node.ledger.schema import LedgerError
from node.ledger.snapshot import put_nodes, stage_headers, take_over
from node.sync.serving import PROOF_RECORD, get_change_record

RESTORING_SUFFIX = ".restoring"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a new ledger holds."""

    checkpoint: Checkpoint
    headers: int
    nodes: int


class CountingSink:
    """Keeps nothing: to verify a file only."""

    def __init__(self) -> None:
        self.headers = 0
        self.nodes = 0

    def take_headers(self, headers: Sequence[Header]) -> None:
        self.headers += len(headers)

    def take_nodes(self, nodes: dict[Hash32, bytes]) -> None:
        self.nodes += len(nodes)


class LedgerSink(CountingSink):
    """Puts what was verified into a ledger, where it counts for nothing before the last batch."""

    def __init__(self, ledger: Ledger, progress: Callable[[str], None] = lambda _: None) -> None:
        super().__init__()
        self._ledger = ledger
        self._progress = progress

    def take_headers(self, headers: Sequence[Header]) -> None:
        stage_headers(self._ledger, headers)
        super().take_headers(headers)
        self._progress(f"{self.headers} headers")

    def take_nodes(self, nodes: dict[Hash32, bytes]) -> None:
        put_nodes(self._ledger, nodes)
        super().take_nodes(nodes)
        self._progress(f"{self.nodes} state nodes")


def restore_ledger(
    file: BinaryIO,
    path: Path,
    genesis: Genesis,
    trusted: Checkpoint | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Restored:
    """Make the ledger at `path` from a snapshot file.

    It has no record of what the node signed, so the voter starts in its safe mode. Killed at any point,
    there is no ledger yet; called again it begins anew.

    Raises:
        LedgerError: there is a ledger already; it stays as it is.
        SnapshotError: the file is damaged, of another chain, or not proved; nothing is left of it.
        StoreError: the disk can't be written.
    """
    if holds_files(path):
        raise LedgerError(f"there is a ledger at {path}, with what this node signed: move it away first")
    building = path.with_name(path.name + RESTORING_SUFFIX)
    shutil.rmtree(building, ignore_errors=True)
    try:
        store = LevelStore(building)
        try:
            restored = _fill(store, file, genesis, trusted, progress)
        finally:
            store.close()
        sync_files(building)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    put_in_place(building, path)
    return restored


def _fill(
    store: LevelStore,
    file: BinaryIO,
    genesis: Genesis,
    trusted: Checkpoint | None,
    progress: Callable[[str], None],
) -> Restored:
    state = build_genesis_state(genesis)
    chain_id = compute_block_hash(build_genesis_header(genesis, state))
    ledger = Ledger.open(store, chain_id, dict(state.tree.new_nodes()))
    # Before all others: no later step takes the voter's caution back.
    ledger.put_record(SIGN_STATE_UNKNOWN, b"the ledger is made from a snapshot file")
    sink = LedgerSink(ledger, progress)
    head, block, data = Verification(genesis, sink, trusted).run(file)
    _keep_proofs(ledger, head, state.get_validator_set().number)
    take_over(ledger, block, data)
    _keep_weights(ledger, block.header)
    return Restored(head.proof.checkpoint, sink.headers, sink.nodes)


def _keep_proofs(ledger: Ledger, head: SnapshotHead, first: int) -> None:
    """The node can't make them from bodies that it lacks, and others will ask it for them."""
    records = {PROOF_RECORD: encode(head.proof)}
    for number, change in enumerate(head.changes, first):
        records[get_change_record(number)] = encode(change)
    ledger.put_records(records)


def _keep_weights(ledger: Ledger, header: Header) -> None:
    """The weights at each task's step, which follow from no opening that this ledger holds."""
    state, history = State(Tree(header.state_root, ledger)), WeightHistory(ledger)
    for task_id in state.get_tasks():
        task = state.get_task(task_id)
        if task is not None:
            history.put(task_id, task.weights)
