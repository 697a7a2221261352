"""Requests of the REST APIs: an id for each, what is counted of them, and which are worth a record."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from node.api.errors import Handler
from node.logs import REQUEST
from node.settings import LogSettings

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID = web.RequestKey("request_id", str)
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class RequestMetrics:
    """Counts requests by route (never by raw path, which a client could vary without end)."""

    def __init__(self, registry: CollectorRegistry, count_streams: Callable[[], int] = lambda: 0) -> None:
        self._count = Counter(
            "bmif_api_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "bmif_api_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=registry
        )
        streams = Gauge("bmif_event_streams", "Open streams of server-sent events", registry=registry)
        streams.set_function(count_streams)

    def on_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._count.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


def build_request_middleware(settings: LogSettings, metrics: RequestMetrics | None = None) -> Middleware:
    """The outermost middleware: gives the request its id, and counts and records how it went.

    Nothing of a body, a query or a header but the id is recorded; `add_request_id` puts that into the
    answer.
    """

    @web.middleware
    async def monitor(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(HEADER, "")
        request[_ID] = given if _WELL_FORMED.fullmatch(given) else secrets.token_hex(8)
        token = REQUEST.set(request[_ID])
        start = time.perf_counter()
        try:
            response = await handler(request)
            if isinstance(response, web.Response):  # a stream lasts as long as its reader likes
                seconds = time.perf_counter() - start
                route = _get_route(request)
                if metrics is not None:
                    metrics.on_answered(request.method, route, response.status, seconds)
                _record(request, route, response.status, seconds, settings)
            return response
        finally:
            REQUEST.reset(token)

    return monitor


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """An `on_response_prepare` signal: the answer names the request, whatever it is."""
    if _ID in request:
        response.headers[HEADER] = request[_ID]


def _get_route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical


def _record(request: web.Request, route: str, status: int, seconds: float, settings: LogSettings) -> None:
    """Failures and slow requests always, others where the settings want an access log."""
    level = logging.INFO if settings.access else None
    # Probes ask a node that is not ready again and again; its answer says why.
    if status >= 500 and route != "/readyz":
        level = logging.WARNING
    if settings.slow_request_s and seconds > settings.slow_request_s:
        level = logging.WARNING
    if level is not None:
        logger.log(
            level, "%s %s: %d in %.3f s for %s", request.method, request.path, status, seconds, request.remote
        )
