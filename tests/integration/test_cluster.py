"""A Dask cluster of real processes under mutual TLS computes the bytes that the node's own worker does."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from benchmarks.source import CUSTODY, SLOTS, TaskPlan, build_draft
from consensus.task import Batch, Optimizer, PublishTask
from consensus.types import Amount, Hash32, Millis
from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from node.blobs import BlobStore
from node.cli.main import app
from node.clock import SystemClock
from node.cluster import (
    PACKAGES,
    ClusterPool,
    ClusterSetupError,
    ClusterUnavailable,
    check_setup,
    find_mismatches,
)
from node.cluster_worker import BlobCache, RemoteJob, compute_root, run_remote
from node.config import NodeConfig
from node.daemon import run_node
from node.preflight import Level, check_cluster
from node.settings import ClusterSettings
from node.tasks import TaskDefinition
from node.testnet import init_testnet
from node.tls import TlsFiles, save_certificate
from node.tls_issue import make_authority, make_certificate
from node.work import VerdictBook, WorkService
from workloads.base import GradientJob, KeyFile, WorkloadError
from workloads.custodian import generate_keys
from workloads.encryption import ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import WORKLOAD, FusionSpec

PRESET = "ckks-16384-60x5"
WAIT_S = 120


class Cluster:
    """A scheduler and workers, started as docs/SCALEOUT.md says."""

    def __init__(self, folder: Path, files: TlsFiles) -> None:
        self._folder, self._files = folder, files
        self._processes: list[subprocess.Popen[bytes]] = []
        self.file = folder / "scheduler.json"
        self._spawn("scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", "0")

    def _spawn(self, part: str, *arguments: str) -> subprocess.Popen[bytes]:
        files = self._files
        tls: tuple[str | Path, ...] = (
            "--tls-ca-file",
            files.authority,
            "--tls-cert",
            files.certificate,
            "--tls-key",
            files.key,
        )
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "dask",
            part,
            *arguments,
            "--no-dashboard",
            "--scheduler-file",
            self.file,
            *tls,
        ]
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def add_worker(self, name: str) -> subprocess.Popen[bytes]:
        return self._spawn(
            "worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(self._folder / name)
        )

    async def get_settings(self) -> ClusterSettings:
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(OSError, ValueError):
                    address = json.loads(self.file.read_text())["address"]
                    break
                await asyncio.sleep(
                    0.1
                )  # a poll with a deadline: the scheduler writes its file when it is up
        files = self._files
        return ClusterSettings(
            scheduler=address, authority=files.authority, certificate=files.certificate, key=files.key
        )

    def read_kept(self) -> bytes:
        """Every byte that the workers keep on their disks."""
        files = [path for path in self._folder.rglob("bmif-blobs/*") if path.is_file()]
        assert files
        return b"".join(path.read_bytes() for path in files)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    authority = make_authority("cluster")
    files = TlsFiles(tmp_path / "tls.pem", tmp_path / "tls.key", tmp_path / "ca.pem")
    issued = make_certificate(authority, "cluster", "cluster", ["127.0.0.1", "localhost"])
    save_certificate(files, issued, authority.certificate_pem)
    made = Cluster(tmp_path, files)
    yield made
    made.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    """A poll with a deadline: what other processes do tells nobody."""
    end = asyncio.get_running_loop().time() + WAIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.02)


async def wait_threads(pool: ClusterPool, count: int) -> None:
    await wait_until(lambda: pool.threads == count)


@pytest.mark.slow
async def test_a_cluster_computes_the_same_bytes_and_survives_its_workers(
    cluster: Cluster, tmp_path: Path
) -> None:
    spec = FusionSpec()
    files = generate_keys(PRESET, tmp_path / "keys")
    secret = (tmp_path / "keys" / "secret.key").read_bytes()
    public = PrivateContext.load(WORKLOAD.get_params(PRESET), secret).public
    plan = ContributionPlan(1, 0, (), seed=3, patches_per_batch=WORKLOAD.get_slots(PRESET))
    (batch,), _ = build_clear_batches(spec, build_phantoms(3, 4), plan, plan.patches_per_batch)
    path = tmp_path / "batch"
    path.write_bytes(encrypt_patches(public, spec, batch, False))
    weights = WORKLOAD.build_initial_weights(spec.encode(), 0)
    own = tmp_path / "own"
    WORKLOAD.run_gradient(
        GradientJob(PRESET, spec.encode(), weights, KeyFile(b"own", files.relin_keys), path, own)
    )

    keys_root, batch_root = compute_root(files.relin_keys.read_bytes()), compute_root(path.read_bytes())
    job = RemoteJob(WORKLOAD.kind, PRESET, spec.encode(), weights, keys_root, batch_root)
    paths = {keys_root: files.relin_keys, batch_root: path}
    pool = ClusterPool(await cluster.get_settings(), SystemClock())
    running = asyncio.create_task(pool.run())
    try:
        first = cluster.add_worker("one")
        await wait_threads(pool, 1)
        await pool.compute_bundle(job, paths, tmp_path / "first")
        assert (tmp_path / "first").read_bytes() == own.read_bytes()
        sent = pool.traffic.sent
        assert sent == sum(path.stat().st_size for path in paths.values())
        await pool.compute_bundle(job, paths, tmp_path / "again")
        assert pool.traffic.sent == sent, "blobs that a worker has are not sent again"

        # A worker that is killed in the middle: another one does the job.
        second = cluster.add_worker("two")
        await wait_threads(pool, 2)
        under_way = asyncio.create_task(pool.compute_bundle(job, paths, tmp_path / "third"))
        await wait_until(lambda: pool.free == 1)  # the job is with the first, which has the blobs
        first.send_signal(signal.SIGKILL)
        await asyncio.wait_for(under_way, WAIT_S)
        assert (tmp_path / "third").read_bytes() == own.read_bytes()
        assert pool.traffic.lost == 1

        second.kill()
        await wait_threads(pool, 0)
        with pytest.raises(ClusterUnavailable):
            await pool.compute_bundle(job, paths, tmp_path / "fourth")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert secret not in cluster.read_kept()


async def test_preflight_says_who_would_compute_and_what_refuses_this_node(
    cluster: Cluster, tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = init_testnet(tmp_path / "net", 2, base_port=unused_tcp_port)
    config = NodeConfig.load(net.get_config_path("node2"))
    assert await check_cluster(config) == []
    settings = await cluster.get_settings()
    config = config.model_copy(update={"cluster": settings})
    (found,) = await check_cluster(config)
    assert (found.level, found.detail) == (Level.WARNING, "no workers")

    other = make_authority("other")
    files = TlsFiles(tmp_path / "other.pem", tmp_path / "other.key", tmp_path / "other-ca.pem")
    save_certificate(files, make_certificate(other, "x", "x", ["127.0.0.1"]), other.certificate_pem)
    change = {"authority": files.authority, "certificate": files.certificate, "key": files.key}
    (found,) = await check_cluster(config.model_copy(update={"cluster": settings.model_copy(update=change)}))
    assert found.level is Level.WARNING
    assert "certificate verify failed" in found.detail
    assert "cluster.authority" in found.detail

    monkeypatch.setattr("node.cluster.CONNECT_S", 0.3)  # nobody answers: Dask tries again until then
    nowhere = {"scheduler": f"tls://127.0.0.1:{unused_tcp_port}"}
    (found,) = await check_cluster(config.model_copy(update={"cluster": settings.model_copy(update=nowhere)}))
    assert found.level is Level.WARNING
    assert "Timed out" in found.detail or "refused" in found.detail
    assert "cluster.authority" not in found.detail

    torn = config.model_copy(update={"cluster": settings.model_copy(update={"key": files.key})})
    (found,) = await check_cluster(torn)
    assert found.level is Level.FAILED
    assert "bmif tls issue" in found.detail
    with pytest.raises(ClusterSetupError, match=r"cluster\.key"):
        await run_node(torn)


def describe_versions(**others: str | None) -> dict[str, dict[str, object]]:
    packages: dict[str, object] = {"bmif": "1.0", "Pyfhel": "3.5.0", "distributed": "2026.8.0"}
    return {"host": {"python": "3.11.7.final.0"}, "packages": packages | others}


async def test_workers_of_other_versions_are_not_used() -> None:
    class Versions:
        """The part of Dask's client that tells versions."""

        async def get_versions(self, packages: list[str]) -> dict[str, object]:
            assert packages == list(PACKAGES)
            own = describe_versions()
            workers = {"a": own, "b": describe_versions(bmif="0.9"), "c": describe_versions(Pyfhel=None)}
            return {"client": own, "scheduler": own, "workers": workers}

    found = await find_mismatches(Versions())
    assert found["a"] is None
    assert found["b"] is not None
    assert found["b"].startswith("bmif 0.9, this node python 3.11, bmif 1.0")
    assert found["c"] is not None
    assert found["c"].startswith("no Pyfhel")


