"""From a node's settings to what its peer network is built of."""

from collections.abc import Callable

from consensus.types import Address
from node.gossip.addresses import AddressPolicy, is_loopback
from node.gossip.discovery import DiscoveryConfig
from node.gossip.gate import GateLimits
from node.gossip.http import PeerNetworkConfig, TransportSecurity
from node.gossip.limits import NetworkLimits
from node.gossip.network import NetworkConfig
from node.gossip.selection import SlotLimits
from node.settings import PeerSettings, TlsSettings

LEAST_PORT = 1024
"""Of an address that peers tell; below are other services' ports."""


def build_policy(peer: PeerSettings) -> AddressPolicy:
    """Which addresses that peers tell may be dialled."""
    # Only who is itself reached by loopback has peers on its machine.
    is_local = is_loopback(peer.advertise or f"{peer.host}:{peer.port}")
    return AddressPolicy(peer.private_addresses, is_local, LEAST_PORT)


def build_security(
    peer: PeerSettings,
    tls: TlsSettings,
    account: Address,
    get_organisation: Callable[[Address], str],
) -> TransportSecurity:
    """Who may connect, and what is dialled in the end."""
    return TransportSecurity(
        account,
        get_organisation,
        build_policy(peer),
        frozenset((*peer.peers, *peer.seeds)),
        tls.poll_s,
    )


def build_network_config(peer: PeerSettings) -> PeerNetworkConfig:
    """The peer network that the settings ask for."""
    policy = build_policy(peer)
    chosen = min(peer.outbound, peer.max_peers)
    return PeerNetworkConfig(
        peer.host,
        peer.port,
        NetworkConfig(
            peer.peers,
            NetworkLimits(slots=SlotLimits(links=peer.max_peers, chosen=chosen)),
            discovery=DiscoveryConfig(seeds=peer.seeds, policy=policy) if peer.discover else None,
            policy=policy,
        ),
        # Others take an address in its canonical form only.
        None if peer.advertise is None else peer.advertise.lower(),
        GateLimits(connections=peer.max_connections, per_address=peer.max_connections_per_address),
    )
