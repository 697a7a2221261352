"""All metrics of one node: its registry, made first, and what is attached to it as the node is built."""

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from node.core import Core
from node.gossip.network import NetworkTotals
from node.metrics.certificates import CertificateCollector
from node.metrics.chain import ChainMetrics
from node.metrics.jobs import JobMetrics
from node.metrics.network import NetworkCollector
from node.metrics.store import StoreCollector
from node.settings import TlsSettings


class NodeMetrics:
    """The registry of a node; two nodes in one process have two."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.jobs = JobMetrics(self.registry)

    def attach(
        self, core: Core, data_dir: Path, tls: TlsSettings, get_totals: Callable[[], NetworkTotals]
    ) -> ChainMetrics:
        """Watch a node that is built; whatever it did before is not counted."""
        chain = ChainMetrics(self.registry, core)
        self.registry.register(StoreCollector(core, data_dir))
        self.registry.register(NetworkCollector(get_totals))
        files = {"certificate": tls.certificate, "authority": tls.authority}
        self.registry.register(CertificateCollector(files))
        return chain
