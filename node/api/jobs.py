"""Routes of encrypted inference: registered models, jobs with their parts and receipts, results."""

from typing import Literal

from aiohttp import web
from pydantic import Field

from consensus.inference import compute_organisations_stake
from consensus.jobs import JobRecord, ModelRecord
from consensus.state import State
from consensus.task import BlobRef
from consensus.types import Hash32
from node.api.errors import Problem, build_not_found
from node.api.fields import AmountInt, BlobRefModel, Count, Hex32, Model, TimeMs
from node.api.requests import (
    FRESH,
    OCTETS,
    Route,
    answer,
    answer_file,
    get_limit,
    get_view,
    parse_hash,
    take_page,
)
from node.api.schemas import Page


class InferenceModel(Model):
    """A model that anyone may have evaluated."""

    id: Hex32
    owner: Hex32
    organisation: str = Field(description="The owner's; empty for none")
    height: Count
    workload: str = Field(description="`diagnosis` or `sequence-diagnosis`")
    label: str
    provenance: str = Field(description="The owner's statement; nobody checks it")
    evidence: Hex32 = Field(description="Digest of what the statement refers to; zeros for none")
    weights: Literal["clear", "encrypted"]
    model: BlobRefModel
    keys: BlobRefModel | None = Field(description="Evaluation keys that every request must name; null: any")
    keys_bytes: Count
    request_bytes: Count
    result_bytes: Count
    price: AmountInt = Field(description="The owner's part of each settled job's fee")
    expires: TimeMs = Field(description="Latest deadline of a job")
    retired: bool


class InferenceJobSummary(Model):
    id: Hex32
    model: Hex32
    requester: Hex32
    height: Count
    status: str = Field(description="`open`, `revealing`, `confirmed`, `settled` or `refunded`")
    fee: AmountInt
    commit_until: TimeMs
    deadline: TimeMs
    commits: Count = Field(description="Organisations that have committed")
    reveals: Count = Field(description="Of these, those that have shown their result")
    result: BlobRefModel | None = Field(description="What more than a third of stake came to; null before")


class EvaluationModel(Model):
    """One organisation's part in a job."""

    evaluator: Hex32
    organisation: str
    commitment: Hex32
    result: Hex32 | None = Field(description="Root of the result that it has shown")


class ReceiptModel(Model):
    """What a settled job came to."""

    job: Hex32
    model: Hex32
    requester: Hex32
    request: BlobRefModel
    keys: BlobRefModel
    result: BlobRefModel
    evaluators: tuple[Hex32, ...] = Field(description="Who had this result; paid equally")
    caught: tuple[Hex32, ...] = Field(description="Who showed another one")
    silent: tuple[Hex32, ...] = Field(description="Who committed and showed none")
    height: Count = Field(description="Of the block that confirmed the result")
    time: TimeMs = Field(description="Of the block that settled the job")


class InferenceJob(InferenceJobSummary):
    """A job with everybody's part in it."""

    request: BlobRefModel
    keys: BlobRefModel
    escrow: AmountInt
    committed_stake: Count = Field(description="Of the organisations that have committed, now")
    total_stake: Count
    evaluations: tuple[EvaluationModel, ...]
    receipt: ReceiptModel | None = Field(description="Once the job is settled")


class EvaluatorModel(Model):
    """How an organisation's commitments ended, over all jobs."""

    organisation: str
    suspended: bool
    right: Count
    wrong: Count
    silent: Count


class EvaluatorsModel(Model):
    items: tuple[EvaluatorModel, ...]


# --- from the state -----------------------------------------------------------------------------


def build_inference_model(state: State, model: Hash32, record: ModelRecord) -> InferenceModel:
    register = record.register
    return InferenceModel(
        id=model.hex(),
        owner=record.owner.hex(),
        organisation=state.get_account(record.owner).organisation,
        height=record.height,
        workload=register.workload,
        label=register.label,
        provenance=register.provenance,
        evidence=register.evidence.hex(),
        weights="clear" if register.keys is None else "encrypted",
        model=BlobRefModel.model_validate(register.model),
        keys=None if register.keys is None else BlobRefModel.model_validate(register.keys),
        keys_bytes=register.keys_bytes,
        request_bytes=register.request_bytes,
        result_bytes=register.result_bytes,
        price=register.price,
        expires=register.expires,
        retired=record.is_retired,
    )


def get_result_ref(state: State, record: JobRecord) -> BlobRef | None:
    """The confirmed result."""
    model = state.get_model(record.request.model)
    return (
        None
        if record.result is None or model is None
        else BlobRef(record.result, model.register.result_bytes)
    )


def build_job_summary(state: State, job: Hash32, record: JobRecord) -> InferenceJobSummary:
    result = get_result_ref(state, record)
    return InferenceJobSummary(
        id=job.hex(),
        model=record.request.model.hex(),
        requester=record.requester.hex(),
        height=record.height,
        status=record.status.value,
        fee=record.request.fee,
        commit_until=record.request.commit_until,
        deadline=record.request.deadline,
        commits=len(record.evaluations),
        reveals=sum(item.result is not None for item in record.evaluations),
        result=None if result is None else BlobRefModel.model_validate(result),
    )


