"""What federated rounds are made of: federations, encrypted updates, sums, openings, judgements.

Hospitals train on their own scans and post encrypted weighted updates; ciphertexts are added bit for bit
recomputably; the custody opens one noised sum a round, of a list that a final block fixed (Kumar et al., CMIG
2022, with the weaknesses of its published code mended: ADR 0022).
"""

from dataclasses import dataclass
from enum import StrEnum

from consensus.task import BlobRef, Milestone
from consensus.types import Address, Amount, Hash32, Height, Millis

# --- transaction payloads ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Participant:
    address: Address
    weight: int
    """The update is multiplied by it before encryption; the opened sum is divided by the listed total."""


@dataclass(frozen=True, slots=True)
class CreateFederation:
    """A federation under its transaction's id; the sender is its custody, which holds the secret key."""

    title: str
    statement: str
    """What participants agree to: clipping, noise, (epsilon, delta), who opens what."""
    network: BlobRef
    """The network's canonical description; opaque to consensus."""
    model: BlobRef
    """Initial weights."""
    parameters: int
    keys: BlobRef
    """Public encryption key."""
    update_bytes: int
    """Exact length of every encrypted update and of every sum."""
    participants: tuple[Participant, ...]
    """By ascending address, at most one an organisation."""
    min_participants: int
    """No sum of fewer is ever opened."""
    rounds: int
    """At most so many, lapsed ones included."""
    max_openings: int
    train_ms: Millis
    """How long a round takes updates, from its start."""
    open_ms: Millis
    """How long the custody has from the end of the list."""
    judge_ms: Millis
    clip: int
    """L2 bound of one participant's update before its weight, in integer units."""
    noise_std: int
    """Standard deviation of the Gaussian noise of each opened number, in integer units."""
    slack: int
    """By how much a round may worsen a validator's loss and still be accepted, in units of 1e-6."""
    ladder: tuple[Milestone, ...]
    """Targets of `after` losses, in units of 1e-6, strictly falling; rewards are escrowed from the sender."""
    deadline: Millis


@dataclass(frozen=True, slots=True)
class SubmitUpdate:
    """A participant's encrypted weighted update of the current round."""

    federation: Hash32
    round: int
    update: BlobRef


@dataclass(frozen=True, slots=True)
class AttestUpdates:
    """A validator holds these updates, and they are well formed."""

    federation: Hash32
    round: int
    updates: tuple[Hash32, ...]
    """Roots, ascending: not whose they are, for on another fork somebody may have submitted another one."""


@dataclass(frozen=True, slots=True)
class CloseRound:
    """Fixes the list of a round: what was submitted and is available. By anyone."""

    federation: Hash32
    round: int


@dataclass(frozen=True, slots=True)
class ConfirmSum:
    """A validator's root of the sum of the listed ciphertexts."""

    federation: Hash32
    round: int
    total: Hash32


@dataclass(frozen=True, slots=True)
class OpenSum:
    """The custody's opening of a confirmed sum: once a round."""

    federation: Hash32
    round: int
    total: Hash32
    opened: BlobRef
    """The decrypted sum with noise: integers."""
    model: BlobRef
    """The model that follows from it, for anybody to recompute."""


@dataclass(frozen=True, slots=True)
class JudgeRound:
    """A validator's losses on data of its own, in units of 1e-6.

    A model that does not follow from what was opened is judged with an `after` beyond `before + slack`.
    """

    federation: Hash32
    round: int
    model: Hash32
    """Root of the model that `after` is of: on another fork the custody may have opened another one."""
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class SettleRound:
    """Ends a round by what was judged, or as lapsed if the custody did not open in time. By anyone."""

    federation: Hash32
    round: int


@dataclass(frozen=True, slots=True)
class EndFederation:
    """Ends a federation that is over; what is left of the escrow goes back to its creator. By anyone."""

    federation: Hash32


# --- what the state remembers -----------------------------------------------------------------


class FederationStatus(StrEnum):
    RUNNING = "running"
    ENDED = "ended"


class RoundPhase(StrEnum):
    TRAINING = "training"
    """Takes updates."""
    SUMMING = "summing"
    """The list is fixed; validators confirm its sum, the custody opens it."""
    OPENED = "opened"
    """Validators judge the model."""


class RoundOutcome(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    LAPSED = "lapsed"
    """Nothing came of it: too few updates, no opening, or too few judgements."""


@dataclass(frozen=True, slots=True)
class Submission:
    participant: Address
    update: BlobRef
    attested: tuple[Address, ...]
    """Validators that hold it, in order."""


@dataclass(frozen=True, slots=True)
class SumVote:
    validator: Address
    total: Hash32


@dataclass(frozen=True, slots=True)
class Judgement:
    validator: Address
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    number: int
    """From 0."""
    phase: RoundPhase
    started: Millis
    left_out: Address | None
    """Whom this round of probation does without."""
    submissions: tuple[Submission, ...]
    listed: tuple[Address, ...]
    """By ascending address; empty until the list is fixed."""
    closed_height: Height
    closed_time: Millis
    sums: tuple[SumVote, ...]
    total: Hash32 | None
    """The confirmed sum's root."""
    opened: BlobRef | None
    model: BlobRef | None
    opened_time: Millis
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class EndedRound:
    """A round that is over, kept for good under `round/<federation>/<number>`."""

    round: RoundRecord
    outcome: RoundOutcome
    time: Millis
    height: Height
    rungs: tuple[int, ...]
    """Rungs of the ladder that it met."""


@dataclass(frozen=True, slots=True)
class FederationRecord:
    create: CreateFederation
    custody: Address
    height: Height
    status: FederationStatus
    round: RoundRecord
    """The current one; the last one where the federation has ended."""
    model: BlobRef
    """The global model: of the last accepted round, or the initial one."""
    openings: int
    accepted: int
    next_rung: int
    suspects: tuple[Address, ...]
    """Out for the rest: of all rounds that left out one of a rejected list only theirs was accepted."""
    accused: tuple[Address, ...]
    """The rejected list of which one after the other is left out; empty where none is on probation."""
    probation: tuple[Address, ...]
    """Who of them is still to be left out after this round, in order."""
    escrow: Amount
