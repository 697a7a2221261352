"""Traffic, judged objects, faults and bans, summed over all peers: peers come and go, series must not."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.gossip.limits import Fault
from node.gossip.messages import Route
from node.gossip.network import NetworkTotals


class NetworkCollector(Collector):
    """Reads what the peer network counts."""

    def __init__(self, get_totals: Callable[[], NetworkTotals]) -> None:
        self._get_totals = get_totals

    def collect(self) -> Iterator[Metric]:
        totals = self._get_totals()
        traffic = totals.traffic
        sizes = CounterMetricFamily(
            "bmif_peer_bytes", "Bytes of bodies to and from peers", labels=["direction", "kind"]
        )
        requests = CounterMetricFamily(
            "bmif_peer_requests", "Requests of peers and to peers", labels=["direction", "kind"]
        )
        for route in Route:
            sizes.add_metric(["received", route.value], traffic.received[route])
            sizes.add_metric(["sent", route.value], traffic.sent[route])
            requests.add_metric(["received", route.value], traffic.served[route])
            requests.add_metric(["sent", route.value], traffic.asked[route])
        yield from (sizes, requests)
        objects = CounterMetricFamily(
            "bmif_peer_objects", "Objects of peers by what became of them", labels=["kind", "outcome"]
        )
        for (kind, outcome), count in totals.objects.items():
            objects.add_metric([kind.name.lower(), outcome], count)
        yield objects
        faults = CounterMetricFamily("bmif_peer_faults", "Faults of peers", labels=["fault"])
        for fault in Fault:
            faults.add_metric([fault.name.lower()], totals.faults.get(fault.name.lower(), 0))
        yield faults
        yield CounterMetricFamily("bmif_peer_bans", "Bans of peers", value=totals.bans)
        yield GaugeMetricFamily("bmif_peers_banned", "Peers that are banned now", totals.banned)
