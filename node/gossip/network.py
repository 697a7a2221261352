"""The peer network over any transport: serves peers, keeps links, carries gossip to and from the node."""

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from consensus.gossip_rules import Outcome
from consensus.types import Hash32, Height
from node.blobs import BlobStore
from node.clock import Clock
from node.fetch import SourceError
from node.gossip.limits import Fault, NetworkLimits
from node.gossip.links import Link, LinkTimes, Traffic
from node.gossip.messages import (
    PROTOCOL_VERSION,
    Announcement,
    ChunkRequest,
    HashesReply,
    HashesRequest,
    Hello,
    Kind,
    ManifestRequest,
    MessageError,
    ObjectsReply,
    ObjectsRequest,
    PeerStatus,
    Route,
    decode_message,
)
from node.gossip.peers import Action, Ban, Deliver, Flush, Gossip, Pull
from node.gossip.server import Handlers, PeerServer
from node.gossip.transport import Transport, TransportError
from node.tls import PeerIdentity

logger = logging.getLogger(__name__)

R = TypeVar("R", HashesReply, ObjectsReply)

BACKLOG_BYTES = 64 * 1024 * 1024
"""Pulled objects waiting to be judged; beyond it nothing more is pulled."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Whom to dial and how to behave."""

    peers: tuple[str, ...] = ()
    """host:port of configured peers, dialled for ever."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)
    times: LinkTimes = field(default_factory=LinkTimes)
    learn_peers: bool = True
    """Also dial peers that greet us from an address that is not configured."""


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


class Network:
    """Serves, dials, announces, pulls. Everything is on one event loop; `start` and `stop` are explicit."""

    def __init__(
        self,
        config: NetworkConfig,
        transport: Transport,
        handlers: Handlers,
        clock: Clock,
        blobs: BlobStore | None = None,
    ) -> None:
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
        self._server = PeerServer(self._gossip, self._limits, handlers, blobs, clock, self)
        self._pulling: dict[str, asyncio.Semaphore] = {}
        self._lanes: dict[Kind, asyncio.Queue[Deliver]] = {kind: asyncio.Queue() for kind in Kind}
        self._backlog = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
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
            self._group = None  # nothing is begun any more
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
                for lane in self._lanes.values():
                    group.create_task(self._judge(lane))
                for address in self._config.peers:
                    self._add_link(address, None)
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
        )

    def get_blob_sources(self) -> list["PeerBlobSource"]:
        """Peers that blobs can be asked of, nearest first."""
        links = sorted(self._get_up_links(), key=lambda link: link.latency_s or 0.0)
        return [PeerBlobSource(self, link, self._chain_id) for link in links]

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

    def report(self, node_id: str, fault: Fault, detail: str) -> None:
        """Count a peer's fault; enough of them ban it for a while."""
        logger.debug("%s: %s: %s", node_id, fault.name, detail)
        self.perform(self._gossip.report(node_id, fault, self._clock.monotonic()))

    # --- links (LinkOwner) --------------------------------------------------------------------

    def _add_link(self, address: str, learned_from: str | None) -> None:
        if self._group is None or address in self._links or len(self._links) >= self._limits.links:
            return
        link = Link(
            address,
            learned_from,
            self._transport,
            self,
            self._clock,
            self._chain_id,
            self._config.times,
        )
        self._links[address] = link
        self._group.create_task(self._keep_link(link))

    async def _keep_link(self, link: Link) -> None:
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(link.send())
            try:
                await link.run()
            finally:
                sender.cancel()
                del self._links[link.address]
                await link.close()

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
            return False
        if any(other is not link and other.node_id == link.node_id for other in self._get_up_links()):
            raise TransportError(f"{link.node_id} is linked at another address")
        self._organisations[link.node_id] = link.identity.organisation
        self.perform(self._gossip.on_linked(link.node_id, self._clock.monotonic()))
        self._status_changed.set()
        return True

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

    # --- serving (ServerOwner) ----------------------------------------------------------------

    def on_greeted(self, peer: PeerIdentity, hello: Hello) -> None:
        """A peer dialled us: dial it too, now, if it is not linked."""
        self._organisations[peer.node_id] = peer.organisation
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
            self._add_link(hello.address, peer.node_id)

    def get_addresses(self) -> tuple[str, ...]:
        return ()

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Flush(node_id):
                    for link in self._links.values():
                        if link.node_id == node_id:
                            link.flush()
                case Deliver():
                    self._backlog += len(action.data)
                    if self._backlog > BACKLOG_BYTES:
                        self._has_room.clear()
                    self._lanes[action.kind].put_nowait(action)
                case Pull():
                    if self._group is not None:
                        self._group.create_task(self._pull(action))
                case Ban(node_id, until):
                    self._drop(node_id, until - self._clock.monotonic())

    def _drop(self, node_id: str, seconds: float) -> None:
        logger.warning("%s is banned for %.0f s", node_id, seconds)
        for link in self._links.values():
            if link.node_id == node_id:
                link.drop("it is banned")

    # --- objects ------------------------------------------------------------------------------

    async def _pull(self, pull: Pull) -> None:
        limit = self._pulling.setdefault(pull.peer, asyncio.Semaphore(self._limits.pulls_per_peer))
        async with limit:
            await self._has_room.wait()
            try:
                objects = await self.request_objects(pull.peer, pull.kind, pull.ids)
            except TransportError as error:
                logger.debug("pulling from %s failed: %s", pull.peer, error)
                self.perform(self._gossip.on_pull_failed(pull, self._clock.monotonic()))
                return
        self.perform(self._gossip.on_pulled(pull, objects, self._clock.monotonic()))

    async def _judge(self, lane: asyncio.Queue[Deliver]) -> None:
        """Hand the objects of one kind to the node, one at a time."""
        while True:
            delivered = await lane.get()
            self._backlog -= len(delivered.data)
            if self._backlog <= BACKLOG_BYTES:
                self._has_room.set()
            kind, object_id = delivered.kind, delivered.id
            try:
                outcome = await self._handlers.on_object(kind, object_id, delivered.data, delivered.peer)
            except Exception:
                # Whatever a peer's bytes provoke must not end the network.
                logger.exception("judging %s %s failed", kind, object_id.hex())
                outcome = Outcome.IGNORE
            if outcome is Outcome.REJECT:
                logger.info("%s sent a bad %s %s", delivered.peer, kind, object_id.hex()[:12])
            is_held = outcome is Outcome.ACCEPT and self._handlers.has_object(kind, object_id)
            now = self._clock.monotonic()
            self.perform(self._gossip.on_outcome(delivered, outcome, is_held, now))

    def _decode(self, cls: type[R], node_id: str, body: bytes | None) -> R:
        try:
            return decode_message(cls, body or b"")
        except MessageError as error:
            self.report(node_id, Fault.MALFORMED, str(error))
            raise TransportError(f"{node_id}: {error}") from error


class PeerBlobSource:
    """A linked peer as a `BlobSource`."""

    def __init__(self, network: Network, link: Link, chain_id: Hash32) -> None:
        self._network = network
        self._link = link
        self._chain_id = chain_id

    @property
    def node_id(self) -> str:
        return self._link.node_id

    async def get_manifest(self, root: Hash32) -> bytes | None:
        request = ManifestRequest(self._chain_id, root)
        try:
            return await self._link.request(Route.MANIFEST, request)
        except TransportError as error:
            raise SourceError(str(error)) from error

    async def get_chunk(self, root: Hash32, index: int) -> bytes | None:
        request = ChunkRequest(self._chain_id, root, index)
        try:
            return await self._link.request(Route.CHUNK, request)
        except TransportError as error:
            raise SourceError(str(error)) from error

    def report_corrupt(self, detail: str) -> None:
        self._network.report(self.node_id, Fault.CORRUPT_BLOB, detail)
