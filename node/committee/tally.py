"""What a member has heard about one opening: checked by itself, bounded by the number of members, with the
faults that contradictions prove. Nothing here decides what to answer.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from consensus.committee import verify_content
from consensus.task import Cosignature
from consensus.types import Address, Hash32, Millis
from node.committee.messages import (
    Content,
    Cosign,
    Partial,
    Proposal,
    Ready,
    RoundMessage,
    compute_proposal_id,
    encode_message,
    get_sender,
)
from node.committee.terms import Terms

MAX_READY = 2
"""Questions for which one member may say that it is ready."""


class Refusal(StrEnum):
    """Why something said is not taken."""

    STRANGER = "stranger"
    OTHER_OPENING = "other-opening"
    """Of another task, step, kind or ceremony."""
    KNOWN = "known"
    FULL = "full"
    SUBSET = "subset"
    """Not as many places as the threshold, or the subset of the attempt that failed."""
    BOX = "box"
    """The content does not open, or is another one than is named."""
    UNCONFIRMED = "unconfirmed"
    """A root or ciphertext that this member has not confirmed, or another previous opening or weights."""
    CLAIMS = "claims"
    """Claims or confirmations that the chain would not take."""
    UNKNOWN_PROPOSAL = "unknown-proposal"
    ATTEMPT = "attempt"
    NOT_IN_SUBSET = "not-in-subset"
    SHAPE = "shape"
    RESIDUE = "residue"
    EQUIVOCATION = "equivocation"
    COSIGNATURE = "cosignature"


class Refused(Exception):
    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason


class Fault(StrEnum):
    TWO_PROPOSALS = "two-proposals"
    """Of one lead for one attempt."""
    TWO_ANSWERS = "two-answers"
    """Of one member, to two proposals of one attempt."""
    TWO_PARTS = "two-parts"
    """Of one member for one proposal."""
    TWO_CONTENTS = "two-contents"
    """Cosigned by one member."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed messages that no honest member sends both."""

    fault: Fault
    member: Address
    first: bytes
    second: bytes


@dataclass(slots=True)
class Candidate:
    """A proposal, and what became of it here."""

    proposal: Proposal
    id: Hash32
    seen: Millis
    content: Content | None = None
    refusal: Refusal | None = None
    parts: dict[int, Partial] = field(default_factory=dict)
    """By place."""
    complete: Millis | None = None
    """When the last part came."""
    spoiled: bool = False
    """A member of the subset, or the lead, contradicted itself: what this gives is not signed."""
    asked: bool = False
    """Parts are being combined, or have been."""
    implausible: bool = False
    numbers: tuple[int, ...] | None = None
    opened: Hash32 | None = None
    """Hash of the opening's content with its numbers, which members sign."""

    @property
    def subset(self) -> tuple[int, ...]:
        return self.proposal.subset

    @property
    def attempt(self) -> int:
        return self.proposal.attempt

    @property
    def is_acceptable(self) -> bool:
        """Nothing speaks against it yet."""
        return self.content is not None and self.refusal is None and not self.spoiled

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(place for place in self.subset if place not in self.parts)


