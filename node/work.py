"""The only bridge between the chain and machine learning.

`WorkService` answers consensus' question whether a loss ciphertext recomputes (W4) from finished
recomputations, and runs the heavy jobs of miners, validators and the custody in worker processes
behind a `concurrent.futures` executor, since the encryption library holds the interpreter's lock.
"""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from consensus.identifiers import compute_weights_digest
from consensus.task import Batch
from consensus.types import Hash32
from consensus.work import LossCheck, WorkVerdict
from node.blobs import BlobStore
from node.cluster import ClusterPool, ClusterUnavailable
from node.cluster_worker import RemoteJob
from node.ledger.chainstore import Ledger
from node.tasks import TaskDefinition
from node.worker import WorkerCall, initialise_worker, limit_threads
from workloads import base

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

VERDICT_PREFIX = b"verdict/"
WORKER_NICENESS = 5
"""Workers yield to the nodes' event loops, which answer peers while training runs."""


class MissingBlob(Exception):
    """A job needs a blob that this node does not hold."""

    def __init__(self, root: Hash32) -> None:
        super().__init__(f"blob {root.hex()} is not here")
        self.root = root


class JobObserver(Protocol):
    """Told of what worker pools do."""

    def on_pool(self, pool: str, workers: int) -> None:
        """There is such a pool, or so many more workers in it; fewer if negative, as a cluster's go."""
        ...

    def on_begun(self, pool: str) -> None: ...

    def on_ended(self, pool: str, job: str, seconds: float | None, cpu: float | None = None) -> None:
        """A job left the pool: `seconds` in its worker, None if it failed or was given up; and seconds of the
        processor, where they are known."""
        ...

    def on_death(self, pool: str) -> None:
        """A worker process died."""
        ...


class WorkerPool:
    """A process pool that is built anew when a worker dies; a job is then tried once more."""

    def __init__(self, workers: int, name: str = "", observer: JobObserver | None = None) -> None:
        self._workers = workers
        self._name = name
        self._observer = observer
        self._executor: Executor | None = None
        if observer is not None:
            observer.on_pool(name, workers)

    def _get(self) -> Executor:
        if self._executor is None:
            limit_threads()
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=initialise_worker,
                initargs=(WORKER_NICENESS,),
            )
        return self._executor

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `job` in a worker process.

        Raises:
            BrokenProcessPool: a worker died twice while running this job.
        """
        observer, seconds, cpu = self._observer, None, None
        if observer is not None:
            observer.on_begun(self._name)
        try:
            result, seconds, cpu = await self._run(WorkerCall(job, args, kwargs))
            return result
        finally:
            if observer is not None:
                observer.on_ended(self._name, getattr(job, "__name__", "unnamed"), seconds, cpu)

    async def _run(self, call: WorkerCall[R]) -> tuple[R, float, float]:
        loop = asyncio.get_running_loop()
        for attempt in (1, 2):
            executor = self._get()
            try:
                return await loop.run_in_executor(executor, call)
            except BrokenProcessPool:
                if self._observer is not None:
                    self._observer.on_death(self._name)
                logger.warning("a worker process died; the pool is rebuilt (attempt %d)", attempt)
                if self._executor is executor:
                    executor.shutdown(wait=False, cancel_futures=True)
                    self._executor = None
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Stop the workers; a job that is running is abandoned."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        if isinstance(executor, ProcessPoolExecutor):
            for process in list((executor._processes or {}).values()):
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


class VerdictBook:
    """Every loss recomputation this node has finished: the `WorkVerifier` of its chain (W4)."""

    def __init__(self) -> None:
        self._verdicts: dict[bytes, Hash32] = {}
        self._ledger: Ledger | None = None

    def open(self, ledger: Ledger) -> None:
        """Read what was finished before a restart, and keep what comes."""
        self._ledger = ledger
        for key, ciphertext in ledger.iterate_records(VERDICT_PREFIX):
            self._verdicts[key] = Hash32(ciphertext)

    def get_verdict(self, check: LossCheck) -> WorkVerdict | None:
        ciphertext = self.find(check.task, check.step, compute_weights_digest(check.weights))
        return None if ciphertext is None else WorkVerdict(check, ciphertext)

    def find(self, task: Hash32, step: int, weights: Hash32) -> Hash32 | None:
        """The recomputed hash for weights of this digest, if it is finished."""
        return self._verdicts.get(_get_verdict_key(task, step, weights))

    def remember(self, check: LossCheck, ciphertext: Hash32) -> None:
        """Keep a recomputation of this node's own (a custody makes the losses that it opens itself)."""
        key = _get_verdict_key(check.task, check.step, compute_weights_digest(check.weights))
        if self._ledger is not None:
            self._ledger.put_record(key, ciphertext)
        self._verdicts[key] = ciphertext


