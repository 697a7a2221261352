"""Openings of gradients and losses: the chain of numbers that the custody signs, and what each changes."""

from collections.abc import Iterable
from dataclasses import replace

from consensus.ceremonies import CreateCeremony
from consensus.claims import verify_claim
from consensus.codec import encode
from consensus.committee import MAX_ATTEMPTS, check_confirmations, check_signers, get_committee
from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.identifiers import compute_opening_hash, compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.publication import MAX_OPENED, get_step_batches
from consensus.records import Qualified, TaskState, TaskStatus
from consensus.state import State
from consensus.task import Claim, Credit, Draft, OpenGradient, OpenLoss, PublishTask, SealedClaim
from consensus.transaction import MAX_TRANSACTION_BYTES
from consensus.types import Address, Hash32

MAX_OPENING_BYTES = MAX_TRANSACTION_BYTES // 2 - 1024
"""So that any two fit into one transaction, as evidence, however many batches they credit."""


def get_task_parts(state: State, task: Hash32) -> tuple[TaskState, PublishTask, Draft]:
    """Raises: InvalidTransaction(TASK_UNKNOWN)."""
    task_state, publication = state.get_task(task), state.get_publication(task)
    record = state.get_draft(publication.draft) if publication else None
    if task_state is None or publication is None or record is None:
        raise InvalidTransaction(Reason.TASK_UNKNOWN, task.hex())
    return task_state, publication, record.draft


def compute_rank_hash(task: Hash32, milestone: int, miner: Address) -> Hash32:
    """H(task, milestone, miner), by which equal credits are ranked; a milestone is its first rung."""
    return hash_domain("rank", task + milestone.to_bytes(8, "big") + miner)


def rank_credits(task: Hash32, milestone: int, credits: Iterable[Credit]) -> tuple[Credit, ...]:
    """Most batches first, ties by `compute_rank_hash`."""
    return tuple(
        sorted(credits, key=lambda item: (-item.batches, compute_rank_hash(task, milestone, item.miner)))
    )


def _check_opening(
    opening: OpenGradient | OpenLoss,
    sender: Address,
    task_state: TaskState,
    publication: PublishTask,
    committee: CreateCeremony | None,
    ctx: BlockContext,
) -> None:
    """The rules that both kinds share: signers, life of the task, step, link, weights."""
    check_signers(opening, sender, task_state.custody, committee, ctx.chain_id)
    if task_state.status == TaskStatus.PENDING:
        raise InvalidTransaction(Reason.TASK_PENDING, opening.task.hex())
    if task_state.status != TaskStatus.OPEN:
        raise InvalidTransaction(Reason.TASK_ENDED, task_state.status)
    if ctx.time > publication.deadline:
        raise InvalidTransaction(Reason.TASK_DEADLINE, str(publication.deadline))
    if task_state.next_rung == len(publication.ladder):
        raise InvalidTransaction(Reason.OPENING_FINISHED, "the last rung is met")
    doubled = opening.step < task_state.step
    if isinstance(opening, OpenLoss):
        doubled = doubled or (opening.step == task_state.step and task_state.loss_opened)
    if doubled:
        raise InvalidTransaction(Reason.OPENING_DOUBLED, f"step {opening.step}")
    if opening.step > task_state.step:
        raise InvalidTransaction(Reason.OPENING_STEP, f"expected {task_state.step}, got {opening.step}")
    if opening.previous != task_state.previous:
        # A link over the loss of this very step is right once that loss is on chain.
        due = is_loss_due(task_state, publication) and isinstance(opening, OpenGradient)
        reason = Reason.OPENING_LOSS_DUE if due else Reason.OPENING_CHAIN
        raise InvalidTransaction(reason, opening.previous.hex())
    if opening.weights != compute_weights_digest(task_state.weights):
        raise InvalidTransaction(Reason.OPENING_WEIGHTS, opening.weights.hex())


def is_loss_due(task_state: TaskState, publication: PublishTask) -> bool:
    """True while the current step's scheduled loss has not been opened."""
    return task_state.step in publication.loss_schedule and not task_state.loss_opened


def _check_claims(state: State, opening: OpenGradient, publication: PublishTask, ctx: BlockContext) -> None:
    expected = get_step_batches(publication, opening.step)
    if tuple(claim.batch for claim in opening.claims) != expected:
        raise InvalidTransaction(Reason.OPENING_CLAIMS, f"expected batches {expected}")
    for claim in opening.claims:
        if claim.task != opening.task or claim.step != opening.step or claim.bundle.length <= 0:
            raise InvalidTransaction(Reason.OPENING_CLAIMS, f"batch {claim.batch} of another step")
        if not state.may_account_mine(claim.miner):
            raise InvalidTransaction(Reason.OPENING_MINER, claim.miner.hex())
        if not verify_claim(ctx.chain_id, claim):
            raise InvalidTransaction(Reason.OPENING_CLAIM_SIGNATURE, f"batch {claim.batch}")


def get_credited(opening: OpenGradient) -> tuple[Address, ...]:
    """Whose work the opening credits, once for each batch: claimants, then who confirmed them."""
    claims: tuple[Claim | SealedClaim, ...] = (*opening.claims, *opening.confirmations)
    return tuple(claim.miner for claim in claims)


