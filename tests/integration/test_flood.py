"""Five hundred hostile connections over real sockets and TLS: the bounds hold, honest peers are served.

Nothing here is timed; `benchmarks/flood.py` tells the latency.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.flood import CONNECTIONS, SOURCES, Flood, FloodPlan
from node.gossip import http
from node.gossip.gate import Connection, ConnectionGate, GateLimits, Refusal
from node.gossip.http import HttpTransport, PeerNetwork, PeerNetworkConfig
from node.gossip.limits import Rate
from node.gossip.messages import Kind, Route, encode_message
from node.gossip.network import NetworkConfig
from node.gossip.transport import Reply, Status, TransportError
from node.tls import PeerIdentity, TlsFiles, build_client_context
from tests.integration.peers import GENESIS, TIMES, FakeNode, World

SLOW_S = 120.0
"""Longer than anything takes on a machine with other work."""
EAGER = GateLimits(
    address_rate=Rate(1_000, 1_000),
    total_rate=Rate(1_000, 1_000),
    handshake_s=SLOW_S,
    first_request_s=SLOW_S,
)
"""So many connections may come at once as the machine makes, and take as long as it takes; all other bounds
as they are. Attackers and honest nodes share one processor here, which the rates would keep free."""


HONEST = "127.0.0.1"
"""Where honest nodes dial from; the flood comes from `SOURCES`."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, True)


@asynccontextmanager
async def run_network(
    world: World, node: FakeNode, *peers: str, gate: GateLimits | None = None
) -> AsyncIterator[PeerNetwork]:
    network = PeerNetwork(
        PeerNetworkConfig(
            "127.0.0.1",
            0,
            NetworkConfig(
                peers,
                times=replace(TIMES, heartbeat_s=1.0, request_timeout_s=SLOW_S, bulk_timeout_s=SLOW_S),
            ),
            gate=gate or GateLimits(),
        ),
        world.build_files(node.name, f"org-{node.name}"),
        node,
        world.clock,
    )
    node.network = network
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


async def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 120) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        assert loop.time() < end, f"{what}: not within {deadline_s} s"
        await asyncio.sleep(0.01)


def watch_gate(gate: ConnectionGate) -> list[str]:
    """What the listener is going to refuse or to close of honest nodes, for whatever reason."""
    harmed: list[str] = []
    connect, identify = gate.on_connect, gate.on_identified

    def on_connect(address: str, now: float) -> tuple[Connection | None, list[Connection]]:
        before = gate.refused.copy()
        taken, displaced = connect(address, now)
        if taken is None and address == HONEST:
            harmed.extend(gate.refused - before)
        harmed.extend("displaced" for victim in displaced if victim.address == HONEST)
        return taken, displaced

    def on_identified(connection: Connection, identity: PeerIdentity, now: float) -> Refusal | None:
        refusal = identify(connection, identity, now)
        if refusal is not None and connection.address == HONEST:
            harmed.append(refusal)
        return refusal

    gate.on_connect = on_connect  # type: ignore[method-assign]
    gate.on_identified = on_identified  # type: ignore[method-assign]
    return harmed


