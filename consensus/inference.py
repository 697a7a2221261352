"""Jobs of encrypted inference: models, requests, results that organisations agree on, and where fees go.

Organisations commit before anyone reveals, so that none can copy. Whoever then shows another result than
the confirmed one is not paid and is recorded; nothing is slashed, because a wrong result may come of bad
memory as well as of bad faith, costs nobody but its maker, and more than a third of stake could otherwise
take the stake of the honest rest.
"""

from collections.abc import Iterable
from dataclasses import replace

from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    Evaluation,
    ExpireJob,
    JobRecord,
    JobStatus,
    ModelRecord,
    Receipt,
    RegisterModel,
    RequestInference,
    RetireModel,
    RevealResult,
)
from consensus.publication import MAX_STATEMENT, MAX_TITLE
from consensus.state import State
from consensus.task import BlobRef
from consensus.types import MAX_TIME_MS, Address, Amount, Hash32, Height

MAX_BLOB_BYTES = 2**40
INFERENCE_KINDS = ("diagnosis", "sequence-diagnosis")
LIVING_JOBS = (JobStatus.OPEN, JobStatus.REVEALING, JobStatus.CONFIRMED)
"""A job of these still holds its fee."""


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


# --- models -----------------------------------------------------------------------------------


def apply_register(
    state: State, sender: Address, payload: RegisterModel, model: Hash32, ctx: BlockContext
) -> State:
    """A new model under its transaction's id."""

    def require(condition: bool, field: str) -> None:
        _require(condition, Reason.MODEL_FIELD, field)

    require(payload.workload in INFERENCE_KINDS, "workload")
    require(0 < len(payload.label) <= MAX_TITLE, "label")
    require(len(payload.provenance) <= MAX_STATEMENT, "provenance")
    require(0 < payload.model.length <= MAX_BLOB_BYTES, "model")
    for field in ("keys_bytes", "request_bytes", "result_bytes"):
        require(0 < getattr(payload, field) <= MAX_BLOB_BYTES, field)
    keys = payload.keys
    require(keys is None or keys.length == payload.keys_bytes, "keys")
    require(ctx.time < payload.expires <= MAX_TIME_MS, "expires")
    return state.with_new_model(model, ModelRecord(payload, sender, ctx.height, is_retired=False))


def apply_retire(state: State, sender: Address, payload: RetireModel) -> State:
    """No new requests; jobs that run go on."""
    record = get_model(state, payload.model)
    _require(record.owner == sender, Reason.MODEL_OWNER, sender.hex())
    _require(not record.is_retired, Reason.MODEL_RETIRED, payload.model.hex())
    return state.with_model(payload.model, replace(record, is_retired=True))


def get_model(state: State, model: Hash32) -> ModelRecord:
    """Raises: InvalidTransaction(MODEL_UNKNOWN)."""
    record = state.get_model(model)
    if record is None:
        raise InvalidTransaction(Reason.MODEL_UNKNOWN, model.hex())
    return record


# --- requests ---------------------------------------------------------------------------------


def _check_length(name: str, blob: BlobRef, expected: int) -> None:
    _require(blob.length == expected, Reason.JOB_SIZE, f"{name} of {blob.length} bytes, not {expected}")


def apply_request(
    state: State, sender: Address, payload: RequestInference, job: Hash32, ctx: BlockContext
) -> State:
    """A new job under its transaction's id, its fee taken from the requester's account."""
    record = get_model(state, payload.model)
    model = record.register
    _require(not record.is_retired, Reason.MODEL_RETIRED, payload.model.hex())
    _check_length("request", payload.request, model.request_bytes)
    _check_length("keys", payload.keys, model.keys_bytes)
    fits = model.keys is None or payload.keys == model.keys
    _require(fits, Reason.JOB_KEYS, "the model is encrypted under other keys")
    _require(payload.fee >= model.price, Reason.JOB_FEE, f"{payload.fee}, the model's price is {model.price}")
    fits = ctx.time < payload.commit_until < payload.deadline
    _require(fits, Reason.JOB_TIMES, "commit_until and deadline must follow each other in the future")
    fits = payload.deadline <= model.expires
    _require(fits, Reason.MODEL_EXPIRED, f"deadline {payload.deadline}, the model ends at {model.expires}")
    balance = state.get_account(sender).balance
    _require(balance >= payload.fee, Reason.TX_BALANCE, f"{balance} of {payload.fee}")
    fresh = JobRecord(
        request=payload,
        requester=sender,
        height=ctx.height,
        status=JobStatus.OPEN,
        evaluations=(),
        result=None,
        result_height=Height(0),
        escrow=payload.fee,
    )
    return state.with_credit(sender, -payload.fee).with_new_job(job, fresh)