class Recording(ClusterPool):
    """A cluster that is always free, writes down what it is given, and can do none of it."""

    def __init__(self) -> None:
        super().__init__(ClusterSettings(scheduler="tcp://127.0.0.1:1"), SystemClock())
        self.given: list[tuple[RemoteJob, dict[bytes, Path]]] = []

    @property
    def free(self) -> int:
        return 1

    async def compute_bundle(self, job: RemoteJob, paths: dict[bytes, Path], output: Path) -> None:
        self.given.append((job, paths))
        raise ClusterUnavailable("it only records")


async def test_nothing_but_bundles_of_public_blobs_goes_to_the_cluster(tmp_path: Path) -> None:
    """A custody's and a validator's jobs are computed here, with a cluster that would take everything."""
    cluster, blobs = Recording(), BlobStore(tmp_path / "blobs")
    refs = [blobs.put_bytes(name.encode()) for name in ("public", "relin", "training", "validation")]
    public, relin, training, validation = refs
    plan = TaskPlan(1, 1, 1, 1)
    draft = replace(build_draft(plan), public_key=public, relin_keys=relin)
    definition = TaskDefinition(
        Hash32(bytes(32)),
        CUSTODY.address,
        draft,
        PublishTask(
            Hash32(bytes(32)),
            (),
            (0,),
            1,
            (),
            Optimizer(40, (2**26,)),
            (0,),
            (),
            Amount(1),
            Amount(1),
            Millis(1),
        ),
        (Batch(training, SLOTS),),
        (Batch(validation, SLOTS),),
    )
    work = WorkService(blobs, VerdictBook(), 1)
    work.attach_cluster(cluster)
    weights = WORKLOAD.build_initial_weights(FusionSpec().encode(), 0)
    try:
        for attempt in (
            work.check_keys(definition),
            work.check_batch(definition, definition.validation[0], True),
            work.compute_losses(definition, weights),
        ):
            with pytest.raises(WorkloadError):
                await attempt
        assert cluster.given == []
        with pytest.raises(WorkloadError):
            await work.compute_bundle(definition, 0, weights, tmp_path / "bundle")
    finally:
        work.close()
    ((job, paths),) = cluster.given
    assert set(job.roots) == paths.keys() == {relin.root, training.root}
    assert all(blobs.get_path(Hash32(root)) == path for root, path in paths.items())


