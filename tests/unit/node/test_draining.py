"""Draining: said once, counted by kind, waited for within its time."""

import asyncio

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from node.api.drain import build_drain_guard
from node.api.errors import problem_middleware
from node.clock import ManualClock
from node.draining import Drain
from node.pulse import Pulse


async def test_what_is_under_way_is_waited_for() -> None:
    pulse, under_way = Pulse(), {"batches": 2, "jobs": 0}
    drain = Drain(ManualClock(), pulse)
    for name in under_way:
        drain.watch(name, lambda name=name: under_way[name])  # type: ignore[misc]
    assert not drain.is_draining
    drain.begin()
    drain.begin()
    assert drain.is_draining
    assert pulse.version == 1
    assert drain.describe() == "2 batches"
    waiting = asyncio.create_task(drain.wait(60.0))
    await asyncio.sleep(0)
    under_way["batches"] = 0
    pulse.beat()
    assert await waiting
    assert drain.describe() == "nothing"


async def test_what_takes_too_long_is_given_up() -> None:
    clock = ManualClock()
    pulse = Pulse()
    drain = Drain(clock, pulse)
    drain.watch("batches", lambda: 1)
    waiting = asyncio.create_task(drain.wait(5.0))
    await asyncio.sleep(0)
    clock.advance(5.0)
    pulse.beat()
    assert not await waiting


async def test_writes_are_refused_once_it_has_begun() -> None:
    async def take(_: web.Request) -> web.Response:
        return web.Response(text="taken")

    drain = Drain(ManualClock(), Pulse())
    app = web.Application(middlewares=[problem_middleware, build_drain_guard(drain)])
    app.router.add_get("/x", take)
    app.router.add_post("/x", take)
    app.router.add_post("/v1/operator/drain", take)
    async with TestClient(TestServer(app)) as client:
        assert (await client.post("/x")).status == 200
        drain.begin()
        refused = await client.post("/x")
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "60"
        assert "draining" in await refused.text()
        assert (await client.get("/x")).status == 200
        assert (await client.post("/v1/operator/drain")).status == 200
