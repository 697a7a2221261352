"""What all members know of one opening before it begins: who they are, in which order they lead."""

from dataclasses import dataclass

from consensus.crypto import hash_domain
from consensus.types import Address, Hash32
from node.committee.messages import MAX_ENTRIES, MAX_MEMBERS, MAX_PRIMES, OpeningKind


class TermsError(ValueError):
    """An opening can't be held on these terms."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a member waits, each in milliseconds of its own clock."""

    lead: int = 5_000
    """Rank r proposes after r times this."""
    settle: int = 200
    """Before it answers a proposal or signs numbers, for what contradicts them to come: longer than a message
    takes between members."""
    retry: int = 15_000
    """From a proposal on, until parts of it that are missing count as refused."""
    repeat: int = 2_000
    """Until it says again what it has said."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one opening."""

    chain_id: Hash32
    ceremony: Hash32
    task: Hash32
    step: int
    kind: OpeningKind
    members: tuple[Address, ...]
    """In order of their places."""
    threshold: int
    moduli: tuple[tuple[int, ...], ...]
    """The primes of each ciphertext that is opened."""
    waits: Waits = Waits()

    def __post_init__(self) -> None:
        """Raises: TermsError."""
        count = len(self.members)
        if not 2 <= self.threshold <= count <= MAX_MEMBERS or len(set(self.members)) != count:
            raise TermsError(f"{self.threshold} of {count} members")
        if 2 * self.threshold <= count:
            # Two subsets without a common member could each open, and sign, something else.
            raise TermsError(f"expected a threshold of more than half of {count}, got {self.threshold}")
        if not 1 <= len(self.moduli) <= MAX_ENTRIES or not all(
            1 <= len(row) <= MAX_PRIMES for row in self.moduli
        ):
            raise TermsError(f"{len(self.moduli)} ciphertexts")

    @property
    def leads(self) -> tuple[Address, ...]:
        """By rank: H(task, step, kind, member)."""
        where = self.task + self.step.to_bytes(8, "big") + self.kind.encode() + b"\0"
        return tuple(sorted(self.members, key=lambda member: hash_domain("committee-lead", where + member)))

    def get_place(self, member: Address) -> int | None:
        return self.members.index(member) if member in self.members else None


def compute_opening_name(chain_id: Hash32, ceremony: Hash32, question: Hash32) -> Hash32:
    """What noise and masks are bound to, beside subset and attempt: the same for whoever proposed it and
    whichever claims it lists, so that proposing it anew draws no new noise."""
    return hash_domain("committee-opening", chain_id + ceremony + question)
