"""The transport over HTTPS with mutual TLS: one POST a request, connections kept and reused."""

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from node.blobs import BlobStore
from node.clock import Clock, SystemClock
from node.gossip.bookfile import PeerStore
from node.gossip.gate import ConnectionGate, GateLimits
from node.gossip.listener import GatedListener, GatedServer
from node.gossip.messages import MAX_REQUEST_BYTES, Route
from node.gossip.network import Network, NetworkConfig
from node.gossip.server import Handlers
from node.gossip.transport import IdentifiedReply, OversizeReply, Reply, Service, Status, TransportError
from node.tls import (
    PeerIdentity,
    TlsFiles,
    build_client_context,
    build_server_context,
    load_identity,
)

logger = logging.getLogger(__name__)

PREFIX = "/p2p/v1/"
BODY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 30.0
"""Of connections that this node opened; listeners keep them for longer."""
MAX_CONNECTIONS = 32
"""To one address."""
LINGERING_S = 2.0
"""For what a peer still sends after its request was refused."""
SHUTDOWN_S = 0.5
MAX_READING_BYTES = 64 * 1024 * 1024
"""Bodies of requests that are being received."""
MAX_READING_BYTES_PER_NODE = 8 * 1024 * 1024
MEDIA_TYPE = "application/octet-stream"


class _Connector:
    """The connections to one address; remembers who answered there."""

    def __init__(self, files: TlsFiles) -> None:
        self.identity: PeerIdentity | None = None
        # More than the fetcher's chunks, so that an announcement does not queue behind them; less than a
        # listener takes of one node.
        context = build_client_context(files, self._on_identity)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )

    def _on_identity(self, identity: PeerIdentity) -> None:
        # Two nodes behind one address would make replies ambiguous, so the first one holds it.
        if self.identity is not None and self.identity != identity:
            raise ssl.SSLError(f"expected {self.identity.node_id}, got {identity.node_id}")
        self.identity = identity


