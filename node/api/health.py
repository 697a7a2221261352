"""Health and metrics: `/livez`, `/readyz`, `/metrics`."""

import time
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from node.api.convert import TaskReader
from node.api.errors import Handler, Problem
from node.api.requests import answer, get_view
from node.api.schemas import LiveModel, ReadyModel
from node.api.view import NodeView

REGISTRY = web.AppKey("registry", CollectorRegistry)


async def get_livez(request: web.Request) -> web.Response:
    return answer(LiveModel(live=True))


async def get_readyz(request: web.Request) -> web.Response:
    readiness = get_view(request).get_readiness()
    if not readiness.ready:
        detail = "; ".join(readiness.reasons) or "The node is starting"
        raise Problem(503, "not-ready", detail, remedy="Ask again soon", headers={"Retry-After": "1"})
    return answer(ReadyModel(ready=True))


async def get_metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[REGISTRY])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


class NodeCollector(Collector):
    """Reads the node when it is scraped; keeps nothing."""

    def __init__(self, view: NodeView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view
        head = view.get_head().header
        peers = view.get_peers()
        yield GaugeMetricFamily("bmif_head_height", "Height of the head", head.height)
        yield GaugeMetricFamily("bmif_head_time_seconds", "Time of the head", head.time / 1000)
        yield GaugeMetricFamily(
            "bmif_sync_target_height", "Greatest height at a peer", view.get_sync_target()
        )
        yield GaugeMetricFamily("bmif_ready", "1 when the node is ready", int(view.get_readiness().ready))
        yield GaugeMetricFamily("bmif_peers", "Connected peers", sum(peer.connected for peer in peers))
        yield GaugeMetricFamily("bmif_mempool_transactions", "Waiting transactions", len(view.get_mempool()))
        traffic = GaugeMetricFamily(
            "bmif_peer_bytes", "Bytes by peer, direction, kind", labels=["peer", "direction", "kind"]
        )
        for peer in peers:
            for direction, counts in (("received", peer.received_bytes), ("sent", peer.sent_bytes)):
                for kind, count in counts.items():
                    traffic.add_metric([peer.address, direction, kind], count)
        yield traffic
        yield from self._collect_tasks()

    def _collect_tasks(self) -> Iterator[Metric]:
        step = GaugeMetricFamily("bmif_task_step", "Next step of a task", labels=["task"])
        loss = GaugeMetricFamily("bmif_task_loss", "Last opened validation loss", labels=["task"])
        rungs = GaugeMetricFamily("bmif_task_rungs_taken", "Rungs of the ladder taken", labels=["task"])
        state = self._view.get_state()
        for task in state.get_tasks():
            reader = TaskReader(self._view, state, task)
            labels = [task.hex()]
            step.add_metric(labels, reader.record.step)
            rungs.add_metric(labels, reader.record.next_taken_rung)
            if reader.record.last_loss is not None:
                loss.add_metric(labels, reader.scale_loss(reader.record.last_loss))
        yield from (step, loss, rungs)


class RequestMetrics:
    """Counts requests by route (never by raw path, which a client could vary without end)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "bmif_api_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram("bmif_api_seconds", "Time to answer", ["route"], registry=registry)

    async def observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer the request and count it."""
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        method = request.method if request.method in ("GET", "HEAD", "POST", "PUT") else "other"
        start = time.perf_counter()
        response = await handler(request)
        if not isinstance(response, web.Response):
            return response  # a stream lasts as long as its reader likes
        self._count.labels(method, route, str(response.status)).inc()
        self._seconds.labels(route).observe(time.perf_counter() - start)
        return response
