"""What the APIs need from the daemon: two narrow ports and the records that they return.

Reads are synchronous and quick (memory, or one look-up in the ledger); they return consensus values, and
the API alone turns them into JSON. Nothing here can reach a key: signing happens behind `OperatorView`.
"""

from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consensus.block import Block, Header, Work
from consensus.params import ChainParams
from consensus.payload import Payload, Verdict
from consensus.state import Account, State, TaskState
from consensus.task import BlobRef, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import Address, Hash32, Height, Millis
from consensus.vote import Checkpoint
from node.events import EventBus
from node.sync.ports import SyncProgress
from node.voting import VotingStatus

__all__ = [
    "Account",
    "BlobInfo",
    "BlockRecord",
    "Criterion",
    "HeadRecord",
    "MilestoneRecord",
    "NodeInfo",
    "NodeView",
    "OpeningRecord",
    "OperatorView",
    "PeerRecord",
    "PrivacyLoss",
    "Readiness",
    "RefusedTransaction",
    "State",
    "TaskState",
    "TransactionRecord",
    "ViewError",
]


class ViewError(Exception):
    """An operation could not be done; `remedy` tells the caller what to change. Becomes a 409 problem."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class RefusedTransaction(ViewError):
    """The rules or the mempool refused a transaction; `reason` is the consensus `Reason` or a mempool one."""

    def __init__(
        self, reason: str, detail: str, remedy: str = "Correct the transaction and sign it again"
    ) -> None:
        super().__init__(detail, remedy)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who this node is; constant while it runs."""

    name: str
    version: str
    network: str
    chain_id: Hash32
    address: Address
    organisation: str
    roles: tuple[str, ...]
    peer_address: str
    """host:port that peers dial."""
    started: Millis


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that a node is asked before it is called ready."""

    name: str
    ok: bool
    detail: str
    """What was found, in words."""
    blocking: bool = True
    """False for what is told, but keeps nobody from being ready."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node can serve: ledger open, recovered, caught up with its peers, its chain not stalled."""

    ready: bool
    reasons: tuple[str, ...] = ()
    """What is missing, in words, when not ready."""
    criteria: tuple[Criterion, ...] = ()
    """Each by name, met or not."""


@dataclass(frozen=True, slots=True)
class HeadRecord:
    hash: Hash32
    header: Header


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A stored block; genesis is a block with an empty body and a zero signature."""

    hash: Hash32
    block: Block
    size: int
    """Length of its canonical bytes."""


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """A transaction in the mempool (`block` None) or on the head chain."""

    id: Hash32
    transaction: SignedTransaction
    block: Hash32 | None = None
    height: Height | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class OpeningRecord:
    """An opening on the head chain."""

    hash: Hash32
    opening: OpenGradient | OpenLoss
    transaction: Hash32
    block: Hash32
    height: Height
    time: Millis
    """Of the block."""
    recomputed: bool | None = None
    """Of a loss: whether this node's own recomputation gave the same ciphertexts; None if not done."""


@dataclass(frozen=True, slots=True)
class MilestoneRecord:
    """A work block on the head chain."""

    work: Work
    block: Hash32
    height: Height
    time: Millis
    proposer: Address


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A validator's verdict on the head chain."""

    verdict: Verdict
    validator: Address
    transaction: Hash32
    height: Height


@dataclass(frozen=True, slots=True)
class PrivacyLoss:
    """(epsilon, delta) spent by a task's openings so far, computed off-chain."""

    epsilon: float | None
    """None: unbounded or vacuous; `statement` says why."""
    delta: float
    unit: str
    """`patch` or `patient`: what one neighbouring data set differs by."""
    statement: str


@dataclass(frozen=True, slots=True)
class PeerRecord:
    address: str
    node_id: str
    organisation: str
    connected: bool
    height: Height | None
    head: Hash32 | None
    latency_ms: float | None
    received_bytes: Mapping[str, int]
    """By kind of message."""
    sent_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BlobInfo:
    ref: BlobRef
    complete: bool
    held_bytes: int


