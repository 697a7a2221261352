"""Verdicts: validators try a milestone's model on private pairs of their own; quality never halts the chain.

Two thirds of stake for it settle a milestone at once, in order; more than a third against it void it and all
later ones and close the task, so that the model is the last settled one. Federated rounds are judged alike.
(DESIGN 5)
"""

from collections.abc import Iterable
from dataclasses import replace

from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.finality import is_quorum
from consensus.openings import get_task_parts
from consensus.payload import Verdict
from consensus.publication import MAX_OPENED
from consensus.records import Unsettled
from consensus.settlement import LIVING, close_task, settle_accepted
from consensus.state import State
from consensus.types import Address


def compute_stake(state: State, addresses: Iterable[Address]) -> int:
    """Stake with which these validators speak now."""
    return sum(state.get_stake(address) for address in addresses)


def is_accepted(state: State, item: Unsettled) -> bool:
    """True if two thirds of all stake are for the milestone."""
    return is_quorum(compute_stake(state, item.accepted), state.get_total_stake())


def is_rejected(state: State, item: Unsettled) -> bool:
    """True if more than a third of all stake is against the milestone."""
    return 3 * compute_stake(state, item.rejected) > state.get_total_stake()


def apply_verdict(state: State, sender: Address, payload: Verdict, ctx: BlockContext) -> State:
    """Counts a validator's judgement; it may settle the task's first milestones, or close the task."""
    if not state.get_stake(sender):
        raise InvalidTransaction(Reason.VERDICT_VALIDATOR, sender.hex())
    task_state, _, _ = get_task_parts(state, payload.task)
    if task_state.status not in LIVING:
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if max(abs(payload.before), abs(payload.after)) > MAX_OPENED:
        raise InvalidTransaction(Reason.VERDICT_BOUND, f"a loss beyond {MAX_OPENED}")
    if payload.loss_opening in task_state.judged:
        raise InvalidTransaction(Reason.VERDICT_SETTLED, payload.loss_opening.hex())
    items = list(task_state.unsettled)
    names = [item.milestone.loss_opening for item in items]
    if payload.loss_opening not in names:
        raise InvalidTransaction(Reason.VERDICT_MILESTONE, payload.loss_opening.hex())
    at = names.index(payload.loss_opening)
    item = items[at]
    if sender in item.accepted or sender in item.rejected:
        raise InvalidTransaction(Reason.VERDICT_DOUBLED, sender.hex())
    if payload.accept:
        items[at] = replace(item, accepted=(*item.accepted, sender))
    else:
        items[at] = replace(item, rejected=(*item.rejected, sender))
    state = state.with_task(payload.task, replace(task_state, unsettled=tuple(items)))
    if is_rejected(state, items[at]):
        return close_task(state, payload.task, ctx, keep=at)
    return settle_accepted(state, payload.task, lambda other: is_accepted(state, other), ctx)
