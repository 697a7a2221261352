"""From a node's settings to what its peer network is built of."""

from node.config import PeerSettings
from node.gossip.addresses import AddressPolicy, is_loopback
from node.gossip.discovery import DiscoveryConfig
from node.gossip.gate import GateLimits
from node.gossip.http import PeerNetworkConfig
from node.gossip.limits import NetworkLimits
from node.gossip.network import NetworkConfig
from node.gossip.selection import SlotLimits


def build_network_config(peer: PeerSettings) -> PeerNetworkConfig:
    """The peer network that the settings ask for."""
    # Only who is itself reached by loopback has peers on its machine.
    policy = AddressPolicy(peer.private_addresses, is_loopback(peer.advertise or f"{peer.host}:{peer.port}"))
    chosen = min(peer.outbound, peer.max_peers)
    return PeerNetworkConfig(
        peer.host,
        peer.port,
        NetworkConfig(
            peer.peers,
            NetworkLimits(slots=SlotLimits(links=peer.max_peers, chosen=chosen)),
            discovery=DiscoveryConfig(seeds=peer.seeds, policy=policy) if peer.discover else None,
        ),
        # Others take an address in its canonical form only.
        None if peer.advertise is None else peer.advertise.lower(),
        GateLimits(connections=peer.max_connections, per_address=peer.max_connections_per_address),
    )
