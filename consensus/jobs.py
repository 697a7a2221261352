"""What jobs of encrypted inference are made of: models, requests, commitments, reveals, receipts.

A peer evaluates a model on an encrypted request. Evaluation on ciphertexts is exact, so the result is
recomputable bit for bit, and a job is paid when independent organisations come to the same bytes.
"""

from dataclasses import dataclass
from enum import StrEnum

from consensus.task import BlobRef
from consensus.types import Address, Amount, Hash32, Height, Millis

# --- transaction payloads ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegisterModel:
    """A model that anyone may have evaluated; the sender is its owner, its id the transaction's."""

    workload: str
    """Its kind: `diagnosis` or `sequence-diagnosis`."""
    label: str
    provenance: str
    """The owner's statement of what the model was made of; nobody checks it."""
    evidence: Hash32
    """Digest of what the statement refers to, such as a report; ZERO_HASH for none."""
    model: BlobRef
    keys: BlobRef | None
    """Evaluation keys of the one key pair that an encrypted model is under, which every request must name;
    None for clear weights, which requests under any key fit."""
    keys_bytes: int
    request_bytes: int
    result_bytes: int
    """Exact lengths of the blobs of every job with this model."""
    price: Amount
    """What the owner gets of each settled job's fee."""
    expires: Millis
    """No job may last longer: an encrypted model's keys end with it."""


@dataclass(frozen=True, slots=True)
class RetireModel:
    """Ends a model: there are no new requests; the sender is the owner."""

    model: Hash32


@dataclass(frozen=True, slots=True)
class RequestInference:
    """Asks for one evaluation; the fee is escrowed from the sender, the job's id is the transaction's."""

    model: Hash32
    request: BlobRef
    keys: BlobRef
    """Evaluation keys: relinearisation and rotations, nothing that decrypts."""
    fee: Amount
    commit_until: Millis
    """Header time from which the list of commitments may be closed; two thirds of stake close it before."""
    deadline: Millis


@dataclass(frozen=True, slots=True)
class CommitResult:
    """An evaluator's commitment to a result that it does not show yet, so that nobody can copy it."""

    job: Hash32
    commitment: Hash32
    """H("result-commitment", job, root of the result's blob, the sender's address)."""


@dataclass(frozen=True, slots=True)
class CloseCommits:
    """Ends a job's time for commitments, so that results may be shown. By anyone.

    A transaction of its own: results wait until a block has closed the list, not until a clock says so.
    """

    job: Hash32


@dataclass(frozen=True, slots=True)
class RevealResult:
    job: Hash32
    result: Hash32
    """Root of the result's blob."""


@dataclass(frozen=True, slots=True)
class ExpireJob:
    """Ends a job after its deadline: a confirmed one is paid, any other refunded. By anyone."""

    job: Hash32


# --- what the state remembers -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelRecord:
    register: RegisterModel
    owner: Address
    height: Height
    is_retired: bool


class JobStatus(StrEnum):
    OPEN = "open"
    """Takes commitments."""
    REVEALING = "revealing"
    """Takes no more commitments, but results."""
    CONFIRMED = "confirmed"
    """Organisations with more than a third of stake have the same result; others may still reveal."""
    SETTLED = "settled"
    """Confirmed, paid, with a receipt."""
    REFUNDED = "refunded"
    """Ended without agreement."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One organisation's part in a job."""

    evaluator: Address
    organisation: str
    """At the time of its commitment."""
    commitment: Hash32
    result: Hash32 | None
    """Once revealed."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    request: RequestInference
    requester: Address
    height: Height
    status: JobStatus
    evaluations: tuple[Evaluation, ...]
    """In order of commitment, one an organisation."""
    result: Hash32 | None
    """Root of the confirmed result."""
    result_height: Height
    """Of the block that confirmed it; 0 before."""
    escrow: Amount


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a settled job came to, for whoever holds its result."""

    job: Hash32
    model: Hash32
    requester: Address
    request: BlobRef
    keys: BlobRef
    result: BlobRef
    evaluators: tuple[Address, ...]
    """Who had this result; paid equally."""
    caught: tuple[Address, ...]
    """Who revealed another one; not paid."""
    silent: tuple[Address, ...]
    """Who committed and never revealed."""
    height: Height
    """Of the block that confirmed the result."""
    time: Millis
    """Of the block that settled the job."""


@dataclass(frozen=True, slots=True)
class EvaluatorRecord:
    """How an organisation's commitments ended, over all jobs."""

    right: int
    wrong: int
    silent: int


@dataclass(frozen=True, slots=True)
class Count:
    """Length of a list whose entries are records of their own."""

    count: int


@dataclass(frozen=True, slots=True)
class Entry:
    id: Hash32
