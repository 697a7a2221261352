"""The transport over HTTPS with mutual TLS: one POST a request, connections kept and reused."""

import asyncio
import contextlib
import logging
import ssl
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from node.blobs import BlobStore
from node.clock import Clock
from node.gossip.messages import MAX_REQUEST_BYTES, Route
from node.gossip.network import Network, NetworkConfig
from node.gossip.server import Handlers
from node.gossip.transport import IdentifiedReply, Reply, Service, Status, TransportError
from node.tls import (
    PeerIdentity,
    TlsFiles,
    build_client_context,
    build_server_context,
    get_identity,
    load_identity,
)

logger = logging.getLogger(__name__)

PREFIX = "/p2p/v1/"
BODY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 60.0
MEDIA_TYPE = "application/octet-stream"


class _Connector:
    """The connections to one address; remembers who answered there."""

    def __init__(self, files: TlsFiles) -> None:
        self.identity: PeerIdentity | None = None
        # No limit here: an announcement must not queue behind chunks, whose number the fetcher bounds.
        context = build_client_context(files, self._on_identity)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=KEEPALIVE_S / 2),
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

    def __init__(self, host: str, port: int, files: TlsFiles, advertised: str | None = None) -> None:
        self._host = host
        self._port = port
        self._files = files
        self._advertised = advertised
        self._identity = load_identity(files)
        self._service: Service | None = None
        self._runner: web.AppRunner | None = None
        self._connectors: dict[str, _Connector] = {}

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
        self._service = service
        application = web.Application(client_max_size=max(MAX_REQUEST_BYTES.values()))
        application.router.add_post(PREFIX + "{route}", self._handle)
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            auto_decompress=False,
            shutdown_timeout=0.5,
        )
        await runner.setup()
        site = web.TCPSite(
            runner,
            self._host,
            self._port,
            ssl_context=build_server_context(self._files),
        )
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise TransportError(f"{self._host}:{self._port} can't be bound: {error}") from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        self._service = None
        for address in tuple(self._connectors):
            await self.disconnect(address)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.Response:
        transport = request.transport
        if transport is None or self._service is None:
            raise web.HTTPServiceUnavailable
        try:
            peer = get_identity(transport.get_extra_info("peercert"))
            route = Route(request.match_info["route"])
        except ssl.SSLError as error:
            raise web.HTTPForbidden from error
        except ValueError as error:
            raise web.HTTPNotFound from error
        limit = MAX_REQUEST_BYTES[route]
        if request.content_length is None or request.content_length > limit:
            return _respond(Reply(Status.TOO_LARGE))
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            logger.debug("request body of %s was too slow", peer.node_id)
            transport.close()
            raise web.HTTPRequestTimeout from None
        return _respond(await self._service(peer, route, body))

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
    ) -> None:
        self.transport = HttpTransport(config.host, config.port, tls, config.advertised)
        super().__init__(config.network, self.transport, handlers, clock, blobs)


@dataclass(frozen=True, slots=True)
class PeerNetworkConfig:
    """Where to listen, what to tell peers, and how to behave."""

    host: str
    port: int
    network: NetworkConfig
    advertised: str | None = None
    """host:port for others to dial; default: host and bound port."""


def _respond(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, content_type=MEDIA_TYPE)


async def _read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Raises `ValueError` as soon as the body exceeds the limit."""
    if (response.content_length or 0) > limit:
        raise ValueError(f"a reply of {response.content_length} bytes exceeds {limit}")
    received = bytearray()
    async for piece in response.content.iter_any():
        received += piece
        if len(received) > limit:
            raise ValueError(f"a reply exceeds {limit} bytes")
    return bytes(received)