def build_job(state: State, job: Hash32, record: JobRecord) -> InferenceJob:
    receipt = state.get_receipt(job)
    names = [item.organisation for item in record.evaluations]
    return InferenceJob(
        **dict(build_job_summary(state, job, record)),
        request=BlobRefModel.model_validate(record.request.request),
        keys=BlobRefModel.model_validate(record.request.keys),
        escrow=record.escrow,
        committed_stake=compute_organisations_stake(state, names),
        total_stake=state.get_total_stake(),
        evaluations=tuple(EvaluationModel.model_validate(item) for item in record.evaluations),
        receipt=None if receipt is None else ReceiptModel.model_validate(receipt),
    )


# --- routes -------------------------------------------------------------------------------------


async def get_models(request: web.Request) -> web.Response:
    state, limit = get_view(request).get_state(), get_limit(request)
    numbers, following = take_page(request, "inference-models", range(state.get_model_count()), limit)
    models = []
    for number in numbers:
        model = state.get_model_id(number)
        record = None if model is None else state.get_model(model)
        if model is not None and record is not None:
            models.append(build_inference_model(state, model, record))
    return answer(Page[InferenceModel](items=tuple(models), next=following))


async def get_model(request: web.Request) -> web.Response:
    state, model = get_view(request).get_state(), parse_hash(request.match_info["model"], "model")
    record = state.get_model(model)
    if record is None:
        raise build_not_found("model", f"model {model.hex()}", "See /v1/inference/models")
    return answer(build_inference_model(state, model, record))


async def get_jobs(request: web.Request) -> web.Response:
    state, limit = get_view(request).get_state(), get_limit(request)
    numbers, following = take_page(request, "inference-jobs", range(state.get_job_count()), limit)
    jobs = []
    for number in numbers:
        job = state.get_job_id(number)
        record = None if job is None else state.get_job(job)
        if job is not None and record is not None:
            jobs.append(build_job_summary(state, job, record))
    return answer(Page[InferenceJobSummary](items=tuple(jobs), next=following))


def _read_job(request: web.Request) -> tuple[State, Hash32, JobRecord]:
    state, job = get_view(request).get_state(), parse_hash(request.match_info["job"], "job")
    record = state.get_job(job)
    if record is None:
        remedy = "Wait until its transaction is in a block (GET /v1/transactions/{id})"
        raise build_not_found("job", f"job {job.hex()}", remedy)
    return state, job, record


async def get_job(request: web.Request) -> web.Response:
    return answer(build_job(*_read_job(request)))


async def get_job_result(request: web.Request) -> web.StreamResponse:
    """The confirmed result's bytes, where they are held; they are a ciphertext."""
    state, job, record = _read_job(request)
    result = get_result_ref(state, record)
    if result is None:
        raise Problem(
            409,
            "not-ready",
            f"The job is {record.status.value}: no result is confirmed",
            remedy="Wait until it is `confirmed` or `settled` (GET /v1/inference/jobs/{job})",
            headers={"Retry-After": "1"},
        )
    path = get_view(request).get_blob_path(result.root)
    if path is None:
        remedy = "Ask an evaluator of the job, or this node's operator API, which fetches it from peers"
        raise build_not_found("job", f"result of job {job.hex()} here", remedy)
    return answer_file(request, path, result.root, FRESH)


async def get_evaluators(request: web.Request) -> web.Response:
    state = get_view(request).get_state()
    suspended = state.get_suspended()
    items = []
    for name in state.get_mining_organisations():
        record = state.get_evaluator(name)
        items.append(
            EvaluatorModel(
                organisation=name,
                suspended=name in suspended,
                right=record.right,
                wrong=record.wrong,
                silent=record.silent,
            )
        )
    return answer(EvaluatorsModel(items=tuple(items)))


_PAGED = ("limit", "cursor")

JOB_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/inference/models",
        "listInferenceModels",
        get_models,
        "Models for encrypted inference, oldest first",
        Page[InferenceModel],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/inference/models/{model}",
        "getInferenceModel",
        get_model,
        "A model for encrypted inference",
        InferenceModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/inference/jobs",
        "listInferenceJobs",
        get_jobs,
        "Jobs of encrypted inference, oldest first",
        Page[InferenceJobSummary],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/inference/jobs/{job}",
        "getInferenceJob",
        get_job,
        "A job with its commitments, results and receipt",
        InferenceJob,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/inference/jobs/{job}/result",
        "getInferenceResult",
        get_job_result,
        "The confirmed result, encrypted",
        media=OCTETS,
        cached=True,
        errors=(400, 404, 409),
    ),
    Route(
        "GET",
        "/v1/inference/evaluators",
        "listEvaluators",
        get_evaluators,
        "Organisations that may evaluate, and how their results were",
        EvaluatorsModel,
    ),
)
