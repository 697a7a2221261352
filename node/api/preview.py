"""`GET /v1/models/{task}/preview.png`: what a settled model makes of a synthetic pair.

Pictures are made one at a time, each in a process of its own that ends with it, and kept by what they show:
a node that is asked for the same one again and again makes it once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from consensus.identifiers import compute_weights_digest
from consensus.types import Hash32
from node.api.convert import TaskReader
from node.api.errors import Problem, build_not_found
from node.api.requests import FRESH, IMMUTABLE, Route, get_view, is_known, parse_hash
from node.work import WorkerPool
from workloads.base import WorkloadError
from workloads.preview import build_preview

PNG = "image/png"
MAX_WAITING = 4
MAX_KEPT = 32
LIMIT_S = 120.0
"""A picture takes about a second where the machine has nothing else to do; most of it starts the process."""


@dataclass(frozen=True, slots=True)
class PreviewOrder:
    """What a picture shows."""

    kind: str
    model: bytes
    weights: tuple[int, ...]

    @property
    def digest(self) -> Hash32:
        return compute_weights_digest(self.weights)


class PreviewFull(Exception):
    """As many pictures are waited for as may be."""


class PreviewDesk:
    """Makes and keeps pictures of models; bounded in time, in number at work and in number kept."""

    def __init__(self, waiting: int = MAX_WAITING, kept: int = MAX_KEPT) -> None:
        self._most_waiting = waiting
        self._most_kept = kept
        self._kept: OrderedDict[PreviewOrder, bytes] = OrderedDict()
        """In order of use."""
        self._running: dict[PreviewOrder, asyncio.Task[bytes]] = {}
        self._turn = asyncio.Lock()
        self.made = 0

    async def get(self, order: PreviewOrder) -> bytes:
        """PNG bytes, made once however many ask at a time.

        Raises: PreviewFull; WorkloadError for a model that can't be shown; TimeoutError; BrokenProcessPool.
        """
        known = self._kept.get(order)
        if known is not None:
            self._kept.move_to_end(order)
            return known
        running = self._running.get(order)
        if running is None:
            if len(self._running) >= self._most_waiting:
                raise PreviewFull
            running = asyncio.create_task(self._make(order))
            self._running[order] = running
            running.add_done_callback(lambda done: self._forget(order, done))
        # Whoever leaves does not take the picture from the others.
        return await asyncio.shield(running)

    async def _make(self, order: PreviewOrder) -> bytes:
        async with self._turn:
            pool = WorkerPool(1, "preview")
            try:
                async with asyncio.timeout(LIMIT_S):
                    picture = await pool.run(build_preview, order.kind, order.model, order.weights)
            finally:
                await asyncio.to_thread(pool.close)
        self.made += 1
        self._kept[order] = picture
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)
        return picture

    def _forget(self, order: PreviewOrder, done: asyncio.Task[bytes]) -> None:
        del self._running[order]
        if not done.cancelled():
            done.exception()  # whoever asked has it; nobody else has to hear of it

    async def close(self) -> None:
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


PREVIEWS = web.AppKey("previews", PreviewDesk)


async def keep_previews(app: web.Application) -> AsyncIterator[None]:
    """For `cleanup_ctx`: the desk lives as long as the application."""
    app[PREVIEWS] = PreviewDesk()
    yield
    await app[PREVIEWS].close()


def _get_order(request: web.Request) -> PreviewOrder:
    """Of the task's settled model, which `digest` may name."""
    view = get_view(request)
    task = parse_hash(request.match_info["task"], "task")
    try:
        reader = TaskReader(view, view.get_state(), task)
    except LookupError as error:
        raise build_not_found("task", f"task {task.hex()}", "See /v1/tasks") from error
    model = reader.build_model()
    if model is None:
        raise build_not_found(
            "task",
            f"settled model of task {task.hex()} here yet",
            "Wait for its first milestone (GET /v1/tasks/{id})",
        )
    wanted = request.query.get("digest")
    if wanted is not None and parse_hash(wanted, "digest").hex() != model.weights_digest:
        raise build_not_found(
            "digest",
            f"settled model of this digest: the task's is {model.weights_digest}",
            "Leave `digest` out, or take `weights_digest` from GET /v1/models/{task}",
        )
    return PreviewOrder(model.kind, bytes.fromhex(model.specification), model.weights)


async def get_preview(request: web.Request) -> web.Response:
    order = _get_order(request)
    control = IMMUTABLE if "digest" in request.query else FRESH
    headers = {"ETag": f'"preview-{order.digest.hex()}"', "Cache-Control": control}
    if is_known(request, headers["ETag"]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    wait = {"Retry-After": "2"}
    try:
        picture = await request.app[PREVIEWS].get(order)
    except WorkloadError as error:
        remedy = "Use the model itself (GET /v1/models/{task})"
        raise Problem(409, "no-picture", str(error), field="task", remedy=remedy) from error
    except PreviewFull as error:
        detail = f"{MAX_WAITING} pictures are being made already"
        raise Problem(503, "busy", detail, remedy="Ask again soon", headers=wait) from error
    except (TimeoutError, BrokenProcessPool) as error:
        detail = "The picture could not be made now"
        raise Problem(503, "busy", detail, remedy="Ask again later", headers=wait) from error
    return web.Response(body=picture, content_type=PNG, headers=headers)


PREVIEW_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/models/{task}/preview.png",
        "getModelPreview",
        get_preview,
        "Two synthetic sources and what the settled model makes of them, side by side",
        media=PNG,
        query=("digest",),
        errors=(400, 404, 409, 503),
        cached=True,
    ),
)
