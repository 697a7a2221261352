"""What a key ceremony is made of: who takes part, commitments and contributions of its rounds, the keys.

The chain is the committee's bulletin board (ADR 0024): what all members must see in one order is a
transaction, contributions are blobs of which consensus sees the root alone.
"""

from dataclasses import dataclass
from enum import StrEnum

from consensus.task import BlobRef
from consensus.types import Address, Hash32, Height, Millis

ROUNDS = ("coins", "shares", "relin", "secrets", "test")
"""In order; transactions name a round by its place."""

# --- transaction payloads ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateCeremony:
    """A ceremony under its transaction's id; the sender is one of the members."""

    preset: str
    """Name of the CKKS preset."""
    members: tuple[Address, ...]
    """Ascending, one of each organisation."""
    threshold: int
    """So many members open together."""
    deadline: Millis


@dataclass(frozen=True, slots=True)
class CommitRound:
    """A member binds itself to its contribution to the current round."""

    ceremony: Hash32
    round: int
    digest: Hash32
    """`compute_commitment` of the contribution."""


@dataclass(frozen=True, slots=True)
class RevealRound:
    """Shows the contribution that the sender committed to; once nobody can commit any more."""

    ceremony: Hash32
    round: int
    contribution: BlobRef
    salt: bytes
    """32 random bytes."""


@dataclass(frozen=True, slots=True)
class ConfirmCeremony:
    """The keys as the sender computed them from all contributions."""

    ceremony: Hash32
    public_key: BlobRef
    relin_keys: BlobRef


@dataclass(frozen=True, slots=True)
class EndCeremony:
    """Ends a ceremony that is over: by anyone after its deadline, before it by a member that aborts it."""

    ceremony: Hash32


# --- what the state remembers -----------------------------------------------------------------


class CeremonyStatus(StrEnum):
    RUNNING = "running"
    READY = "ready"
    """All members confirmed the same keys; a draft may name it."""
    FAILED = "failed"
    """A member confirmed other keys than the first one."""
    ABORTED = "aborted"
    """By a member."""
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class RoundPart:
    """What one member has done in the current round."""

    member: Address
    commitment: Hash32
    contribution: BlobRef | None
    """None until it is revealed."""


@dataclass(frozen=True, slots=True)
class CompleteRound:
    """A round in which all have revealed."""

    contributions: tuple[BlobRef, ...]
    """In the members' order."""


@dataclass(frozen=True, slots=True)
class CeremonyRecord:
    create: CreateCeremony
    creator: Address
    height: Height
    status: CeremonyStatus
    complete: tuple[CompleteRound, ...]
    """Rounds that are over; their number is that of the current one."""
    parts: tuple[RoundPart, ...]
    """Of the current round, in order of commitment."""
    committed_height: Height
    """Of the block in which the last member committed; 0 before."""
    public_key: BlobRef | None
    """As the first member confirmed it."""
    relin_keys: BlobRef | None
    confirmed: tuple[Address, ...]
    """Who confirmed just these keys, in order."""
    ended_by: Address | None
    """Who confirmed other ones than the first, who aborted, or who sent the end of an expired one."""
    ended_height: Height
    """Of the block that made it ready or ended it; 0 before."""
