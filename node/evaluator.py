"""Evaluating: compute the results of jobs of encrypted inference, commit to them, show them, be paid.

Evaluation on ciphertexts is canonical, so whatever is computed again after a restart gives the same bytes,
and a transaction that was sent already has the same id.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from consensus.inference import compute_commitment, is_closable
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    Evaluation,
    JobRecord,
    JobStatus,
    ModelRecord,
    RegisterModel,
    RevealResult,
)
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.types import Hash32
from node.blobs import BlobError
from node.core import Core
from node.jobs import RESULT_PREFIX, LivingJobs, note_held
from node.settings import EvaluatorSettings
from node.tasks import get_next_context
from node.work import WorkerPool
from workloads.base import WorkloadError
from workloads.inference import InferenceJob, InferenceWorkload, ModelFacts, get_inference

logger = logging.getLogger(__name__)

POLL_S = 1.0
RETRY_S = 20.0
"""Before blobs that could not be had, and transactions that were refused, are tried again."""
PATIENCE_S = 60.0
"""How long a blob may be on its way without a new chunk."""
SCRATCH = "evaluations"
"""Below a node's data directory."""


def get_progress_path(scratch: Path, job: Hash32) -> Path:
    """Where the evaluation of a job says how far it is, while it goes on."""
    return scratch / f"{job.hex()}.progress"


