"""A link: the persistent relation to one address, dialled until it answers, watched while it does."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from consensus.types import Hash32
from node.clock import Clock
from node.gossip.handshake import HandshakeReason, HandshakeRefused, check_hello
from node.gossip.limits import Fault
from node.gossip.messages import (
    ROUTES,
    Announcement,
    Hello,
    Message,
    MessageError,
    PeerStatus,
    Route,
    decode_message,
    encode_message,
)
from node.gossip.selection import OWN_CHOICE, LinkKind, LinkView
from node.gossip.transport import IdentifiedReply, OversizeReply, Status, Transport, TransportError
from node.skew import OffsetSampler
from node.tls import PeerIdentity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """When a link dials, beats and gives up; seconds."""

    heartbeat_s: float = 2.0
    least_beat_s: float = 0.1
    """Between two beats, however often the link is poked."""
    first_backoff_s: float = 0.25
    last_backoff_s: float = 15.0
    refused_s: float = 60.0
    """Before a configured peer is dialled again that the handshake refused; others are given up."""
    busy_beats: int = 10
    """A peer that answers `BUSY` to so many beats in a row is down."""
    busy_pause_s: float = 0.25
    request_timeout_s: float = 10.0
    bulk_timeout_s: float = 30.0
    """For replies of megabytes."""


@dataclass(slots=True)
class Traffic:
    """Bytes exchanged with a peer, by route, and how many requests each side made."""

    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    """Requests of the peer..."""
    asked: Counter[str] = field(default_factory=Counter)
    """...and of this node."""

    def add(self, other: "Traffic") -> None:
        """Count what the other counted, too."""
        self.received += other.received
        self.sent += other.sent
        self.served += other.served
        self.asked += other.asked


class Refused(TransportError):
    """The peer answered, but not with what was asked for."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class LinkOwner(Protocol):
    """What a link tells, and asks, its network."""

    def build_hello(self) -> Hello: ...

    def on_up(self, link: "Link", hello: Hello) -> bool:
        """The peer answered; False ends the link: it was to see whether somebody is there.

        Raises `HandshakeRefused`.
        """
        ...

    def on_refused(self, link: "Link", reason: HandshakeReason) -> None: ...

    def report(self, node_id: str, fault: Fault, detail: str) -> None: ...

    def on_down(self, link: "Link") -> None: ...

    def on_status(self, link: "Link", status: PeerStatus) -> None: ...

    def take_outbox(self, node_id: str) -> Announcement | None: ...

    def put_back(self, node_id: str, announcement: Announcement) -> None: ...

    def get_traffic(self, node_id: str) -> Traffic: ...

    def is_banned(self, node_id: str) -> bool: ...


