"""A Dask cluster as further workers of a miner: batches go to other machines, bundles come back.

The scheduler and its workers belong to the node's operator: Dask runs what it is sent, so they speak TLS
under an authority of their own, and nobody else may reach them. Only gradient jobs go there, which hold
ciphertexts and public keys. Blobs move once to each machine and are kept there by root. What a lost worker
was computing is given to another one, or computed here; while the scheduler is away the own workers go on.
"""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from node.clock import Clock
from node.cluster_worker import RemoteJob, RemoteResult, run_remote
from node.settings import ClusterSettings
from workloads.base import WorkloadError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

logger = logging.getLogger(__name__)

CONNECT_S = 5.0
RETRY_S = 5.0
LOOK_S = 1.0
"""How often the list of workers is read, and a job's worker looked for."""
ATTEMPTS = 3
REST_S = 30.0
"""A worker that failed gets no job for so long, or every batch would try it first."""
POOL = "cluster"
"""Name of the cluster among the node's pools of workers."""
PACKAGES = ("bmif", "Pyfhel", "distributed")
"""Must be the same everywhere: jobs are pickled, and a bundle's bytes are compared."""


class ClusterUnavailable(Exception):
    """No worker of the cluster could do the job."""


class ClusterSetupError(Exception):
    """The settings ask for a cluster and this installation can't have one; the text says what to do."""


class ClusterObserver(Protocol):
    """Told of the cluster's workers and jobs, as of the node's own."""

    def on_pool(self, pool: str, workers: int) -> None: ...

    def on_begun(self, pool: str) -> None: ...

    def on_ended(self, pool: str, job: str, seconds: float | None) -> None: ...

    def on_death(self, pool: str) -> None: ...


@dataclass(slots=True)
class Traffic:
    """Bytes of blobs and bundles over the wire, and what they were for."""

    sent: int = 0
    received: int = 0
    jobs: int = 0
    lost: int = 0
    """Jobs whose worker went away."""


@dataclass(slots=True)
class _Worker:
    threads: int
    running: int = 0
    rests_until: float = 0.0
    """Monotonic seconds: it failed, and is left alone so long."""
    held: set[bytes] = field(default_factory=set)
    """Roots of blobs that were sent there."""


