"""What a ceremony of keys is made of: payloads of its members, and its record.

The members of a committee make a task's keys together (ADR 24). The chain is their bulletin board:
contributions are blobs, and each is committed to before any of its round is shown, so that nobody chooses
after the others.
"""

from dataclasses import dataclass
from enum import StrEnum

from consensus.task import BlobRef
from consensus.types import Address, Hash32, Height, Millis

ROUNDS = ("coins", "shares", "relin", "secrets", "test")
"""In this order; a round is named by its index."""
SKIPPED = ("shares", "relin")
"""What a renewal leaves out: its keys are there already."""
MIN_MEMBERS = 2
MAX_MEMBERS = 16
SALT_BYTES = 32

# --- payloads ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateCeremony:
    """A ceremony under its transaction's id; the sender is one of its members."""

    title: str
    preset: str
    """Name of the CKKS preset of the keys."""
    members: tuple[Address, ...]
    """Ascending, each of another organisation. A member's place is its index here."""
    threshold: int
    """Members that open together, more than half; all of them make the keys."""
    deadline: Millis
    renews: Hash32
    """The ceremony whose keys the members share anew; ZERO_HASH: they make new keys."""


@dataclass(frozen=True, slots=True)
class CommitRound:
    """A member's commitment to its contribution of a round (`compute_commitment`)."""

    ceremony: Hash32
    round: int
    commitment: Hash32


@dataclass(frozen=True, slots=True)
class RevealRound:
    """What a member has committed to, once all commitments of the round are final."""

    ceremony: Hash32
    round: int
    contribution: BlobRef
    salt: bytes


@dataclass(frozen=True, slots=True)
class ConfirmCeremony:
    """A member's word that all answers were right and these are the keys, as it put them together itself."""

    ceremony: Hash32
    public_key: BlobRef
    relin_keys: BlobRef
    box_key: Hash32
    """The member's X25519 key, to which others seal what it alone is to read of openings."""


@dataclass(frozen=True, slots=True)
class EndCeremony:
    """Gives up a ceremony: by a member at any time, by anyone after the deadline."""

    ceremony: Hash32


# --- records ----------------------------------------------------------------------------------


class CeremonyStatus(StrEnum):
    RUNNING = "running"
    READY = "ready"
    """All members confirmed the same keys."""
    FAILED = "failed"
    """Two members confirmed different keys."""
    ENDED = "ended"
    """Given up, or over its deadline."""


@dataclass(frozen=True, slots=True)
class CeremonyCommitment:
    member: Address
    commitment: Hash32


@dataclass(frozen=True, slots=True)
class CeremonyReveal:
    member: Address
    contribution: BlobRef


@dataclass(frozen=True, slots=True)
class CeremonyConfirmation:
    member: Address
    public_key: BlobRef
    relin_keys: BlobRef
    box_key: Hash32


@dataclass(frozen=True, slots=True)
class CeremonyRecord:
    """A ceremony and how far it has come."""

    create: CreateCeremony
    height: Height
    status: CeremonyStatus
    round: int
    """The current one; the number of rounds once all are over."""
    commitments: tuple[CeremonyCommitment, ...]
    """Of the current round, in order of arrival."""
    committed_height: Height
    """Of the block that holds the round's last commitment; 0 while one is missing."""
    reveals: tuple[CeremonyReveal, ...]
    """Of the current round, in order of arrival."""
    contributions: tuple[tuple[BlobRef, ...], ...]
    """Of the rounds that are over, by place; none of those that are skipped."""
    confirmations: tuple[CeremonyConfirmation, ...]
    ended_by: Address | None
    """Who gave it up."""
    renewed_by: Hash32
    """The ceremony whose members have the shares now; ZERO_HASH: these."""
