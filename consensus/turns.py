"""Who may propose, and from when on (B7)."""

from consensus.block import Header
from consensus.params import ChainParams
from consensus.records import Qualified
from consensus.settlement import is_custody_side
from consensus.state import State, TaskStatus
from consensus.types import Address, Hash32, Millis


def get_carrier_proposer(state: State, params: ChainParams, parent: Header, time: Millis) -> Address | None:
    """Whose turn it is at `time` to follow `parent` with a carrier block; None before `idle_ms` have passed.

    `state` is the parent's post-state: its validator set without the jailed, at
    (height + floor((delta - idle) / slot)) mod n.
    """
    delta = time - parent.time
    validators = state.get_acting_validators()
    if delta < params.idle_ms or not validators:
        return None
    turn = parent.height + 1 + (delta - params.idle_ms) // params.slot_ms
    return validators[turn % len(validators)].address


def get_carrier_entitled_time(
    state: State, params: ChainParams, parent: Header, proposer: Address, not_before: Millis
) -> Millis | None:
    """The first time from `not_before` on that is in the proposer's turn; None if it is no validator."""
    addresses = [validator.address for validator in state.get_acting_validators()]
    if proposer not in addresses:
        return None
    count = len(addresses)
    start = parent.time + params.idle_ms
    first = (addresses.index(proposer) - parent.height - 1) % count
    now = max(not_before, start)
    turn = (now - start) // params.slot_ms
    if turn % count == first:
        return Millis(now)
    return Millis(start + (turn + (first - turn) % count) * params.slot_ms)


def get_work_rank(milestone: Qualified, proposer: Address) -> int | None:
    """The proposer's place among the credited miners, from 0; None if it has no credit."""
    for rank, credit in enumerate(milestone.credits):
        if credit.miner == proposer:
            return rank
    return None


def get_rank_time(milestone: Qualified, rank: int, params: ChainParams) -> Millis:
    """From when on the miner of this rank may propose the milestone."""
    return Millis(milestone.time + rank * params.rank_ms)


def get_work_entitled_time(
    state: State, task: Hash32, proposer: Address, parent: Header, params: ChainParams, now: Millis
) -> Millis | None:
    """When the proposer may propose the task's next milestone after `parent`; None if it may not at all.

    A credited miner may from its rank's time on, which may lie in the past. Anyone else may only as the
    carrier's turn holder after the last rank: then it is the first such time from `now` on. None too if no
    milestone is pending, its publication is not final in the state, the deadline is over before
    that time, or the proposer is of the custody's organisation (W1, W2).
    """
    task_state, publication = state.get_task(task), state.get_publication(task)
    if task_state is None or publication is None or not task_state.qualified:
        return None
    if task_state.status != TaskStatus.OPEN or is_custody_side(state, task_state, proposer):
        return None
    if state.get_finality().finalized.height < task_state.published_height:
        return None
    milestone = task_state.qualified[0]
    earliest = Millis(parent.time + params.min_block_ms)
    rank = get_work_rank(milestone, proposer)
    if rank is not None:
        time: Millis | None = max(earliest, get_rank_time(milestone, rank, params))
    else:
        after = max(earliest, now, get_rank_time(milestone, len(milestone.credits), params))
        time = get_carrier_entitled_time(state, params, parent, proposer, after)
    return None if time is None or time > publication.deadline else time
