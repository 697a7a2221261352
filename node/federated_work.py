"""What a node needs of federated learning: the port, and the jobs that cross it into worker processes.

Plain data crosses it. Whoever adds updates needs no key; the one call that decrypts takes a sum of a counted
list, and runs at the custody alone.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from node.work import JobObserver, WorkerPool
from workloads.base import WorkloadError
from workloads.sealed import PLAIN, FolderKeys

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a federation fixes for all its rounds, with its blobs as files."""

    network: Path
    keys: Path
    parameters: int
    weights: int
    """Sum of all participants' weights: the greatest that a sum may have."""
    clip: int
    noise_std: int
    update_bytes: int


@dataclass(frozen=True, slots=True)
class OpenJob:
    """Open the sum of one round's listed updates; the opened integers go to `output`."""

    terms: Terms
    secret: Path = field(repr=False)
    """Folder of the federation's secret and noise keys."""
    total: Path
    weights: int
    """Sum of the listed weights."""
    participants: int
    """How many are listed."""
    binding: bytes
    """Names federation, round, list and sum: the noise is a function of it."""
    output: Path
    keys: FolderKeys = PLAIN
    """What opens the folder's two secrets, if they are sealed."""


@dataclass(frozen=True, slots=True)
class ApplyJob:
    """Make the round's model: the one before plus the opened sum divided by the listed weights."""

    terms: Terms
    model: Path
    opened: Path
    weights: int
    output: Path


@dataclass(frozen=True, slots=True)
class JudgeJob:
    """Two models' losses on a validator's own data."""

    terms: Terms
    before: Path
    after: Path
    data: Path = field(repr=False)


@dataclass(frozen=True, slots=True)
class Losses:
    """In units of 1e-6."""

    before: int
    after: int


class FederatedWork(Protocol):
    """Methods are for worker processes and raise WorkloadError on what they refuse, naming file and remedy.

    Instances are small and can be pickled. `apply` and `judge` may load the training library, `open_sum` the
    encryption library; so they run in different processes.
    """

    def check_terms(self, terms: Terms, model: Path) -> None:
        """Raises unless network, first model and public key are such as the federation says."""
        ...

    def check_update(self, terms: Terms, update: Path) -> None:
        """Raises unless these bytes may be added: exact length, canonical residues. Loads no library."""
        ...

    def add_updates(self, terms: Terms, updates: tuple[Path, ...], output: Path) -> None:
        """The exact sum in this order, the same bytes wherever it is computed."""
        ...

    def open_sum(self, job: OpenJob) -> None:
        """Decrypt, add noise, round. The same job always writes the same bytes."""
        ...

    def apply(self, job: ApplyJob) -> None: ...

    def judge(self, job: JudgeJob) -> Losses: ...


class PatientPool:
    """One worker process that is ended when a job takes too long."""

    def __init__(self, max_seconds: float, observer: JobObserver | None = None) -> None:
        self._pool = WorkerPool(1, "federation", observer)
        self._max_seconds = max_seconds
        self._turn = asyncio.Lock()

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One job at a time, in order of asking. Raises: WorkloadError, also if it takes too long or ends the
        worker."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._max_seconds):
                    return await self._pool.run(job, *args, **kwargs)
            except TimeoutError:
                self._pool.close()
                raise WorkloadError(f"given up after {self._max_seconds:.0f} s") from None
            except BrokenProcessPool as error:
                raise WorkloadError(f"a worker process ended: {error}") from error

    @property
    def is_busy(self) -> bool:
        return self._turn.locked()

    def close(self) -> None:
        self._pool.close()


@dataclass(frozen=True, slots=True)
class FederatedLearning:
    """`workloads.federated`, loaded in the worker processes alone."""

    def check_terms(self, terms: Terms, model: Path) -> None:
        from workloads import federated

        federated.check_terms(
            terms.network,
            model,
            terms.keys,
            parameters=terms.parameters,
            weights=terms.weights,
            clip=terms.clip,
            update_bytes=terms.update_bytes,
        )

    def check_update(self, terms: Terms, update: Path) -> None:
        from workloads import federated

        federated.check_update(terms.network, update)

    def add_updates(self, terms: Terms, updates: tuple[Path, ...], output: Path) -> None:
        from workloads import federated

        federated.sum_updates(terms.network, updates, output)

    def open_sum(self, job: OpenJob) -> None:
        from workloads import federated

        federated.open_sum(
            job.terms.network,
            job.secret,
            job.total,
            participants=job.participants,
            weights=job.weights,
            noise_std=job.terms.noise_std,
            binding=job.binding,
            output=job.output,
            keys=job.keys,
        )

    def apply(self, job: ApplyJob) -> None:
        from workloads import federated

        federated.apply_opened(job.terms.network, job.model, job.opened, job.weights, job.output)

    def judge(self, job: JudgeJob) -> Losses:
        from workloads import federated

        before, after = federated.judge(job.terms.network, job.before, job.after, job.data)
        return Losses(before, after)
