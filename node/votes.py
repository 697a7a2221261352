"""Finality votes that a node has heard of, for the blocks that it proposes.

Bounded by validator and in total. Votes for blocks still unknown are kept, and those seen in blocks, which
may be undone; what is final is dropped. A liar's votes for one height are kept too, a few of them: whoever
told a made-up one first could otherwise keep the true one, which others may have counted, out of every block.
"""

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.finality import process_parent
from consensus.state import State
from consensus.types import Address, Hash32, Height
from consensus.vote import Checkpoint, Vote

MAX_PER_VALIDATOR = 64
MAX_VOTES = 65_536
MAX_AT_HEIGHT = 4
"""Of one validator, beside those that valid blocks carry."""


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
        self._heights: dict[Height, dict[Hash32, Vote]] = {}
        self._validators: dict[Address, dict[Hash32, Height]] = {}
        self._final = Height(0)
        self.version = 0
        """Grows whenever a vote is added."""

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, vote_id: Hash32) -> bool:
        return vote_id in self._ids

    def get(self, vote_id: Hash32) -> Vote | None:
        return self._ids.get(vote_id)

    def add(self, vote: Vote, *, in_block: bool = False) -> bool:
        """Keep a vote whose signature the caller has checked; False if it is not news.

        What a valid block carries is kept however many votes the validator has for that height: every branch
        must be able to count what one of them has counted.
        """
        height, vote_id = vote.target.height, compute_vote_id(vote)
        if height <= self._final or vote_id in self._ids:
            return False
        own = self._validators.setdefault(vote.validator, {})
        if not in_block and sum(known == height for known in own.values()) >= MAX_AT_HEIGHT:
            return False
        self._ids[vote_id] = vote
        self._heights.setdefault(height, {})[vote_id] = vote
        own[vote_id] = height
        self.version += 1
        if len(own) > self._max_per_validator:
            # Old ones have been overtaken: votes meet at the heights that are reached last.
            self._remove(min(own, key=lambda known: own[known]))
        while len(self._ids) > self._max_votes:
            for old in list(self._heights[min(self._heights)]):
                self._remove(old)
        return vote_id in self._ids

    def _remove(self, vote_id: Hash32) -> None:
        vote = self._ids.pop(vote_id)
        height = vote.target.height
        del self._heights[height][vote_id]
        if not self._heights[height]:
            del self._heights[height]
        del self._validators[vote.validator][vote_id]
        if not self._validators[vote.validator]:
            del self._validators[vote.validator]

    def drop_final(self, height: Height) -> None:
        """Forget votes that no block can carry any more: everything up to this height is final."""
        self._final = max(self._final, height)
        for old in [known for known in self._heights if known <= height]:
            for vote_id in list(self._heights[old]):
                self._remove(vote_id)

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