class ClusterPool:
    """Gives jobs to the workers of one scheduler, one a thread at a time."""

    def __init__(
        self, settings: ClusterSettings, clock: Clock, observer: ClusterObserver | None = None
    ) -> None:
        """Raises: ClusterSetupError where Dask is not installed, or a certificate can't be used."""
        self._security = build_security(settings)
        self._settings = settings
        self._clock = clock
        self._observer = observer
        if observer is not None:
            observer.on_pool(POOL, 0)
        self._client: Client | None = None
        self._workers: dict[str, _Worker] = {}
        self.traffic = Traffic()
        self.failures: Counter[str] = Counter()

    @property
    def threads(self) -> int:
        """Jobs that the cluster can do at once, as far as is known."""
        return sum(worker.threads for worker in self._workers.values())

    @property
    def free(self) -> int:
        """Jobs that it could begin now."""
        now = self._clock.monotonic()
        return sum(
            max(0, worker.threads - worker.running)
            for worker in self._workers.values()
            if worker.rests_until <= now
        )

    async def run(self) -> None:
        """Stay connected until cancelled."""
        try:
            while True:
                try:
                    await self._connect()
                    await self._follow()
                except (OSError, TimeoutError, ValueError) as error:
                    self._note(f"the cluster's scheduler can't be reached: {explain(error)}")
                await self._disconnect()
                await self._clock.sleep(RETRY_S)
        finally:
            await self._disconnect()

    def _note(self, text: str) -> None:
        """Once for each thing that happens again and again."""
        self.failures[text] += 1
        if self.failures[text] == 1:
            logger.warning("%s; this node's own workers go on", text)

    async def _connect(self) -> None:
        self._client = await connect(self._settings, self._security)
        logger.info("cluster %s is connected", self._settings.scheduler)
        self.failures.clear()

    async def _follow(self) -> None:
        """Keep the list of workers, until the scheduler is gone."""
        client = self._client
        judged: dict[str, str | None] = {}
        while client is not None and client.status == "running":
            identity = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), CONNECT_S)
            found = {address: int(worker["nthreads"]) for address, worker in identity["workers"].items()}
            if found.keys() - judged.keys():
                judged = await find_mismatches(client)
            for address in [address for address in self._workers if address not in found]:
                self._remove(address)
                logger.warning("cluster worker %s is gone", address)
            for address, threads in found.items():
                if address in self._workers or address not in judged:
                    continue
                mismatch = judged[address]
                if mismatch is not None:
                    self._note(f"cluster worker {address} is not used: {mismatch}")
                    continue
                self._add(address, threads)
                logger.info("cluster worker %s with %d threads", address, threads)
            await self._clock.sleep(LOOK_S)
        self._note("the cluster's scheduler is gone")

    def _add(self, address: str, threads: int) -> None:
        self._workers[address] = _Worker(threads)
        if self._observer is not None:
            self._observer.on_pool(POOL, threads)

    def _remove(self, address: str) -> None:
        worker = self._workers.pop(address)
        if self._observer is not None:
            self._observer.on_pool(POOL, -worker.threads)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        for address in list(self._workers):
            self._remove(address)
        if client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await client.close(timeout=CONNECT_S)

    async def compute_bundle(self, job: RemoteJob, paths: dict[bytes, Path], output: Path) -> None:
        """Have one worker compute a bundle, and write it to `output`; `paths` has every blob of the job.

        Raises: WorkloadError if the job is refused; ClusterUnavailable where no worker can do it.
        """
        for _ in range(ATTEMPTS):
            address = self._choose(job)
            if address is None:
                break
            worker = self._workers[address]
            worker.running += 1
            seconds = None
            if self._observer is not None:
                self._observer.on_begun(POOL)
            try:
                result = await self._try(job, paths, address, worker)
                seconds = result.seconds
            except ClusterUnavailable as error:
                self._give_up(address, worker)
                logger.warning("%s; the batch goes elsewhere", error)
                continue
            finally:
                worker.running -= 1
                if self._observer is not None:
                    self._observer.on_ended(POOL, "run_gradient", seconds)
            bundle = result.bundle or b""
            self.traffic.jobs += 1
            self.traffic.received += len(bundle)
            await asyncio.to_thread(output.write_bytes, bundle)
            return
        raise ClusterUnavailable("no worker of the cluster is free")

    def _give_up(self, address: str, worker: _Worker) -> None:
        self.traffic.lost += 1
        worker.rests_until = self._clock.monotonic() + REST_S
        if self._observer is not None and address not in self._workers:
            self._observer.on_death(POOL)

    def _choose(self, job: RemoteJob) -> str | None:
        """A worker with a free thread, one that has the blobs before others."""
        now = self._clock.monotonic()
        free = [
            item
            for item in self._workers.items()
            if item[1].running < item[1].threads and item[1].rests_until <= now
        ]
        ranked = sorted(
            free, key=lambda item: (-len(item[1].held & set(job.roots)), item[1].running, item[0])
        )
        return ranked[0][0] if ranked else None

    async def _try(
        self, job: RemoteJob, paths: dict[bytes, Path], address: str, worker: _Worker
    ) -> RemoteResult:
        wanted = [root for root in job.roots if root not in worker.held]
        for _ in range(2):
            blobs = {root: await asyncio.to_thread(paths[root].read_bytes) for root in wanted}
            try:
                result = await self._submit(job, blobs, address)
            except ClusterUnavailable:
                raise
            except Exception as error:  # whatever Dask, or the code on the worker, may raise
                raise ClusterUnavailable(f"cluster worker {address}: {explain(error)}") from error
            self.traffic.sent += sum(len(data) for data in blobs.values())
            worker.held.update(blobs)
            if result.refused is not None:
                raise WorkloadError(result.refused)
            if result.bundle is not None:
                return result
            worker.held.difference_update(result.missing)
            wanted = list(result.missing)
        raise ClusterUnavailable(f"cluster worker {address} keeps no blobs")

    async def _submit(self, job: RemoteJob, blobs: dict[bytes, bytes], address: str) -> RemoteResult:
        client = self._client
        if client is None:
            raise ClusterUnavailable("the cluster's scheduler is gone")
        # Scattered to the worker itself: arguments would go through the scheduler and its memory.
        there = await client.scatter(list(blobs.values()), workers=[address], hash=False) if blobs else []
        data = dict(zip(blobs, there, strict=True))
        future = client.submit(
            run_remote, job, data, workers=[address], allow_other_workers=False, pure=False, retries=0
        )
        waiting: asyncio.Future[RemoteResult] = asyncio.ensure_future(client.gather(future))
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=LOOK_S)
                if address not in self._workers or self._client is not client:
                    raise ClusterUnavailable(f"cluster worker {address} went away")
            return waiting.result()
        finally:
            waiting.cancel()
            future.release()