class Tally:
    """All that was heard of one opening."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.ready: dict[Address, tuple[Hash32, ...]] = {}
        self.candidates: dict[Hash32, Candidate] = {}
        self.cosigned: dict[Address, tuple[Cosign, ...]] = {}
        self.evidence: dict[tuple[Fault, Address], Evidence] = {}
        """The first of each fault of each member."""
        self._early: dict[tuple[Address, int], Partial] = {}
        """The last part of a member for a proposal that has not come."""
        self._leads: dict[tuple[Address, int], Hash32] = {}
        self._answers: dict[tuple[Address, int], Partial] = {}

    def check(self, message: RoundMessage) -> None:
        """Raises: Refused unless a member says it about this opening."""
        terms = self.terms
        where = (message.ceremony, message.task, message.step, message.kind)
        if where != (terms.ceremony, terms.task, terms.step, terms.kind):
            raise Refused(Refusal.OTHER_OPENING)
        if terms.get_place(get_sender(message)) is None:
            raise Refused(Refusal.STRANGER, get_sender(message).hex())

    def add_ready(self, ready: Ready) -> None:
        known = self.ready.get(ready.member, ())
        if ready.question in known:
            raise Refused(Refusal.KNOWN)
        if len(known) >= MAX_READY:
            raise Refused(Refusal.FULL)
        self.ready[ready.member] = (*known, ready.question)

    def get_ready(self, question: Hash32) -> tuple[Address, ...]:
        """Who is ready for this, by rank."""
        return tuple(member for member in self.terms.leads if question in self.ready.get(member, ()))

    def add_proposal(self, now: Millis, proposal: Proposal) -> Candidate:
        """One of each lead and attempt; a second one is evidence, and spoils the first."""
        terms, own = self.terms, compute_proposal_id(proposal)
        if own in self.candidates:
            raise Refused(Refusal.KNOWN)
        subset = proposal.subset
        fits = len(subset) == terms.threshold and subset[-1] < len(terms.members)
        if not fits or len(proposal.shared.boxes) != len(terms.members):
            raise Refused(Refusal.SUBSET, f"{list(subset)} of {len(terms.members)}")
        first = self._leads.setdefault((proposal.lead, proposal.attempt), own)
        if first != own:
            earlier = self.candidates[first]
            earlier.spoiled = True
            self._blame(Fault.TWO_PROPOSALS, proposal.lead, earlier.proposal, proposal)
            raise Refused(Refusal.EQUIVOCATION, f"two proposals of attempt {proposal.attempt}")
        candidate = Candidate(proposal, own, now)
        self.candidates[own] = candidate
        return candidate

    def add_partial(self, now: Millis, partial: Partial) -> Candidate:
        """A part of a known proposal; contradictions are evidence, and spoil what they are about."""
        candidate = self.candidates.get(partial.proposal)
        if candidate is None:
            self._early[partial.member, partial.attempt] = partial
            raise Refused(Refusal.UNKNOWN_PROPOSAL, partial.proposal.hex())
        if candidate.attempt != partial.attempt:
            raise Refused(Refusal.ATTEMPT, f"{partial.attempt} of one of attempt {candidate.attempt}")
        place = self.terms.get_place(partial.member)
        if place is None or place not in candidate.subset:
            raise Refused(Refusal.NOT_IN_SUBSET, partial.member.hex())
        self._check_values(partial.values)
        earlier = self._answers.setdefault((partial.member, partial.attempt), partial)
        if earlier.proposal != partial.proposal:
            self.candidates[earlier.proposal].spoiled = candidate.spoiled = True
            self._blame(Fault.TWO_ANSWERS, partial.member, earlier, partial)
            raise Refused(Refusal.EQUIVOCATION, f"answered two proposals of attempt {partial.attempt}")
        if earlier.values != partial.values:
            candidate.spoiled = True
            self._blame(Fault.TWO_PARTS, partial.member, earlier, partial)
            raise Refused(Refusal.EQUIVOCATION, "two parts for one proposal")
        if place in candidate.parts:
            raise Refused(Refusal.KNOWN)
        candidate.parts[place] = partial
        if not candidate.missing:
            candidate.complete = now
        return candidate

    def take_early(self, proposal: Hash32) -> list[Partial]:
        """Parts that came before their proposal; they are to be added now."""
        found = [key for key, partial in self._early.items() if partial.proposal == proposal]
        return [self._early.pop(key) for key in found]

    def _check_values(self, values: tuple[tuple[int, ...], ...]) -> None:
        moduli = self.terms.moduli
        if [len(row) for row in values] != [len(row) for row in moduli]:
            raise Refused(Refusal.SHAPE, f"{len(values)} rows")
        for number, (row, primes) in enumerate(zip(values, moduli, strict=True)):
            if not all(0 <= value < prime for value, prime in zip(row, primes, strict=True)):
                raise Refused(Refusal.RESIDUE, f"ciphertext {number}")

    def add_cosign(self, cosign: Cosign) -> None:
        """At most two contents of each member: the second is evidence, but a signature all the same."""
        known = self.cosigned.get(cosign.member, ())
        if any(item.content == cosign.content for item in known):
            raise Refused(Refusal.KNOWN)
        item = Cosignature(cosign.member, cosign.cosignature)
        if not verify_content(self.terms.chain_id, cosign.content, item):
            raise Refused(Refusal.COSIGNATURE, cosign.member.hex())
        if known:
            self._blame(Fault.TWO_CONTENTS, cosign.member, known[0], cosign)
        if len(known) >= 2:
            raise Refused(Refusal.FULL)
        self.cosigned[cosign.member] = (*known, cosign)

    def get_cosignatures(self, opened: Hash32) -> tuple[Cosignature, ...]:
        """Of one content, by ascending member."""
        return tuple(
            Cosignature(member, item.cosignature)
            for member in sorted(self.cosigned)
            for item in self.cosigned[member]
            if item.content == opened
        )

    def get_candidates(self, attempt: int) -> list[Candidate]:
        """Acceptable ones of an attempt, in order of arrival."""
        return [item for item in self.candidates.values() if item.attempt == attempt and item.is_acceptable]

    def _blame(self, fault: Fault, member: Address, first: RoundMessage, second: RoundMessage) -> None:
        evidence = Evidence(fault, member, encode_message(first), encode_message(second))
        self.evidence.setdefault((fault, member), evidence)