class HttpTransport:
    """A `Transport` over aiohttp. `advertised` is told to peers instead of the bound address."""

    def __init__(
        self,
        host: str,
        port: int,
        files: TlsFiles,
        advertised: str | None = None,
        *,
        limits: GateLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._files = files
        self._advertised = advertised
        self._identity = load_identity(files)
        self._clock = clock or SystemClock()
        self._service: Service | None = None
        self._server: GatedServer | None = None
        self._listener: GatedListener | None = None
        self._connectors: dict[str, _Connector] = {}
        self._reading: Counter[str] = Counter()
        self._is_banned: Callable[[str], bool] = lambda node_id: False
        self._is_chosen: Callable[[str], bool] = lambda node_id: False
        self.gate = ConnectionGate(
            limits or GateLimits(), self._clock.monotonic(), lambda node_id: self._is_chosen(node_id)
        )
        """The listener's connections."""

    def guard(self, is_banned: Callable[[str], bool], is_chosen: Callable[[str], bool]) -> None:
        """Whose requests are refused before their body is read, and whose connections are kept in a flood."""
        self._is_banned, self._is_chosen = is_banned, is_chosen

    @property
    def identity(self) -> PeerIdentity:
        return self._identity

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return self._advertised or f"{host}:{self._port}"

    @property
    def port(self) -> int:
        """The bound port; where 0 was asked for, known once started."""
        return self._port

    async def start(self, service: Service) -> None:
        server = GatedServer(
            self._handle,
            access_log=None,
            keepalive_timeout=self.gate.limits.idle_s,
            auto_decompress=False,
            lingering_time=LINGERING_S,
        )
        listener = GatedListener(server, build_server_context(self._files), self.gate, self._clock)
        self._port = await listener.start(self._host, self._port)
        self._service, self._server, self._listener = service, server, listener

    async def stop(self) -> None:
        self._service = None
        for address in tuple(self._connectors):
            await self.disconnect(address)
        if self._listener is not None:
            await self._listener.stop()
            self._listener = None
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(SHUTDOWN_S)
            self._server = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request: who, which and how long are checked before its body is read."""
        connection = None if self._listener is None else self._listener.identify(request.protocol)
        if self._service is None or connection is None or connection.identity is None:
            raise web.HTTPServiceUnavailable
        peer = connection.identity
        if not request.path.startswith(PREFIX):
            raise web.HTTPNotFound
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"])
        try:
            route = Route(request.path.removeprefix(PREFIX))
        except ValueError as error:
            raise web.HTTPNotFound from error
        if self._is_banned(peer.node_id):
            response = _respond(Reply(Status.FORBIDDEN))
            response.force_close()
            return response
        length = request.content_length
        if length is None or length > MAX_REQUEST_BYTES[route]:
            return _respond(Reply(Status.TOO_LARGE))
        is_full = self._reading.total() + length > MAX_READING_BYTES
        if is_full or self._reading[peer.node_id] + length > MAX_READING_BYTES_PER_NODE:
            return _respond(Reply(Status.BUSY))
        self._reading[peer.node_id] += length
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            logger.debug("request body of %s was too slow", peer.node_id)
            if request.transport is not None:
                request.transport.close()
            raise web.HTTPRequestTimeout from None
        finally:
            self._reading[peer.node_id] -= length
            if not self._reading[peer.node_id]:
                del self._reading[peer.node_id]
        # Only now: a connection on which a body trickles in is one that a flood may displace.
        self.gate.on_request(connection)
        try:
            return _respond(await self._service(peer, route, body))
        finally:
            self.gate.on_reply(connection, self._clock.monotonic())

    async def request(
        self, address: str, route: Route, body: bytes, *, max_reply: int, timeout_s: float
    ) -> IdentifiedReply:
        connector = self._connectors.get(address)
        if connector is None:
            connector = self._connectors[address] = _Connector(self._files)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with connector.session.post(
                f"https://{address}{PREFIX}{route}",
                data=body,
                headers={"Content-Type": MEDIA_TYPE},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                received = await _read_bounded(response, max_reply)
        except _Oversize as error:
            if connector.identity is None:
                raise TransportError(f"{address} did not identify itself") from error
            raise OversizeReply(connector.identity, f"{address}: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RuntimeError) as error:
            # RuntimeError: the session was closed by `disconnect` meanwhile.
            raise TransportError(f"{address}: {type(error).__name__}: {error}") from error
        if connector.identity is None:
            raise TransportError(f"{address} did not identify itself")
        try:
            status = Status(response.status)
        except ValueError:
            status = Status.FAILED
        return IdentifiedReply(connector.identity, status, received)

    async def disconnect(self, address: str) -> None:
        connector = self._connectors.pop(address, None)
        if connector is not None:
            with contextlib.suppress(aiohttp.ClientError):
                await connector.session.close()


class PeerNetwork(Network):
    """The node's peer network over HTTPS: what the daemon creates."""

    def __init__(
        self,
        config: "PeerNetworkConfig",
        tls: TlsFiles,
        handlers: Handlers,
        clock: Clock,
        blobs: BlobStore | None = None,
        peer_store: PeerStore | None = None,
    ) -> None:
        self.transport = HttpTransport(
            config.host, config.port, tls, config.advertised, limits=config.gate, clock=clock
        )
        super().__init__(config.network, self.transport, handlers, clock, blobs, peer_store=peer_store)
        self.transport.guard(self.is_banned, self.is_chosen)


@dataclass(frozen=True, slots=True)
class PeerNetworkConfig:
    """Where to listen, what to tell peers, and how to behave."""

    host: str
    port: int
    network: NetworkConfig
    advertised: str | None = None
    """host:port for others to dial; default: host and bound port."""
    gate: GateLimits = field(default_factory=GateLimits)


class _Oversize(Exception):
    pass


def _respond(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, content_type=MEDIA_TYPE)


async def _read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Raises `_Oversize` as soon as the body exceeds the limit."""
    if (response.content_length or 0) > limit:
        raise _Oversize(f"a reply of {response.content_length} bytes exceeds {limit}")
    received = bytearray()
    async for piece in response.content.iter_any():
        received += piece
        if len(received) > limit:
            raise _Oversize(f"a reply exceeds {limit} bytes")
    return bytes(received)
