"""Shapes of the REST API's answers, as pydantic models; `/openapi.json` is made from them."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field

from node.api.fields import (
    AmountInt,
    BlobRefModel,
    CheckpointModel,
    Count,
    CriterionModel,
    Hex32,
    Hex64,
    HexBytes,
    Model,
    SignedInt,
    TimeMs,
    VoteModel,
)
from node.api.payloads import PayloadModel, SignablePayload
from node.api.task_payloads import CreditModel, DraftModel

Item = TypeVar("Item")
Cursor = Annotated[str, Field(description="Opaque; pass it as `cursor` to get the next page")]


class Page(Model, Generic[Item]):
    """One page of a list; `next` is null on the last."""

    items: tuple[Item, ...]
    next: Cursor | None


class HeadModel(Model):
    hash: Hex32
    height: Count
    time: TimeMs
    state_root: Hex32


class SyncModel(Model):
    height: Count
    target: Count = Field(description="Greatest height seen at a peer")
    synced: bool
    phase: str = Field(default="idle", description="idle, proof, state, headers or bodies")
    proved: Count = Field(default=0, description="Height up to which peers proved the chain final, 0 if not")
    done: Count = Field(default=0, description="Headers, bodies or state nodes of this phase that came")
    wanted: Count = Field(default=0, description="Of so many; 0 where that is not known")
    asked: tuple[str, ...] = Field(default=(), description="Peers that are asked now")
    base: Count = Field(default=0, description="Lowest height whose bodies are held")


class VotingModel(Model):
    """Whether the node votes for finality."""

    state: Literal["none", "asking", "waiting", "voting"] = Field(
        description="none: no validator; asking: others have not said yet what they saw of its votes; "
        "waiting: it may have signed what it does not know of, and waits until that can do no harm"
    )
    detail: str


class StatusModel(Model):
    """Who the node is and where it stands."""

    name: str
    version: str
    network: str
    chain_id: Hex32
    address: Hex32
    organisation: str
    roles: tuple[str, ...]
    peer_address: str
    started: TimeMs
    head: HeadModel
    justified: CheckpointModel = Field(description="Highest block that two thirds of stake voted for")
    finalized: CheckpointModel = Field(description="Highest block that can never be undone")
    content_height: Count = Field(
        description="Height of the head chain's last block with transactions or work: "
        "validators vote and blocks go on until it is final"
    )
    voting: VotingModel
    sync: SyncModel
    ready: bool
    reasons: tuple[str, ...] = Field(description="What keeps the node from being ready")
    peers: Count
    mempool: Count
    tasks: Count
    last_event_id: Count


class HeaderModel(Model):
    hash: Hex32
    version: Count
    chain_id: Hex32
    height: Count
    parent: Hex32
    time: TimeMs
    proposer: Hex32
    transactions_root: Hex32
    work_root: Hex32
    votes_root: Hex32
    state_root: Hex32


class WorkModel(Model):
    """A milestone claimed by a block."""

    task: Hex32
    first_rung: Count
    last_rung: Count
    step: Count
    loss_opening: Hex32
    loss: SignedInt
    openings: Hex32
    weights: tuple[SignedInt, ...]
    credits: tuple[CreditModel, ...]


class WorkSummaryModel(Model):
    task: Hex32
    first_rung: Count
    last_rung: Count
    step: Count
    loss: SignedInt


class TransactionModel(Model):
    id: Hex32
    chain_id: Hex32
    sender: Hex32
    nonce: Count
    payload: PayloadModel
    signature: Hex64


class BlockSummaryModel(Model):
    """A block in a list."""

    hash: Hex32
    height: Count
    parent: Hex32
    time: TimeMs
    proposer: Hex32
    size: Count = Field(description="Canonical bytes")
    transactions: Count
    votes: Count
    work: WorkSummaryModel | None


class BlockModel(Model):
    """A whole block."""

    hash: Hex32
    header: HeaderModel
    signature: Hex64
    size: Count = Field(description="Canonical bytes")
    transactions: tuple[TransactionModel, ...]
    work: WorkModel | None
    votes: tuple[VoteModel, ...] = Field(description="Finality votes that count from this block on")


class TransactionSummaryModel(Model):
    id: Hex32
    sender: Hex32
    nonce: Count
    kind: str


class InclusionModel(Model):
    """Where on the head chain a transaction is."""

    block: Hex32
    height: Count
    index: Count


class TransactionStatusModel(Model):
    transaction: TransactionModel
    status: str = Field(description="`pending` (mempool) or `included`")
    inclusion: InclusionModel | None


class SubmittedModel(Model):
    """The transaction was admitted; it is on the chain once `GET /v1/transactions/{id}` says `included`."""

    id: Hex32


class SubmitModel(Model):
    transaction: HexBytes = Field(
        description="Canonical bytes of the signed transaction, hexadecimal", min_length=2
    )


class RungModel(Model):
    rung: Count
    target: SignedInt = Field(description="Validation loss, opened units")
    target_value: float
    reward: AmountInt
    state: str = Field(
        description="`open`, `qualified` (block to come), `taken` (verdicts to come), `settled` or `void`"
    )
    step: Count | None
    loss: SignedInt | None
    loss_value: float | None
    block: Hex32 | None
    height: Count | None
    proposer: Hex32 | None


class SpentModel(Model):
    spent: Count
    most: Count


class MinerCreditModel(Model):
    miner: Hex32
    organisation: str
    batches: Count


class PrivacyModel(Model):
    epsilon: float | None = Field(description="Null when unbounded or vacuous; `statement` says why")
    delta: float
    unit: str
    statement: str


class TaskSummaryModel(Model):
    id: Hex32
    title: str
    kind: str
    status: str = Field(description="pending, open, complete, expired, closing or closed")
    custody: Hex32
    published_height: Count
    step: Count
    last_loss: SignedInt | None
    last_loss_value: float | None
    next_target_value: float | None = Field(
        description="Loss that the next rung asks for; null after the last"
    )
    rungs: Count
    rungs_taken: Count
    rungs_settled: Count
    deadline: TimeMs


class CommitteeModel(Model):
    """Who has the shares of a task's key now."""

    ceremony: Hex32 = Field(description="That made the shares: the keys' own, or its last renewal")
    members: tuple[Hex32, ...]
    threshold: Count = Field(description="How many of them open together")


