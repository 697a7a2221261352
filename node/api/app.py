"""The two applications: public REST, and the operator's behind a bearer token."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from aiohttp import web
from prometheus_client import CollectorRegistry

from node.api.answers import KeptAnswers
from node.api.ceremonies import CEREMONY_ROUTES
from node.api.debug import DEBUG_ROUTES, SETTINGS
from node.api.drain import DRAIN, DRAIN_ROUTES, build_drain_guard
from node.api.errors import problem_middleware
from node.api.explorer import STATIC_ROUTES
from node.api.explorer_data import DATA_ROUTES
from node.api.federations import FEDERATION_ROUTES
from node.api.fusions import FUSION_ROUTES, FUSIONS
from node.api.health import REGISTRY, get_livez, get_metrics, get_readyz
from node.api.jobs import JOB_ROUTES
from node.api.light import LIGHT, LIGHT_ROUTES
from node.api.middleware import (
    RateLimiter,
    add_security_headers,
    build_cors,
    build_host_check,
    build_limit,
    forbid_storing,
)
from node.api.openapi import build_document
from node.api.operator import BLOB_LIMIT, OPERATOR, OPERATOR_ROUTES, build_token_middleware
from node.api.preview import PREVIEW_ROUTES, keep_previews
from node.api.reference import POLICY, build_reference
from node.api.requests import JSON, VIEW, Route, RouteHandler, check_query, tag_answer
from node.api.routes import ROUTES
from node.api.schemas import LiveModel, ReadyModel
from node.api.sse import (
    ENCODER,
    MAX_STREAMS,
    READER_TIMEOUT_S,
    STREAMS,
    EventEncoder,
    close_streams,
    get_events,
)
from node.api.trust import TRUST_ROUTES
from node.api.view import NodeView, OperatorView
from node.config import NodeConfig
from node.draining import Drain
from node.fusions import FusionDesk
from node.lightview import LightView
from node.metrics.collector import NodeCollector
from node.metrics.requests import RequestMetrics, add_request_id, build_request_middleware

MAX_OPERATOR_JSON = 16 * 1024 * 1024
DOCUMENT = web.AppKey("document", bytes)

ANSWERS = web.AppKey("answers", KeptAnswers)

_SERVICE_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/events",
        "streamEvents",
        get_events,
        "Events as they happen (server-sent events), replayed after Last-Event-ID",
        media="text/event-stream",
        query=("kinds", "after"),
        headers=("Last-Event-ID",),
        errors=(400, 503),
    ),
    Route("GET", "/livez", "getLiveness", get_livez, "The process answers", LiveModel),
    Route("GET", "/readyz", "getReadiness", get_readyz, "The node can serve", ReadyModel, errors=(503,)),
    Route("GET", "/metrics", "getMetrics", get_metrics, "Prometheus metrics", media="text/plain"),
)


def _check_first(route: Route) -> RouteHandler:
    """The handler, once the query is known to hold only what the route takes; its answer with an ETag."""

    async def handle(request: web.Request) -> web.StreamResponse:
        check_query(request, route.query)
        return tag_answer(request, await route.handler(request))

    if route.method != "GET" or route.answer is None or not route.path.startswith("/v1/"):
        return handle

    async def handle_kept(request: web.Request) -> web.StreamResponse:
        answers, revision = request.app.get(ANSWERS), request.app[VIEW].get_revision()
        if answers is None:
            return await handle(request)
        found = answers.find(request, revision)
        if found is None:
            response = await handle(request)
            answers.keep(request, response, revision)
            return response
        return found

    return handle_kept


def _add_routes(app: web.Application, routes: Sequence[Route], document: bytes) -> None:
    app[DOCUMENT] = document
    for route in routes:
        if route.method == "GET":
            app.router.add_get(route.path, _check_first(route), allow_head=True)
        else:
            app.router.add_route(route.method, route.path, _check_first(route))


async def get_document(request: web.Request) -> web.Response:
    return web.Response(body=request.app[DOCUMENT], content_type=JSON)


@lru_cache(maxsize=2)
def _build_page(document: bytes) -> bytes:
    return build_reference(json.loads(document))


async def get_reference(request: web.Request) -> web.Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    page = _build_page(request.app[DOCUMENT])
    return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)


DOCUMENT_ROUTE = Route("GET", "/openapi.json", "getDocument", get_document, "This document")
REFERENCE_ROUTE = Route(
    "GET", "/docs", "getReference", get_reference, "This document as a page", media="text/html"
)
PUBLIC_ROUTES: tuple[Route, ...] = (
    *ROUTES,
    *TRUST_ROUTES,
    *JOB_ROUTES,
    *FEDERATION_ROUTES,
    *CEREMONY_ROUTES,
    *DATA_ROUTES,
    *PREVIEW_ROUTES,
    *_SERVICE_ROUTES,
    DOCUMENT_ROUTE,
    REFERENCE_ROUTE,
    *STATIC_ROUTES,
)
EVERY_PUBLIC_ROUTE: tuple[Route, ...] = (*PUBLIC_ROUTES, *LIGHT_ROUTES, *FUSION_ROUTES)
ALL_OPERATOR_ROUTES: tuple[Route, ...] = (
    *OPERATOR_ROUTES,
    *DRAIN_ROUTES,
    *DEBUG_ROUTES,
    replace(DOCUMENT_ROUTE, errors=(401,)),
)


@lru_cache(maxsize=8)
def build_public_document(version: str, routes: Sequence[Route] = EVERY_PUBLIC_ROUTE) -> bytes:
    """The OpenAPI document of the public listener, JSON; of every route that a node may have by default."""
    document = build_document(routes, title="bmif node", version=version)
    return json.dumps(document, indent=1).encode()


@lru_cache(maxsize=8)
def build_operator_document(version: str) -> bytes:
    """The OpenAPI document of the operator's listener, JSON."""
    document = build_document(ALL_OPERATOR_ROUTES, title="bmif node, operator", version=version, bearer=True)
    return json.dumps(document, indent=1).encode()


