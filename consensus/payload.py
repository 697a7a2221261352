"""Payloads that judge and govern: verdicts, evidence, governance; and the union of all payloads."""

from dataclasses import dataclass

from consensus.ceremonies import (
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    ExpireJob,
    RegisterModel,
    RequestInference,
    RetireModel,
    RevealResult,
)
from consensus.params import Validator
from consensus.task import (
    Available,
    Claim,
    Contribute,
    DraftTask,
    ExpireTask,
    OpenGradient,
    OpenLoss,
    PublishTask,
    Transfer,
)
from consensus.types import Address, Amount, Hash32, Height, Signature
from consensus.vote import Vote


@dataclass(frozen=True, slots=True)
class Verdict:
    """A validator's judgement of a milestone on private pairs of its own; the sender is the validator."""

    task: Hash32
    loss_opening: Hash32
    """Names the milestone: the hash of the loss opening that met it."""
    accept: bool
    before: int
    """Loss of the last settled model on those pairs, in opened units."""
    after: int
    """Loss of the milestone's model on them."""


@dataclass(frozen=True, slots=True)
class SettleTask:
    """Asks to settle the milestones that have stood `verdict_ms` without too many rejections."""

    task: Hash32
    loss_opening: Hash32
    """Names the first of them, so that every request is a transaction of its own."""


@dataclass(frozen=True, slots=True)
class ReportVotes:
    """Evidence: two votes of one validator that no honest one signs both."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True)
class SignedOpening:
    """An opening with its custody's signature of the transaction that carries it.

    A committee's cosignatures stand in the opening itself; who carried it does not matter.
    """

    opening: OpenGradient | OpenLoss
    signature: Signature


@dataclass(frozen=True, slots=True)
class ReportOpenings:
    """Evidence: two different openings of one kind for one step of a task."""

    first: SignedOpening
    second: SignedOpening


@dataclass(frozen=True, slots=True)
class WrongBundle:
    """A signed claim whose bundle is not the canonical one."""

    claim: Claim
    canonical: Hash32
    """Root of the canonical bundle's blob."""


@dataclass(frozen=True, slots=True)
class WrongLoss:
    """A signed loss opening whose ciphertext hash does not recompute; signed as a `SignedOpening`."""

    opening: OpenLoss
    signature: Signature
    canonical: Hash32
    """What the loss ciphertexts hash to."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """Evidence by recomputation: takes effect when validators with 2/3 of stake sent the same."""

    accusation: WrongBundle | WrongLoss


@dataclass(frozen=True, slots=True)
class SetValidators:
    """A new validator set, in its order of turns; it becomes active when the change is final."""

    validators: tuple[Validator, ...]


@dataclass(frozen=True, slots=True)
class SetMiningOrganisations:
    organisations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetOrganisation:
    """Puts an account into an organisation; an empty name takes it out of any."""

    address: Address
    organisation: str


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Lets a suspended organisation mine again."""

    organisation: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Pays out forfeited money."""

    to: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class ScheduleUpgrade:
    """Blocks from this height on obey the rules of this protocol version."""

    version: int
    height: Height


@dataclass(frozen=True, slots=True)
class CancelUpgrade:
    """Takes back the upgrade that is scheduled, named in full."""

    version: int
    height: Height


Action = (
    SetValidators
    | SetMiningOrganisations
    | SetOrganisation
    | Reinstate
    | Grant
    | ScheduleUpgrade
    | CancelUpgrade
)


@dataclass(frozen=True, slots=True)
class Governance:
    sequence: int
    """The number of governance transactions before it, so that none can be repeated."""
    action: Action


@dataclass(frozen=True, slots=True)
class Approval:
    validator: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class Govern:
    """A change that a quorum signed; anyone may send it."""

    governance: Governance
    approvals: tuple[Approval, ...]
    """By ascending address: 2/3 of stake, and whoever is to lock more stake than before."""


Payload = (
    Transfer
    | DraftTask
    | Contribute
    | PublishTask
    | Available
    | OpenGradient
    | OpenLoss
    | ExpireTask
    | Verdict
    | SettleTask
    | ReportVotes
    | ReportOpenings
    | Accuse
    | Govern
    | RegisterModel
    | RetireModel
    | RequestInference
    | CommitResult
    | CloseCommits
    | RevealResult
    | ExpireJob
    | CreateFederation
    | SubmitUpdate
    | AttestUpdates
    | CloseRound
    | ConfirmSum
    | OpenSum
    | JudgeRound
    | SettleRound
    | EndFederation
    | CreateCeremony
    | CommitRound
    | RevealRound
    | ConfirmCeremony
    | EndCeremony
)