# --- results ----------------------------------------------------------------------------------


def compute_commitment(job: Hash32, result: Hash32, evaluator: Address) -> Hash32:
    """Hides a result until it is revealed: only who has it can tell its root, and only one's own fits."""
    return hash_domain("result-commitment", job + result + evaluator)


def compute_organisations_stake(state: State, organisations: Iterable[str]) -> int:
    """Stake with which the validators of these organisations speak now, each organisation once."""
    names = set(organisations)
    return sum(
        validator.stake
        for validator in state.get_acting_validators()
        if state.get_account(validator.address).organisation in names
    )


def _compute_committed_stake(state: State, evaluations: Iterable[Evaluation]) -> int:
    return compute_organisations_stake(state, (item.organisation for item in evaluations))


def _get_living(state: State, job: Hash32) -> JobRecord:
    record = state.get_job(job)
    if record is None:
        raise InvalidTransaction(Reason.JOB_UNKNOWN, job.hex())
    _require(record.status in LIVING_JOBS, Reason.JOB_ENDED, record.status)
    return record


def _get_running(state: State, job: Hash32, ctx: BlockContext) -> JobRecord:
    record = _get_living(state, job)
    _require(ctx.time <= record.request.deadline, Reason.JOB_DEADLINE, str(record.request.deadline))
    return record


def apply_commit(state: State, sender: Address, payload: CommitResult, ctx: BlockContext) -> State:
    """Counts an organisation as one that has a result; more than two thirds of stake close the list."""
    record = _get_running(state, payload.job, ctx)
    organisation = state.get_account(sender).organisation
    _require(state.may_mine(organisation), Reason.EVALUATOR_ORGANISATION, organisation or "none")
    is_new = all(item.organisation != organisation for item in record.evaluations)
    _require(is_new, Reason.COMMIT_DOUBLED, organisation)
    _require(record.status is JobStatus.OPEN, Reason.COMMIT_CLOSED, record.status)
    evaluations = (*record.evaluations, Evaluation(sender, organisation, payload.commitment, None))
    # More than a third is left to agree even if a third lies.
    is_enough = 3 * _compute_committed_stake(state, evaluations) > 2 * state.get_total_stake()
    status = JobStatus.REVEALING if is_enough else JobStatus.OPEN
    return state.with_job(payload.job, replace(record, evaluations=evaluations, status=status))


def is_closable(state: State, record: JobRecord, time: int) -> bool:
    """True if the time for commitments is over and organisations with more than a third of stake have any."""
    if record.status is not JobStatus.OPEN or time < record.request.commit_until:
        return False
    return 3 * _compute_committed_stake(state, record.evaluations) > state.get_total_stake()


def apply_close(state: State, payload: CloseCommits, ctx: BlockContext) -> State:
    """Nobody commits any more; whoever has may show its result."""
    record = _get_running(state, payload.job, ctx)
    _require(record.status is JobStatus.OPEN, Reason.COMMIT_CLOSED, record.status)
    _require(is_closable(state, record, ctx.time), Reason.CLOSE_EARLY, payload.job.hex())
    return state.with_job(payload.job, replace(record, status=JobStatus.REVEALING))


