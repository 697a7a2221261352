"""The port between gossip and the wire: requests and replies between identified peers, and a memory twin."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from consensus.types import Hash32, Millis
from node.gossip.messages import Kind, Route
from node.tls import PeerIdentity


class Announcer(Protocol):
    """How the rest of the node tells its peers."""

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        """Tell all peers of an object that this node holds; returns at once."""
        ...


class Status(IntEnum):
    """Statuses of replies; the numbers are those of HTTP."""

    OK = 200
    BAD = 400
    FORBIDDEN = 403
    NOT_FOUND = 404
    TOO_LARGE = 413
    OTHER_CHAIN = 421
    BUSY = 429
    FAILED = 500


@dataclass(frozen=True, slots=True)
class Reply:
    status: Status
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class IdentifiedReply:
    """A reply and who gave it, as proven by the transport."""

    peer: PeerIdentity
    status: Status
    body: bytes
    time_ms: Millis | None = None
    """The peer's wall clock as it answered, if the transport carries it."""


Service = Callable[[PeerIdentity, Route, bytes], Awaitable[Reply]]
"""Answers one request of an identified peer; bodies are within `MAX_REQUEST_BYTES` already."""


class TransportError(Exception):
    """A request got no reply: unreachable, cut off, too slow, or too long a reply."""


class OversizeReply(TransportError):
    """A peer replied with more than was asked for, which no honest node does."""

    def __init__(self, peer: PeerIdentity, detail: str) -> None:
        super().__init__(detail)
        self.peer = peer


class Transport(Protocol):
    """Carries requests. Both ends know each other's identity before any byte is looked at."""

    @property
    def identity(self) -> PeerIdentity:
        """This node's own."""
        ...

    @property
    def address(self) -> str:
        """host:port where others reach this node; known once started."""
        ...

    async def start(self, service: Service) -> None:
        """Begin to serve. Raises `TransportError` if the address can't be bound."""
        ...

    async def stop(self) -> None:
        """End serving and drop all connections; requests under way fail."""
        ...

    async def request(
        self, address: str, route: Route, body: bytes, *, max_reply: int, timeout_s: float
    ) -> IdentifiedReply:
        """Send a request and wait for its reply.

        Raises `TransportError`; `OversizeReply` for a reply of more than `max_reply` bytes.
        """
        ...

    async def disconnect(self, address: str) -> None:
        """Close idle connections to an address."""
        ...


class MemoryHub:
    """A network in memory: transports by address, with links that tests cut and restore."""

    def __init__(self) -> None:
        self._transports: dict[str, MemoryTransport] = {}
        self._cut: set[frozenset[str]] = set()

    def build_transport(self, address: str, identity: PeerIdentity) -> "MemoryTransport":
        return MemoryTransport(self, address, identity)

    def cut(self, one: str, other: str) -> None:
        """Requests between two addresses fail from now on."""
        self._cut.add(frozenset((one, other)))

    def restore(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))

    def attach(self, transport: "MemoryTransport") -> None:
        if transport.address in self._transports:
            raise TransportError(f"{transport.address} is taken")
        self._transports[transport.address] = transport

    def detach(self, transport: "MemoryTransport") -> None:
        if self._transports.get(transport.address) is transport:
            del self._transports[transport.address]

    def find(self, sender: str, address: str) -> "MemoryTransport":
        if address not in self._transports or frozenset((sender, address)) in self._cut:
            raise TransportError(f"{address} is not reachable")
        return self._transports[address]


class MemoryTransport:
    """A `Transport` without sockets."""

    def __init__(self, hub: MemoryHub, address: str, identity: PeerIdentity) -> None:
        self._hub = hub
        self._address = address
        self._identity = identity
        self._service: Service | None = None
        self._serving: set[asyncio.Task[Reply]] = set()

    @property
    def identity(self) -> PeerIdentity:
        return self._identity

    @property
    def address(self) -> str:
        return self._address

    async def start(self, service: Service) -> None:
        self._hub.attach(self)
        self._service = service

    async def stop(self) -> None:
        self._hub.detach(self)
        self._service = None
        for task in tuple(self._serving):
            task.cancel()

    async def serve(self, peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        if self._service is None:
            raise TransportError(f"{self._address} is stopped")
        task = asyncio.ensure_future(self._service(peer, route, body))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        # Waiting, not awaiting: the end of the server must not look like the caller's cancellation.
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise TransportError(f"{self._address} went away")
        return task.result()

    async def request(
        self, address: str, route: Route, body: bytes, *, max_reply: int, timeout_s: float
    ) -> IdentifiedReply:
        target = self._hub.find(self._address, address)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await target.serve(self._identity, route, body)
        except TimeoutError as error:
            raise TransportError(f"{address} did not answer in {timeout_s} s") from error
        self._hub.find(self._address, address)  # cut while the request was under way
        if len(reply.body) > max_reply:
            raise OversizeReply(target.identity, f"{address} replied with more than {max_reply} bytes")
        return IdentifiedReply(target.identity, reply.status, reply.body)

    async def disconnect(self, address: str) -> None:
        """Nothing is kept open."""
