"""The APIs' listener as the daemon starts it, against raw sockets: smuggling, sizes, bombs, slow clients."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from node.api.app import build_operator_app, build_public_app
from node.clock import ManualClock
from node.serving import KEEPALIVE_S, OPERATOR_TIMES, ServingTimes, serve
from tests.integration.attacks import (
    DEADLINE_S,
    Attack,
    build_bombs,
    build_oversize,
    build_smuggling,
    check,
    exchange,
)
from tests.unit.node_api.conftest import TOKEN, build_config
from tests.unit.node_api.fakes import FakeNode

PATH = "/v1/transactions"
SMUGGLING = [*build_smuggling(PATH), *build_oversize(PATH)]
LIVE = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    async with AsyncExitStack() as stack:
        app = build_public_app(FakeNode(tmp_path), build_config(tmp_path))
        yield await serve(stack, app, "127.0.0.1", 0)


@pytest.mark.parametrize("attack", SMUGGLING, ids=lambda attack: attack.name)
async def test_a_request_has_one_reading_or_none(port: int, attack: Attack) -> None:
    await check(port, attack)
    assert (await exchange(port, LIVE)).startswith(b"HTTP/1.1 200")


async def test_compressed_bodies_are_not_unpacked(port: int) -> None:
    for attack in build_bombs(PATH):
        await check(port, attack)
    assert (await exchange(port, LIVE)).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order_and_bounded(port: int) -> None:
    count = 300
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    paths = [b"/livez" if number % 3 else b"/v1/nothing" for number in range(count)]
    writer.write(b"".join(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths))
    for path in paths:
        async with asyncio.timeout(DEADLINE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
        assert head.split()[1] == (b"200" if path == b"/livez" else b"404")
    writer.close()


async def test_malformed_requests_leave_none_of_their_bytes_in_the_log(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Bearer-canary-8c5e"
    with caplog.at_level(logging.DEBUG):
        for headers in (f"Authorization: {secret}\r\nX y: z\r\n", f"X: {secret}\x00\r\n", f"{secret} \r\n"):
            data = f"GET /livez HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
            await check(port, Attack("malformed", data))
    assert secret not in caplog.text
    assert "Traceback" not in caplog.text
    assert "a request was refused" in caplog.text


class Slow:
    """An application that a manual clock watches; `read` waits for the body."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.port = 0
        self.reading = asyncio.Event()

    async def read(self, request: web.Request) -> web.Response:
        self.reading.set()
        return web.Response(text=str(len(await request.read())))

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/read", self.read)
        app.router.add_post("/free", self.read)
        self.port = await serve(
            stack,
            app,
            "127.0.0.1",
            0,
            times=ServingTimes(headers_s=10, body_s=60),
            free=frozenset(("/free",)),
            clock=self.clock,
        )

    async def is_closed(self, reader: asyncio.StreamReader, seconds: float) -> bool:
        """Whether the connection is closed once so many seconds have passed on the manual clock."""
        await self.clock.run_for(seconds)
        try:
            async with asyncio.timeout(0.5):
                return await reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    async with AsyncExitStack() as stack:
        made = Slow()
        await made.start(stack)
        yield made


