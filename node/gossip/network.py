"""The peer network over any transport: serves peers, keeps links, carries gossip to and from the node."""

import asyncio
import logging
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from consensus.types import Address, Hash32, Height
from node.blobs import BlobStore
from node.clock import Clock
from node.gossip.addresses import AddressError, AddressPolicy
from node.gossip.bookfile import PeerStore
from node.gossip.discovery import Discovery, DiscoveryConfig
from node.gossip.handshake import HandshakeReason, HandshakeRefused
from node.gossip.limits import Fault, NetworkLimits
from node.gossip.links import Link, LinkTimes, Traffic
from node.gossip.messages import (
    PROTOCOL_VERSION,
    Announcement,
    FinalityReply,
    FinalityRequest,
    HashesReply,
    HashesRequest,
    HeadersReply,
    HeadersRequest,
    Hello,
    Kind,
    Message,
    MessageError,
    ObjectsReply,
    ObjectsRequest,
    PeersReply,
    PeersRequest,
    PeerStatus,
    Route,
    StateReply,
    StateRequest,
    WitnessReply,
    WitnessRequest,
    decode_message,
)
from node.gossip.objects import ObjectIntake
from node.gossip.peers import Action, Ban, Flush, Gossip, Pull
from node.gossip.queue import Deliver
from node.gossip.selection import OWN_CHOICE, LinkKind, LinkView, is_organisation_full
from node.gossip.server import ChainServer, Handlers, PeerServer, WitnessServer
from node.gossip.sources import PeerBlobSource
from node.gossip.transport import Transport, TransportError
from node.tls import PeerIdentity

logger = logging.getLogger(__name__)

R = TypeVar("R", HashesReply, ObjectsReply, PeersReply, HeadersReply, FinalityReply, StateReply, WitnessReply)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Whom to dial and how to behave."""

    peers: tuple[str, ...] = ()
    """host:port of configured peers, dialled for ever."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)
    times: LinkTimes = field(default_factory=LinkTimes)
    learn_peers: bool = True
    """Also dial peers that greet us from an address that is not configured."""
    discovery: DiscoveryConfig | None = None
    """How others are found; without it there are configured peers and those that greet us."""
    policy: AddressPolicy | None = None
    """Which addresses of those that greet us are dialled; None: any."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer, for the API. `node_id` and `organisation` come from its certificate, empty until seen."""

    address: str
    node_id: str
    organisation: str
    connected: bool
    height: Height | None
    head: Hash32 | None
    latency_ms: float | None
    received_bytes: Mapping[str, int]
    sent_bytes: Mapping[str, int]
    score: float
    banned: bool
    kind: LinkKind | None = None
    """Why it is linked; None for a peer that only dials us."""
    refusal: HandshakeReason | None = None
    """Why it is not linked although it answered."""


@dataclass(frozen=True, slots=True)
class NetworkTotals:
    """What happened since the start, for metrics."""

    traffic: Traffic
    objects: Mapping[tuple[Kind, str], int]
    """By kind and what became of them."""
    faults: Mapping[str, int]
    bans: int
    banned: int
    """Peers that are banned now."""