def apply_reveal(state: State, sender: Address, payload: RevealResult, ctx: BlockContext) -> State:
    """Shows a committed result; it may confirm the job, and the last one ends it."""
    record = _get_running(state, payload.job, ctx)
    found = next((item for item in record.evaluations if item.evaluator == sender), None)
    if found is None:
        raise InvalidTransaction(Reason.REVEAL_UNCOMMITTED, sender.hex())
    _require(found.result is None, Reason.REVEAL_DOUBLED, sender.hex())
    _require(record.status is not JobStatus.OPEN, Reason.REVEAL_EARLY, payload.job.hex())
    fits = compute_commitment(payload.job, payload.result, sender) == found.commitment
    _require(fits, Reason.REVEAL_COMMITMENT, payload.result.hex())
    organisation = state.get_account(sender).organisation
    fits = organisation == found.organisation and state.may_mine(organisation)
    _require(fits, Reason.EVALUATOR_ORGANISATION, organisation or "none")
    evaluations = tuple(
        replace(item, result=payload.result) if item is found else item for item in record.evaluations
    )
    record = _confirm(state, replace(record, evaluations=evaluations), payload.result, ctx)
    if all(item.result is not None for item in evaluations):
        return _finish(state, payload.job, record, ctx)
    return state.with_job(payload.job, record)


def _confirm(state: State, record: JobRecord, result: Hash32, ctx: BlockContext) -> JobRecord:
    if record.result is not None:
        return record
    names = (item.organisation for item in record.evaluations if item.result == result)
    if 3 * compute_organisations_stake(state, names) <= state.get_total_stake():
        return record
    return replace(record, status=JobStatus.CONFIRMED, result=result, result_height=ctx.height)


# --- ends -------------------------------------------------------------------------------------


def apply_expire_job(state: State, payload: ExpireJob, ctx: BlockContext) -> State:
    """Ends a job whose time is over; what was confirmed is paid."""
    record = _get_living(state, payload.job)
    _require(ctx.time > record.request.deadline, Reason.JOB_EARLY, str(record.request.deadline))
    return _finish(state, payload.job, record, ctx)


def _finish(state: State, job: Hash32, record: JobRecord, ctx: BlockContext) -> State:
    """The owner's price, equal shares for those who had the result, and what does not divide, back."""
    confirmed = record.result
    for item in record.evaluations:
        state = _count(state, item, record)
    ended = replace(record, escrow=Amount(0))
    if confirmed is None:
        state = state.with_credit(record.requester, record.escrow)
        return state.with_job(job, replace(ended, status=JobStatus.REFUNDED))
    model = get_model(state, record.request.model)
    right = tuple(item.evaluator for item in record.evaluations if item.result == confirmed)
    share, dust = divmod(record.escrow - model.register.price, len(right))
    state = state.with_credit(model.owner, model.register.price).with_credit(record.requester, dust)
    for evaluator in right:
        state = state.with_credit(evaluator, share)
    receipt = Receipt(
        job=job,
        model=record.request.model,
        requester=record.requester,
        request=record.request.request,
        keys=record.request.keys,
        result=BlobRef(confirmed, model.register.result_bytes),
        evaluators=right,
        caught=tuple(i.evaluator for i in record.evaluations if i.result not in (None, confirmed)),
        silent=tuple(i.evaluator for i in record.evaluations if i.result is None),
        height=record.result_height,
        time=ctx.time,
    )
    return state.with_job(job, replace(ended, status=JobStatus.SETTLED)).with_receipt(job, receipt)


def _count(state: State, item: Evaluation, job: JobRecord) -> State:
    """Nobody is blamed where nothing was confirmed, or for silence before results were asked for."""
    record = state.get_evaluator(item.organisation)
    if item.result is None:
        record = replace(record, silent=record.silent + (job.status is not JobStatus.OPEN))
    elif item.result == job.result:
        record = replace(record, right=record.right + 1)
    elif job.result is not None:
        record = replace(record, wrong=record.wrong + 1)
    return state.with_evaluator(item.organisation, record)