class NodeView(Protocol):
    """What the public API reads. Implemented by the daemon."""

    @property
    def info(self) -> NodeInfo: ...

    @property
    def params(self) -> ChainParams: ...

    @property
    def events(self) -> EventBus: ...

    def get_readiness(self) -> Readiness: ...

    def get_head(self) -> HeadRecord: ...

    def get_justified(self) -> Checkpoint:
        """The highest justified block, which the head descends from."""
        ...

    def get_finalized(self) -> Checkpoint:
        """The highest final block."""
        ...

    def get_voting(self) -> VotingStatus:
        """Whether the node votes for finality."""
        ...

    def get_state(self) -> State:
        """The head's post-state."""
        ...

    def get_sync_target(self) -> Height:
        """The greatest height seen at a peer, at least the head's."""
        ...

    def get_sync_progress(self) -> SyncProgress | None:
        """What synchronising does now; None where nothing synchronises."""
        ...

    def get_revision(self) -> Hashable:
        """Moves whenever something that is read here may have changed; None: no answer may be kept."""
        ...

    def get_base(self) -> Height:
        """Lowest height whose bodies are held; what is below is held by nodes that were there."""
        ...

    def get_block(self, block: Hash32) -> BlockRecord | None:
        """Any stored block, on the head chain or not."""
        ...

    def get_block_hash(self, height: Height) -> Hash32 | None:
        """Of the head chain."""
        ...

    def get_transaction(self, transaction: Hash32) -> TransactionRecord | None: ...

    def get_mempool(self) -> Sequence[TransactionRecord]:
        """Waiting transactions, oldest first."""
        ...

    def get_openings(self, task: Hash32) -> Sequence[OpeningRecord]:
        """All openings of a task on the head chain, in chain order."""
        ...

    def get_milestones(self, task: Hash32) -> Sequence[MilestoneRecord]:
        """All work blocks of a task on the head chain, in order."""
        ...

    def get_verdicts(self, task: Hash32) -> Sequence[VerdictRecord]:
        """Verdicts on the task's milestones, in chain order."""
        ...

    def get_privacy(self, task: Hash32) -> PrivacyLoss | None:
        """None when this node can't compute it (an observer without the accountant)."""
        ...

    def get_peers(self) -> Sequence[PeerRecord]: ...

    def get_blob(self, root: Hash32) -> BlobInfo | None: ...

    def get_blob_path(self, root: Hash32) -> Path | None:
        """The file of a complete blob that is held here."""
        ...

    async def submit_transaction(self, data: bytes) -> Hash32:
        """Admit canonical bytes to the mempool, announce them, return the id; a known one is admitted again.

        Raises: RefusedTransaction.
        """
        ...


class OperatorView(Protocol):
    """What the operator's API may do besides. Implemented by the daemon; holds the signing key."""

    async def sign_and_submit(self, payload: Payload) -> Hash32:
        """Sign with the node's key at the next nonce (0 for idempotent kinds) and submit.

        Raises: RefusedTransaction.
        """
        ...

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        """Store a stream of any chunking as one blob and serve it to peers.

        Raises: ViewError when it is above the size limit or the quota.
        """
        ...

    def get_blob_path(self, root: Hash32) -> Path | None:
        """The file of a complete blob."""
        ...

    def build_ledger_snapshot(self, height: int | None) -> Iterator[bytes]:
        """The file of a final state (`bmif ledger restore` takes it), piece by piece.

        Raises: ViewError, at once or in between, when no such block is proved final or held whole.
        """
        ...

    def join_ceremony(self, ceremony: Hash32) -> None:
        """Have this node take part in a key ceremony of which its account is a member.

        Raises: ViewError.
        """
        ...

    async def fetch_blob(self, ref: BlobRef) -> Path:
        """The blob's file, fetched from peers if it is not here yet.

        Raises: ViewError when no peer has it.
        """
        ...