class TaskModel(TaskSummaryModel):
    """A task with its ladder and everything spent on it."""

    draft: Hex32
    custody_organisation: str
    committee: CommitteeModel | None = Field(
        description="Null for a single custodian's task; the custody of a committee's is its lead"
    )
    contributions: tuple[Hex32, ...]
    loss_scale_bits: Count
    gradient_scale_bits: Count
    weights: Hex32 = Field(description="Digest of the current weights")
    ladder: tuple[RungModel, ...]
    gradient_openings: SpentModel
    loss_openings: SpentModel
    batches: Count
    batches_per_step: Count
    training_patches: Count
    validation_patches: Count
    credits: tuple[MinerCreditModel, ...]
    available_stake: Count
    escrow: AmountInt
    bond: AmountInt
    batch_fee: AmountInt
    privacy: PrivacyModel | None
    privacy_statement: str


class StepModel(Model):
    """A training step that was opened, and the loss opened before it, if the schedule names it."""

    step: Count
    learning_rate: Count
    opening: Hex32 | None = Field(description="Null when only the loss has been opened so far")
    height: Count
    time: TimeMs
    miners: tuple[CreditModel, ...]
    loss: SignedInt | None
    loss_value: float | None


class OpeningModel(Model):
    hash: Hex32
    kind: str = Field(description="`gradient` or `loss`")
    step: Count
    previous: Hex32
    weights: Hex32
    transaction: Hex32
    block: Hex32
    height: Count
    time: TimeMs
    loss: SignedInt | None
    loss_value: float | None
    ciphertext: Hex32 | None = Field(description="Hash over the loss ciphertexts")
    recomputed: bool | None = Field(
        description="Whether this node itself recomputed the loss ciphertexts to that hash; null if not done"
    )
    credits: tuple[CreditModel, ...]
    attempt: int = Field(description="1; 2 for a committee's counted retry by other members")
    signers: tuple[Hex32, ...] = Field(description="Members of the committee; empty for a single custodian")


class ModelSummaryModel(Model):
    task: Hex32
    title: str
    status: str
    rung: Count
    step: Count
    loss: SignedInt
    loss_value: float
    weights_digest: Hex32


class TrainedModel(ModelSummaryModel):
    """Weights at the last settled milestone."""

    kind: str
    specification: HexBytes = Field(description="The workload's canonical model specification")
    weights: tuple[SignedInt, ...]
    block: Hex32
    height: Count


class ProofStepModel(Model):
    bit: Count
    sibling: Hex32


class ProofLeafModel(Model):
    path: Hex32
    value: HexBytes


class ProofModel(Model):
    """A Merkle proof under `root`; see docs/PROTOCOL.md."""

    root: Hex32
    key: HexBytes
    steps: tuple[ProofStepModel, ...]
    leaf: ProofLeafModel | None


class AccountModel(Model):
    address: Hex32
    balance: AmountInt
    nonce: Count
    organisation: str
    mines: bool = Field(description="Its organisation may claim batches")
    block: Hex32 = Field(description="Head at which this holds")
    height: Count
    proof: ProofModel


class PeerModel(Model):
    address: str
    node_id: str
    organisation: str
    connected: bool
    height: Count | None
    head: Hex32 | None
    latency_ms: float | None
    received_bytes: dict[str, int]
    sent_bytes: dict[str, int]


class PeersModel(Model):
    items: tuple[PeerModel, ...]


class DraftStatusModel(Model):
    hash: Hex32
    draft: DraftModel
    sender: Hex32
    used: bool = Field(description="A task was published from it")


class LiveModel(Model):
    live: bool


class ReadyModel(Model):
    """The node can serve; if it can't, the 503 problem names the same criteria."""

    ready: bool
    criteria: tuple[CriterionModel, ...]


class StoredBlobModel(Model):
    """A blob on this node."""

    blob: BlobRefModel
    complete: bool
    held_bytes: Count


class SignModel(Model):
    payload: SignablePayload
