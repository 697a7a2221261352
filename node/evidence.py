"""Watches every vote that is seen anywhere: two that no honest validator signs both are reported, and a
quorum for another block than the justified one is an alarm.

Bounded: of each validator the latest votes are compared, and those that reach furthest whatever their age.
What is reported is sent again until it is on the chain or can't count any more.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from consensus.errors import Reason
from consensus.evidence import get_stake_at_risk
from consensus.finality import is_quorum
from consensus.light import ConflictingFinality, get_votes
from consensus.payload import ReportVotes
from consensus.types import Address, Hash32, Height
from consensus.vote import Checkpoint, Vote, is_slashable
from node.core import Core

logger = logging.getLogger(__name__)

MAX_VOTES = 65_536
MAX_PER_VALIDATOR = 256
MIN_PER_VALIDATOR = 8
MAX_TALLIES = 256
MAX_JUSTIFIED = 4_096
POLL_S = 1.0
FLUSH_S = 1.0
"""Between two writes of what was seen: votes come in bursts."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two blocks that exclude each other have the votes of two thirds of stake each: at least a third of it
    broke the rules."""

    justified: Checkpoint
    other: Checkpoint


class _ValidatorVotes:
    """One validator's votes by height of target; an honest one has one of each."""

    def __init__(self, first: Vote) -> None:
        self.heights: dict[Height, list[Vote]] = {}
        self.count = 0
        self.furthest = self.latest = first
        """Of the highest target, and of the highest source."""

    def add(self, vote: Vote) -> None:
        self.heights.setdefault(vote.target.height, []).append(vote)
        self.count += 1
        if vote.target.height > self.furthest.target.height:
            self.furthest = vote
        if vote.source.height > self.latest.source.height:
            self.latest = vote

    def find_partner(self, vote: Vote) -> Vote | None:
        """A vote that convicts together with this one."""
        is_next = vote.target.height > self.furthest.target.height
        if is_next and vote.source.height >= self.latest.source.height:
            return None  # so are all of an honest validator's
        candidates = (known for votes in self.heights.values() for known in votes)
        return next((known for known in candidates if is_slashable(known, vote)), None)

    def drop_oldest(self) -> None:
        """Of the lowest target; the two that reach furthest stay, since a later vote may be surrounded by
        the one or surround the other."""
        kept = (self.furthest, self.latest)
        for height in sorted(self.heights):
            votes = self.heights[height]
            found = next((vote for vote in votes if vote not in kept), None)
            if found is not None:
                votes.remove(found)
                self.count -= 1
                if not votes:
                    del self.heights[height]
                return


