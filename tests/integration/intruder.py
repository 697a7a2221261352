"""Hostile peers: what any of them needs to take part in gossip, and one on a cluster's network in memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from consensus.gossip_rules import Outcome
from consensus.types import Hash32, Height
from node.chain import Chain, Imported
from node.gossip.messages import Kind, PeerStatus
from node.gossip.network import Network, NetworkConfig, PeerInfo
from node.tls import PeerIdentity
from tests.integration.cluster import TIMES, Cluster, Peer


class HostileHandlers(ABC):
    """Follows no chain, keeps all it hears, and serves what it announced."""

    network: Network

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, Hash32], bytes] = {}

    @abstractmethod
    def get_chain(self) -> Chain:
        """An honest node's, to say that it is on the same one."""

    @property
    def chain_id(self) -> Hash32:
        return self.get_chain().chain_id

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        self.objects[kind, object_id] = data
        self.network.announce(kind, object_id, data)

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        self.objects[kind, object_id] = data
        return Outcome.IGNORE

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return (kind, object_id) in self.objects

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        return self.objects.get((kind, object_id))

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        return ()

    def get_status(self) -> PeerStatus:
        genesis = self.get_chain().genesis_hash
        return PeerStatus(self.chain_id, genesis, Height(0), genesis, "hostile")


class Intruder(HostileHandlers):
    """Takes a stopped node's place on a cluster's network; linked to every running node once entered."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__()
        self.name = name
        self._cluster = cluster
        transport = cluster.hub.build_transport(f"{name}:1", PeerIdentity(name, f"org-{name}"))
        config = NetworkConfig(tuple(f"{peer.name}:1" for peer in cluster.peers), times=TIMES)
        self.network = Network(config, transport, self, cluster.clock)

    async def __aenter__(self) -> "Intruder":
        await self.network.start()
        await self._cluster.wait_until(lambda: self.is_linked, "the intruder is linked")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.network.stop()

    def get_chain(self) -> Chain:
        return self._cluster.peers[0].chain

    @property
    def is_linked(self) -> bool:
        """Both ways, to every running node."""
        peers = self._cluster.peers
        there = all((info := self.get_info(peer)) is not None and info.connected for peer in peers)
        return there and sum(info.connected for info in self.network.peers()) >= len(peers)

    def get_info(self, peer: Peer) -> PeerInfo | None:
        """What a node holds of the intruder."""
        return next((info for info in peer.network.peers() if info.node_id == self.name), None)

    def is_banned(self, peer: Peer) -> bool:
        info = self.get_info(peer)
        return info is not None and info.banned


def record_blocks(peer: Peer) -> dict[Hash32, Imported]:
    """Fills with what became of each block that the node is given from now on; the last word counts."""
    seen: dict[Hash32, Imported] = {}
    take = peer.core.take_block

    def take_and_note(data: bytes) -> Imported:
        imported = take(data)
        if imported.hash is not None:
            seen[imported.hash] = imported
        return imported

    peer.core.take_block = take_and_note  # type: ignore[method-assign]
    return seen
