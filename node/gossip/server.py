"""Answers peers' requests: cheapest checks first, everything bounded."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.blobs import BlobStore, CorruptBlob
from node.clock import Clock
from node.gossip.handshake import HandshakeReason, check_hello
from node.gossip.limits import Admission, Fault, NetworkLimits
from node.gossip.links import Traffic
from node.gossip.messages import (
    MAX_OBJECT_BYTES,
    ChunkRequest,
    FinalityReply,
    FinalityRequest,
    HashesReply,
    HashesRequest,
    HeadersReply,
    HeadersRequest,
    Hello,
    Kind,
    ManifestRequest,
    MessageError,
    ObjectsReply,
    ObjectsRequest,
    PeersReply,
    PeersRequest,
    PeerStatus,
    Route,
    SignedHeader,
    StateReply,
    StateRequest,
    WitnessReply,
    WitnessRequest,
    decode_message,
    encode_message,
)
from node.gossip.peers import Action, Gossip, Overloaded
from node.gossip.transport import Reply, Status
from node.tls import PeerIdentity

logger = logging.getLogger(__name__)


class Handlers(Protocol):
    """What the network asks of the node. All but `on_object` must be quick."""

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        """Judge an object from a peer (its node id). Objects of a kind come one at a time, in order.

        `announce` may be called meanwhile or later for what a peer sent; it reaches nobody twice.
        """
        ...

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        """Whether the object need not be pulled."""
        ...

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        """An object for a peer; for a block: exactly if it is stored."""
        ...

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        """Of the head chain, ascending; genesis is at height 0."""
        ...

    def get_status(self) -> PeerStatus: ...


class ChainServer(Protocol):
    """What a node serves to those that synchronise. All must be quick."""

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> Sequence[SignedHeader]:
        """Of the head chain, ascending; genesis has none."""
        ...

    def get_finality(self, set_number: int) -> FinalityReply: ...

    def get_state_nodes(self, nodes: Sequence[Hash32]) -> Sequence[bytes]: ...


class WitnessServer(Protocol):
    """Says what this node has seen of others' votes. Must be quick."""

    def answer(self, request: WitnessRequest) -> WitnessReply: ...


class ServerOwner(Protocol):
    """What the server tells, and asks, its network."""

    @property
    def identity(self) -> PeerIdentity: ...

    def build_hello(self) -> Hello: ...

    def on_stranger(self, peer: PeerIdentity, reason: HandshakeReason) -> None:
        """A node that has nothing to tell us greeted."""
        ...

    def get_addresses(self) -> tuple[str, ...]:
        """Addresses of peers, to tell another."""
        ...

    def on_greeted(self, peer: PeerIdentity, hello: Hello) -> None: ...

    def perform(self, actions: Sequence[Action]) -> None: ...

    def get_traffic(self, node_id: str) -> Traffic: ...