class Evaluator:
    """Takes every job that may be worth it; results stay in the blob store for requesters to fetch."""

    def __init__(
        self,
        core: Core,
        settings: EvaluatorSettings,
        scratch: Path,
        get_workload: Callable[[str], InferenceWorkload] = get_inference,
    ) -> None:
        self._core = core
        self._settings = settings
        self._scratch = scratch
        self._get_workload = get_workload
        self._jobs = LivingJobs(core)
        # Its own process: neither mining nor verifying waits behind an evaluation.
        self._pool = WorkerPool(1, "evaluator", core.work.observer)
        self._turn = asyncio.Lock()
        self._running: dict[Hash32, asyncio.Task[None]] = {}
        core.drain.watch("jobs", lambda: len(self._running))
        self._not_before: dict[Hash32, float] = {}
        self._refused: set[Hash32] = set()

    @property
    def is_busy(self) -> bool:
        """Whether any job is being fetched or evaluated."""
        return bool(self._running)

    async def run(self) -> None:
        """Until cancelled."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        seen = -1
        try:
            while True:
                jobs = self._jobs.get()
                for job, record in jobs:
                    self._consider(job, record)
                self._forget_ended({job for job, _ in jobs})
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            self._pool.close()

    def _consider(self, job: Hash32, record: JobRecord) -> None:
        """The one thing that this node can do for the job now, if there is any."""
        core, state = self._core, self._core.chain.head_state
        if self._not_before.get(job, 0.0) > core.clock.monotonic():
            return
        time = get_next_context(core.chain, core.clock.now_ms()).time
        organisation = state.get_account(core.address).organisation
        if time > record.request.deadline or not state.may_mine(organisation):
            return
        own = next((item for item in record.evaluations if item.evaluator == core.address), None)
        if own is not None and is_closable(state, record, time):
            self._send(job, CloseCommits(job))
        elif own is not None and own.result is None and record.status is not JobStatus.OPEN:
            self._reveal(job, record, own)
        elif own is None and record.status is not JobStatus.OPEN and job in self._running:
            self._running[job].cancel()  # too late to commit
        elif own is None and record.status is JobStatus.OPEN:
            is_free = all(item.organisation != organisation for item in record.evaluations)
            model = state.get_model(record.request.model)
            if is_free and model is not None and self._is_wanted(record, model):
                self._commit(job, record)

    def _is_wanted(self, record: JobRecord, model: ModelRecord) -> bool:
        register = model.register
        lengths = (register.model.length, register.keys_bytes, register.request_bytes, register.result_bytes)
        is_small = max(lengths) <= min(self._settings.max_blob_bytes, self._core.blobs.max_blob_bytes)
        return is_small and record.escrow - register.price >= self._settings.minimum_fee

    # --- what is sent -------------------------------------------------------------------------

    def _send(self, job: Hash32, payload: Payload) -> None:
        """Once; what is refused is tried again after a while."""
        core = self._core
        transaction = core.sign(payload)
        if core.is_pending(transaction):
            return
        admission = core.admit(transaction)
        if not admission.accepted and not admission.known:
            self._not_before[job] = core.clock.monotonic() + RETRY_S
            logger.warning("%s refused: %s %s", type(payload).__name__, admission.reason, admission.detail)

    def _commit(self, job: Hash32, record: JobRecord) -> None:
        result = self._get_result(job)
        if result is None:
            self._start(job, record)
        else:
            self._send(job, CommitResult(job, compute_commitment(job, result, self._core.address)))

    def _reveal(self, job: Hash32, record: JobRecord, own: Evaluation) -> None:
        """Only after a block has closed the list: until then somebody could still commit to what is shown."""
        result = self._get_result(job)
        if result is None:
            self._start(job, record)
        elif compute_commitment(job, result, self._core.address) == own.commitment:
            self._send(job, RevealResult(job, result))
        elif job not in self._refused:
            self._refused.add(job)
            logger.error("job %s: the result is not the one that was committed to", job.hex()[:12])

    def _get_result(self, job: Hash32) -> Hash32 | None:
        """The result that this node has computed and still holds."""
        root = self._core.chain.ledger.get_record(RESULT_PREFIX + job)
        return None if root is None or not self._core.blobs.has(Hash32(root)) else Hash32(root)

    # --- what is computed ---------------------------------------------------------------------

    def _start(self, job: Hash32, record: JobRecord) -> None:
        is_known = job in self._running or job in self._refused or self._core.drain.is_draining
        if is_known or len(self._running) >= self._settings.max_waiting:
            return
        model = self._core.chain.head_state.get_model(record.request.model)
        if model is not None:
            self._running[job] = asyncio.create_task(self._work(job, record, model.register))
            self._running[job].add_done_callback(lambda _: self._finish(job))

    def _finish(self, job: Hash32) -> None:
        self._running.pop(job, None)
        self._core.pulse.beat()

    async def _work(self, job: Hash32, record: JobRecord, model: RegisterModel) -> None:
        core, name = self._core, job.hex()[:12]
        try:
            result, seconds = await self._evaluate(job, record, model)
        except BlobError as error:
            self._not_before[job] = core.clock.monotonic() + RETRY_S
            logger.warning("job %s waits for its blobs: %s", name, error)
        except (WorkloadError, OSError, BrokenProcessPool) as error:
            # The same bytes would be refused again, or end two more workers.
            self._refused.add(job)
            logger.warning("job %s is refused: %s", name, error)
        else:
            core.chain.ledger.put_record(RESULT_PREFIX + job, result)
            logger.info("evaluated job %s in %.1f s", name, seconds)

    async def _evaluate(self, job: Hash32, record: JobRecord, model: RegisterModel) -> tuple[Hash32, float]:
        """Root of the result's blob, and how long its evaluation took.

        Raises: BlobError, WorkloadError.
        """
        core, request = self._core, record.request
        workload = self._get_workload(model.workload)
        paths = InferenceJob(
            model=await self._fetch(request.model, model.model),
            keys=await self._fetch(job, request.keys),
            request=await self._fetch(job, request.request),
            output=self._scratch / f"{job.hex()}.result",
            progress=get_progress_path(self._scratch, job),
        )
        async with self._turn:
            begun = core.clock.monotonic()
            try:
                facts = await self._pool.run(workload.describe_model, paths.model)
                _check_facts(model, facts)
                # One cheap request could otherwise keep this node from all others.
                longest = self._settings.max_seconds
                if facts.seconds > longest:
                    raise WorkloadError(f"model: {facts.seconds:.1f} s predicted, longest is {longest:.0f}")
                await self._pool.run(workload.check_keys, paths.model, paths.keys)
                await self._pool.run(workload.check_request, paths.model, paths.request)
                await self._pool.run(workload.run, paths)
                length = paths.output.stat().st_size
                if length != model.result_bytes:
                    raise WorkloadError(f"result: {length} bytes, the model's registration says otherwise")
                result = await core.blobs.put_file(paths.output, move=True)
            finally:
                paths.output.unlink(missing_ok=True)
                get_progress_path(self._scratch, job).unlink(missing_ok=True)
        return result.root, core.clock.monotonic() - begun

    async def _fetch(self, owner: Hash32, ref: BlobRef) -> Path:
        """The blob's file, held for this job or model."""
        note_held(self._core, owner, ref.root)
        return await self._core.fetcher.fetch(ref, patience_s=PATIENCE_S)

    def _forget_ended(self, living: set[Hash32]) -> None:
        self._refused &= living
        for job in [job for job in self._not_before if job not in living]:
            del self._not_before[job]
        for job, task in list(self._running.items()):
            if job not in living:
                task.cancel()


def _check_facts(model: RegisterModel, facts: ModelFacts) -> None:
    """What the registration says of the model's bytes is what they say.

    Raises: WorkloadError naming the field.
    """
    expected = "clear" if model.keys is None else "encrypted"
    for field, said, found in (
        ("workload", model.workload, facts.kind),
        ("weights", expected, facts.weights),
        ("keys_bytes", model.keys_bytes, facts.keys_bytes),
        ("request_bytes", model.request_bytes, facts.request_bytes),
        ("result_bytes", model.result_bytes, facts.result_bytes),
    ):
        if said != found:
            raise WorkloadError(f"{field}: registered as {said!r}, the model's bytes say {found!r}")
