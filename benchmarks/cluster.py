"""What a Dask cluster adds to a miner: `python -m benchmarks.cluster`.

The batches of an encrypted step at full size, computed by the node's own worker processes and by a scheduler
and workers that are processes of this machine under mutual TLS; in turns, so that other load disturbs both
alike. Every bundle is compared with the own workers'. Bytes are counted at the sockets of each process, TLS
taken off. `--write` renews the table in docs/SCALEOUT.md.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from distributed import Client
from rich.table import Table

from benchmarks.testbed import console
from benchmarks.timing import get_machine
from benchmarks.wire import Wire, count_wire, read_wire
from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from node.clock import SystemClock
from node.cluster import ClusterPool, build_security, connect
from node.cluster_worker import RemoteJob, compute_root
from node.settings import ClusterSettings
from node.tls import TlsFiles, save_certificate
from node.tls_issue import make_authority, make_certificate
from node.work import WORKER_NICENESS, WorkerPool
from workloads.base import GradientJob, KeyFile
from workloads.custodian import generate_keys
from workloads.encryption import ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import WORKLOAD, FusionSpec

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "SCALEOUT.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
SPEC = FusionSpec()
SEED = 3
START_S = 60.0
PRIMING_STEP = 99
"""Its weights are no measured step's."""


class ClusterBenchmarkError(Exception):
    """The cluster did not come up, or computed other bytes; the text says which."""


@dataclass(frozen=True, slots=True)
class Material:
    """Keys and encrypted batches of one task."""

    preset: str
    keys: Path
    batches: tuple[Path, ...]
    roots: dict[Path, bytes]

    def build_weights(self, step: int) -> tuple[int, ...]:
        return WORKLOAD.build_initial_weights(SPEC.encode(), step)


def make_material(preset: str, count: int, folder: Path) -> Material:
    """Synthetic patches under fresh keys: a batch fills every slot."""
    files = generate_keys(preset, folder / "keys")
    secret = (folder / "keys" / "secret.key").read_bytes()
    public = PrivateContext.load(WORKLOAD.get_params(preset), secret).public
    slots = WORKLOAD.get_slots(preset)
    plan = ContributionPlan(count, 0, (), seed=SEED, patches_per_batch=slots)
    clear, _ = build_clear_batches(SPEC, build_phantoms(4 * count, SEED), plan, slots)
    paths = []
    for number, batch in enumerate(clear):
        path = folder / f"batch-{number}"
        path.write_bytes(encrypt_patches(public, SPEC, batch, False))
        paths.append(path)
    roots = {path: compute_root(path.read_bytes()) for path in (files.relin_keys, *paths)}
    return Material(preset, files.relin_keys, tuple(paths), roots)


# --- the cluster ------------------------------------------------------------------------------


