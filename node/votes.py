"""Finality votes that a node has heard of, for the blocks that it proposes.

Bounded by validator and in total. Votes for blocks still unknown are kept, and those seen in blocks, which
may be undone; what is final is dropped. A validator has one vote for a height here, the first that came: a
second one is evidence and nothing else.
"""

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.finality import process_parent
from consensus.state import State
from consensus.types import Address, Hash32, Height
from consensus.vote import Checkpoint, Vote

MAX_PER_VALIDATOR = 64
MAX_VOTES = 65_536


def hash_vote(data: bytes) -> Hash32:
    """The id under which a vote's bytes are announced."""
    return hash_domain("vote-id", data)


def compute_vote_id(vote: Vote) -> Hash32:
    return hash_vote(encode(vote))


class VotePool:
    """Checked votes above the last finalised block."""

    def __init__(self, max_per_validator: int = MAX_PER_VALIDATOR, max_votes: int = MAX_VOTES) -> None:
        self._max_per_validator = max_per_validator
        self._max_votes = max_votes
        self._ids: dict[Hash32, Vote] = {}
        self._heights: dict[Height, dict[Address, Vote]] = {}
        self._validators: dict[Address, set[Height]] = {}
        self._final = Height(0)
        self.version = 0
        """Grows whenever a vote is added."""

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, vote_id: Hash32) -> bool:
        return vote_id in self._ids

    def get(self, vote_id: Hash32) -> Vote | None:
        return self._ids.get(vote_id)

    def add(self, vote: Vote) -> bool:
        """Keep a vote whose signature the caller has checked; False if it is not news."""
        height = vote.target.height
        if height <= self._final or vote.validator in self._heights.get(height, {}):
            return False
        self._ids[compute_vote_id(vote)] = vote
        self._heights.setdefault(height, {})[vote.validator] = vote
        heights = self._validators.setdefault(vote.validator, set())
        heights.add(height)
        self.version += 1
        if len(heights) > self._max_per_validator:
            # Old ones have been overtaken: votes meet at the heights that are reached last.
            self._remove(self._heights[min(heights)][vote.validator])
        while len(self._ids) > self._max_votes:
            self._remove_height(min(self._heights))
        return compute_vote_id(vote) in self._ids

    def _remove(self, vote: Vote) -> None:
        height = vote.target.height
        del self._ids[compute_vote_id(vote)]
        del self._heights[height][vote.validator]
        if not self._heights[height]:
            del self._heights[height]
        self._validators[vote.validator].discard(height)
        if not self._validators[vote.validator]:
            del self._validators[vote.validator]

    def _remove_height(self, height: Height) -> None:
        for vote in list(self._heights[height].values()):
            self._remove(vote)

    def drop_final(self, height: Height) -> None:
        """Forget votes that no block can carry any more: everything up to this height is final."""
        self._final = max(self._final, height)
        for old in [known for known in self._heights if known <= height]:
            self._remove_height(old)

    def get_includable(self, state: State, parent: Checkpoint) -> list[Vote]:
        """The votes that count in a block on `parent`, of which this is the post-state; the highest targets
        first, since they justify most where there is little room."""
        if not self._ids:
            return []
        state = process_parent(state, parent)
        convicted = state.get_jailed()
        found: list[Vote] = []
        for height in sorted(self._heights, reverse=True):
            record = state.get_checkpoint(height)
            if record is None or record.is_justified:
                continue
            link, jailed = (record.source, Checkpoint(height, record.hash)), convicted[: record.jailed]
            found += [
                vote
                for vote in self._heights[height].values()
                if (vote.source, vote.target) == link
                and vote.validator not in record.voters
                and vote.validator not in jailed
            ]
        return found
