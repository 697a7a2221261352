"""The HTTP listeners of the APIs: who takes too long to ask is cut off, and nothing compressed is unpacked.

A connection holds memory and a descriptor while its request is read, so both slow parts of that are bounded:
the time until a request's headers are complete, and the time until its body is. What is no request is refused
by the parser and logged without its bytes, which are the client's, secrets and all.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from node.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

SHUTDOWN_S = 2.0
KEEPALIVE_S = 60.0
BACKLOG = 1_024
SWEEP_S = 1.0


class _Malformed(logging.Filter):
    """Makes a line without the client's bytes of what the server would log with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            logger.debug("a request was refused: %s", type(error).__name__)
            return False
        return True


SERVER_LOGGER = logging.getLogger("node.serving.server")
"""For aiohttp's servers."""
SERVER_LOGGER.addFilter(_Malformed())


@dataclass(frozen=True, slots=True)
class ServingTimes:
    """How long a client may take; seconds."""

    headers_s: float = 10.0
    """From the connection, or the first byte after an answer, to the end of a request's headers."""
    body_s: float | None = 60.0
    """From the headers to the end of the body; None: any time."""


OPERATOR_TIMES = ServingTimes(body_s=None)
"""Of who has the token: blobs are long."""


@dataclass(slots=True)
class _Connection:
    handler: web.RequestHandler
    since: float
    """When it was opened, or last answered."""
    answered: int = 0
    request: web.BaseRequest | None = None
    began: float = 0.0


class _Shed(asyncio.Protocol):
    """A connection that there is no room for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


@dataclass(slots=True)
class Room:
    """How many connections a listener may hold, and how many it had to close for that."""

    connections: int = 16_384
    backlog: int = BACKLOG
    """Accepted in one go, before any of them is counted."""
    shed: int = 0


class SlowClients:
    """Watches the connections of one application."""

    def __init__(
        self,
        times: ServingTimes,
        clock: Clock,
        free: frozenset[str] = frozenset(),
        room: "Room | None" = None,
    ) -> None:
        """`free`: paths whose bodies have bounds of their own. `room`: how many connections there may be."""
        self._room = room or Room()
        self._times = times
        self._clock = clock
        self._free = free
        self._connections: dict[int, _Connection] = {}
        self.closed = 0
        """How many were cut off."""

    def __len__(self) -> int:
        return len(self._connections)

    def watch(self, build: Callable[[], web.RequestHandler]) -> asyncio.BaseProtocol:
        """A new connection's protocol; one that ends it at once where there is no room."""
        if len(self._connections) >= self._room.connections and not self._make_room():
            self._room.shed += 1
            return _Shed()
        handler = build()
        self._connections[id(handler)] = _Connection(handler, self._clock.monotonic())
        return handler

    def _make_room(self) -> bool:
        """Forget what has ended; else close the connection that has been without a request for longest."""
        waiting = []
        for key, connection in tuple(self._connections.items()):
            transport = connection.handler.transport
            if transport is not None and transport.is_closing():
                del self._connections[key]
            elif transport is not None and connection.request is None:
                waiting.append((connection.since, key))
        if len(self._connections) < self._room.connections:
            return True
        if not waiting:
            return False
        transport = self._connections.pop(min(waiting)[1]).handler.transport
        if transport is not None:
            transport.abort()
        self._room.shed += 1
        return True

    def build_middleware(self) -> Middleware:
        """To be the outermost of its application."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._connections.get(id(request.protocol))
            if connection is None:
                return await handler(request)
            connection.request, connection.began = request, self._clock.monotonic()
            try:
                return await handler(request)
            finally:
                connection.request = None
                connection.answered += 1
                connection.since = self._clock.monotonic()

        return note

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._clock.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Forget connections that ended, and cut off those that take too long."""
        now = self._clock.monotonic()
        for key, connection in tuple(self._connections.items()):
            transport = connection.handler.transport
            if transport is None:
                # Not connected yet, or not any more.
                if now - connection.since > SWEEP_S and connection.request is None:
                    del self._connections[key]
                continue
            if self._is_slow(connection, now):
                self.closed += 1
                logger.debug("a connection of %s is closed: too slow", transport.get_extra_info("peername"))
                transport.abort()

    def _is_slow(self, connection: _Connection, now: float) -> bool:
        request, times = connection.request, self._times
        if request is None:
            # Between two requests the server itself waits for as long as it keeps connections.
            spare = KEEPALIVE_S if connection.answered else 0.0
            return now - connection.since > times.headers_s + spare
        if times.body_s is None or request.path in self._free or request.content.is_eof():
            return False
        return now - connection.began > times.body_s


async def serve(
    stack: AsyncExitStack,
    app: web.Application,
    host: str,
    port: int,
    *,
    times: ServingTimes | None = None,
    free: frozenset[str] = frozenset(),
    clock: Clock | None = None,
    room: Room | None = None,
) -> int:
    """Serve an application until the stack is closed; returns the bound port.

    Raises: OSError if the address can't be bound.
    """
    room = room or Room()
    slow = SlowClients(times or ServingTimes(), clock or SystemClock(), free, room)
    app.middlewares.insert(0, slow.build_middleware())
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        keepalive_timeout=KEEPALIVE_S,
        auto_decompress=False,
        logger=SERVER_LOGGER,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    if server is None:
        raise RuntimeError("the application has no server after its setup")
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: slow.watch(server), host, port, backlog=room.backlog)
    stack.callback(listening.close)
    sweeping = asyncio.create_task(slow.run(), name="slow clients")
    stack.callback(sweeping.cancel)
    bound: int = listening.sockets[0].getsockname()[1]
    return bound
