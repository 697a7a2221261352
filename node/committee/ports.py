"""What a round asks of the rest of the member, and what it gives: ports, jobs, outputs."""

from dataclasses import dataclass
from typing import Protocol

from consensus.task import Cosignature
from consensus.types import Hash32
from node.committee.messages import Content, OpeningKind, Proposal, RoundMessage
from node.committee.records import Record
from node.committee.tally import Refused


class Judge(Protocol):
    """What the round asks of the rest of the member; quick, and without effects."""

    def check_content(self, content: Content) -> None:
        """That the chain would take its claims and confirmations. Raises: Refused."""
        ...

    def has_budget(self, kind: OpeningKind, attempt: int) -> bool:
        """Whether the task may still open this; attempt 2 counts twice."""
        ...

    def compute_opened(self, content: Content, attempt: int, numbers: tuple[int, ...]) -> Hash32:
        """Hash of the opening's content as the chain has it, which members sign."""
        ...


class Sealer(Protocol):
    """Seals to the members and opens what is sealed to this one."""

    def seal(self, proposal: Proposal, content: bytes) -> Proposal: ...

    def open(self, proposal: Proposal) -> Content:
        """Raises: BoxError, MessageError."""
        ...


@dataclass(frozen=True, slots=True)
class PartWanted:
    """Compute this member's part; the result goes to `on_part`. The same at every call."""

    proposal: Hash32
    subset: tuple[int, ...]
    attempt: int
    question: Hash32
    content: Content


@dataclass(frozen=True, slots=True)
class SumWanted:
    """Combine these parts, in the order of places; the result goes to `on_sum`."""

    proposal: Hash32
    subset: tuple[int, ...]
    attempt: int
    content: Content
    parts: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """An opening that enough members have signed."""

    content: Content
    attempt: int
    numbers: tuple[int, ...]
    hash: Hash32
    cosignatures: tuple[Cosignature, ...]
    """Ascending by member."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What to do, in this order."""

    records: tuple[Record, ...] = ()
    """On disk, synced, before anything below is begun."""
    messages: tuple[RoundMessage, ...] = ()
    jobs: tuple[PartWanted | SumWanted, ...] = ()
    refused: Refused | None = None
    """Of the message that was given."""
    opened: Opened | None = None
    """Once."""
    closed: str | None = None
    """Why nothing more will be tried; once."""
