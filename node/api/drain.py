"""Draining over the API: the operator's route, and the refusal of writes once it has begun."""

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import Field

from node.api.errors import Handler, Problem
from node.api.fields import Count, Model
from node.api.requests import Route, answer
from node.draining import Drain

DRAIN: web.AppKey[Drain | None] = web.AppKey("drain")
READS = ("GET", "HEAD", "OPTIONS")
PATH = "/v1/operator/drain"


class UnderWayModel(Model):
    kind: str
    count: Count


class DrainModel(Model):
    """Whether the node takes new work."""

    draining: bool = Field(description="It takes none; what is under way is finished")
    under_way: tuple[UnderWayModel, ...]


def build_drain_guard(drain: Drain | None) -> Middleware:
    """Refuses writes to a node that is about to stop."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_write = request.method not in READS and request.path != PATH
        if drain is not None and drain.is_draining and is_write:
            raise Problem(
                503,
                "draining",
                "This node is about to stop and takes nothing new",
                remedy="Send it to another node, or again once this one has been restarted",
                headers={"Retry-After": "60"},
            )
        return await handler(request)

    return check


def _answer(request: web.Request) -> web.Response:
    drain = request.app[DRAIN]
    if drain is None:
        raise Problem(
            503, "not-drainable", "This server does no work of its own", remedy="Ask the node that does"
        )
    under_way = (UnderWayModel(kind=kind, count=count) for kind, count in drain.get_under_way().items())
    return answer(DrainModel(draining=drain.is_draining, under_way=tuple(under_way)))


async def get_drain(request: web.Request) -> web.Response:
    return _answer(request)


async def post_drain(request: web.Request) -> web.Response:
    """Takes no new work from now on; there is no way back but a restart."""
    drain = request.app[DRAIN]
    if drain is not None:
        drain.begin()
    return _answer(request)


DRAIN_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        PATH,
        "getDrain",
        get_drain,
        "Whether the node is draining, and what is under way",
        DrainModel,
        errors=(401, 503),
    ),
    Route(
        "POST",
        PATH,
        "drain",
        post_drain,
        "Take no new work, before a stop; only a restart ends it",
        DrainModel,
        errors=(401, 413, 415, 422, 503),
    ),
)
