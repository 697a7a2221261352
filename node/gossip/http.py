"""The transport over HTTPS with mutual TLS: one POST a request, connections kept and reused."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from consensus.types import MAX_TIME_MS, Address, Millis
from node.blobs import BlobStore
from node.clock import Clock, SystemClock
from node.gossip.addresses import AddressError, AddressPolicy
from node.gossip.bookfile import PeerStore
from node.gossip.gate import ConnectionGate, GateLimits
from node.gossip.limits import Fault
from node.gossip.listener import GatedListener, GatedServer
from node.gossip.messages import MAX_REQUEST_BYTES, Route
from node.gossip.network import Network, NetworkConfig
from node.gossip.server import Handlers
from node.gossip.transport import IdentifiedReply, OversizeReply, Reply, Service, Status, TransportError
from node.gossip.vouching import Vouching
from node.serving import SERVER_LOGGER
from node.tls import PeerCertificate, PeerIdentity, TlsFiles, UntrustedPeer
from node.tls_store import ON_CERTIFICATE, CertificateCheck, Certificates

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
TIME_HEADER = "Bmif-Time"
"""Of replies: the peer's clock, milliseconds since the Unix epoch. A header: some do not know it."""


class _Connector:
    """The connections to one address; remembers who answered there."""

    def __init__(
        self,
        context: ssl.SSLContext,
        check: CertificateCheck,
        policy: AddressPolicy | None,
        certificate: PeerCertificate | None = None,
    ) -> None:
        """`policy`: which addresses may be dialled in the end, whatever names say; None: any."""
        self.certificate = certificate
        self._check = check
        self._policy = policy
        self._active = 0
        self._is_retired = False
        # More than the fetcher's chunks, so that an announcement does not queue behind them; less than a
        # listener takes of one node.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context,
                limit=MAX_CONNECTIONS,
                keepalive_timeout=KEEPALIVE_S,
                socket_factory=self._open_socket,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )

    @property
    def identity(self) -> PeerIdentity | None:
        return None if self.certificate is None else self.certificate.identity

    def on_certificate(self, certificate: PeerCertificate) -> None:
        """Raises: UntrustedPeer for who is not to be talked to, or is not who answered here before."""
        self._check(certificate)
        # Two nodes behind one address would make replies ambiguous, so the first one holds it.
        if self.identity is not None and self.identity != certificate.identity:
            raise UntrustedPeer(f"expected {self.identity.node_id}, got {certificate.identity.node_id}")
        self.certificate = certificate

    def _open_socket(self, found: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for one resolved address, which is the one that is dialled."""
        family, kind, protocol, _, address = found
        if self._policy is not None:
            try:
                self._policy.check_dialled(str(address[0]))
            except AddressError as error:
                raise OSError(errno.EACCES, f"not dialled: {error}") from error
        return socket.socket(family, kind, protocol)

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The session, for one request; closed after the last one once retired."""
        token = ON_CERTIFICATE.set(self.on_certificate)
        self._active += 1
        try:
            yield self.session
        finally:
            ON_CERTIFICATE.reset(token)
            self._active -= 1
            if self._is_retired and not self._active:
                await self.close()

    async def retire(self) -> None:
        """Another one takes its place: close once no request is under way."""
        self._is_retired = True
        if not self._active:
            await self.close()

    async def close(self) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            await self.session.close()


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
        security: "TransportSecurity | None" = None,
    ) -> None:
        """Raises: TlsError."""
        security = security or TransportSecurity()
        self._host = host
        self._port = port
        self._advertised = advertised
        self._clock = clock or SystemClock()
        self._security = security
        self.certificates = Certificates(files, self._clock, security.account)
        """Shown and trusted here; they change while the node runs."""
        self.certificates.on_change(self._on_certificates)
        self._vouching = (
            None
            if security.get_organisation is None
            else Vouching(self.identity, security.get_organisation, self._clock)
        )
        self._watching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._service: Service | None = None
        self._server: GatedServer | None = None
        self._listener: GatedListener | None = None
        self._connectors: dict[str, _Connector] = {}
        self._reading: Counter[str] = Counter()
        self._is_banned: Callable[[str], bool] = lambda node_id: False
        self._is_chosen: Callable[[str], bool] = lambda node_id: False
        self._report: Callable[[str, Fault, str], None] = lambda node_id, fault, detail: None
        self.gate = ConnectionGate(
            limits or GateLimits(), self._clock.monotonic(), lambda node_id: self._is_chosen(node_id)
        )
        """The listener's connections."""
        self._context = self.certificates.client_context

    def guard(
        self,
        is_banned: Callable[[str], bool],
        is_chosen: Callable[[str], bool],
        report: Callable[[str, Fault, str], None],
    ) -> None:
        """Whose requests are refused before their body is read, whose connections are kept in a flood, who is
        told of faults that are seen here."""
        self._is_banned, self._is_chosen, self._report = is_banned, is_chosen, report

    def _check(self, certificate: PeerCertificate) -> None:
        """Raises: UntrustedPeer for a certificate that may not, or may no longer, speak for whom it names."""
        self.certificates.check(certificate)
        if self._vouching is not None:
            self._vouching.check(certificate.identity)

    def _on_certificates(self) -> None:
        """Certificates changed, or time passed: end what may no longer be, renew what goes on."""
        context = self.certificates.client_context
        for address, old in tuple(self._connectors.items()):
            certificate = old.certificate
            try:
                if certificate is not None:
                    self._check(certificate)
            except UntrustedPeer as error:
                logger.warning("connections to %s are closed: %s", address, error)
                self._spawn(self.disconnect(address))
                continue
            if context is not self._context:
                self._connectors[address] = self._build_connector(address, certificate)
                self._spawn(old.retire())
        self._context = context
        if self._listener is not None:
            self._listener.use(self.certificates.server_context)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _build_connector(self, address: str, certificate: PeerCertificate | None = None) -> _Connector:
        # What the operator wrote is the operator's business; what peers told is not.
        policy = None if address in self._security.trusted else self._security.policy
        return _Connector(self.certificates.client_context, self._check, policy, certificate)

    @property
    def identity(self) -> PeerIdentity:
        return self.certificates.identity

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
            logger=SERVER_LOGGER,
        )
        context = self.certificates.server_context
        listener = GatedListener(server, context, self.gate, self._clock, self._check)
        self._port = await listener.start(self._host, self._port)
        self._service, self._server, self._listener = service, server, listener
        self._watching = asyncio.create_task(self.certificates.run(self._security.poll_s))

    async def stop(self) -> None:
        self._service = None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        for address in tuple(self._connectors):
            await self.disconnect(address)
        await asyncio.gather(*self._closing, return_exceptions=True)
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
            # No honest node sends it, and it costs bandwidth to refuse.
            self._report(peer.node_id, Fault.OVERSIZE, f"{length} bytes to {route}")
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
            response = _respond(await self._service(peer, route, body))
            response.headers[TIME_HEADER] = str(self._clock.now_ms())
            return response
        finally:
            self.gate.on_reply(connection, self._clock.monotonic())

    async def request(
        self, address: str, route: Route, body: bytes, *, max_reply: int, timeout_s: float
    ) -> IdentifiedReply:
        connector = self._connectors.get(address)
        if connector is None:
            connector = self._connectors[address] = self._build_connector(address)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with (
                connector.use() as session,
                session.post(
                    f"https://{address}{PREFIX}{route}",
                    data=body,
                    headers={"Content-Type": MEDIA_TYPE},
                    timeout=timeout,
                    allow_redirects=False,
                ) as response,
            ):
                received = await _read_bounded(response, max_reply)
                time_ms = _parse_time(response.headers.get(TIME_HEADER, ""))
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
        return IdentifiedReply(connector.identity, status, received, time_ms)

    async def disconnect(self, address: str) -> None:
        connector = self._connectors.pop(address, None)
        if connector is not None:
            await connector.close()


