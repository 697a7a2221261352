"""Open files: shares that add up, a remedy where they can't, a word a minute where they run out."""

import asyncio
import errno
import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from node.clock import ManualClock
from node.config import NodeConfig
from node.descriptors import (
    REPEAT_S,
    DescriptorWatch,
    TooFewDescriptors,
    compute_fixed,
    count_open,
    is_exhaustion,
    plan,
)
from node.serving import Room, serve
from tests.unit.node_api.conftest import build_config


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return build_config(tmp_path)


def test_shares_never_exceed_the_limit(config: NodeConfig) -> None:
    fixed = compute_fixed(config)
    for limit in (fixed + 64, 512, 1_024, 4_096, 1_048_576):
        if limit < fixed + 64:
            continue
        budget = plan(config, limit)
        assert fixed + budget.peer_connections + budget.api_connections + budget.backlog <= limit
        assert min(budget.peer_connections, budget.api_connections, budget.backlog) > 0
        assert budget.peer_connections <= config.peer.max_connections


def test_what_does_not_fit_is_named_with_its_remedy(
    config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    plan(config, 1_048_576)
    assert not caplog.records
    plan(config, compute_fixed(config) + 100)
    assert "LimitNOFILE" in caplog.text
    assert "peer.max_connections" in caplog.text
    with pytest.raises(TooFewDescriptors, match="raise the limit"):
        plan(config, compute_fixed(config) + 10)


def test_running_out_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, shed = ManualClock(), [0]
    watch = DescriptorWatch(clock, 100, lambda: shed[0])
    watch.look(50)
    assert not caplog.records
    shed[0] = 7
    watch.look(50)
    watch.look(-1)
    assert len(caplog.records) == 1
    assert "50 of 100 are in use; 7 connections" in caplog.text
    clock.advance(REPEAT_S)
    watch.look(-1)
    assert "all of 100 are in use; 0 connections" in caplog.text
    logging.getLogger().info("counted: %d", count_open())
    assert count_open() > 2


def test_exhaustion_is_told_from_other_errors() -> None:
    assert is_exhaustion(OSError(errno.EMFILE, "x"))
    assert is_exhaustion(OSError(errno.ENFILE, "x"))
    assert not is_exhaustion(OSError(errno.ENOENT, "x"))
    assert not is_exhaustion(ValueError())


async def test_a_full_listener_closes_who_asks_nothing() -> None:
    """Held connections make way for a new one that asks something; those with a request under way stay."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        begun.set()
        await release.wait()
        return web.Response(text="late")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="now")

    app = web.Application()
    app.router.add_get("/wait", wait)
    app.router.add_get("/", answer)
    room = Room(connections=4, backlog=4)
    async with AsyncExitStack() as stack:
        port = await serve(stack, app, "127.0.0.1", 0, room=room)

        async def connect(path: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            if path:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return reader, writer

        busy, _ = await connect("/wait")
        await begun.wait()
        idle = [await connect() for _ in range(10)]
        reader, _ = await connect("/")
        assert b"200" in await reader.readline()
        assert room.shed >= 7
        # The oldest were closed first.
        assert await idle[0][0].read() == b""
        release.set()
        assert b"200" in await busy.readline()