def test_what_holds_secrets_knows_no_cluster() -> None:
    """Whoever reaches the cluster is listed here: nothing of a custody, of keys or of openings is."""
    node = Path(__file__).resolve().parents[2] / "node"
    sources = {path.relative_to(node).as_posix(): path.read_text() for path in node.rglob("*.py")}
    assert {name for name, text in sources.items() if "node.cluster" in text} == {
        "cli/common.py",
        "cluster.py",
        "daemon.py",
        "preflight.py",
        "work.py",
    }
    assert {name for name, text in sources.items() if ".compute_bundle(" in text} == {
        "canonical.py",
        "miner.py",
        "work.py",
    }
    fields = {name.name for name in dataclasses.fields(RemoteJob)}
    assert fields == {"kind", "preset", "model", "weights", "relin_keys", "batch"}


async def test_a_scheduler_that_is_not_there_leaves_the_node_to_itself(
    caplog: pytest.LogCaptureFixture, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cluster.CONNECT_S", 0.3)
    pool = ClusterPool(ClusterSettings(scheduler=f"tcp://127.0.0.1:{unused_tcp_port}"), SystemClock())
    running = asyncio.create_task(pool.run())
    try:
        await wait_until(lambda: "can't be reached" in caplog.text)
        assert pool.threads == pool.free == 0
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": "tcp://10.0.0.5:8786"}, "use tls://"),
        ({"scheduler": "tls://10.0.0.5:8786"}, "needs authority"),
        ({"scheduler": "http://10.0.0.5:8786"}, "pattern"),
        ({"scheduler": "10.0.0.5:8786"}, "pattern"),
    ],
)
def test_an_unsafe_cluster_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ClusterSettings.model_validate(settings)


def test_blobs_are_kept_by_root_and_checked(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs", limit=2_500)
    blobs = [bytes([number]) * 1_000 for number in range(3)]
    for data in blobs[:2]:
        cache.add(compute_root(data), data)
    found = cache.find(compute_root(blobs[0]))
    assert found is not None
    assert found.read_bytes() == blobs[0]
    cache.add(compute_root(blobs[2]), blobs[2])
    held = [cache.find(compute_root(data)) is not None for data in blobs]
    assert held.count(True) == 2
    assert held[2]
    with pytest.raises(WorkloadError, match="other bytes"):
        cache.add(compute_root(blobs[0]), blobs[1])


def test_a_worker_says_what_it_lacks_and_what_it_refuses(tmp_path: Path) -> None:
    data = b"no ciphertext"
    root = compute_root(data)
    job = RemoteJob(WORKLOAD.kind, PRESET, FusionSpec().encode(), (0,) * 112, root, bytes(32))
    assert run_remote(job, {root: data}, tmp_path).missing == (bytes(32),)
    job = RemoteJob(WORKLOAD.kind, PRESET, FusionSpec().encode(), (0,) * 112, root, root)
    refused = run_remote(job, {}, tmp_path).refused
    assert refused is not None
    assert "gradient" in refused


def test_certificates_of_a_cluster_are_made_by_its_own_authority(tmp_path: Path) -> None:
    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["tls", *map(str, arguments)])

    authority, issued = tmp_path / "cluster-ca", tmp_path / "issued"
    assert call("authority", authority, "--name", "cluster").exit_code == 0
    common = ("--authority", authority, "--host", "10.0.0.6", "-o", issued)
    assert call("issue", "gpu-1", *common).exit_code == 0
    assert (issued / "gpu-1.key").stat().st_mode & 0o777 == 0o600
    settings = ClusterSettings(
        scheduler="tls://10.0.0.5:8786",
        authority=issued / "ca.pem",
        certificate=issued / "gpu-1.pem",
        key=issued / "gpu-1.key",
    )
    check_setup(settings)
    again = call("issue", "gpu-1", *common)
    assert again.exit_code == 1
    assert "exists already" in again.output
    assert call("issue", "../gpu-1", *common).exit_code == 1
