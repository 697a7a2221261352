"""Targets: requests to a node's peer port, through the real network over the transport in memory."""

import asyncio
import atexit
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

from consensus.codec import CodecError, encode
from consensus.crypto import compute_blob_root, compute_chunk_hash, hash_domain
from consensus.gossip_rules import Outcome
from consensus.types import Address, Hash32, Height, Signature
from consensus.vote import Checkpoint
from node.blobs import BlobStore
from node.clock import ManualClock
from node.gossip.addresses import AddressError, AddressPolicy, compute_group, is_loopback, split_address
from node.gossip.bookfile import StoredPeers, build_book, decode_peers, encode_peers
from node.gossip.messages import (
    MAX_REPLY_BYTES,
    FinalityReply,
    Kind,
    Message,
    PeerStatus,
    Route,
    SignedHeader,
    WitnessReply,
    WitnessRequest,
)
from node.gossip.network import Network, NetworkConfig
from node.gossip.transport import MemoryHub, Status
from node.manifest import CorruptBlob, Manifest
from node.tls import PeerIdentity
from tests.fuzz import scenes
from tests.fuzz.examples import build_examples
from tests.fuzz.target import Form, Target, require

CHAIN = Hash32(bytes(32))
"""One of the examples' hashes, so that made-up requests are of this chain."""
ADDRESS = "node:1"
CONTENT = bytes(range(256)) * 8
LIFE = 200
"""Requests that one network answers, each from another peer, before it is made anew."""


class Refused(Exception):
    """The node answered with another status than OK."""


class _Node:
    """What the network asks of a node that holds one block and nothing else."""

    def __init__(self) -> None:
        self.block = b"block"
        self.hash = hash_domain("test", self.block)

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        if b"\x00" in data:
            return Outcome.REJECT
        return Outcome.ACCEPT if len(data) % 2 else Outcome.IGNORE

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return object_id == self.hash

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        return self.block if object_id == self.hash or object_id == CHAIN else None

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        return [CHAIN, self.hash][from_height : from_height + count]

    def get_status(self) -> PeerStatus:
        return PeerStatus(CHAIN, CHAIN, Height(1), self.hash, "test")


class _Chain:
    """What is served to those that synchronise."""

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> Sequence[SignedHeader]:
        headers = [scene.world.header for scene in scenes.get_scenes()[1:]]
        return [SignedHeader(header, None) for header in headers[from_height : from_height + count]]

    def get_finality(self, set_number: int) -> FinalityReply:
        return scenes.build_finality(3) if set_number == 0 else FinalityReply((), None)

    def get_state_nodes(self, nodes: Sequence[Hash32]) -> Sequence[bytes]:
        return [bytes(66) for _ in nodes]


class _Witness:
    """Has seen no votes."""

    def answer(self, request: WitnessRequest) -> WitnessReply:
        head = Checkpoint(Height(0), CHAIN)
        return WitnessReply(Address(bytes(32)), head, head, False, (), Signature(bytes(64)))


