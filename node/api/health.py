"""Health and metrics: `/livez`, `/readyz`, `/metrics`."""

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from node.api.errors import Problem
from node.api.fields import CriterionModel
from node.api.requests import answer, get_view
from node.api.schemas import LiveModel, ReadyModel

REGISTRY = web.AppKey("registry", CollectorRegistry)


async def get_livez(request: web.Request) -> web.Response:
    """Whoever answers lives: a node whose services fail ends as a whole, listeners and all."""
    return answer(LiveModel(live=True))


async def get_readyz(request: web.Request) -> web.Response:
    """200 or 503, with every criterion by name in both."""
    readiness = get_view(request).get_readiness()
    criteria = tuple(CriterionModel.model_validate(item) for item in readiness.criteria)
    if not readiness.ready:
        raise Problem(
            503,
            "not-ready",
            "; ".join(readiness.reasons) or "The node is starting",
            remedy="Ask again soon; `criteria` says what is missing",
            headers={"Retry-After": "1", "Cache-Control": "no-store"},
            criteria=criteria,
        )
    return answer(ReadyModel(ready=True, criteria=criteria))


async def get_metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[REGISTRY])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