async def connect(settings: ClusterSettings, security: "Security | None") -> "Client":
    """A client of the scheduler that sends blobs to workers, and takes bundles from them, directly.

    Raises: OSError, TimeoutError, ValueError where it can't be reached.
    """
    from distributed import Client

    return await Client(
        settings.scheduler,
        asynchronous=True,
        security=security,
        timeout=CONNECT_S,
        set_as_default=False,
        direct_to_workers=True,
        name="bmif",
    )


async def find_mismatches(client: "Client") -> dict[str, str | None]:
    """Each worker, and what is not as here; None if all is. The scheduler's faults are everyone's."""
    versions = await asyncio.wait_for(client.get_versions(packages=list(PACKAGES)), CONNECT_S)
    own, scheduler = _pick(versions["client"]), _compare(versions["client"], versions["scheduler"])
    if scheduler is not None:
        scheduler = f"the scheduler has {scheduler}"
    remedy = ", ".join(f"{name} {version}" for name, version in own.items())
    return {
        address: f"{found}, this node {remedy}: install the same there"
        if (found := scheduler or _compare(versions["client"], there)) is not None
        else None
        for address, there in versions["workers"].items()
    }


Versions = Mapping[str, Mapping[str, object]]


def _pick(versions: Versions) -> dict[str, str]:
    python = ".".join(str(versions["host"]["python"]).split(".")[:2])
    return {"python": python} | {name: str(versions["packages"].get(name)) for name in PACKAGES}


def _compare(own: Versions, there: Versions) -> str | None:
    """What is other there; None if nothing is."""
    expected, found = _pick(own), _pick(there)
    others = [
        f"{name} {found[name]}" if found[name] != "None" else f"no {name}"
        for name in expected
        if expected[name] != found[name]
    ]
    return ", ".join(others) or None


def explain(error: BaseException) -> str:
    """What went wrong with a scheduler or worker, in one line: Dask's first cause, and what to compare."""
    while error.__cause__ is not None and str(error.__cause__):  # a connection given up says nothing
        error = error.__cause__
    said = " ".join(re.sub(r"in <[^>]*>: ", "", str(error)).split()) or type(error).__name__
    if "certificate" in said.lower() or "SSL" in said:
        return f"{said}. Compare cluster.authority and cluster.certificate with the scheduler's"
    return said


def check_setup(settings: ClusterSettings) -> None:
    """Before a node starts. Raises: ClusterSetupError if it could not use its cluster as it is set up."""
    if settings.scheduler is not None:
        build_security(settings)


def build_security(settings: ClusterSettings) -> "Security | None":
    """Mutual TLS as Dask has it; None for a scheduler on loopback without TLS.

    Raises: ClusterSetupError where Dask is not installed, or a file can't be used.
    """
    try:
        from distributed.security import Security
    except ImportError as error:
        raise ClusterSetupError(
            "cluster.scheduler is set, but Dask is not installed: pip install 'bmif[cluster]'"
        ) from error
    if not settings.is_tls:
        return None
    security = Security(
        require_encryption=True,
        tls_ca_file=str(settings.authority),
        tls_client_cert=str(settings.certificate),
        tls_client_key=str(settings.key),
    )
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as error:
        raise ClusterSetupError(
            f"cluster.authority {settings.authority}, cluster.certificate {settings.certificate} or "
            f"cluster.key {settings.key} can't be used: {error}. Make them with `bmif tls issue`"
        ) from error
    return security