class Host:
    """A running network, and strangers who send it one request each."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory(prefix="bmif-fuzz-")
        self._store = BlobStore(Path(self._folder.name))
        self._store.put_bytes(CONTENT)
        self._hub = MemoryHub()
        self._numbers = itertools.count(1)
        self._network: Network | None = None

    def close(self) -> None:
        if self._network is not None:
            self._runner.run(self._network.stop())
        self._runner.close()
        self._folder.cleanup()

    def ask(self, route: Route, body: bytes) -> Status:
        return self._runner.run(self._ask(route, body))

    async def _ask(self, route: Route, body: bytes) -> Status:
        number = next(self._numbers)
        if self._network is None or number % LIFE == 0:
            await self._renew()
        identity = PeerIdentity(f"stranger{number}", "anyone")
        stranger = self._hub.build_transport(f"stranger:{number}", identity)
        reply = await stranger.request(ADDRESS, route, body, max_reply=MAX_REPLY_BYTES, timeout_s=60)
        require(reply.status in set(Status) - {Status.FAILED}, f"answered {reply.status!r}")
        # What the request set off ends, or waits for the clock, before the next one.
        for _ in range(5):
            await asyncio.sleep(0)
        require(self._network is not None and len(self._network.peers()) <= LIFE + 1, "peers pile up")
        return reply.status

    async def _renew(self) -> None:
        if self._network is not None:
            await self._network.stop()
        transport = self._hub.build_transport(ADDRESS, PeerIdentity("node", "hospital"))
        config = NetworkConfig(learn_peers=False)
        self._network = Network(config, transport, _Node(), ManualClock(), self._store)
        self._network.serve_chain(_Chain())
        self._network.serve_witness(_Witness())
        await self._network.start()


@cache
def get_host() -> Host:
    host = Host()
    atexit.register(host.close)
    return host


def run_request(data: bytes) -> None:
    """Any bytes to any route are answered, within the limit, with a status that blames the right side."""
    name, _, body = data.partition(b"\x00")
    try:
        route = Route(name.decode("latin-1"))
    except ValueError as error:
        raise Refused from error
    if get_host().ask(route, body) is not Status.OK:
        raise Refused


@cache
def build_requests() -> tuple[bytes, ...]:
    """Every kind of message to every route that decodes it: which does, one try each tells."""
    requests = []
    for route in Route:
        requests.append(route.encode() + b"\x00")
        for cls in get_args(Message):
            for value in build_examples(cls):
                try:
                    body = encode(value)
                except CodecError:
                    continue
                if get_host().ask(route, body) is Status.OK:
                    requests.append(route.encode() + b"\x00" + body)
    return tuple(requests)


# --- manifests --------------------------------------------------------------------------------


def run_manifest(data: bytes) -> None:
    """`Manifest.decode`: CorruptBlob alone leaves it; what it accepts makes up the root it was asked for."""
    claimed, encoded = Hash32(data[:32]), data[32:]
    manifest = Manifest.decode(claimed, encoded)
    require(manifest.ref.root == claimed, "of another root")
    require(manifest.encode() == encoded, "encodes to other bytes")
    lengths = [manifest.get_chunk_length(index) for index in range(len(manifest.chunks))]
    require(sum(lengths) == manifest.ref.length and all(lengths), "chunks do not make up the length")


def run_fitting_manifest(data: bytes) -> None:
    """The same, asked for the root that the bytes do make up, so that lengths are looked at closely."""
    chunks = tuple(Hash32(data[at : at + 32]) for at in range(8, len(data), 32))
    try:
        root = compute_blob_root(int.from_bytes(data[:8], "big"), chunks)
    except ValueError:
        root = Hash32(bytes(32))
    run_manifest(root + data)


def build_manifests() -> Iterable[bytes]:
    for length in (0, 1, 2**20, 2**20 + 1, 3 * 2**20):
        chunks = [compute_chunk_hash(bytes([number])) for number in range(-(-length // 2**20))]
        yield length.to_bytes(8, "big") + b"".join(chunks)


def build_named_manifests() -> Iterable[bytes]:
    for encoded in build_manifests():
        chunks = [Hash32(encoded[at : at + 32]) for at in range(8, len(encoded), 32)]
        yield compute_blob_root(int.from_bytes(encoded[:8], "big"), chunks) + encoded


# --- what a node remembers of its peers, and what they tell of each other ---------------------


def run_book(data: bytes) -> None:
    """`decode_peers` and `build_book`: nothing leaves them; a book, or none with a warning."""
    require(decode_peers(data) is None or data[:32] == hash_domain("peers", data[32:]), "took another digest")
    encoded = hash_domain("peers", data) + data
    stored = decode_peers(encoded)
    if stored is None:
        raise Refused
    require(encode_peers(stored) == encoded, "encodes to other bytes")
    build_book(stored)


def run_address(data: bytes) -> None:
    """What peers advertise: AddressError, or an address in its only form; its group is always known."""
    address = data.decode("latin-1")
    compute_group(address)
    require(AddressPolicy().check(address) == address, "another form")
    require(not is_loopback(address), "takes a loopback address")
    host, port = split_address(address)
    require(address in (f"{host}:{port}", f"[{host}]:{port}") and 0 < int(port) < 65_536, "no host:port")


ADDRESSES = (b"node1.example.org:8102", b"10.0.0.7:1", b"[2001:db8::1]:65535", b"8.8.8.8:8102", b"[::1]:1")


def build_targets() -> list[Target]:
    refused = (Refused,)
    books = [encode(value) for value in build_examples(StoredPeers)]
    books += [encode(StoredPeers(1, bytes(32), (), ("node1:8102",), ()))]
    return [
        Target("peer.book", run_book, refused, lambda: books, Form.MSGPACK, frames=200),
        Target("peer.address", run_address, (AddressError,), lambda: ADDRESSES, Form.TEXT, 300, base=2**21),
        Target("peer.request", run_request, refused, build_requests, Form.ROUTED, 4096, 200, 2**22, 300, 6),
        Target("blobs.manifest", run_manifest, (CorruptBlob,), build_named_manifests),
        Target("blobs.fitting_manifest", run_fitting_manifest, (CorruptBlob,), build_manifests),
    ]
