"""Where a task's money goes: availability, milestones taken and settled, ends. Nothing is minted or lost."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from consensus.block import Work
from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.finality import is_quorum
from consensus.openings import get_task_parts, is_loss_due
from consensus.payload import SettleTask
from consensus.records import Lock, Settled, TaskState, TaskStatus, Unsettled
from consensus.state import State
from consensus.task import Available, Credit, Draft, ExpireTask, PublishTask
from consensus.types import Address, Amount, Hash32, Millis

LIVING = (TaskStatus.PENDING, TaskStatus.OPEN, TaskStatus.CLOSING)
"""A task of these still holds its escrow and bond."""


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
    is_enough = is_quorum(total, state.get_total_stake())
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


def _finish(
    state: State, task: Hash32, task_state: TaskState, status: TaskStatus, ctx: BlockContext
) -> tuple[State, TaskState]:
    """What is left of the escrow goes back to the custody; the bond follows when evidence is out of date."""
    state = state.with_credit(task_state.custody, task_state.escrow)
    if task_state.bond:
        release = Millis(ctx.time + ctx.params.evidence_ms)
        lock = Lock(task_state.custody, task_state.bond, release, task)
        state = state.with_locks((*state.get_locks(), lock))
    return state, replace(task_state, status=status, escrow=Amount(0), bond=Amount(0))


def apply_work(state: State, work: Work, ctx: BlockContext) -> State:
    """Takes the task's first pending milestone, for work that passed W1 to W7; it awaits the verdicts."""
    task_state, _, _ = get_task_parts(state, work.task)
    milestone, *rest = task_state.qualified
    taken = Unsettled(milestone, ctx.height, ctx.time, accepted=(), rejected=())
    changed = replace(
        task_state,
        qualified=tuple(rest),
        next_taken_rung=milestone.last_rung + 1,
        unsettled=(*task_state.unsettled, taken),
    )
    return state.with_task(work.task, changed)


# --- settling milestones ----------------------------------------------------------------------


def settle_accepted(
    state: State, task: Hash32, is_due: Callable[[Unsettled], bool], ctx: BlockContext
) -> State:
    """Settles the leading milestones that are due: rewards and fees are paid, in order.

    The last rung completes the task. The reward of a milestone without any credited batch stays in escrow.
    """
    task_state, publication, _ = get_task_parts(state, task)
    while task_state.unsettled and is_due(task_state.unsettled[0]):
        milestone = task_state.unsettled[0].milestone
        rungs = publication.ladder[milestone.first_rung : milestone.last_rung + 1]
        reward = sum(rung.reward for rung in rungs)
        state, task_state = _pay(state, task_state, milestone.credits, reward, publication.batch_fee)
        settled = Settled(milestone.last_rung, milestone.step, milestone.loss, milestone.weights_digest)
        task_state = replace(
            task_state,
            unsettled=task_state.unsettled[1:],
            settled=settled,
            judged=(*task_state.judged, milestone.loss_opening),
        )
        if milestone.last_rung + 1 == len(publication.ladder):
            state, task_state = _finish(state, task, task_state, TaskStatus.COMPLETE, ctx)
    if task_state.status == TaskStatus.CLOSING and not task_state.unsettled:
        state, task_state = _finish(state, task, task_state, TaskStatus.CLOSED, ctx)
    return state.with_task(task, task_state)


def is_verdict_over(unsettled: Unsettled, ctx: BlockContext) -> bool:
    """True once the milestone settles without accepts; too many rejections would have voided it before."""
    return ctx.time >= unsettled.time + ctx.params.verdict_ms


def apply_settle(state: State, payload: SettleTask, ctx: BlockContext) -> State:
    """Settles what has stood its time; premature if the named milestone is not the next, or has not yet."""
    task_state, _, _ = get_task_parts(state, payload.task)
    if task_state.status not in LIVING:
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if payload.loss_opening in task_state.judged:
        raise InvalidTransaction(Reason.VERDICT_SETTLED, payload.loss_opening.hex())
    first = task_state.unsettled[0] if task_state.unsettled else None
    if first is None or first.milestone.loss_opening != payload.loss_opening:
        raise InvalidTransaction(Reason.VERDICT_MILESTONE, payload.loss_opening.hex())
    if not is_verdict_over(first, ctx):
        raise InvalidTransaction(Reason.SETTLE_EARLY, payload.task.hex())
    return settle_accepted(state, payload.task, lambda item: is_verdict_over(item, ctx), ctx)


# --- ends -------------------------------------------------------------------------------------


def close_task(
    state: State, task: Hash32, ctx: BlockContext, status: TaskStatus = TaskStatus.CLOSED, keep: int = 0
) -> State:
    """Ends a task: what is not settled is void, credited batches earn their fee, the rest is refunded.

    The first `keep` unsettled milestones stay to await their verdicts; the task ends with the last of them.
    """
    task_state, publication, _ = get_task_parts(state, task)
    kept, void = task_state.unsettled[:keep], task_state.unsettled[keep:]
    milestones = [*(item.milestone for item in void), *task_state.qualified]
    for credits in (*(milestone.credits for milestone in milestones), task_state.interval_credits):
        state, task_state = _pay(state, task_state, credits, 0, publication.batch_fee)
    task_state = replace(task_state, unsettled=kept, qualified=(), interval_credits=())
    if kept:
        task_state = replace(task_state, status=TaskStatus.CLOSING)
    else:
        state, task_state = _finish(state, task, task_state, status, ctx)
    return state.with_task(task, task_state)


def is_expirable(task_state: TaskState, publication: PublishTask, draft: Draft, ctx: BlockContext) -> bool:
    """True when nothing can be opened any more, or the deadline is over, and no milestone is pending.

    A milestone that a work block has taken is pending until the time for verdicts on it is over.
    """
    if any(not is_verdict_over(item, ctx) for item in task_state.unsettled):
        return False
    if ctx.time > publication.deadline or task_state.status == TaskStatus.CLOSING:
        return True
    if is_loss_due(task_state, publication):
        # A committee's retries may leave a scheduled loss without an opening, and the gradients behind it.
        is_spent = task_state.loss_openings >= draft.max_loss_openings
    else:
        is_spent = task_state.gradient_openings >= draft.max_gradient_openings
    return is_spent and not task_state.qualified


def apply_expire(state: State, payload: ExpireTask, ctx: BlockContext) -> State:
    """Ends a task that can't go on: what stood its verdicts is settled, credited batches earn their fee, the
    rest is refunded."""
    task_state, publication, draft = get_task_parts(state, payload.task)
    if task_state.status not in LIVING:
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if not is_expirable(task_state, publication, draft, ctx):
        raise InvalidTransaction(Reason.EXPIRE_EARLY, payload.task.hex())
    state = settle_accepted(state, payload.task, lambda item: is_verdict_over(item, ctx), ctx)
    task_state, _, _ = get_task_parts(state, payload.task)
    if task_state.status not in LIVING:
        return state
    return close_task(state, payload.task, ctx, TaskStatus.EXPIRED)


def is_custody_side(state: State, task_state: TaskState, address: Address) -> bool:
    """True for the custody itself and for every account of its organisation (W2)."""
    if address == task_state.custody:
        return True
    organisation = state.get_account(task_state.custody).organisation
    return bool(organisation) and state.get_account(address).organisation == organisation