class Network:
    """Serves, dials, announces, pulls. Everything is on one event loop; `start` and `stop` are explicit."""

    def __init__(
        self,
        config: NetworkConfig,
        transport: Transport,
        handlers: Handlers,
        clock: Clock,
        blobs: BlobStore | None = None,
        *,
        peer_store: PeerStore | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`peer_store`: where discovery remembers peers. `rng`: what it draws from, for tests."""
        self._config = config
        self._limits = config.limits
        self._transport = transport
        self._handlers = handlers
        self._clock = clock
        self._chain_id = handlers.get_status().chain_id
        self._session = secrets.token_bytes(8)
        self._gossip = Gossip(self._chain_id, self._limits, clock.monotonic())
        self._links: dict[str, Link] = {}
        self._traffic: dict[str, Traffic] = {}
        self._organisations: dict[str, str] = {}
        self._strangers: dict[str, HandshakeReason] = {}
        self._server = PeerServer(self._gossip, self._limits, handlers, blobs, clock, self)
        self._intake = ObjectIntake(
            self._gossip, handlers, self._limits, clock, self.request_objects, self.perform
        )
        self._discovery: Discovery | None = None
        if config.discovery is not None:
            rng = rng or random.Random(secrets.randbits(64))
            slots = self._limits.slots
            self._discovery = Discovery(config.discovery, slots, self, clock, rng, peer_store)
            now = clock.monotonic()
            for node_id, seconds in self._discovery.stored_bans.items():
                self._gossip.restore_ban(node_id, now + seconds, now)
        self._bans = 0
        self._status_changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._runner: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve and dial. Raises `TransportError` if the address can't be bound."""
        await self._transport.start(self._server.serve)
        started = asyncio.Event()
        self._runner = asyncio.create_task(self._run(started), name="network")
        await started.wait()

    async def stop(self) -> None:
        """End all tasks and connections; harmless when stopped already."""
        if self._runner is not None:
            if self._discovery is not None:
                self._discovery.save()
            self._group = None  # nothing is begun any more
            self._intake.stop()
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        await self._transport.stop()

    async def wait_failed(self) -> None:
        """Return never, or raise what ended the network: for the daemon's task group."""
        if self._runner is not None:
            await asyncio.shield(self._runner)

    async def _run(self, started: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._intake.start(group)
                for address in self._config.peers:
                    self.open_link(address, LinkKind.CONFIGURED)
                if self._discovery is not None:
                    group.create_task(self._discovery.run(), name="discovery")
                started.set()
        except* Exception:
            logger.critical("the peer network failed", exc_info=True)
            raise
        finally:
            self._group = None

    @property
    def address(self) -> str:
        """host:port that peers are told."""
        return self._transport.address

    @property
    def identity(self) -> PeerIdentity:
        return self._transport.identity

    @property
    def discovery(self) -> Discovery | None:
        return self._discovery

    # --- the node's side ----------------------------------------------------------------------

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        """Tell all peers of an object that this node holds; returns at once (`Announcer`)."""
        self.perform(self._gossip.announce(kind, object_id, data))

    def peers(self) -> list[PeerInfo]:
        """All links, and peers that dial us without being reachable."""
        now = self._clock.monotonic()
        infos = [self._build_info(link.address, link.node_id, link, now) for link in self._links.values()]
        linked = {self.identity.node_id, *(link.node_id for link in self._links.values())}
        infos += [
            self._build_info("", node_id, None, now) for node_id in self._traffic if node_id not in linked
        ]
        return infos

    def _build_info(self, address: str, node_id: str, link: Link | None, now: float) -> PeerInfo:
        traffic = self._traffic.get(node_id) or Traffic()
        status = None if link is None else link.status
        latency_s = None if link is None else link.latency_s
        return PeerInfo(
            address=address,
            node_id=node_id,
            organisation=self._organisations.get(node_id, ""),
            connected=link is not None and link.is_up,
            height=None if status is None else status.height,
            head=None if status is None else status.head,
            latency_ms=None if latency_s is None else latency_s * 1000,
            received_bytes=dict(traffic.received),
            sent_bytes=dict(traffic.sent),
            score=self._gossip.get_score(node_id, now),
            banned=self._gossip.is_banned(node_id, now),
            kind=None if link is None else link.kind,
            refusal=self._strangers.get(node_id) if link is None else link.refusal,
        )

    def get_totals(self) -> NetworkTotals:
        """All that was exchanged and judged since the start."""
        traffic = Traffic()
        for one in self._traffic.values():
            traffic.add(one)
        return NetworkTotals(
            traffic, dict(self._intake.outcomes), dict(self._gossip.faults), self._bans, len(self.get_bans())
        )

    def get_clock_offsets(self) -> list[float]:
        """By how many milliseconds each linked peer's clock is ahead of this machine's."""
        found = (link.offset.offset_ms for link in self._get_up_links())
        return [offset for offset in found if offset is not None]

    def forget_clock_offsets(self) -> None:
        """This machine's clock was set."""
        for link in self._links.values():
            link.offset.forget()

    def get_blob_sources(self) -> list[PeerBlobSource]:
        """Peers that blobs can be asked of, nearest first."""
        links = sorted(self._get_up_links(), key=lambda link: link.latency_s or 0.0)
        return [PeerBlobSource(link, self._chain_id, self.report) for link in links]

    def get_statuses(self) -> dict[str, PeerStatus]:
        """What linked peers last said of themselves, by node id."""
        return {link.node_id: link.status for link in self._get_up_links() if link.status is not None}

    def refresh(self) -> None:
        """Ask all peers for their status now."""
        for link in self._links.values():
            link.poke()

    @property
    def status_changed(self) -> asyncio.Event:
        """Set whenever a peer reports another head or a peer comes; whoever waits clears it."""
        return self._status_changed

    async def request_hashes(self, node_id: str, from_height: int, count: int) -> tuple[Hash32, ...]:
        """A peer's head chain from a height. Raises `TransportError`."""
        request = HashesRequest(self._chain_id, Height(from_height), count)
        body = await self._get_link(node_id).request(Route.HASHES, request)
        return self._decode(HashesReply, node_id, body).hashes[:count]

    async def request_objects(
        self, node_id: str, kind: Kind, ids: tuple[Hash32, ...]
    ) -> tuple[bytes | None, ...]:
        """Objects of a peer, in order, possibly fewer than asked for. Raises `TransportError`."""
        body = await self._get_link(node_id).request(Route.OBJECTS, ObjectsRequest(self._chain_id, kind, ids))
        return self._decode(ObjectsReply, node_id, body).objects[: len(ids)]

    def serve_chain(self, chain: ChainServer) -> None:
        """From now on answer those that synchronise."""
        self._server.chain = chain

    async def request_headers(
        self, node_id: str, from_height: int, count: int, *, signed: bool = False
    ) -> HeadersReply:
        """Headers of a peer's head chain. Raises `TransportError`."""
        request = HeadersRequest(self._chain_id, Height(from_height), count, signed)
        return await self._ask(HeadersReply, node_id, Route.HEADERS, request)

    async def request_finality(self, node_id: str, set_number: int) -> FinalityReply:
        """What leads from a validator set to a final header of a peer. Raises `TransportError`."""
        request = FinalityRequest(self._chain_id, set_number)
        return await self._ask(FinalityReply, node_id, Route.FINALITY, request)

    async def request_state(self, node_id: str, nodes: tuple[Hash32, ...]) -> StateReply:
        """State nodes, and what is below them. Raises `TransportError`."""
        return await self._ask(StateReply, node_id, Route.STATE, StateRequest(self._chain_id, nodes))

    def serve_witness(self, witness: WitnessServer) -> None:
        """From now on say what this node has seen of others' votes."""
        self._server.witness = witness

    async def request_witness(self, node_id: str, validator: Address, nonce: bytes) -> WitnessReply:
        """What a peer has seen of a validator's votes. Raises `TransportError`."""
        request = WitnessRequest(self._chain_id, validator, nonce)
        return await self._ask(WitnessReply, node_id, Route.WITNESS, request)

    async def _ask(self, cls: type[R], node_id: str, route: Route, request: Message) -> R:
        body = await self._get_link(node_id).request(route, request)
        if body is None:
            raise TransportError(f"{node_id} does not answer {route} requests")
        return self._decode(cls, node_id, body)

    def report(self, node_id: str, fault: Fault, detail: str) -> None:
        """Count a peer's fault; enough of them ban it for a while."""
        logger.debug("%s: %s: %s", node_id, fault.name, detail)
        self.perform(self._gossip.report(node_id, fault, self._clock.monotonic()))

    # --- links (LinkOwner, DiscoveryOwner) ----------------------------------------------------

    def open_link(self, address: str, kind: LinkKind, learned_from: str | None = None) -> None:
        """Begin to dial an address; nothing happens where all slots are taken. A link that the peer asked for
        becomes one of this node's choice, if that is `kind`."""
        is_counted = kind not in (LinkKind.CONFIGURED, LinkKind.FEELER)
        is_free = not is_counted or len(self._links) < self._limits.slots.links
        present = self._links.get(address)
        if present is not None and present.kind is LinkKind.INBOUND and kind in OWN_CHOICE:
            self._promote(present, kind)
        if self._group is None or present is not None or not is_free:
            return
        link = Link(
            address,
            kind,
            learned_from,
            self._transport,
            self,
            self._clock,
            self._chain_id,
            self._config.times,
        )
        self._links[address] = link
        link.task = self._group.create_task(self._keep_link(link), name=f"link {address}")

    def _promote(self, link: Link, kind: LinkKind) -> None:
        """Make an inbound link one of this node's choice."""
        slots = self._limits.slots
        if link.is_up and not is_organisation_full(link.build_view(0), self.get_views(), slots):
            link.kind = kind
            self._gossip.on_chosen(link.node_id)

    def close_link(self, address: str, reason: str) -> None:
        """End a link for good."""
        link = self._links.pop(address, None)
        if link is not None:
            logger.info("the link to %s at %s ends: %s", link.node_id or "nobody yet", address, reason)
            if link.task is not None:
                link.task.cancel()

    async def _keep_link(self, link: Link) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(link.send())
                try:
                    await link.run()
                finally:
                    sender.cancel()
        finally:
            if self._links.get(link.address) is link:
                del self._links[link.address]
            await link.close()

    def get_views(self) -> list[LinkView]:
        """All links, as choices among them need it."""
        return [link.build_view(self._gossip.get_usefulness(link.node_id)) for link in self._links.values()]

    def _get_up_links(self) -> list[Link]:
        now = self._clock.monotonic()
        return [
            link
            for link in self._links.values()
            if link.is_up and not self._gossip.is_banned(link.node_id, now)
        ]

    def _get_link(self, node_id: str) -> Link:
        for link in self._get_up_links():
            if link.node_id == node_id:
                return link
        raise TransportError(f"{node_id} is not linked")

    def build_hello(self) -> Hello:
        return Hello(self._handlers.get_status(), self._transport.address, PROTOCOL_VERSION, self._session)

    def on_up(self, link: Link, hello: Hello) -> bool:
        if link.identity is None or link.node_id == self.identity.node_id:
            raise HandshakeRefused(HandshakeReason.SELF, link.address)
        others = [other for other in self._get_up_links() if other.node_id == link.node_id]
        if self._discovery is not None:
            self._discovery.on_up(link.build_view(0))
        if link.kind is LinkKind.FEELER:
            return False
        for other in others:
            if other.kind is not LinkKind.INBOUND or not link.is_own_choice:
                raise HandshakeRefused(HandshakeReason.LINKED_ELSEWHERE, f"{link.node_id} at {link.address}")
            self.close_link(other.address, f"it is linked at {link.address} by choice")
            other.drop("it is linked by choice")
        self._organisations[link.node_id] = link.identity.organisation
        self.perform(
            self._gossip.on_linked(link.node_id, self._clock.monotonic(), is_chosen=link.is_own_choice)
        )
        self._status_changed.set()
        return True

    def on_refused(self, link: Link, reason: HandshakeReason) -> None:
        logger.info("%s is not linked: %s", link.address, reason)
        if self._discovery is not None:
            self._discovery.on_refused(link.address, reason)

    def on_down(self, link: Link) -> None:
        self._gossip.on_unlinked(link.node_id)

    def on_status(self, link: Link, status: PeerStatus) -> None:
        self.perform(self._gossip.on_heartbeat(link.node_id, self._clock.monotonic()))
        if status.head != self._handlers.get_status().head:
            self._status_changed.set()

    def take_outbox(self, node_id: str) -> Announcement | None:
        return self._gossip.take_outbox(node_id)

    def put_back(self, node_id: str, announcement: Announcement) -> None:
        self._gossip.put_back(node_id, announcement)

    def get_traffic(self, node_id: str) -> Traffic:
        return self._traffic.setdefault(node_id, Traffic())

    def is_banned(self, node_id: str) -> bool:
        return self._gossip.is_banned(node_id, self._clock.monotonic())

    def get_bans(self) -> Mapping[str, float]:
        """Banned peers, and for how many seconds more."""
        now = self._clock.monotonic()
        return {node_id: until - now for node_id, until in self._gossip.get_bans(now).items()}

    async def request_addresses(self, node_id: str) -> tuple[str, ...]:
        """Addresses that a peer tells. Raises `TransportError`."""
        body = await self._get_link(node_id).request(Route.PEERS, PeersRequest(self._chain_id))
        return self._decode(PeersReply, node_id, body).addresses

    def is_chosen(self, node_id: str) -> bool:
        """Whether a node is linked by this node's or its operator's choice."""
        return any(link.node_id == node_id and link.is_own_choice for link in self._get_up_links())

    # --- serving (ServerOwner) ----------------------------------------------------------------

    def on_greeted(self, peer: PeerIdentity, hello: Hello) -> None:
        """A peer dialled us: dial it too, now, if it is not linked."""
        self._organisations[peer.node_id] = peer.organisation
        self._strangers.pop(peer.node_id, None)
        if peer.node_id == self.identity.node_id:
            return
        links = [link for link in self._links.values() if link.node_id == peer.node_id]
        if any(link.is_up for link in links):
            return
        for link in links:
            link.poke()
        # One learned address a peer: greetings can't crowd out others' links.
        is_learned = any(link.learned_from == peer.node_id for link in self._links.values())
        if hello.address in self._links:
            self._links[hello.address].poke()
        elif hello.address and self._config.learn_peers and not is_learned:
            if self._discovery is not None:
                self._discovery.on_greeted(peer.node_id, peer.organisation, hello.address)
            elif self._is_allowed(hello.address):
                self.open_link(hello.address, LinkKind.INBOUND, peer.node_id)

    def _is_allowed(self, address: str) -> bool:
        try:
            if self._config.policy is not None:
                self._config.policy.check(address)
        except AddressError as error:
            logger.debug("an address is not taken: %s", error)
            return False
        return True

    def on_stranger(self, peer: PeerIdentity, reason: HandshakeReason) -> None:
        if self._strangers.get(peer.node_id) is not reason:
            logger.info("%s (%s) greeted and is not linked: %s", peer.node_id, peer.organisation, reason)
        self._organisations[peer.node_id] = peer.organisation
        self._strangers[peer.node_id] = reason

    def get_addresses(self) -> tuple[str, ...]:
        return () if self._discovery is None else self._discovery.get_addresses()

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Flush(node_id):
                    for link in self._links.values():
                        if link.node_id == node_id:
                            link.flush()
                case Deliver():
                    self._intake.deliver(action)
                case Pull():
                    self._intake.pull(action)
                case Ban(node_id, until):
                    self._drop(node_id, until - self._clock.monotonic())

    def _drop(self, node_id: str, seconds: float) -> None:
        self._bans += 1
        logger.warning("%s is banned for %.0f s", node_id, seconds)
        for link in self._links.values():
            if link.node_id == node_id:
                link.drop("it is banned")

    def _decode(self, cls: type[R], node_id: str, body: bytes | None) -> R:
        try:
            return decode_message(cls, body or b"")
        except MessageError as error:
            self.report(node_id, Fault.MALFORMED, str(error))
            raise TransportError(f"{node_id}: {error}") from error
