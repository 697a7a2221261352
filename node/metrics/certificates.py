"""When the TLS certificates in a node's files end."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class CertificateCollector(Collector):
    """Reads the files anew at each scrape: they are what the next start, or rotation, takes."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: PEM files by the name of their setting, as `certificate`."""
        self._files = files

    def collect(self) -> Iterator[Metric]:
        expiry = GaugeMetricFamily(
            "bmif_certificate_expiry_timestamp_seconds",
            "When the first certificate of a file ends; 0 for a file that can't be read",
            labels=["file"],
        )
        for name, path in self._files.items():
            expiry.add_metric([name], _read_expiry(path))
        yield expiry


def _read_expiry(path: Path) -> float:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return 0.0