@pytest.mark.parametrize("sent", [b"", b"POST /read HTTP/1.1\r\nHost: x\r\nX-1: a\r\n"])
async def test_headers_that_do_not_come_end_a_connection(slow: Slow, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
    writer.write(sent)
    assert not await slow.is_closed(reader, 8)
    writer.write(b"X-2: b\r\n" if sent else b"")  # a byte now and then helps nobody
    assert await slow.is_closed(reader, 5)
    writer.close()


async def test_a_body_that_trickles_in_ends_a_connection(slow: Slow) -> None:
    for path, is_bounded in (("read", True), ("free", False)):
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
        writer.write(f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        slow.reading.clear()
        await slow.reading.wait()
        writer.write(b"a")
        assert not await slow.is_closed(reader, 50)
        writer.write(b"a")
        assert await slow.is_closed(reader, 20) is is_bounded
        writer.close()


async def test_a_kept_connection_is_no_place_for_slow_headers(slow: Slow) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
    writer.write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
    writer.write(b"POST /read HTTP/1.1\r\nHost: x\r\nX-1: a\r\n")
    assert await slow.is_closed(reader, KEEPALIVE_S + 15)
    writer.close()


async def post(port: int, path: str, *headers: str, body: object = None) -> int:
    data = json.dumps(body or {}).encode()
    lines = ("Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers)
    head = f"POST {path} HTTP/1.1\r\n" + "".join(line + "\r\n" for line in lines) + "\r\n"
    return int((await exchange(port, head.encode() + data)).split(b" ", 2)[1])


async def test_writes_need_the_operators_token(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        node = FakeNode(tmp_path)
        app = build_operator_app(node, node, build_config(tmp_path), TOKEN)
        port = await serve(stack, app, "127.0.0.1", 0, times=OPERATOR_TIMES)
        path = "/v1/operator/transactions"
        good = f"Authorization: Bearer {TOKEN}"
        assert await post(port, path, good) not in (401, 403, 404)
        for headers in (
            (),
            ("Authorization: Bearer",),
            ("Authorization: Bearer " + TOKEN[:-1],),
            ("Authorization: Bearer " + TOKEN + "x",),
            ("Authorization: Basic " + TOKEN,),
            (f"Cookie: token={TOKEN}",),
            (f"X-Authorization: Bearer {TOKEN}",),
        ):
            assert await post(port, path, *headers) == 401, headers
        for query in (f"token={TOKEN}", f"access_token={TOKEN}", f"Authorization=Bearer%20{TOKEN}"):
            assert await post(port, f"{path}?{query}") == 401, query
        # By a name that was made to mean this machine, and what a browser asks before another page's post.
        asked = f"POST {path} HTTP/1.1\r\nHost: evil.example\r\n{good}\r\nContent-Length: 0\r\n\r\n"
        assert (await exchange(port, asked.encode())).startswith(b"HTTP/1.1 421")
        await check_preflight(port, path)


async def check_preflight(port: int, path: str) -> None:
    asked = (
        f"OPTIONS {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\n"
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n"
    )
    answer = await exchange(port, asked.encode())
    assert b"access-control-allow" not in answer.lower()
    assert not answer.startswith(b"HTTP/1.1 2")


async def test_a_page_of_another_origin_posts_nothing(port: int) -> None:
    """Browsers ask first, and are not allowed; what they send without asking is not taken."""
    await check_preflight(port, PATH)
    simple = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n"
    )
    answer = await exchange(port, f"{simple}Content-Length: 2\r\n\r\n{{}}".encode())
    assert answer.startswith(b"HTTP/1.1 415")
    assert b"access-control-allow" not in answer.lower()


NO_NAMES = (
    *(
        "../account.key",
        "..%2f..%2faccount.key",
        "%2e%2e/%2e%2e/account.key",
        "/etc/passwd",
        "....//account.key",
    ),
    *("..\\account.key", "%00", "a" * 64 + "/../../account.key", "A" * 64, "0" * 63 + "%2f"),
)


@pytest.mark.parametrize("name", NO_NAMES)
async def test_names_of_blobs_are_hashes_and_no_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / "account.key").write_bytes(b"canary")
    async with AsyncExitStack() as stack:
        node, config = FakeNode(tmp_path), build_config(tmp_path)
        public = await serve(stack, build_public_app(node, config), "127.0.0.1", 0)
        app = build_operator_app(node, node, config, TOKEN)
        operator = await serve(stack, app, "127.0.0.1", 0, times=OPERATOR_TIMES)
        for port, path in (
            (public, "/v1/blobs/{}"),
            (public, "/v1/fusions/{}"),
            (public, "/{}"),
            (operator, "/v1/operator/blobs/{}"),
            (operator, "/v1/operator/blobs/{}/info"),
        ):
            head = f"GET {path.format(name)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
            answer = await exchange(port, f"{head}Connection: close\r\n\r\n".encode())
            assert answer.split(b" ", 2)[1] in (b"400", b"404", b"405", b"422"), (path, answer[:200])
            assert b"canary" not in answer