@dataclass(frozen=True, slots=True)
class TransportSecurity:
    """Who may connect, beyond having a certificate, and what may be dialled."""

    account: Address | None = None
    """This node's own, which its certificate must be of."""
    get_organisation: Callable[[Address], str] | None = None
    """Of an account, as the chain has it; None: certificates need name no account."""
    policy: AddressPolicy | None = None
    """Of addresses that peers told; None: any may be dialled."""
    trusted: frozenset[str] = frozenset()
    """Addresses that the operator wrote."""
    poll_s: float = 60.0
    """Between two looks at the certificate files."""


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
        *,
        security: TransportSecurity | None = None,
    ) -> None:
        """Raises: TlsError."""
        self.transport = HttpTransport(
            config.host,
            config.port,
            tls,
            config.advertised,
            limits=config.gate,
            clock=clock,
            security=security,
        )
        super().__init__(config.network, self.transport, handlers, clock, blobs, peer_store=peer_store)
        self.transport.guard(self.is_banned, self.is_chosen, self.report)

    @property
    def certificates(self) -> Certificates:
        """This node's own, and whom it trusts."""
        return self.transport.certificates


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


def _parse_time(text: str) -> Millis | None:
    is_time = text.isascii() and text.isdigit() and len(text) <= 16
    return Millis(int(text)) if is_time and int(text) <= MAX_TIME_MS else None


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