def build_public_app(
    view: NodeView,
    config: NodeConfig,
    registry: CollectorRegistry | None = None,
    light: LightView | None = None,
    fusions: FusionDesk | None = None,
    drain: Drain | None = None,
) -> web.Application:
    """The public application; the daemon runs it on `api.host:api.port` and may add metrics to `registry`.

    With `light` it has the routes for light clients, with `fusions` those of encrypted fusion; once `drain`
    has begun, it refuses writes.
    """
    registry = registry or CollectorRegistry()
    registry.register(NodeCollector(view))
    monitor = build_request_middleware(config.log, RequestMetrics(registry, lambda: len(app[STREAMS])))
    limit = build_limit(RateLimiter(config.api.posts_per_minute), config.limits.max_request_bytes)
    answer_preflight, mark_origin = build_cors(config.api.cors_origins)
    app = web.Application(
        middlewares=[monitor, problem_middleware, answer_preflight, limit, build_drain_guard(drain)],
        client_max_size=config.limits.max_request_bytes,
    )
    app.on_response_prepare.extend((add_request_id, add_security_headers, mark_origin))
    app[VIEW] = view
    app[REGISTRY] = registry
    app[STREAMS] = set()
    app[MAX_STREAMS] = config.api.max_event_streams
    app[READER_TIMEOUT_S] = config.api.event_reader_timeout_s
    app[ENCODER] = EventEncoder()
    app[ANSWERS] = KeptAnswers()
    app.on_shutdown.append(close_streams)
    app.cleanup_ctx.append(keep_previews)
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
    view: NodeView, operator: OperatorView, config: NodeConfig, token: str, drain: Drain | None = None
) -> web.Application:
    """The operator's application, for `operator.host:operator.port`, which stays on loopback."""
    app = web.Application(
        middlewares=[
            build_request_middleware(config.log),
            problem_middleware,
            build_host_check(config.operator),
            build_token_middleware(token),
            build_drain_guard(drain),
        ],
        client_max_size=MAX_OPERATOR_JSON,
    )
    app.on_response_prepare.extend((add_request_id, add_security_headers, forbid_storing))
    app[VIEW] = view
    app[OPERATOR] = operator
    app[DRAIN] = drain
    app[BLOB_LIMIT] = config.limits.max_blob_bytes
    app[SETTINGS] = config
    _add_routes(app, ALL_OPERATOR_ROUTES, build_operator_document(view.info.version))
    return app