class Processes:
    """A scheduler and workers, started as docs/SCALEOUT.md says, each worker in a folder of its own as on a
    machine of its own."""

    def __init__(self, folder: Path) -> None:
        authority = make_authority("cluster")
        self._folder = folder
        folder.mkdir()
        self._files = TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "ca.pem")
        issued = make_certificate(authority, "cluster", "cluster", ["127.0.0.1"])
        save_certificate(self._files, issued, authority.certificate_pem)
        self._address = folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, part: str, *arguments: str) -> None:
        files = self._files
        tls: list[str | Path] = [
            "--tls-ca-file",
            files.authority,
            "--tls-cert",
            files.certificate,
            "--tls-key",
            files.key,
        ]
        where: list[str | Path] = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", self._address]
        # As yielding as an own worker, or other load on the machine would disturb the two unlike.
        nice: list[str | Path] = ["nice", "-n", str(WORKER_NICENESS)] if part == "worker" else []
        command: list[str | Path] = [
            *nice,
            sys.executable,
            "-m",
            "dask",
            part,
            "--protocol",
            "tls",
            *where,
            *arguments,
            *tls,
        ]
        with (self._folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self._folder,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                )
            )

    def start_worker(self, name: str) -> None:
        folder = self._folder / name
        folder.mkdir()
        self.start("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder / "dask"))

    async def get_settings(self) -> ClusterSettings:
        """Raises: ClusterBenchmarkError if the scheduler does not come up."""
        address = ""
        async with asyncio.timeout(START_S):
            while not address:
                with contextlib.suppress(OSError, ValueError):
                    address = json.loads(self._address.read_text())["address"]
                await asyncio.sleep(0.1)
        files = self._files
        return ClusterSettings(
            scheduler=address, authority=files.authority, certificate=files.certificate, key=files.key
        )

    def stop(self) -> None:
        """Killed: a worker that is asked to end waits for a scheduler that has ended before it."""
        for process in self._processes:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Traffic:
    """Bytes that each party's sockets saw."""

    node: Wire = field(default_factory=Wire)
    scheduler: Wire = field(default_factory=Wire)
    workers: Wire = field(default_factory=Wire)

    def minus(self, before: "Traffic") -> "Traffic":
        return Traffic(
            self.node.minus(before.node),
            self.scheduler.minus(before.scheduler),
            self.workers.minus(before.workers),
        )


async def read_traffic(watcher: Client) -> Traffic:
    there = sum((await watcher.run(read_wire)).values(), Wire())
    return Traffic(read_wire(), await watcher.run_on_scheduler(read_wire), there)


@asynccontextmanager
async def open_cluster(folder: Path, workers: int) -> AsyncIterator[tuple[ClusterPool, Client]]:
    """The node's pool, connected to so many workers, and a client that reads their counters."""
    processes = Processes(folder)
    processes.start("scheduler", "--port", "0")
    settings = await processes.get_settings()
    for number in range(workers):
        processes.start_worker(f"machine-{number + 1}")
    pool = ClusterPool(settings, SystemClock())
    running = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(START_S):
            while pool.threads < workers:  # noqa: ASYNC110  # other processes tell nobody
                await asyncio.sleep(0.1)
        watcher = await connect(settings, build_security(settings))
        count_wire()
        await watcher.run(count_wire)
        await watcher.run_on_scheduler(count_wire)
        yield pool, watcher
        await watcher.close()
    except TimeoutError:
        raise ClusterBenchmarkError(f"no {workers} workers: {(folder / 'log').read_text()[-500:]}") from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        processes.stop()


# --- rounds -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """All batches of a step once."""

    seconds: float
    digests: tuple[str, ...]
    traffic: Traffic | None = None


Compute = Callable[[Path, Path], Awaitable[None]]
"""Computes the bundle of a batch, at its path, into the other path."""


async def compute_round(material: Material, lanes: int, compute: Compute, folder: Path) -> Round:
    """`lanes` batches at once, as a miner with so many workers has them under way."""
    outputs = [folder / f"{path.name}.bundle" for path in material.batches]
    waiting = list(zip(material.batches, outputs, strict=True))

    async def work() -> None:
        while waiting:
            await compute(*waiting.pop(0))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(work())
    seconds = time.perf_counter() - begun
    return Round(seconds, tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in outputs))


async def run_local(pool: WorkerPool, material: Material, step: int, lanes: int, folder: Path) -> Round:
    keys, weights = KeyFile(material.roots[material.keys], material.keys), material.build_weights(step)

    async def compute(batch: Path, output: Path) -> None:
        job = GradientJob(material.preset, SPEC.encode(), weights, keys, batch, output)
        await pool.run(WORKLOAD.run_gradient, job)

    return await compute_round(material, lanes, compute, folder)


async def run_cluster(
    pool: ClusterPool, watcher: Client, material: Material, step: int, lanes: int, folder: Path
) -> Round:
    weights, keys = material.build_weights(step), material.roots[material.keys]

    async def compute(batch: Path, output: Path) -> None:
        root = material.roots[batch]
        job = RemoteJob(WORKLOAD.kind, material.preset, SPEC.encode(), weights, keys, root)
        await pool.compute_bundle(job, {keys: material.keys, root: batch}, output)

    before = await read_traffic(watcher)
    found = await compute_round(material, lanes, compute, folder)
    return Round(found.seconds, found.digests, (await read_traffic(watcher)).minus(before))


@dataclass(frozen=True, slots=True)
class Comparison:
    """So many own workers against so many of the cluster."""

    workers: int
    local: tuple[Round, ...]
    """One a round; the cluster's first round moves the blobs, later ones find them."""
    cluster: tuple[Round, ...]


