"""Where a task's money goes: availability, milestones taken, expiry. Nothing is minted, nothing lost."""

from collections.abc import Sequence
from dataclasses import replace

from consensus.block import Work
from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.openings import get_task_parts, is_loss_due
from consensus.records import TaskState, TaskStatus
from consensus.state import State
from consensus.task import Available, Credit, ExpireTask, PublishTask
from consensus.types import Address, Amount


def apply_available(state: State, sender: Address, payload: Available, ctx: BlockContext) -> State:
    """Counts the validator's stake; the task opens at two thirds of all stake."""
    task_state, publication, _ = get_task_parts(state, payload.task)
    if task_state.status not in (TaskStatus.PENDING, TaskStatus.OPEN):
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if ctx.time > publication.deadline:
        raise InvalidTransaction(Reason.TASK_DEADLINE, str(publication.deadline))
    stake = state.get_stake(sender)
    if not stake:
        raise InvalidTransaction(Reason.AVAILABLE_VALIDATOR, sender.hex())
    if sender in task_state.available:
        raise InvalidTransaction(Reason.AVAILABLE_DOUBLED, sender.hex())
    total = task_state.available_stake + stake
    is_enough = 3 * total >= 2 * state.get_total_stake()
    changed = replace(
        task_state,
        available=(*task_state.available, sender),
        available_stake=total,
        status=TaskStatus.OPEN if is_enough else task_state.status,
    )
    return state.with_task(payload.task, changed)


def compute_payout(credits: Sequence[Credit], reward: int, batch_fee: int) -> tuple[int, ...]:
    """What each ranked credit earns: the reward pro rata, rounded down, the rest to the first; and fees."""
    total = sum(credit.batches for credit in credits)
    if not total:
        return (0,) * len(credits)
    shares = [reward * credit.batches // total for credit in credits]
    shares[0] += reward - sum(shares)
    return tuple(share + batch_fee * credit.batches for share, credit in zip(shares, credits, strict=True))


def _pay(
    state: State, task_state: TaskState, credits: Sequence[Credit], reward: int, batch_fee: int
) -> tuple[State, TaskState]:
    payout = compute_payout(credits, reward, batch_fee)
    for credit, amount in zip(credits, payout, strict=True):
        state = state.with_credit(credit.miner, amount)
    return state, replace(task_state, escrow=Amount(task_state.escrow - sum(payout)))


def _finish(state: State, task_state: TaskState, status: TaskStatus) -> tuple[State, TaskState]:
    """What is left of escrow and bond goes back to the custody."""
    state = state.with_credit(task_state.custody, task_state.escrow + task_state.bond)
    return state, replace(task_state, status=status, escrow=Amount(0), bond=Amount(0))


def apply_work(state: State, work: Work) -> State:
    """Pays and removes the task's first pending milestone, for work that passed W1 to W7.

    The last rung completes the task. The reward of a milestone without any credited batch stays in escrow.
    """
    task_state, publication, _ = get_task_parts(state, work.task)
    milestone, *rest = task_state.qualified
    rungs = publication.ladder[milestone.first_rung : milestone.last_rung + 1]
    reward = sum(rung.reward for rung in rungs)
    state, task_state = _pay(state, task_state, milestone.credits, reward, publication.batch_fee)
    task_state = replace(task_state, qualified=tuple(rest), next_paid_rung=milestone.last_rung + 1)
    if task_state.next_paid_rung == len(publication.ladder):
        state, task_state = _finish(state, task_state, TaskStatus.COMPLETE)
    return state.with_task(work.task, task_state)


def is_expirable(
    task_state: TaskState, publication: PublishTask, max_gradient_openings: int, ctx: BlockContext
) -> bool:
    """True after the deadline, or when nothing can be opened any more and no milestone is pending."""
    if ctx.time > publication.deadline:
        return True
    is_spent = task_state.gradient_openings >= max_gradient_openings
    return is_spent and not is_loss_due(task_state, publication) and not task_state.qualified


def apply_expire(state: State, payload: ExpireTask, ctx: BlockContext) -> State:
    """Ends a task that can't go on: credited batches earn their fee, the rest is refunded."""
    task_state, publication, draft = get_task_parts(state, payload.task)
    if task_state.status not in (TaskStatus.PENDING, TaskStatus.OPEN):
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if not is_expirable(task_state, publication, draft.max_gradient_openings, ctx):
        raise InvalidTransaction(Reason.EXPIRE_EARLY, payload.task.hex())
    for milestone in task_state.qualified:
        state, task_state = _pay(state, task_state, milestone.credits, 0, publication.batch_fee)
    state, task_state = _pay(state, task_state, task_state.interval_credits, 0, publication.batch_fee)
    task_state = replace(task_state, qualified=(), interval_credits=())
    state, task_state = _finish(state, task_state, TaskStatus.EXPIRED)
    return state.with_task(payload.task, task_state)


def is_custody_side(state: State, task_state: TaskState, address: Address) -> bool:
    """True for the custody itself and for every account of its organisation (W2)."""
    if address == task_state.custody:
        return True
    organisation = state.get_account(task_state.custody).organisation
    return bool(organisation) and state.get_account(address).organisation == organisation
