"""Whether a node votes for finality, as its operator is told."""

from dataclasses import dataclass
from enum import StrEnum


class VotingState(StrEnum):
    NONE = "none"
    """No validator."""
    ASKING = "asking"
    """Not enough validators have said yet what they know of this one's votes."""
    WAITING = "waiting"
    """It may have signed what it does not know of, and waits until that can do no harm."""
    VOTING = "voting"


@dataclass(frozen=True, slots=True)
class VotingStatus:
    state: VotingState
    detail: str = ""