async def compare(material: Material, workers: int, rounds: int, folder: Path) -> Comparison:
    """Raises: ClusterBenchmarkError where a worker computes other bytes than the own one."""
    own, found = [], []
    local = WorkerPool(workers)
    one = Material(material.preset, material.keys, material.batches[:1] * workers, material.roots)
    try:
        await run_local(local, one, PRIMING_STEP, workers, folder)  # imports and keys, before the clock runs
        async with open_cluster(folder / f"cluster-{workers}", workers) as (pool, watcher):
            await watcher.run(import_workload)
            for step in range(rounds):
                own.append(await run_local(local, material, step, workers, folder))
                found.append(await run_cluster(pool, watcher, material, step, workers, folder))
                if own[-1].digests != found[-1].digests:
                    raise ClusterBenchmarkError(f"round {step + 1}: the cluster's bundles are other bytes")
            if pool.traffic.lost:
                raise ClusterBenchmarkError(f"{pool.traffic.lost} jobs were lost: {pool.failures}")
    finally:
        local.close()
    return Comparison(workers, tuple(own), tuple(found))


def import_workload() -> None:
    """On a worker: what its first job would wait for, as an own worker's did."""
    WORKLOAD.get_params("ckks-16384-60x5")


async def run(
    preset: str, batches: int, rounds: int, counts: Sequence[int], folder: Path
) -> list[Comparison]:
    material = make_material(preset, batches, folder)
    return [await compare(material, workers, rounds, folder) for workers in counts]


# --- the page ---------------------------------------------------------------------------------

COLUMNS = (
    "workers",
    "s/batch",
    "a minute",
    "of own",
    "node sends",
    "receives",
    "scheduler",
    "workers get",
)


def build_rows(comparisons: Sequence[Comparison], batches: int) -> list[tuple[str, ...]]:
    """One for own workers, one for the round that moves the blobs, one for those that find them there."""
    rows = []
    for item in comparisons:
        groups = [
            (f"{item.workers} own", item.local, item.local),
            (f"{item.workers} Dask, blobs sent", item.cluster[:1], item.local[:1]),
            (f"{item.workers} Dask, blobs there", item.cluster[1:], item.local[1:]),
        ]
        for name, rounds, beside in groups:
            if not rounds:
                continue
            seconds = statistics.median(found.seconds for found in rounds)
            ratio = statistics.median(
                own.seconds / found.seconds for own, found in zip(beside, rounds, strict=True)
            )
            speed = f"{seconds / batches:.2f}", f"{60 * batches / seconds:.1f}", f"{ratio:.2f}x"
            rows.append((name, *speed, *_describe_traffic(rounds[-1].traffic, batches)))
    return rows


def _describe_traffic(traffic: Traffic | None, batches: int) -> tuple[str, ...]:
    if traffic is None:
        return ("",) * 4
    counts = (
        traffic.node.sent, traffic.node.received, traffic.scheduler.received, traffic.workers.received
    )  # fmt: skip
    return tuple(f"{count / batches / 1e6:.2f} MB" for count in counts)


def build_page(rows: Sequence[tuple[str, ...]], about: str) -> str:
    lines = [about, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="ckks-16384-60x5")
    parser.add_argument("--batches", type=int, default=4, help="of a step [default: 4]")
    parser.add_argument("--rounds", type=int, default=3, help="steps; the first moves the blobs [default: 3]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    parser.add_argument("--write", action="store_true", help="renew the table in docs/SCALEOUT.md")
    options = parser.parse_args()
    machine = get_machine()
    with tempfile.TemporaryDirectory(prefix="bmif-cluster-") as folder:
        begun = time.monotonic()
        try:
            found = asyncio.run(
                run(options.preset, options.batches, options.rounds, options.workers, Path(folder))
            )
        except ClusterBenchmarkError as error:
            console.print(f"error: {error}", style="bold red", markup=False)
            return 1
        taken = time.monotonic() - begun
    rows = build_rows(found, options.batches)
    about = (
        f"Machine: {machine}. {options.batches} batches of {WORKLOAD.get_slots(options.preset):,} patches, "
        f"{options.preset}, {options.rounds} rounds, the median of each kind, the speed beside "
        f"that of own workers in the same round; scheduler, workers and node on "
        f"this one machine. Bytes a batch: what the node sends and receives, what the scheduler "
        f"and the workers receive. All bundles are those of the own workers, byte by byte. Taken in "
        f"{taken:.0f} s."
    )
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    console.print(about, markup=False)
    console.print(table)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(
            f"{head}{BEGIN}\n{build_page(rows, about)}{END}{rest.partition(END)[2]}", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
