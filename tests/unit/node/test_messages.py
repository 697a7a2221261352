"""Bounds of messages: what is just allowed passes, one more is refused."""

import pytest

from consensus.types import Hash32, Height
from node.gossip.handshake import HandshakeReason, check_hello
from node.gossip.limits import NetworkLimits
from node.gossip.messages import (
    MAX_ADDRESS_LENGTH,
    MAX_ADDRESSES,
    MAX_REQUEST_BYTES,
    ROUTES,
    Hello,
    MessageError,
    PeersReply,
    PeersRequest,
    PeerStatus,
    Route,
    decode_message,
    encode_message,
)

CHAIN, OTHER = Hash32(b"\x11" * 32), Hash32(b"\x22" * 32)


def test_every_route_has_its_limits() -> None:
    assert set(ROUTES) == set(Route) == set(NetworkLimits().rates)
    # aiohttp reads no longer bodies than this without being told to.
    assert max(MAX_REQUEST_BYTES.values()) < 1024**2


def test_a_reply_of_addresses_is_bounded_in_number_and_length() -> None:
    longest = "a" * MAX_ADDRESS_LENGTH
    full = encode_message(PeersReply((longest,) * MAX_ADDRESSES))
    assert len(full) <= ROUTES[Route.PEERS].reply_bytes
    assert decode_message(PeersReply, full).addresses == (longest,) * MAX_ADDRESSES
    for addresses in ((longest,) * (MAX_ADDRESSES + 1), (longest + "a",)):
        with pytest.raises(MessageError):
            decode_message(PeersReply, encode_message(PeersReply(addresses)))


def test_a_request_for_addresses_fits() -> None:
    assert len(encode_message(PeersRequest(CHAIN))) <= MAX_REQUEST_BYTES[Route.PEERS]
    with pytest.raises(MessageError):
        decode_message(PeersRequest, encode_message(PeersRequest(CHAIN)) + b"\x00")


def build_hello(chain: Hash32 = CHAIN, genesis: Hash32 = CHAIN, protocol: int = 1) -> Hello:
    return Hello(PeerStatus(chain, genesis, Height(3), OTHER, "test"), "a:1", protocol, bytes(8))


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (build_hello(), None),
        (build_hello(chain=OTHER), HandshakeReason.CHAIN),
        (build_hello(genesis=OTHER), HandshakeReason.GENESIS),
        (build_hello(protocol=2), HandshakeReason.PROTOCOL),
        # Another protocol may mean something else by everything that follows.
        (build_hello(OTHER, OTHER, 2), HandshakeReason.PROTOCOL),
    ],
)
def test_handshakes_are_refused_by_name(theirs: Hello, reason: HandshakeReason | None) -> None:
    assert check_hello(theirs, build_hello()) is reason
