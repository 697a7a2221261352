"""A node reduced to what its peers see: objects by id, and a chain of blocks that name their parent."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from consensus.gossip_rules import Outcome
from consensus.types import Hash32, Height
from node.blobs import BlobStore
from node.clock import Clock, SystemClock
from node.gossip.http import HttpTransport
from node.gossip.links import LinkTimes
from node.gossip.messages import Kind, PeerStatus
from node.gossip.network import Network, NetworkConfig
from node.gossip.transport import MemoryHub, Transport
from node.tls import IssuedCertificate, PeerIdentity, TlsFiles, save_certificate
from node.tls_issue import make_authority, make_certificate

GENESIS = Hash32(b"\x11" * 32)
TIMES = LinkTimes(heartbeat_s=0.2, least_beat_s=0.02, first_backoff_s=0.02, last_backoff_s=0.2)


def compute_id(data: bytes) -> Hash32:
    return Hash32(hashlib.sha256(data).digest())


def build_blocks(count: int, parent: Hash32 = GENESIS, label: str = "", size: int = 0) -> list[bytes]:
    """Blocks on top of one another; a block is its parent's hash and anything else."""
    blocks = []
    for number in range(count):
        blocks.append(parent + f"{label}{number}".encode().ljust(size, b"."))
        parent = compute_id(blocks[-1])
    return blocks


class FakeNode:
    """Accepts what is new, unless it says `{bad}`; longest chain first."""

    def __init__(self, name: str, chain_id: Hash32 = GENESIS) -> None:
        self.name = name
        self.chain_id = chain_id
        self.objects: dict[tuple[Kind, Hash32], bytes] = {}
        self.heights: dict[Hash32, int] = {chain_id: 0}
        self.chain = [chain_id]
        self.judged: list[tuple[Kind, Hash32, str]] = []
        self.judged_at: dict[Hash32, float] = {}
        self.is_aside: Callable[[Hash32], bool] = lambda block: False
        self.changed = asyncio.Condition()
        self.network: Network | None = None

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        self.judged.append((kind, object_id, peer))
        self.judged_at.setdefault(object_id, time.perf_counter())
        if b"{bad}" in data or compute_id(data) != object_id:
            return Outcome.REJECT
        if (kind, object_id) in self.objects:
            return Outcome.IGNORE
        if kind is Kind.BLOCK and (self.is_aside(object_id) or not self.add_block(data)):
            return Outcome.IGNORE
        self.objects[kind, object_id] = data
        await self.notify()
        return Outcome.ACCEPT

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def add_block(self, data: bytes) -> bool:
        parent, block = Hash32(data[:32]), compute_id(data)
        if parent not in self.heights:
            return False
        self.objects[Kind.BLOCK, block] = data
        self.heights[block] = self.heights[parent] + 1
        if self.heights[block] > len(self.chain) - 1:
            self.chain = self._get_path(block)
        return True

    def _get_path(self, block: Hash32) -> list[Hash32]:
        if self.objects[Kind.BLOCK, block][:32] == self.chain[-1]:
            return [*self.chain, block]
        path = [block]
        while path[-1] != self.chain_id:
            path.append(Hash32(self.objects[Kind.BLOCK, path[-1]][:32]))
        return path[::-1]

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return (kind, object_id) in self.objects

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        return self.objects.get((kind, object_id))

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        return self.chain[from_height : from_height + count]

    def get_status(self) -> PeerStatus:
        height = len(self.chain) - 1
        return PeerStatus(self.chain_id, self.chain_id, Height(height), self.chain[-1], "test")

    def announce(self, kind: Kind, data: bytes) -> Hash32:
        object_id = compute_id(data)
        self.objects[kind, object_id] = data
        assert self.network is not None
        self.network.announce(kind, object_id, data)
        return object_id

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        """Return once the condition holds; looked at whenever an object was judged, and often."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                async with self.changed:
                    try:
                        await asyncio.wait_for(self.changed.wait(), 0.02)
                    except TimeoutError:
                        continue

    async def wait_for_object(self, kind: Kind, object_id: Hash32) -> None:
        await self.wait_until(lambda: (kind, object_id) in self.objects)

    async def wait_linked(self, count: int = 1) -> None:
        network = self.network
        assert network is not None
        await self.wait_until(lambda: sum(peer.connected for peer in network.peers()) >= count)


class World:
    """Nodes that can reach each other, over memory or over HTTPS."""

    def __init__(self, directory: Path, is_http: bool, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.hub = MemoryHub()
        self._directory = directory
        self._is_http = is_http
        self._authority: IssuedCertificate | None = None

    def build_files(self, name: str, organisation: str, hosts: Sequence[str] = ("127.0.0.1",)) -> TlsFiles:
        self._authority = self._authority or make_authority("test")
        files = TlsFiles(
            self._directory / f"{name}.pem", self._directory / f"{name}.key", self._directory / "ca.pem"
        )
        if not files.key.exists():
            issued = make_certificate(self._authority, name, organisation, hosts)
            save_certificate(files, issued, self._authority.certificate_pem)
        return files

    def build_transport(self, name: str, port: int = 0) -> Transport:
        if not self._is_http:
            return self.hub.build_transport(f"{name}:1", PeerIdentity(name, f"org-{name}"))
        return HttpTransport("127.0.0.1", port, self.build_files(name, f"org-{name}"))

    @asynccontextmanager
    async def run(
        self,
        node: FakeNode,
        *peers: FakeNode,
        config: NetworkConfig | None = None,
        blobs: BlobStore | None = None,
        port: int = 0,
    ) -> AsyncIterator[Network]:
        """Start a node's network that dials the given running ones."""
        addresses = tuple(peer.network.address for peer in peers if peer.network is not None)
        network = Network(
            config or NetworkConfig(addresses, times=TIMES),
            self.build_transport(node.name, port),
            node,
            self.clock,
            blobs,
        )
        node.network = network
        await network.start()
        try:
            yield network
        finally:
            await network.stop()
