"""The peer listener: accepts connections, lets the gate judge them, and only then spends TLS on them."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine

from aiohttp import web

from node.clock import Clock
from node.gossip.gate import Connection, ConnectionGate, Refusal
from node.gossip.transport import TransportError
from node.tls import PeerCertificate, UntrustedPeer, get_certificate
from node.tls_store import CertificateCheck

logger = logging.getLogger(__name__)

BACKLOG = 256
SWEEP_S = 0.5
ACCEPT_PAUSE_S = 0.1
"""After the system could not give a socket..."""
REPEAT_S = 60.0
"""...which is said this often."""


class GatedServer(web.Server):
    """aiohttp's server, telling when its connections end."""

    on_lost: Callable[[web.RequestHandler], None] | None = None

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.on_lost is not None:
            self.on_lost(handler)


class GatedListener:
    """Serves HTTP over TLS on one address."""

    def __init__(
        self,
        server: GatedServer,
        context: ssl.SSLContext,
        gate: ConnectionGate,
        clock: Clock,
        check: CertificateCheck,
    ) -> None:
        """`check` says whether a certificate of the authority may stay."""
        self._server = server
        self._context = context
        self._gate = gate
        self._clock = clock
        self._check = check
        self._certificates: dict[int, PeerCertificate] = {}
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[web.RequestHandler, Connection] = {}
        self._raw: dict[int, socket.socket] = {}
        """Sockets in their handshake."""
        self._open: dict[int, web.RequestHandler] = {}
        self._told_at: float | None = None
        """When it was last said that there was no descriptor for a connection."""
        server.on_lost = self._on_lost

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port. Raises: TransportError."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in dict.fromkeys(found):
                listening = socket.socket(family, kind, protocol)
                self._sockets.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.setblocking(False)
                listening.bind(address)
                listening.listen(BACKLOG)
        except OSError as error:
            for listening in self._sockets:
                listening.close()
            raise TransportError(f"{host}:{port} can't be bound: {error}") from error
        for listening in self._sockets:
            self._spawn(self._accept(listening))
        self._spawn(self._sweep())
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Accept nothing more and end handshakes; the server ends what is open."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- stages -------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                now = self._clock.monotonic()
                if self._told_at is None or now >= self._told_at + REPEAT_S:
                    self._told_at = now
                    logger.warning("no connection could be accepted: %s", error)
                await self._clock.sleep(ACCEPT_PAUSE_S)
                continue
            address = str(peer[0])
            connection, displaced = self._gate.on_connect(address, self._clock.monotonic())
            for victim in displaced:
                self._close(victim)
            if connection is None:
                accepted.close()
                # A burst of refused connections must not keep the loop from everything else.
                await asyncio.sleep(0)
                continue
            self._raw[connection.number] = accepted
            self._spawn(self._shake_hands(accepted, connection))

    async def _shake_hands(self, accepted: socket.socket, connection: Connection) -> None:
        loop, timeout_s = asyncio.get_running_loop(), self._gate.limits.handshake_s
        handler = self._server()
        self._handlers[handler] = connection
        try:
            accepted.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: handler,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, ssl.SSLError, ConnectionError) as error:
            logger.debug("a handshake with %s failed: %s", connection.address, error)
            self._forget(handler, connection)
            accepted.close()
            return
        except asyncio.CancelledError:
            self._forget(handler, connection)
            accepted.close()
            raise
        self._raw.pop(connection.number, None)
        self.identify(handler)

    def identify(self, handler: web.RequestHandler) -> Connection | None:
        """The connection of a request's protocol, whose certificate lets it stay; None: it is closed."""
        connection, transport = self._handlers.get(handler), handler.transport
        if connection is None or transport is None:
            return None
        if connection.identity is not None:
            return connection
        try:
            shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            certificate = get_certificate(shown)
            self._check(certificate)
        except ssl.SSLError as error:
            logger.debug("%s: %s", connection.address, error)
            transport.close()
            return None
        identity = certificate.identity
        self._open[connection.number] = handler
        self._certificates[connection.number] = certificate
        refusal = self._gate.on_identified(connection, identity, self._clock.monotonic())
        if refusal is not None:
            logger.debug("a connection of %s is closed: %s", identity.node_id, refusal)
            transport.close()
            return None
        return connection

    def use(self, context: ssl.SSLContext) -> None:
        """Shake hands by this context from now on, and close what may no longer be."""
        self._context = context
        for number, certificate in tuple(self._certificates.items()):
            handler = self._open.get(number)
            try:
                self._check(certificate)
            except UntrustedPeer as error:
                logger.warning("a connection is closed: %s", error)
                if handler is not None and handler.transport is not None:
                    handler.transport.abort()

    def _close(self, connection: Connection) -> None:
        raw, handler = self._raw.pop(connection.number, None), self._open.get(connection.number)
        if raw is not None:
            # The handshake fails by it, and its task cleans up; closing would free the number under asyncio.
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        elif handler is not None and handler.transport is not None:
            handler.transport.abort()

    async def _sweep(self) -> None:
        """Close connections whose time is over."""
        while True:
            await self._clock.sleep(SWEEP_S)
            for connection, refusal in self._gate.get_expired(self._clock.monotonic()):
                logger.debug("a connection of %s is closed: %s", connection.address, refusal)
                self._close(connection)
                if refusal is not Refusal.HANDSHAKE_TIME:
                    self._gate.on_closed(connection)

    def _on_lost(self, handler: web.RequestHandler) -> None:
        connection = self._handlers.get(handler)
        if connection is not None:
            self._forget(handler, connection)

    def _forget(self, handler: web.RequestHandler, connection: Connection) -> None:
        self._handlers.pop(handler, None)
        self._raw.pop(connection.number, None)
        self._open.pop(connection.number, None)
        self._certificates.pop(connection.number, None)
        self._gate.on_closed(connection)
