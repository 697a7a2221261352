"""The two applications: public REST, and the operator's behind a bearer token."""

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry

from node.api.errors import Handler, Problem, problem_middleware
from node.api.federations import FEDERATION_ROUTES
from node.api.fusions import FUSION_ROUTES, FUSIONS, UPLOAD_PATH
from node.api.health import REGISTRY, NodeCollector, RequestMetrics, get_livez, get_metrics, get_readyz
from node.api.jobs import JOB_ROUTES
from node.api.light import LIGHT, LIGHT_ROUTES
from node.api.openapi import build_document
from node.api.operator import BLOB_LIMIT, OPERATOR, OPERATOR_ROUTES, build_token_middleware
from node.api.requests import JSON, VIEW, Route, RouteHandler, check_query
from node.api.routes import ROUTES
from node.api.schemas import LiveModel, ReadyModel
from node.api.sse import MAX_STREAMS, STREAMS, close_streams, get_events
from node.api.trust import TRUST_ROUTES
from node.api.view import NodeView, OperatorView
from node.config import NodeConfig
from node.fusions import FusionDesk
from node.lightview import LightView

MAX_OPERATOR_JSON = 16 * 1024 * 1024
MAX_CLIENTS = 4_096
DOCUMENT = web.AppKey("document", bytes)

_SERVICE_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/events",
        "streamEvents",
        get_events,
        "Events as they happen (server-sent events), replayed after Last-Event-ID",
        media="text/event-stream",
        query=("kinds", "after"),
        errors=(400, 503),
    ),
    Route("GET", "/livez", "getLiveness", get_livez, "The process answers", LiveModel),
    Route("GET", "/readyz", "getReadiness", get_readyz, "The node can serve", ReadyModel, errors=(503,)),
    Route("GET", "/metrics", "getMetrics", get_metrics, "Prometheus metrics", media="text/plain"),
)


class RateLimiter:
    """A token bucket for each client address; the least recent address is forgotten first."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._burst = float(max(1, per_minute // 6))
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 if the client may go on, else the seconds that it must wait."""
        now = self._clock()
        tokens, last = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens - 1 if not wait else tokens, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


def _build_limit_middleware(limiter: RateLimiter, max_bytes: int) -> Middleware:
    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Streamed to disk, and of a length that its route knows to the byte.
        is_upload = request.path == UPLOAD_PATH
        if (request.content_length or 0) > max_bytes and not is_upload:
            raise Problem(
                413,
                "body-too-large",
                f"The body has {request.content_length} bytes, the limit is {max_bytes}",
                field="(body)",
                remedy="Send a smaller body",
            )
        if request.method == "POST":
            wait = limiter.take(request.remote or "")
            if wait:
                seconds = str(math.ceil(wait))
                raise Problem(
                    429,
                    "too-many-requests",
                    "Too many posts",
                    remedy=f"Wait {seconds} s",
                    headers={"Retry-After": seconds},
                )
        return await handler(request)

    return limit


def _check_first(route: Route) -> RouteHandler:
    """The handler, once the query is known to hold only what the route takes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        check_query(request, route.query)
        return await route.handler(request)

    return handle


def _add_routes(app: web.Application, routes: Sequence[Route], document: bytes) -> None:
    app[DOCUMENT] = document
    for route in routes:
        if route.method == "GET":
            app.router.add_get(route.path, _check_first(route), allow_head=True)
        else:
            app.router.add_route(route.method, route.path, _check_first(route))


async def get_document(request: web.Request) -> web.Response:
    return web.Response(body=request.app[DOCUMENT], content_type=JSON)


DOCUMENT_ROUTE = Route("GET", "/openapi.json", "getDocument", get_document, "This document")
PUBLIC_ROUTES: tuple[Route, ...] = (
    *ROUTES,
    *TRUST_ROUTES,
    *JOB_ROUTES,
    *FEDERATION_ROUTES,
    *_SERVICE_ROUTES,
    DOCUMENT_ROUTE,
)
ALL_OPERATOR_ROUTES: tuple[Route, ...] = (*OPERATOR_ROUTES, replace(DOCUMENT_ROUTE, errors=(401,)))


def build_public_document(version: str, routes: Sequence[Route] = PUBLIC_ROUTES) -> bytes:
    document = build_document(routes, title="bmif node", version=version)
    return json.dumps(document, indent=1).encode()


def build_operator_document(version: str) -> bytes:
    document = build_document(ALL_OPERATOR_ROUTES, title="bmif node, operator", version=version, bearer=True)
    return json.dumps(document, indent=1).encode()


def build_public_app(
    view: NodeView,
    config: NodeConfig,
    registry: CollectorRegistry | None = None,
    light: LightView | None = None,
    fusions: FusionDesk | None = None,
) -> web.Application:
    """The public application; the daemon runs it on `api.host:api.port` and may add metrics to `registry`.

    With `light` it has the routes for light clients, with `fusions` those of encrypted fusion.
    """
    registry = registry or CollectorRegistry()
    registry.register(NodeCollector(view))
    metrics = RequestMetrics(registry)

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await metrics.observe(request, handler)

    limit = _build_limit_middleware(RateLimiter(config.api.posts_per_minute), config.limits.max_request_bytes)
    app = web.Application(
        middlewares=[count, problem_middleware, limit], client_max_size=config.limits.max_request_bytes
    )
    app[VIEW] = view
    app[REGISTRY] = registry
    app[STREAMS] = set()
    app[MAX_STREAMS] = config.api.max_event_streams
    app.on_shutdown.append(close_streams)
    routes = PUBLIC_ROUTES
    if light is not None:
        app[LIGHT] = light
        routes = (*routes, *LIGHT_ROUTES)
    if fusions is not None:
        app[FUSIONS] = fusions
        routes = (*routes, *FUSION_ROUTES)
    _add_routes(app, routes, build_public_document(view.info.version, routes))
    return app


def build_operator_app(
    view: NodeView, operator: OperatorView, config: NodeConfig, token: str
) -> web.Application:
    """The operator's application, for `operator.host:operator.port`, which stays on loopback."""
    app = web.Application(
        middlewares=[problem_middleware, build_token_middleware(token)], client_max_size=MAX_OPERATOR_JSON
    )
    app[VIEW] = view
    app[OPERATOR] = operator
    app[BLOB_LIMIT] = config.limits.max_blob_bytes
    _add_routes(app, ALL_OPERATOR_ROUTES, build_operator_document(view.info.version))
    return app
