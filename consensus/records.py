"""What the state remembers of accounts and tasks; each record is one value of the state tree."""

from dataclasses import dataclass
from enum import StrEnum

from consensus.params import Validator
from consensus.task import Contribute, Credit, Draft
from consensus.types import Address, Amount, Hash32, Height, Millis
from consensus.vote import Checkpoint


@dataclass(frozen=True, slots=True)
class Account:
    balance: Amount
    nonce: int
    """The nonce that its next counted transaction must carry."""
    organisation: str
    """Set by governance; empty for none."""


@dataclass(frozen=True, slots=True)
class DraftRecord:
    draft: Draft
    sender: Address
    used: bool
    """True once a task was published from it."""


@dataclass(frozen=True, slots=True)
class ContributionRecord:
    contribute: Contribute
    sender: Address
    used: bool


class TaskStatus(StrEnum):
    PENDING = "pending"
    """Published; waits for validators to hold its blobs."""
    OPEN = "open"
    COMPLETE = "complete"
    """The last rung is settled."""
    EXPIRED = "expired"
    CLOSING = "closing"
    """A milestone was rejected; those before it still await their verdicts, nothing else goes on."""
    CLOSED = "closed"
    """Ended by evidence or by verdicts."""


@dataclass(frozen=True, slots=True)
class Qualified:
    """Rungs [first_rung, last_rung] met by one loss opening and waiting for a work block."""

    first_rung: int
    last_rung: int
    step: int
    loss: int
    loss_opening: Hash32
    ciphertext: Hash32
    """Hash of the loss ciphertexts that the opening names (W4)."""
    openings: Hash32
    """Hash of the task's last opening before that loss opening (W3)."""
    weights_digest: Hash32
    credits: tuple[Credit, ...]
    """Ranked: most batches first, ties by H(task, milestone, miner)."""
    height: Height
    """Of the block that holds the loss opening."""
    time: Millis


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A milestone that a work block has taken and that validators may still reject."""

    milestone: Qualified
    height: Height
    """Of the work block."""
    time: Millis
    accepted: tuple[Address, ...]
    """Validators in order of their verdicts."""
    rejected: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The last settled milestone: the model that has been tried on data nobody else saw."""

    last_rung: int
    step: int
    loss: int
    weights_digest: Hash32


@dataclass(frozen=True, slots=True)
class TaskState:
    """How far a task has come. The opened numbers themselves live in transactions."""

    status: TaskStatus
    custody: Address
    published_height: Height
    available: tuple[Address, ...]
    """Validators that hold the task's keys and validation blobs, in order of arrival."""
    available_stake: int
    step: int
    """The step whose gradient is opened next."""
    weights: tuple[int, ...]
    momentum: tuple[int, ...]
    previous: Hash32
    """Hash of the last opening; ZERO_HASH before the first."""
    loss_opened: bool
    """True if the loss at the current step has been opened."""
    last_loss: int | None
    gradient_openings: int
    loss_openings: int
    interval_credits: tuple[Credit, ...]
    """Credited batches since the last qualification, by ascending address."""
    qualified: tuple[Qualified, ...]
    """Pending milestones in order."""
    next_rung: int
    """The next rung to be qualified."""
    next_taken_rung: int
    """The next rung to be taken by a work block."""
    unsettled: tuple[Unsettled, ...]
    """Milestones taken and not settled yet, in order."""
    settled: Settled | None
    judged: tuple[Hash32, ...]
    """Loss openings of all settled milestones, in order."""
    escrow: Amount
    bond: Amount


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """A validator set in its order of turns; sets are numbered from 0."""

    number: int
    validators: tuple[Validator, ...]


@dataclass(frozen=True, slots=True)
class PendingSet:
    """A validator set that becomes active when the block of this height is final."""

    validators: tuple[Validator, ...]
    height: Height
    deposits: tuple[Validator, ...]
    """Stake taken from accounts already, beyond what the active set holds."""


@dataclass(frozen=True, slots=True)
class Finality:
    justified: Checkpoint
    """The highest justified checkpoint: the source of every vote for the next block."""
    finalized: Checkpoint
    content: Height
    """Of the last block that carried transactions or work: finality is wanted up to there."""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What the votes of a branch say of one of its blocks."""

    hash: Hash32
    source: Checkpoint
    """The highest justified checkpoint in its post-state: the only source of votes for it."""
    set_number: int
    """The validator set in its post-state."""
    is_justified: bool
    voters: tuple[Address, ...]
    """In order of arrival."""
    jailed: int = 0
    """How many were jailed in its post-state: the first so many of that list, which only grows."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Money that stays within reach of evidence for a while: a leaver's stake, an ended task's bond."""

    owner: Address
    amount: Amount
    release: Millis
    """Paid to the owner by the first block of this time or later."""
    task: Hash32 | None
    """Whose bond it is; None for a stake."""


@dataclass(frozen=True, slots=True)
class LockList:
    locks: tuple[Lock, ...]


@dataclass(frozen=True, slots=True)
class Charter:
    """Counters of governance: how many changes there were, and the money forfeited and not granted."""

    sequence: int
    treasury: Amount


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A protocol version and the height of the first block that obeys it."""

    version: int
    height: Height


@dataclass(frozen=True, slots=True)
class UpgradeList:
    """By ascending height; versions rise with it."""

    upgrades: tuple[Upgrade, ...]


@dataclass(frozen=True, slots=True)
class AccusationRecord:
    signers: tuple[Address, ...]
    stake: int
    took_effect: bool


@dataclass(frozen=True, slots=True)
class OrganisationSet:
    """Organisations whose accounts may claim batches."""

    organisations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddressList:
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class TaskList:
    """Tasks in order of publication."""

    tasks: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """The one task or federation in which a key root appears; before, the ceremony that made it."""

    task: Hash32
