"""What a node keeps and how much room is left: mempool, votes, blobs, ledger, disk, clock."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.core import Core
from node.fetch import BlobFetcher


class StoreCollector(Collector):
    """Reads sizes when it is scraped."""

    def __init__(self, core: Core, data_dir: Path) -> None:
        self._core = core
        self._data_dir = data_dir

    def collect(self) -> Iterator[Metric]:
        core = self._core
        # Prometheus compares it with the time of its scrape.
        yield GaugeMetricFamily("bmif_clock_seconds", "This node's clock", core.clock.now_ms() / 1000)
        yield GaugeMetricFamily("bmif_mempool_bytes", "Bytes of waiting transactions", core.mempool.size)
        yield CounterMetricFamily(
            "bmif_votes", "Votes above the final block that were news", value=core.votes.version
        )
        yield GaugeMetricFamily("bmif_votes_pooled", "Votes that no final block covers", len(core.votes))
        yield from self._collect_blobs()
        yield from _collect_fetches(core.fetcher)
        yield GaugeMetricFamily(
            "bmif_ledger_bytes", "Bytes of the ledger's files", measure(self._data_dir / "ledger")
        )
        usage = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily("bmif_disk_free_bytes", "Free bytes of the data's disk", usage.free)
        yield GaugeMetricFamily("bmif_disk_bytes", "Size of the data's disk", usage.total)

    def _collect_blobs(self) -> Iterator[Metric]:
        blobs = self._core.blobs
        yield GaugeMetricFamily("bmif_blobs", "Complete blobs", len(blobs.get_refs()))
        yield GaugeMetricFamily("bmif_blob_bytes", "Bytes that blobs take of the quota", blobs.used_bytes)
        yield GaugeMetricFamily("bmif_blob_quota_bytes", "Most bytes of all blobs", blobs.quota_bytes)


def _collect_fetches(fetcher: BlobFetcher) -> Iterator[Metric]:
    results = CounterMetricFamily("bmif_blob_fetches", "Fetches of blobs that ended", labels=["result"])
    for result in ("complete", "failed", "cancelled"):
        results.add_metric([result], fetcher.results[result])
    yield results
    yield CounterMetricFamily(
        "bmif_blob_fetched_bytes", "Bytes of blobs that came complete", value=fetcher.fetched_bytes
    )
    yield GaugeMetricFamily("bmif_blobs_fetching", "Blobs being fetched", len(fetcher.running))


def measure(directory: Path) -> int:
    """Bytes of a directory's files; those that vanish meanwhile count nothing."""
    size = 0
    for path in directory.glob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
    return size