class _Refusal(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


class PeerServer:
    """The `Service` of a network."""

    def __init__(
        self,
        gossip: Gossip,
        limits: NetworkLimits,
        handlers: Handlers,
        blobs: BlobStore | None,
        clock: Clock,
        owner: ServerOwner,
    ) -> None:
        self._gossip = gossip
        self._limits = limits
        self._handlers = handlers
        self._blobs = blobs
        self._clock = clock
        self._owner = owner
        self._reading: Counter[str] = Counter()
        self.chain: ChainServer | None = None
        """Until it is there, those that synchronise are told that nothing is."""
        self.witness: WitnessServer | None = None

    async def serve(self, peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        """Answer one request of an identified peer."""
        now, node_id = self._clock.monotonic(), peer.node_id
        if node_id == self._owner.identity.node_id and route is not Route.STATUS:
            return Reply(Status.FORBIDDEN)
        if self._gossip.is_banned(node_id, now):
            return Reply(Status.FORBIDDEN)
        admission = self._gossip.admit(node_id, route, len(body), now)
        if admission is not Admission.ADMITTED:
            if admission is Admission.PEER_LIMIT:
                self._report(node_id, Fault.FLOOD, f"too many {route} requests")
            return Reply(Status.BUSY)
        try:
            reply = await self._dispatch(peer, route, body)
        except MessageError as error:
            self._report(node_id, Fault.MALFORMED, str(error))
            reply = Reply(Status.BAD)
        except Overloaded:
            reply = Reply(Status.BUSY)
        except _Refusal as refusal:
            reply = Reply(refusal.status)
        traffic = self._owner.get_traffic(node_id)
        traffic.served[route] += 1
        traffic.received[route] += len(body)
        traffic.sent[route] += len(reply.body)
        self._gossip.on_replied(node_id, len(reply.body), self._clock.monotonic())
        return reply

    def _report(self, node_id: str, fault: Fault, detail: str) -> None:
        logger.debug("%s: %s: %s", node_id, fault.name, detail)
        self._owner.perform(self._gossip.report(node_id, fault, self._clock.monotonic()))

    async def _dispatch(self, peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        match route:
            case Route.STATUS:
                return self._on_status(peer, decode_message(Hello, body))
            case Route.ANNOUNCE:
                actions = self._gossip.on_announcement(
                    peer.node_id, body, self._handlers.has_object, self._clock.monotonic()
                )
                self._owner.perform(actions)
                return Reply(Status.OK)
            case Route.OBJECTS:
                return self._on_objects(decode_message(ObjectsRequest, body))
            case Route.HASHES:
                request = decode_message(HashesRequest, body)
                self._check_chain(request.chain_id)
                hashes = self._handlers.get_hashes(request.from_height, request.count)
                return Reply(Status.OK, encode_message(HashesReply(tuple(hashes))))
            case Route.MANIFEST:
                return self._on_manifest(decode_message(ManifestRequest, body))
            case Route.CHUNK:
                return await self._on_chunk(peer.node_id, decode_message(ChunkRequest, body))
            case Route.PEERS:
                self._check_chain(decode_message(PeersRequest, body).chain_id)
                return Reply(Status.OK, encode_message(PeersReply(self._owner.get_addresses())))
            case Route.HEADERS | Route.FINALITY | Route.STATE:
                return self._on_chain(route, body)
            case Route.WITNESS:
                question = decode_message(WitnessRequest, body)
                self._check_chain(question.chain_id)
                if self.witness is None:
                    raise _Refusal(Status.NOT_FOUND)
                return Reply(Status.OK, encode_message(self.witness.answer(question)))

    def _on_chain(self, route: Route, body: bytes) -> Reply:
        request: HeadersRequest | FinalityRequest | StateRequest
        reply: HeadersReply | FinalityReply | StateReply
        if self.chain is None:
            raise _Refusal(Status.NOT_FOUND)
        match route:
            case Route.HEADERS:
                request = decode_message(HeadersRequest, body)
                self._check_chain(request.chain_id)
                headers = self.chain.get_headers(request.from_height, request.count, signed=request.signed)
                reply = HeadersReply(tuple(headers))
            case Route.FINALITY:
                request = decode_message(FinalityRequest, body)
                self._check_chain(request.chain_id)
                reply = self.chain.get_finality(request.set_number)
            case _:
                request = decode_message(StateRequest, body)
                self._check_chain(request.chain_id)
                reply = StateReply(tuple(self.chain.get_state_nodes(request.nodes)))
        return Reply(Status.OK, encode_message(reply))

    def _check_chain(self, chain_id: Hash32) -> None:
        if chain_id != self._gossip.chain_id:
            raise _Refusal(Status.OTHER_CHAIN)

    def _on_status(self, peer: PeerIdentity, hello: Hello) -> Reply:
        ours = self._owner.build_hello()
        reason = check_hello(hello, ours)
        if reason is None:
            self._owner.on_greeted(peer, hello)
        else:
            self._owner.on_stranger(peer, reason)
        # A stranger is told who we are, so that its operator sees what is wrong.
        return Reply(Status.OK, encode_message(ours))

    def _on_objects(self, request: ObjectsRequest) -> Reply:
        self._check_chain(request.chain_id)
        objects: list[bytes | None] = []
        size = 0
        for object_id in request.ids:
            data = self._gossip.get_object(request.kind, object_id)
            if data is None:
                data = self._handlers.get_object(request.kind, object_id)
            if data is not None and len(data) > MAX_OBJECT_BYTES:
                data = None
            size += len(data or b"")
            if objects and size > MAX_OBJECT_BYTES:
                break
            objects.append(data)
        return Reply(Status.OK, encode_message(ObjectsReply(tuple(objects))))

    def _on_manifest(self, request: ManifestRequest) -> Reply:
        self._check_chain(request.chain_id)
        if self._blobs is None or not self._blobs.has(request.root):
            return Reply(Status.NOT_FOUND)
        manifest = self._blobs.get_manifest(request.root)
        return Reply(Status.NOT_FOUND) if manifest is None else Reply(Status.OK, manifest.encode())

    async def _on_chunk(self, node_id: str, request: ChunkRequest) -> Reply:
        """The only answer that takes a while, so the only one of which several are under way."""
        self._check_chain(request.chain_id)
        if self._blobs is None or not self._blobs.has(request.root):
            return Reply(Status.NOT_FOUND)
        is_full = self._reading.total() >= self._limits.chunks_total
        if is_full or self._reading[node_id] >= self._limits.chunks_per_peer:
            return Reply(Status.BUSY)
        self._reading[node_id] += 1
        try:
            data = await asyncio.to_thread(self._blobs.read_chunk, request.root, request.index)
        except CorruptBlob:
            data = None
        finally:
            self._reading[node_id] -= 1
        return Reply(Status.NOT_FOUND) if data is None else Reply(Status.OK, data)