class Link:
    """One address, of some kind; an inbound one is `learned_from` the greeting of that node id.

    `run` and `send` are its two tasks; requests may be made while it is up.
    """

    def __init__(
        self,
        address: str,
        kind: LinkKind,
        learned_from: str | None,
        transport: Transport,
        owner: LinkOwner,
        clock: Clock,
        chain_id: Hash32,
        times: LinkTimes,
    ) -> None:
        self.address = address
        self.kind = kind
        self.learned_from = learned_from
        self.identity: PeerIdentity | None = None
        self.status: PeerStatus | None = None
        self.session = b""
        self.latency_s: float | None = None
        self.offset = OffsetSampler()
        """The peer's clock relative to ours."""
        self.is_up = False
        self.since = clock.monotonic()
        self.refusal: HandshakeReason | None = None
        self.task: asyncio.Task[None] | None = None
        """Runs this link."""
        self._transport = transport
        self._owner = owner
        self._clock = clock
        self._chain_id = chain_id
        self._times = times
        self._poke = asyncio.Event()
        self._wake = asyncio.Event()

    @property
    def node_id(self) -> str:
        """Empty until the peer first answered."""
        return "" if self.identity is None else self.identity.node_id

    @property
    def organisation(self) -> str:
        return "" if self.identity is None else self.identity.organisation

    @property
    def is_own_choice(self) -> bool:
        """Decided by this node or its operator, not by who dialled it."""
        return self.kind is LinkKind.CONFIGURED or self.kind in OWN_CHOICE

    def build_view(self, useful: int) -> LinkView:
        return LinkView(
            self.address,
            self.kind,
            self.node_id,
            self.organisation,
            self.is_up,
            self.since,
            self.latency_s,
            useful,
        )

    async def close(self) -> None:
        """Close the connections; the two tasks are ended by whoever started them."""
        self._set_down("the link is closed")
        await self._transport.disconnect(self.address)

    def poke(self) -> None:
        """Dial, or beat, now instead of later."""
        self._poke.set()

    def flush(self) -> None:
        """There is something in the outbox."""
        self._wake.set()

    async def run(self) -> None:
        """Dial with backoff until the peer answers, then beat; return if there is no use in this link."""
        backoff, busy = self._times.first_backoff_s, 0
        while True:
            self._poke.clear()
            pause = backoff
            try:
                is_useful = await self._greet()
            except Refused as error:
                busy += 1
                if error.status is not Status.BUSY or busy >= self._times.busy_beats:
                    await self._fail(str(error))
            except HandshakeRefused as error:
                await self._fail(str(error))
                self.refusal = error.reason
                self._owner.on_refused(self, error.reason)
                if self.kind is not LinkKind.CONFIGURED or error.reason is HandshakeReason.SELF:
                    return
                if error.reason.is_lasting:
                    pause = self._times.refused_s
            except (TransportError, MessageError) as error:
                await self._fail(str(error))
                if self._is_given_up(backoff):
                    return
            else:
                if not is_useful:
                    return
                backoff, busy, self.refusal = self._times.first_backoff_s, 0, None
                await self._clock.sleep(self._times.least_beat_s)
                await wait_for(self._clock, self._poke, self._times.heartbeat_s - self._times.least_beat_s)
                continue
            await wait_for(self._clock, self._poke, pause)
            backoff = min(2 * backoff, self._times.last_backoff_s)

    def _is_given_up(self, backoff: float) -> bool:
        """Whether a link that failed is ended: its peer will greet again, or the book has others."""
        match self.kind:
            case LinkKind.CONFIGURED:
                return False
            case LinkKind.FEELER:
                return True
            case LinkKind.SEED | LinkKind.CHOSEN if self.identity is None:
                return True  # nobody was ever there
            case _:
                return backoff >= self._times.last_backoff_s

    async def _fail(self, reason: str) -> None:
        self._set_down(reason)
        # Whoever answers next may be another node: forget connections and who was there.
        await self._transport.disconnect(self.address)

    async def _greet(self) -> bool:
        sent = self._clock.monotonic()
        ours = self._owner.build_hello()
        reply = await self._exchange(Route.STATUS, ours)
        hello = decode_message(Hello, reply.body)
        elapsed = max(0.0, self._clock.monotonic() - sent)
        self.latency_s = elapsed if self.latency_s is None else 0.8 * self.latency_s + 0.2 * elapsed
        if reply.time_ms is not None:
            self.offset.add(reply.time_ms, self._clock.now_ms(), elapsed)
        reason = check_hello(hello, ours)
        if reason is None and self._owner.is_banned(reply.peer.node_id):
            reason = HandshakeReason.BANNED
        if reason is not None:
            raise HandshakeRefused(reason, f"{reply.peer.node_id} at {self.address}")
        if self.is_up and hello.session != self.session:
            self._set_down("it restarted")
        self.identity, self.status, self.session = reply.peer, hello.status, hello.session
        if not self.is_up:
            if not self._owner.on_up(self, hello):
                return False
            self.is_up, self.since = True, self._clock.monotonic()
            logger.info("linked to %s (%s) at %s", reply.peer.node_id, reply.peer.organisation, self.address)
            self.flush()
        self._owner.on_status(self, hello.status)
        return True

    def _set_down(self, reason: str) -> None:
        if self.is_up:
            self.is_up = False
            self.offset.forget()
            logger.info("lost %s at %s: %s", self.node_id, self.address, reason)
            self._owner.on_down(self)
        else:
            logger.debug("%s does not answer: %s", self.address, reason)

    def drop(self, reason: str) -> None:
        """Treat the peer as unreachable until it answers again."""
        self._set_down(reason)

    async def send(self) -> None:
        """Send what the outbox holds, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.is_up:
                announcement = self._owner.take_outbox(self.node_id)
                if announcement is None:
                    break
                try:
                    await self._exchange(Route.ANNOUNCE, announcement)
                except Refused as error:
                    if error.status is not Status.BUSY:
                        logger.debug("%s refused an announcement: %s", self.node_id, error)
                        continue
                    self._owner.put_back(self.node_id, announcement)
                    await self._clock.sleep(self._times.busy_pause_s)
                except TransportError as error:
                    self._owner.put_back(self.node_id, announcement)
                    self._set_down(str(error))
                    self.poke()

    async def request(self, route: Route, message: Message) -> bytes | None:
        """The body of the peer's reply; None if it does not have what was asked for.

        Raises `TransportError`; `Refused` where the peer answered otherwise.
        """
        try:
            return (await self._exchange(route, message)).body
        except Refused as error:
            if error.status is Status.NOT_FOUND:
                return None
            raise

    async def _exchange(self, route: Route, message: Message) -> IdentifiedReply:
        body, limits, times = encode_message(message), ROUTES[route], self._times
        timeout_s = times.bulk_timeout_s if limits.is_bulk else times.request_timeout_s
        try:
            reply = await self._transport.request(
                self.address, route, body, max_reply=limits.reply_bytes, timeout_s=timeout_s
            )
        except OversizeReply as error:
            self._owner.report(error.peer.node_id, Fault.MALFORMED, str(error))
            raise
        traffic = self._owner.get_traffic(reply.peer.node_id)
        traffic.asked[route] += 1
        traffic.sent[route] += len(body)
        traffic.received[route] += len(reply.body)
        if self.is_up and self.identity is not None and reply.peer != self.identity:
            raise TransportError(f"{self.address} is {reply.peer.node_id} now, not {self.identity.node_id}")
        if reply.status is not Status.OK:
            raise Refused(reply.status, f"{reply.peer.node_id} replied {reply.status.name} to {route}")
        return reply


async def wait_for(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set or the seconds have passed."""
    tasks = (asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(event.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # Not `await task`, whose CancelledError could not be told from our own.
        await asyncio.wait(tasks)
