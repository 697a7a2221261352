"""What every transport must do: identified requests, bounded bodies, errors instead of hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from node.gossip.http import HttpTransport
from node.gossip.messages import MAX_REQUEST_BYTES, Route
from node.gossip.transport import MemoryHub, Reply, Status, Transport, TransportError
from node.tls import PeerIdentity, TlsFiles, save_certificate
from node.tls_issue import make_authority, make_certificate

Builder = Callable[[str], Transport]


@pytest.fixture(params=["memory", "http"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Builder:
    """Builds transports of named nodes that can reach each other."""
    if request.param == "memory":
        hub = MemoryHub()
        return lambda name: hub.build_transport(f"{name}:1", PeerIdentity(name, f"org of {name}"))
    authority = make_authority("test")

    def build_http(name: str) -> Transport:
        files = TlsFiles(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / f"{name}-ca.pem")
        issued = make_certificate(authority, name, f"org of {name}", ["127.0.0.1"])
        save_certificate(files, issued, authority.certificate_pem)
        return HttpTransport("127.0.0.1", 0, files)

    return build_http


async def echo(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
    return Reply(Status.OK, f"{peer.node_id}|{peer.organisation}|{route}|".encode() + body)


@pytest.fixture
async def alice(build: Builder) -> AsyncIterator[Transport]:
    transport = build("alice")
    await transport.start(echo)
    yield transport
    await transport.stop()


@pytest.fixture
async def bob(build: Builder) -> AsyncIterator[Transport]:
    transport = build("bob")
    yield transport
    await transport.stop()


async def ask(
    sender: Transport, address: str, body: bytes = b"", *, max_reply: int = 1 << 20, timeout_s: float = 5
) -> bytes:
    reply = await sender.request(address, Route.STATUS, body, max_reply=max_reply, timeout_s=timeout_s)
    assert reply.status is Status.OK
    return reply.body


async def test_both_ends_know_each_other(alice: Transport, bob: Transport) -> None:
    reply = await bob.request(alice.address, Route.HASHES, b"\x00\xff", max_reply=1000, timeout_s=5)
    assert reply.peer == PeerIdentity("alice", "org of alice")
    assert reply.status is Status.OK
    assert reply.body == b"bob|org of bob|hashes|\x00\xff"


@pytest.mark.parametrize("status", list(Status))
async def test_statuses_arrive(build: Builder, bob: Transport, status: Status) -> None:
    carol = build("carol")

    async def answer(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        return Reply(status, b"why")

    await carol.start(answer)
    reply = await bob.request(carol.address, Route.CHUNK, b"", max_reply=1000, timeout_s=5)
    assert (reply.status, reply.body) == (status, b"why")
    await carol.stop()


async def test_many_requests_at_once(alice: Transport, bob: Transport) -> None:
    bodies = [str(number).encode() for number in range(100)]
    replies = await asyncio.gather(*(ask(bob, alice.address, body) for body in bodies))
    assert replies == [b"bob|org of bob|status|" + body for body in bodies]


async def test_large_bodies_pass_and_longer_replies_than_allowed_do_not(
    alice: Transport, bob: Transport
) -> None:
    body = bytes(MAX_REQUEST_BYTES[Route.ANNOUNCE])
    reply = await bob.request(alice.address, Route.ANNOUNCE, body, max_reply=1 << 20, timeout_s=5)
    assert reply.body.endswith(body)
    with pytest.raises(TransportError):
        await bob.request(alice.address, Route.ANNOUNCE, body, max_reply=1000, timeout_s=5)
    assert await ask(bob, alice.address, b"still") == b"bob|org of bob|status|still"


async def test_nobody_there(build: Builder, alice: Transport, bob: Transport) -> None:
    address = alice.address
    await alice.stop()
    with pytest.raises(TransportError):
        await ask(bob, address)


async def test_a_peer_that_hangs(build: Builder, bob: Transport) -> None:
    carol, hang = build("carol"), asyncio.Event()

    async def answer(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        await hang.wait()
        return Reply(Status.OK)

    await carol.start(answer)
    with pytest.raises(TransportError):
        await ask(bob, carol.address, timeout_s=0.1)
    await carol.stop()


async def test_a_peer_that_goes_away_under_a_request(build: Builder, bob: Transport) -> None:
    carol, asked = build("carol"), asyncio.Event()

    async def answer(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        asked.set()
        await asyncio.Event().wait()
        return Reply(Status.OK)

    await carol.start(answer)
    asking = asyncio.create_task(ask(bob, carol.address, timeout_s=30))
    await asked.wait()
    await carol.stop()
    with pytest.raises(TransportError):
        await asking


async def test_an_address_is_bound_once_and_again_after_stop(build: Builder, bob: Transport) -> None:
    carol = build("carol")
    await carol.start(echo)
    await carol.stop()
    await carol.start(echo)
    assert await ask(bob, carol.address, b"again") == b"bob|org of bob|status|again"
    await carol.stop()


async def test_disconnecting_is_not_final(alice: Transport, bob: Transport) -> None:
    await ask(bob, alice.address)
    await bob.disconnect(alice.address)
    assert await ask(bob, alice.address, b"x") == b"bob|org of bob|status|x"