class VoteHistory:
    """Votes of each validator, to compare new ones with."""

    def __init__(self, max_votes: int = MAX_VOTES, max_per_validator: int = MAX_PER_VALIDATOR) -> None:
        self._max_votes = max_votes
        self._max_per_validator = max_per_validator
        self._validators: OrderedDict[Address, _ValidatorVotes] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, vote: Vote) -> Vote | None:
        """Keep a checked vote; one that it convicts its validator with, if there is any."""
        votes = self._validators.setdefault(vote.validator, _ValidatorVotes(vote))
        if vote in votes.heights.get(vote.target.height, ()):
            return None
        partner = votes.find_partner(vote) if votes.count else None
        votes.add(vote)
        self._count += 1
        share = max(MIN_PER_VALIDATOR, self._max_votes // len(self._validators))
        while votes.count > min(self._max_per_validator, share):
            votes.drop_oldest()
            self._count -= 1
        self._validators.move_to_end(vote.validator)
        while self._count > self._max_votes:
            _, oldest = self._validators.popitem(last=False)
            self._count -= oldest.count
        return partner


class _Tallies:
    """Who voted for which checkpoint."""

    def __init__(self) -> None:
        self._voters: OrderedDict[Checkpoint, set[Address]] = OrderedDict()

    def add(self, vote: Vote) -> set[Address]:
        voters = self._voters.setdefault(vote.target, set())
        voters.add(vote.validator)
        while len(self._voters) > MAX_TALLIES:
            self._voters.popitem(last=False)
        return voters


class VoteWatch:
    """Reports what it finds; of this node's own key it leaves that to others."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._history = VoteHistory()
        self._tallies = _Tallies()
        self._reports: dict[Address, ReportVotes] = {}
        self._flushed = core.clock.monotonic()
        self._justified: OrderedDict[Height, Hash32] = OrderedDict()
        self._conflicts: set[Checkpoint] = set()
        self._listeners: list[Callable[[Conflict], None]] = []
        core.on_vote(self._on_vote)
        core.chain.on_head_change(lambda change: self._note_justified())
        self._note_justified()

    def on_conflict(self, listener: Callable[[Conflict], None]) -> None:
        """Call `listener` with every conflict, once."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Until cancelled."""
        core, seen = self._core, -1
        while True:
            self.report()
            now = core.clock.monotonic()
            if now >= self._flushed + FLUSH_S:
                self._flushed = now
                core.vote_memory.flush()
            seen = await core.pulse.wait(seen, POLL_S)

    def report(self) -> None:
        """Send what was found and is not on the chain."""
        for validator in list(self._reports):
            self._report(validator)

    def _on_vote(self, vote: Vote) -> None:
        partner = self._history.add(vote)
        if partner is not None and vote.validator != self._core.address:
            self._reports.setdefault(vote.validator, ReportVotes(partner, vote))
            self._core.pulse.beat()
        self._check_conflict(vote)

    def _report(self, validator: Address) -> None:
        core = self._core
        if not get_stake_at_risk(core.chain.head_state, validator):
            return  # it may be again, on another branch
        if any(_accuses(pooled.transaction.payload, validator) for pooled in core.mempool.get_all()):
            return
        report = self._reports[validator]
        admission = core.admit(core.sign(report))
        if admission.accepted:
            logger.error(
                "validator %s signed two votes that contradict each other, for heights %d and %d: reported",
                validator.hex()[:12],
                report.first.target.height,
                report.second.target.height,
            )
        elif admission.reason in (Reason.EVIDENCE_HARMLESS, Reason.EVIDENCE_SIGNATURE):
            del self._reports[validator]

    def on_proofs(self, conflict: ConflictingFinality) -> None:
        """Finality proofs of two blocks contradict each other: their votes tell who lied."""
        for proof in (conflict.first, conflict.second):
            for vote in () if proof is None else get_votes(proof):
                self._core.note_vote(vote)
        other = conflict.second.checkpoint
        final = self._core.chain.finalized
        self._alarm(Conflict(final if conflict.first is None else conflict.first.checkpoint, other))

    # --- conflicts ----------------------------------------------------------------------------

    def _note_justified(self) -> None:
        justified = self._core.chain.justified
        self._justified[justified.height] = justified.hash
        while len(self._justified) > MAX_JUSTIFIED:
            self._justified.popitem(last=False)

    def _check_conflict(self, vote: Vote) -> None:
        target = vote.target
        voters = self._tallies.add(vote)
        justified = self._justified.get(target.height)
        if justified is None or justified == target.hash or target in self._conflicts:
            return
        state = self._core.chain.head_state
        stakes = {member.address: member.stake for member in state.get_validators()}
        if not is_quorum(sum(stakes.get(voter, 0) for voter in voters), state.get_total_stake()):
            return
        self._alarm(Conflict(Checkpoint(target.height, justified), target))

    def _alarm(self, conflict: Conflict) -> None:
        if conflict.other in self._conflicts:
            return
        self._conflicts.add(conflict.other)
        logger.critical(
            "two blocks that exclude each other, %s at height %d and %s at height %d, have the votes of two "
            "thirds of stake each: a third or more broke the rules; who did is reported as votes come in",
            conflict.justified.hash.hex()[:12],
            conflict.justified.height,
            conflict.other.hash.hex()[:12],
            conflict.other.height,
        )
        for listener in self._listeners:
            listener(conflict)


def _accuses(payload: object, validator: Address) -> bool:
    return isinstance(payload, ReportVotes) and payload.first.validator == validator
