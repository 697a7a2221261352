"""What a member has bound itself to in one opening, on disk before it leaves: it never says anything else."""

from collections.abc import Iterable
from dataclasses import dataclass

from consensus.codec import CodecError, decode, encode
from consensus.types import Hash32
from node.committee.messages import Content, Proposal, compute_proposal_id, decode_content


class RecordDamaged(Exception):
    """Records can't be read, or contradict each other: guessing is what they exist to prevent."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """As a lead, in this attempt."""

    proposal: Proposal
    content: bytes

    def get_content(self) -> Content:
        return decode_content(self.proposal.kind, self.content)


@dataclass(frozen=True, slots=True)
class Answered:
    """The one proposal of its attempt to which this member gives its part."""

    proposal: Proposal
    content: bytes

    @property
    def id(self) -> Hash32:
        return compute_proposal_id(self.proposal)

    def get_content(self) -> Content:
        return decode_content(self.proposal.kind, self.content)


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The one content that this member signs."""

    attempt: int
    opened: Hash32


Record = Proposed | Answered | Cosigned


@dataclass(frozen=True, slots=True)
class CommitteeRecord:
    """What is stored."""

    record: Proposed | Answered | Cosigned


def encode_record(record: Record) -> bytes:
    return encode(CommitteeRecord(record))


def decode_record(data: bytes) -> Record:
    """Raises: RecordDamaged."""
    try:
        return decode(CommitteeRecord, data).record
    except CodecError as error:
        raise RecordDamaged(f"a record of an opening is damaged: {error}") from error


def get_name(record: Record) -> bytes:
    """Within the opening: a record of the same name would be a contradiction."""
    if isinstance(record, Proposed):
        return b"proposed/%d" % record.proposal.attempt
    if isinstance(record, Answered):
        return b"answered/%d" % record.proposal.attempt
    return b"cosigned"


class Records:
    """Those of one opening."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Raises: RecordDamaged if two contradict each other."""
        self._records: dict[bytes, Record] = {}
        for record in records:
            self._put(record)

    def _put(self, record: Record) -> None:
        if self._records.setdefault(get_name(record), record) != record:
            raise RecordDamaged(f"two records of one opening: {get_name(record).decode()}")

    def add(self, record: Record) -> "Records":
        """With one more. Raises: RecordDamaged if it contradicts one that is there."""
        return Records((*self._records.values(), record))

    def get_all(self) -> tuple[Record, ...]:
        return tuple(self._records.values())

    def get_answer(self, attempt: int) -> Hash32 | None:
        """The proposal that was answered."""
        record = self._records.get(b"answered/%d" % attempt)
        return record.id if isinstance(record, Answered) else None

    def has_proposed(self, attempt: int) -> bool:
        return b"proposed/%d" % attempt in self._records

    @property
    def cosigned(self) -> Cosigned | None:
        record = self._records.get(b"cosigned")
        return record if isinstance(record, Cosigned) else None