class WorkService:
    """Runs jobs on blobs at hand; finished loss recomputations go into the verdict book."""

    def __init__(
        self, blobs: BlobStore, verdicts: VerdictBook, workers: int, observer: JobObserver | None = None
    ) -> None:
        self._blobs = blobs
        self.verdicts = verdicts
        self.observer = observer
        """Of every pool of this node."""
        self.pool = WorkerPool(workers, "work", observer)
        self._cluster: ClusterPool | None = None
        # Verifying never waits behind mining: a block hangs on it.
        self.verifiers = WorkerPool(1, "verify", observer)
        self._running: dict[LossCheck, asyncio.Task[WorkVerdict]] = {}

    async def compute_verdict(self, definition: TaskDefinition, check: LossCheck) -> WorkVerdict:
        """Recompute the loss ciphertexts of `check`, once however often it is asked for.

        The validation blobs and keys must be at hand. Raises: MissingBlob, WorkloadError.
        """
        known = self.verdicts.get_verdict(check)
        if known is not None:
            return known
        running = self._running.get(check)
        if running is None:
            running = asyncio.create_task(self._recompute(definition, check))
            self._running[check] = running
            running.add_done_callback(lambda _: self._running.pop(check, None))
        return await asyncio.shield(running)

    async def _recompute(self, definition: TaskDefinition, check: LossCheck) -> WorkVerdict:
        losses = await self.compute_losses(definition, check.weights)
        ciphertext = Hash32(base.get_workload(definition.draft.kind).compute_loss_hash(losses))
        self.verdicts.remember(check, ciphertext)
        return WorkVerdict(check, ciphertext)

    async def compute_losses(self, definition: TaskDefinition, weights: tuple[int, ...]) -> list[bytes]:
        """The loss ciphertext of every validation batch, in order."""
        draft = definition.draft
        workload = base.get_workload(draft.kind)
        keys = self._get_keys(definition)
        return list(
            await asyncio.gather(
                *(
                    self.verifiers.run(
                        workload.run_loss,
                        base.LossJob(
                            draft.preset, draft.model, weights, keys, self.get_path(batch.blob.root)
                        ),
                    )
                    for batch in definition.validation
                )
            )
        )

    async def compute_losses_in_clear(self, kind: str, job: base.VerdictJob) -> base.VerdictLosses:
        """Two models' losses on this validator's own pairs. Raises: WorkloadError."""
        return await self.verifiers.run(base.get_workload(kind).run_verdict, job)

    def attach_cluster(self, cluster: ClusterPool) -> None:
        """Bundles may be computed on other machines from now on."""
        self._cluster = cluster

    @property
    def cluster_threads(self) -> int:
        """Bundles that can be computed at once besides those of this node's own workers."""
        return 0 if self._cluster is None else self._cluster.threads

    async def compute_bundle(
        self, definition: TaskDefinition, batch: int, weights: tuple[int, ...], output: Path
    ) -> None:
        """Write the canonical gradient bundle of one training batch to `output`."""
        draft = definition.draft
        if self._cluster is not None and self._cluster.free:
            keys, root = draft.relin_keys.root, definition.training[batch].blob.root
            remote = RemoteJob(draft.kind, draft.preset, draft.model, weights, keys, root)
            paths = {bytes(keys): self.get_path(keys), bytes(root): self.get_path(root)}
            try:
                await self._cluster.compute_bundle(remote, paths, output)
                return
            except ClusterUnavailable as error:
                logger.warning("%s: the batch is computed here", error)
        job = base.GradientJob(
            draft.preset,
            draft.model,
            weights,
            self._get_keys(definition),
            self.get_path(definition.training[batch].blob.root),
            output,
        )
        await self.pool.run(base.get_workload(draft.kind).run_gradient, job)

    async def check_keys(self, definition: TaskDefinition) -> None:
        """Refuse a task's keys that would not be safe to load. Raises: WorkloadError."""
        draft = definition.draft
        await self.pool.run(
            base.get_workload(draft.kind).run_check_keys,
            draft.preset,
            self.get_path(draft.public_key.root),
            self.get_path(draft.relin_keys.root),
        )

    async def check_batch(self, definition: TaskDefinition, batch: Batch, validation: bool) -> None:
        """Refuse an encrypted batch that is not well formed. Raises: WorkloadError."""
        draft = definition.draft
        await self.pool.run(
            base.get_workload(draft.kind).run_check_batch,
            draft.preset,
            draft.model,
            self.get_path(batch.blob.root),
            validation,
        )

    def get_path(self, root: Hash32) -> Path:
        """The file of a blob at hand. Raises: MissingBlob."""
        path = self._blobs.get_path(root)
        if path is None:
            raise MissingBlob(root)
        return path

    def _get_keys(self, definition: TaskDefinition) -> base.KeyFile:
        root = definition.draft.relin_keys.root
        return base.KeyFile(root, self.get_path(root))

    def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        self.pool.close()
        self.verifiers.close()


def _get_verdict_key(task: Hash32, step: int, weights: Hash32) -> bytes:
    return VERDICT_PREFIX + task + step.to_bytes(4, "big") + weights
