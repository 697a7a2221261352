"""Metrics of real parts: a chain of three validators, the peer network's counters, workers that die."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consensus.block import Block
from consensus.codec import decode, encode
from consensus.crypto import SigningKey
from consensus.task import Transfer
from consensus.transaction import SignedTransaction, sign_transaction
from consensus.types import Amount, Hash32, Millis
from node.chain import ImportStatus
from node.clock import ManualClock
from node.core import Core
from node.fetch import BlobFetcher
from node.gossip.limits import Fault
from node.gossip.links import Traffic
from node.gossip.messages import Kind, Route
from node.gossip.network import NetworkTotals
from node.ledger.store import MemoryStore
from node.metrics.certificates import CertificateCollector
from node.metrics.chain import ChainMetrics
from node.metrics.jobs import JobMetrics
from node.metrics.network import NetworkCollector
from node.metrics.store import StoreCollector
from node.work import WorkerPool
from tests.integration.test_chain import KEYS, OUTSIDER, build_core, propose_with_any


def read(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cores(tmp_path: Path, clock: ManualClock) -> list[Core]:
    return [build_core(clock, MemoryStore(), key, tmp_path / str(i)) for i, key in enumerate(KEYS)]


def transfer(cores: list[Core], clock: ManualClock, amount: int) -> bytes:
    """One more block, at every core."""
    transaction = cores[0].sign(Transfer(OUTSIDER, Amount(amount)))
    for core in cores:
        core.admit(transaction)
    block = propose_with_any(cores, clock)
    for core in cores:
        core.take_block(block)
    return block


def test_blocks_are_counted_by_what_became_of_them(cores: list[Core], clock: ManualClock) -> None:
    registries = [CollectorRegistry() for _ in cores]
    for registry, core in zip(registries, cores, strict=True):
        ChainMetrics(registry, core)
    registry, core = registries[0], cores[0]
    assert read(registry, "bmif_blocks_connected_total", kind="carrier") == 0
    blocks = [transfer(cores, clock, amount) for amount in (1, 2, 3)]
    assert read(registry, "bmif_blocks_connected_total", kind="carrier") == 3
    assert read(registry, "bmif_transactions_total", kind="Transfer") == 3
    assert read(registry, "bmif_blocks_judged_total", status="accepted", reason="") == 3
    assert read(registry, "bmif_block_interval_seconds_count") == 2
    assert sum(read(each, "bmif_blocks_proposed_total") or 0 for each in registries) == 3
    assert read(registry, "bmif_reorg_depth_blocks_count") == 0
    known = read(registry, "bmif_blocks_judged_total", status="known", reason="") or 0
    assert core.take_block(blocks[0]).status is ImportStatus.KNOWN
    assert read(registry, "bmif_blocks_judged_total", status="known", reason="") == known + 1
    block = decode(Block, blocks[2])
    wrong = replace(block, header=replace(block.header, time=Millis(block.header.time + 1)))
    outcomes = (core.take_block(encode(wrong)), core.take_block(b"no block"))
    for outcome in outcomes:
        assert outcome.status is ImportStatus.INVALID
        assert read(registry, "bmif_blocks_judged_total", status="invalid", reason=str(outcome.reason)) == 1


def test_transactions_are_counted_by_why_they_were_refused(cores: list[Core]) -> None:
    registry, core = CollectorRegistry(), cores[0]
    ChainMetrics(registry, core)
    good = core.sign(Transfer(OUTSIDER, Amount(5)))
    assert core.admit(good).accepted
    assert core.admit(good).known
    poor = build_foreign(core)
    assert core.admit(poor).reason
    for reason in ("", "KNOWN", core.admit(poor).reason):
        assert (read(registry, "bmif_mempool_admissions_total", reason=reason) or 0) >= 1


def build_foreign(core: Core) -> SignedTransaction:
    """A transaction without an amount."""
    return sign_transaction(
        SigningKey(bytes([9]) * 32), core.chain.chain_id, 0, Transfer(OUTSIDER, Amount(0))
    )


def test_what_is_kept_is_measured(cores: list[Core], tmp_path: Path, clock: ManualClock) -> None:
    registry, core = CollectorRegistry(), cores[0]
    fetcher = BlobFetcher(core.blobs, list, clock)
    core.attach_network(SilentNetwork(), fetcher)
    (tmp_path / "0" / "ledger").mkdir()
    (tmp_path / "0" / "ledger" / "000001.ldb").write_bytes(bytes(100))
    registry.register(StoreCollector(core, tmp_path / "0"))
    core.blobs.put_bytes(b"seven b")
    core.admit(core.sign(Transfer(OUTSIDER, Amount(5))))
    assert read(registry, "bmif_blobs") == 1
    assert read(registry, "bmif_blob_bytes") == 7
    assert read(registry, "bmif_ledger_bytes") == 100
    assert read(registry, "bmif_mempool_bytes") == core.mempool.size > 0
    assert read(registry, "bmif_clock_seconds") == pytest.approx(clock.now_ms() / 1000)
    assert read(registry, "bmif_blob_fetches_total", result="failed") == 0
    fetcher.results["failed"] += 2
    assert read(registry, "bmif_blob_fetches_total", result="failed") == 2


class SilentNetwork:
    """An announcer whom nobody hears."""

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        """Nothing."""


def test_traffic_is_summed_over_all_peers() -> None:
    registry, traffic = CollectorRegistry(), Traffic()
    for size in (10, 20):
        one = Traffic()
        one.sent[Route.CHUNK] += size
        one.asked[Route.CHUNK] += 1
        traffic.add(one)
    totals = NetworkTotals(traffic, {(Kind.BLOCK, "accept"): 3}, {"malformed": 1}, bans=2, banned=1)
    registry.register(NetworkCollector(lambda: totals))
    assert read(registry, "bmif_peer_bytes_total", direction="sent", kind="chunk") == 30
    assert read(registry, "bmif_peer_requests_total", direction="sent", kind="chunk") == 2
    assert read(registry, "bmif_peer_requests_total", direction="received", kind="chunk") == 0
    assert read(registry, "bmif_peer_objects_total", kind="block", outcome="accept") == 3
    assert read(registry, "bmif_peer_faults_total", fault="malformed") == 1
    for fault in Fault:
        assert read(registry, "bmif_peer_faults_total", fault=fault.name.lower()) is not None
    assert read(registry, "bmif_peer_bans_total") == 2


@pytest.fixture
def watched() -> Iterator[tuple[WorkerPool, CollectorRegistry]]:
    registry = CollectorRegistry()
    pool = WorkerPool(1, "work", JobMetrics(registry))
    yield pool, registry
    pool.close()


def count(most: int) -> int:
    return sum(range(most))


def fail() -> None:
    raise ValueError("no such batch")


async def test_jobs_and_dead_workers_are_counted(watched: tuple[WorkerPool, CollectorRegistry]) -> None:
    pool, registry = watched
    assert read(registry, "bmif_pool_workers", pool="work") == 1
    await pool.run(time.sleep, 0.2)
    assert read(registry, "bmif_job_seconds_count", pool="work", job="sleep") == 1
    assert 0.2 <= (read(registry, "bmif_job_seconds_sum", pool="work", job="sleep") or 0) < 60
    assert (read(registry, "bmif_job_cpu_seconds_total", pool="work", job="sleep") or 0) < 0.2
    await pool.run(count, 2_000_000)
    assert (read(registry, "bmif_job_cpu_seconds_total", pool="work", job="count") or 0) > 0.01
    with pytest.raises(ValueError, match="no such batch"):
        await pool.run(fail)
    assert read(registry, "bmif_jobs_failed_total", pool="work") == 1
    victim = await pool.run(os.getpid)
    assert read(registry, "bmif_worker_deaths_total", pool="work") == 0
    os.kill(victim, signal.SIGKILL)
    assert await pool.run(os.getpid) != victim
    assert read(registry, "bmif_worker_deaths_total", pool="work") == 1
    assert read(registry, "bmif_pool_jobs", pool="work") == 0
    assert read(registry, "bmif_pool_waiting_jobs", pool="work") == 0


def test_jobs_beyond_the_workers_wait() -> None:
    registry = CollectorRegistry()
    metrics = JobMetrics(registry)
    metrics.on_pool("work", 2)
    for _ in range(5):
        metrics.on_begun("work")
    assert read(registry, "bmif_pool_jobs", pool="work") == 5
    assert read(registry, "bmif_pool_waiting_jobs", pool="work") == 3
    metrics.on_ended("work", "run_gradient", 1.5)
    assert read(registry, "bmif_pool_waiting_jobs", pool="work") == 2


def test_a_certificate_that_can_not_be_read_has_ended(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    (tmp_path / "torn.pem").write_bytes(b"-----BEGIN CERTIFICATE-----")
    files = {"certificate": tmp_path / "torn.pem", "authority": tmp_path / "nowhere.pem"}
    registry.register(CertificateCollector(files))
    for file in files:
        assert read(registry, "bmif_certificate_expiry_timestamp_seconds", file=file) == 0