def _add_credits(credits: tuple[Credit, ...], miners: Iterable[Address]) -> tuple[Credit, ...]:
    batches = {credit.miner: credit.batches for credit in credits}
    for miner in miners:
        batches[miner] = batches.get(miner, 0) + 1
    return tuple(Credit(miner, batches[miner]) for miner in sorted(batches))


def apply_open_gradient(state: State, sender: Address, opening: OpenGradient, ctx: BlockContext) -> State:
    """The next step's weights, and a credit for each of its batches."""
    task_state, publication, draft = get_task_parts(state, opening.task)
    committee = get_committee(state, draft)
    _check_opening(opening, sender, task_state, publication, committee, ctx)
    if task_state.gradient_openings + opening.attempt > draft.max_gradient_openings:
        raise InvalidTransaction(Reason.OPENING_LIMIT, str(draft.max_gradient_openings))
    if is_loss_due(task_state, publication):
        raise InvalidTransaction(Reason.OPENING_LOSS_DUE, f"step {opening.step}")
    if len(opening.gradient) != draft.parameters:
        detail = f"expected {draft.parameters} numbers, got {len(opening.gradient)}"
        raise InvalidTransaction(Reason.OPENING_LENGTH, detail)
    if any(abs(g) > MAX_OPENED for g in opening.gradient):
        raise InvalidTransaction(Reason.OPENING_BOUND, f"a number beyond {MAX_OPENED}")
    size = len(encode(opening))
    if size > MAX_OPENING_BYTES:
        raise InvalidTransaction(Reason.OPENING_LENGTH, f"{size} bytes, at most {MAX_OPENING_BYTES}")
    _check_claims(state, opening, publication, ctx)
    if committee is not None:
        check_confirmations(state, opening, ctx.chain_id)
    elif opening.confirmations:
        raise InvalidTransaction(Reason.OPENING_CONFIRMATIONS, "a single custodian checks bundles itself")
    weights, momentum = apply_opening(
        task_state.weights,
        task_state.momentum,
        opening.gradient,
        publication.optimizer.learning_rates[opening.step],
        publication.optimizer.shift,
        draft.weight_box,
    )
    changed = replace(
        task_state,
        step=task_state.step + 1,
        weights=weights,
        momentum=momentum,
        previous=compute_opening_hash(opening),
        loss_opened=False,
        gradient_openings=task_state.gradient_openings + opening.attempt,
        interval_credits=_add_credits(task_state.interval_credits, get_credited(opening)),
    )
    return state.with_task(opening.task, changed)


def count_interrupted(state: State, task: Hash32) -> State:
    """With all attempts at the task's opening that is under way, as far as its limit allowed them.

    For a renewal of its committee's shares: the new ones answer the same opening with other noise, so what
    the old ones may have answered is counted as opened. A task that is unknown or over is left as it is.
    """
    if state.get_task(task) is None:
        return state
    task_state, publication, draft = get_task_parts(state, task)
    if task_state.status != TaskStatus.OPEN:
        return state
    if is_loss_due(task_state, publication):
        spent = min(draft.max_loss_openings, task_state.loss_openings + MAX_ATTEMPTS)
        return state.with_task(task, replace(task_state, loss_openings=spent))
    spent = min(draft.max_gradient_openings, task_state.gradient_openings + MAX_ATTEMPTS)
    return state.with_task(task, replace(task_state, gradient_openings=spent))


def apply_open_loss(state: State, sender: Address, opening: OpenLoss, ctx: BlockContext) -> State:
    """Remembers the loss; every further rung that it meets is qualified, with the credits since the last."""
    task_state, publication, draft = get_task_parts(state, opening.task)
    _check_opening(opening, sender, task_state, publication, get_committee(state, draft), ctx)
    if opening.step not in publication.loss_schedule:
        raise InvalidTransaction(Reason.OPENING_UNSCHEDULED, f"step {opening.step}")
    if task_state.loss_openings + opening.attempt > draft.max_loss_openings:
        raise InvalidTransaction(Reason.OPENING_LIMIT, str(draft.max_loss_openings))
    if abs(opening.loss) > MAX_OPENED:
        raise InvalidTransaction(Reason.OPENING_BOUND, str(opening.loss))
    opening_hash = compute_opening_hash(opening)
    changed = replace(
        task_state,
        previous=opening_hash,
        loss_opened=True,
        last_loss=opening.loss,
        loss_openings=task_state.loss_openings + opening.attempt,
    )
    first, ladder = task_state.next_rung, publication.ladder
    stop = first
    while stop < len(ladder) and opening.loss <= ladder[stop].target:
        stop += 1
    if stop > first:
        milestone = Qualified(
            first_rung=first,
            last_rung=stop - 1,
            step=opening.step,
            loss=opening.loss,
            loss_opening=opening_hash,
            ciphertext=opening.ciphertext,
            openings=task_state.previous,
            weights_digest=opening.weights,
            credits=rank_credits(opening.task, first, task_state.interval_credits),
            height=ctx.height,
            time=ctx.time,
        )
        qualified = (*task_state.qualified, milestone)
        changed = replace(changed, next_rung=stop, qualified=qualified, interval_credits=())
    return state.with_task(opening.task, changed)