async def test_a_flood_of_five_hundred_connections_displaces_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection of an honest node is refused or displaced, no honest link is lost, nobody honest banned.

    That is what the bounds promise. How fast a processor shakes hands they don't: a node whose own patience
    ends takes a link as lost, and dials anew. So nobody's patience ends here.
    """
    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", SLOW_S)
    a, b = FakeNode("a"), FakeNode("b")
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(run_network(world, a, gate=EAGER))
        other = await stack.enter_async_context(run_network(world, b, network.address))
        await asyncio.gather(a.wait_linked(), b.wait_linked())
        files = tuple(world.build_files(f"m{number}", f"mallory-{number % 3}") for number in range(6))
        flood = Flood(FloodPlan("127.0.0.1", network.transport.port, GENESIS, files))
        flooding = asyncio.create_task(flood.run())
        gate, downs = network.transport.gate, 0
        harmed = watch_gate(gate)
        try:
            await wait_until(lambda: flood.gained["connections tried"] >= CONNECTIONS, "all have tried")
            await wait_until(
                lambda: all(network.is_banned(f"m{number}") for number in range(6)), "the spammers are banned"
            )
            for number in range(40):
                # Honest work goes on: objects both ways, heartbeats, requests.
                sender, receiver = (a, b) if number % 2 else (b, a)
                object_id = sender.announce(Kind.TRANSACTION, f"honest {number}".encode() * 300)
                await receiver.wait_until(
                    lambda r=receiver, o=object_id: (Kind.TRANSACTION, o) in r.objects,  # type: ignore[misc]
                    60,
                )
                downs += sum(not peer.connected for peer in other.peers())
                downs += sum(not peer.connected for peer in network.peers() if peer.node_id == "b")
                assert len(gate) <= gate.limits.connections
                assert gate.handshakes <= gate.limits.handshakes
                assert all(
                    gate.count_organisation(f"mallory-{n}") <= gate.limits.per_organisation for n in range(3)
                )
                assert all(gate.count_address(source) <= gate.limits.per_address for source in SOURCES)
            late = HttpTransport("127.0.0.1", 0, world.build_files("late", "org-late"))
            stack.push_async_callback(late.stop)
            reply = await late.request(
                network.address,
                Route.STATUS,
                encode_message(other.build_hello()),
                max_reply=1000,
                timeout_s=30,
            )
            assert reply.status is Status.OK
        finally:
            flooding.cancel()
            await asyncio.wait((flooding,))
        assert harmed == []
        assert downs == 0
        assert not network.is_banned("b")
        assert {p.score for p in network.peers() if p.node_id == "b"} == {0.0}
        print(f"the attacker's account {dict(flood.gained)}, refusals {dict(gate.refused)}")
        # Once it is over the listener forgets it all.
        await wait_until(lambda: len(gate) <= 8, "hostile connections are gone")


async def test_new_connections_are_refused_beyond_the_rates(world: World) -> None:
    a = FakeNode("a")
    limits = GateLimits(address_rate=Rate(0.001, 3))
    async with run_network(world, a, gate=limits) as network:
        for _ in range(6):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", network.transport.port, local_addr=(SOURCES[0], 0)
            )
            writer.close()
            await reader.read()
        gate = network.transport.gate
        await wait_until(lambda: gate.refused[Refusal.ADDRESS_RATE] == 3, "the rate holds")
        client = HttpTransport("127.0.0.1", 0, world.build_files("b", "org-b"))
        try:
            # From another address all is well.
            reply = await client.request(network.address, Route.STATUS, b"", max_reply=1000, timeout_s=10)
            assert reply.status is Status.BAD
        finally:
            await client.stop()


async def open_silent(files: TlsFiles, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = build_client_context(files, lambda identity: None)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")


async def test_connections_without_requests_and_stuck_handshakes_are_closed(world: World) -> None:
    """What never begins TLS, what is silent after it, what is idle after a request, each after its time."""
    a = FakeNode("a")
    limits = GateLimits(handshake_s=0.5, first_request_s=1.0, idle_s=2.0)
    async with run_network(world, a, gate=limits) as network:
        port, gate = network.transport.port, network.transport.gate
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        assert gate.refused[Refusal.HANDSHAKE_TIME] <= 1
        files = world.build_files("b", "org-b")
        reader, writer = await open_silent(files, port)
        writer.write(b"POST /p2p/v1/status HTTP/1.1\r\nX: trickling header")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert gate.refused[Refusal.SILENT] == 1
        reader, writer = await open_silent(files, port)
        writer.write(b"POST /p2p/v1/status HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n\xc1")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        end = await reader.read()
        assert end == b""
        await wait_until(lambda: not len(gate), "all are gone")


async def test_connections_of_a_node_and_an_organisation_are_bounded(world: World) -> None:
    a = FakeNode("a")
    async with run_network(world, a, gate=GateLimits(per_node=2, per_organisation=3)) as network:
        port, gate = network.transport.port, network.transport.gate
        opened = []
        for name, org in (("m0", "m"), ("m0", "m"), ("m0", "m"), ("m1", "m"), ("m2", "m"), ("b", "b")):
            before = len(gate) + gate.refused.total()
            opened.append(await open_silent(world.build_files(name, org), port))
            await wait_until(
                lambda n=before: len(gate) + gate.refused.total() > n and not gate.handshakes,  # type: ignore[misc]
                "judged",
            )
        await wait_until(lambda: len(gate) == 4, "two were closed")
        assert gate.refused == {Refusal.NODE_FULL: 1, Refusal.ORGANISATION_FULL: 1}
        assert gate.count_organisation("m") == 3
        for _, writer in opened:
            writer.transport.abort()


async def test_a_banned_node_is_answered_before_its_body_is_read(world: World) -> None:
    a = FakeNode("a")
    async with run_network(world, a) as network:
        mallory = HttpTransport("127.0.0.1", 0, world.build_files("mallory", "m"))
        try:
            statuses = []
            for _ in range(5):
                reply = await mallory.request(
                    network.address, Route.STATUS, b"\xc1", max_reply=1000, timeout_s=10
                )
                statuses.append(reply.status)
            assert statuses == [Status.BAD] * 4 + [Status.FORBIDDEN]
            served: list[Route] = []

            async def serve(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
                served.append(route)
                return Reply(Status.OK)

            network.transport._service = serve
            reply = await mallory.request(
                network.address, Route.ANNOUNCE, bytes(1000), max_reply=1000, timeout_s=10
            )
            assert reply.status is Status.FORBIDDEN
            assert served == []
        finally:
            await mallory.stop()


async def test_a_reply_larger_than_asked_for_is_blamed(world: World) -> None:
    a = FakeNode("a")
    mallory = HttpTransport("127.0.0.1", 0, world.build_files("mallory", "m"))

    async def serve(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
        return Reply(Status.OK, bytes(5_000_000))

    await mallory.start(serve)
    try:
        async with run_network(world, a, mallory.address) as network:
            await wait_until(lambda: network.is_banned("mallory"), "she is banned")
            assert not any(peer.connected for peer in network.peers())
            with pytest.raises(TransportError):
                await network.request_hashes("mallory", 0, 1)
    finally:
        await mallory.stop()
