"""Nodes find each other from one seed, come back after a restart, and remember whom not to dial.

In memory, on a clock that only moves when told to; discovery and links are the real ones.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from consensus.types import Hash32, Height
from node.clock import ManualClock
from node.gossip.addresses import AddressPolicy
from node.gossip.bookfile import MemoryPeerStore, PeerStore, decode_peers
from node.gossip.discovery import DiscoveryConfig, DiscoveryTimes
from node.gossip.handshake import HandshakeReason
from node.gossip.limits import Fault, NetworkLimits
from node.gossip.links import LinkTimes
from node.gossip.messages import (
    MAX_ADDRESSES,
    Hello,
    PeersReply,
    PeersRequest,
    PeerStatus,
    Route,
    decode_message,
    encode_message,
)
from node.gossip.network import Network, NetworkConfig
from node.gossip.selection import LinkKind, SlotLimits
from node.gossip.transport import IdentifiedReply, MemoryHub, MemoryTransport, Status, TransportError
from node.tls import PeerIdentity
from tests.integration.peers import GENESIS, FakeNode

SEED = 20_240_611
TIMES = LinkTimes(heartbeat_s=20, least_beat_s=0.1)
DISCOVERY_TIMES = DiscoveryTimes(tick_s=1, ask_s=60, feeler_s=15, save_s=60)
SLOTS = SlotLimits(links=16, chosen=5)


class CountingTransport(MemoryTransport):
    """Remembers whom it asked how often."""

    def __init__(self, hub: MemoryHub, address: str, identity: PeerIdentity) -> None:
        super().__init__(hub, address, identity)
        self.dialled: Counter[str] = Counter()

    async def request(
        self, address: str, route: Route, body: bytes, *, max_reply: int, timeout_s: float
    ) -> IdentifiedReply:
        self.dialled[address] += 1
        return await super().request(address, route, body, max_reply=max_reply, timeout_s=timeout_s)


class Town:
    """Nodes of several organisations, `n<i>.org<j>.test:1`, and what they know at first."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hub = MemoryHub()
        self.rng = random.Random(SEED)
        print(f"seed {SEED}")

    @asynccontextmanager
    async def run(
        self,
        name: str,
        organisation: str,
        *,
        seeds: tuple[str, ...] = (),
        peers: tuple[str, ...] = (),
        store: PeerStore | None = None,
        slots: SlotLimits = SLOTS,
        policy: AddressPolicy | None = None,
        handlers: FakeNode | None = None,
        discovers: bool = True,
    ) -> AsyncIterator[Network]:
        address = f"{name}.{organisation}.test:1"
        transport = CountingTransport(self.hub, address, PeerIdentity(name, organisation))
        discovery = DiscoveryConfig(seeds, policy or AddressPolicy(), times=DISCOVERY_TIMES)
        network = Network(
            NetworkConfig(
                peers, NetworkLimits(slots=slots), TIMES, discovery=discovery if discovers else None
            ),
            transport,
            handlers or FakeNode(name),
            self.clock,
            peer_store=store,
            rng=random.Random(self.rng.random()),
        )
        await network.start()
        try:
            yield network
        finally:
            await network.stop()

    async def wait(self, condition: Callable[[], bool], what: str, most_s: float = 600) -> float:
        """Simulated seconds until the condition holds."""
        start = self.clock.monotonic()
        while not condition():
            assert self.clock.monotonic() - start < most_s, f"{what}: not within {most_s} s"
            await self.clock.run_for(1, turns=20)
        return self.clock.monotonic() - start


@pytest.fixture
def town() -> Town:
    return Town()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def get_linked(network: Network, *kinds: LinkKind) -> list[str]:
    return [view.node_id for view in network.get_views() if view.is_up and (not kinds or view.kind in kinds)]


def get_dialled(network: Network) -> Counter[str]:
    transport = network._transport
    assert isinstance(transport, CountingTransport)
    return transport.dialled


def get_book(network: Network) -> set[str]:
    assert network.discovery is not None
    return {entry.address for entry in network.discovery.book}


async def ask_peers(transport: MemoryTransport, address: str) -> IdentifiedReply:
    body = encode_message(PeersRequest(GENESIS))
    return await transport.request(address, Route.PEERS, body, max_reply=20_000, timeout_s=5)


async def test_from_one_seed_everybody_finds_peers_of_many_organisations(
    town: Town, stack: AsyncExitStack
) -> None:
    seed = "n0.org0.test:1"
    networks = [await stack.enter_async_context(town.run("n0", "org0"))]
    for number in range(1, 12):
        run = town.run(f"n{number}", f"org{number % 6}", seeds=(seed,))
        networks.append(await stack.enter_async_context(run))
    took = await town.wait(lambda: all(len(get_linked(n)) >= 5 for n in networks), "all find five peers")
    print(f"12 nodes have 5 links each after {took:.0f} s")
    for network in networks:
        organisations = Counter(v.organisation for v in network.get_views() if v.kind is LinkKind.CHOSEN)
        assert all(count <= SLOTS.per_organisation for count in organisations.values())
        assert len({v.node_id for v in network.get_views() if v.is_up}) == len(get_linked(network))
    await town.wait(lambda: all(len(get_book(n)) >= 8 for n in networks), "addresses spread")
    # A node tells only what answered itself.
    for network in networks[:3]:
        assert network.discovery is not None
        tried = {entry.address for entry in network.discovery.book if entry.is_tried}
        assert set(network.get_addresses()) <= tried


async def test_after_a_restart_the_last_good_peers_are_dialled_first(
    town: Town, stack: AsyncExitStack
) -> None:
    seed_stack = await stack.enter_async_context(AsyncExitStack())
    seed = await seed_stack.enter_async_context(town.run("n0", "org0"))
    networks = [
        await stack.enter_async_context(town.run(f"n{n}", f"org{n}", seeds=(seed.address,)))
        for n in range(1, 7)
    ]
    store = MemoryPeerStore()
    async with town.run("me", "org-me", seeds=(seed.address,), store=store) as me:
        await town.wait(lambda: len(get_linked(me)) >= 4, "links")
    stored = decode_peers(store.data)
    assert stored is not None
    assert stored.anchors
    known = {network.address for network in networks}
    await seed_stack.aclose()
    async with town.run("me", "org-me", store=store) as again:
        await town.clock.run_for(0.05, turns=20)
        # Before discovery's first look at its book.
        assert set(get_dialled(again)) >= set(stored.anchors)
        alive = [address for address in stored.anchors if address in known]
        await town.wait(lambda: len(get_linked(again)) >= len(alive), "the anchors are back", 5)
        assert again.discovery is not None
        assert again.discovery.book.secret == stored.secret


@pytest.mark.parametrize("reason", ["CHAIN", "GENESIS", "PROTOCOL", "SELF"])
async def test_whom_the_handshake_refuses_is_named_and_not_dialled_again_at_once(
    town: Town, stack: AsyncExitStack, reason: str
) -> None:
    expected = HandshakeReason[reason]
    me = await stack.enter_async_context(town.run("me", "org-me"))

    class Other(FakeNode):
        def get_status(self) -> PeerStatus:
            genesis = Hash32(b"\x99" * 32) if reason == "GENESIS" else self.chain_id
            return PeerStatus(self.chain_id, genesis, Height(0), self.chain[-1], "test")

    if reason == "SELF":
        # Its own node answers at an address that it does not know to be its own.
        alias = CountingTransport(town.hub, "alias.test:1", me.identity)
        await alias.start(me._server.serve)
        stack.push_async_callback(alias.stop)
        address = alias.address
    else:
        chain = Hash32(b"\x77" * 32) if reason == "CHAIN" else GENESIS
        other = await stack.enter_async_context(
            town.run("other", "org-other", handlers=Other("other", chain), discovers=False)
        )
        if reason == "PROTOCOL":
            honest = other.build_hello

            def build_hello() -> Hello:
                return replace(honest(), protocol=99)

            other.build_hello = build_hello  # type: ignore[method-assign]
        address = other.address
    assert me.discovery is not None
    me.discovery.book.add(address, "somebody")
    dialled = get_dialled(me)
    await town.wait(
        lambda: me.discovery is not None and me.discovery.get_refusal(address) is expected, "refused"
    )
    assert address not in get_book(me)
    count = dialled[address]
    assert count <= 2
    me.discovery.book.add(address, "somebody else")
    await town.clock.run_for(300, turns=20)
    assert dialled[address] == count
    assert get_linked(me) == []


async def test_a_refused_configured_peer_is_tried_again_later_and_shown_with_the_reason(
    town: Town, stack: AsyncExitStack
) -> None:
    stranger = FakeNode("other", Hash32(b"\x77" * 32))
    other = await stack.enter_async_context(town.run("other", "org", handlers=stranger, discovers=False))
    me = await stack.enter_async_context(town.run("me", "org-me", peers=(other.address,), discovers=False))
    await town.wait(lambda: me.peers()[0].refusal is HandshakeReason.CHAIN, "the reason is shown")
    dialled = get_dialled(me)
    count = dialled[other.address]
    await town.clock.run_for(TIMES.refused_s - 5, turns=20)
    assert dialled[other.address] == count
    await town.clock.run_for(10, turns=20)
    assert dialled[other.address] == count + 1
    # The other side has named it too.
    assert [p.refusal for p in other.peers() if p.node_id == "me"] == [HandshakeReason.CHAIN]


async def test_told_addresses_are_checked_before_anything_is_dialled(
    town: Town, stack: AsyncExitStack
) -> None:
    """A chosen peer tells of addresses where a request forged through us would do harm."""
    bad = ("127.0.0.1:22", "169.254.169.254:80", "0.0.0.0:1", "224.0.0.1:1", "h:0", "u@h:1", "0x7f.1:80")
    told = (*bad, "10.0.0.1:8102", "unknown.example.org:8102")
    mallory = await stack.enter_async_context(town.run("mallory", "org-m"))
    mallory.get_addresses = lambda: told  # type: ignore[method-assign]
    policy = AddressPolicy(allow_private=False)
    me = await stack.enter_async_context(town.run("me", "org-me", seeds=(mallory.address,), policy=policy))
    await town.wait(lambda: "unknown.example.org:8102" in get_dialled(me), "the good one is tried")
    await town.clock.run_for(120, turns=20)
    assert set(get_dialled(me)) == {mallory.address, "unknown.example.org:8102"}
    assert mallory.address in get_book(me)
    assert not get_book(me) & set(told[:-1])


async def test_who_tells_too_many_addresses_is_at_fault(town: Town, stack: AsyncExitStack) -> None:
    mallory = await stack.enter_async_context(town.run("mallory", "org-m"))
    many = tuple(f"h{n}.test:1" for n in range(MAX_ADDRESSES + 1))
    mallory.get_addresses = lambda: many  # type: ignore[method-assign]
    me = await stack.enter_async_context(town.run("me", "org-me", seeds=(mallory.address,)))
    await town.wait(
        lambda: any(p.node_id == "mallory" and p.score >= Fault.MALFORMED.points - 1 for p in me.peers()),
        "she is blamed",
    )
    assert get_book(me) == {mallory.address}


async def test_asking_for_addresses_is_limited_by_rate_and_size(town: Town, stack: AsyncExitStack) -> None:
    me = await stack.enter_async_context(town.run("me", "org-me"))
    assert me.discovery is not None
    for number in range(400):
        name = f"n{number}"
        me.discovery.book.on_good(f"{name}.o{number}.test:1", name, f"o{number}", town.clock.now_ms())
    asker = town.hub.build_transport("asker:1", PeerIdentity("asker", "o"))
    replies = [await ask_peers(asker, me.address) for _ in range(8)]
    assert [reply.status for reply in replies] == [Status.OK] * 4 + [Status.BUSY] * 4
    for reply in replies[:4]:
        assert len(decode_message(PeersReply, reply.body).addresses) == MAX_ADDRESSES


async def test_greeters_fill_their_own_slots_only(town: Town, stack: AsyncExitStack) -> None:
    """Forty nodes of one organisation dial a node with eight slots: the chosen and the honest links stay."""
    slots = SlotLimits(links=8, chosen=3, protected=1)
    honest = [await stack.enter_async_context(town.run(f"h{n}", f"org{n}")) for n in range(3)]
    me = await stack.enter_async_context(
        town.run("me", "org-me", seeds=tuple(n.address for n in honest), slots=slots)
    )
    await town.wait(lambda: len(get_linked(me)) == 3, "the chosen links are up")
    early = await stack.enter_async_context(
        town.run("early", "org-early", peers=(me.address,), discovers=False)
    )
    await town.wait(lambda: "early" in get_linked(me), "an honest peer dials in")
    for number in range(40):
        run = town.run(f"m{number}", "org-m", peers=(me.address,), discovers=False)
        await stack.enter_async_context(run)
    await town.clock.run_for(60, turns=20)
    late = await stack.enter_async_context(town.run("late", "org-late", peers=(me.address,), discovers=False))
    await town.wait(lambda: "late" in get_linked(me), "another honest peer gets in")
    linked = get_linked(me)
    assert {"h0", "h1", "h2", "early", "late"} <= set(linked)
    assert len(linked) <= slots.links
    assert sorted(get_linked(me, LinkKind.CHOSEN, LinkKind.SEED)) == ["h0", "h1", "h2"]
    assert early.identity.node_id != late.identity.node_id


async def test_a_peer_that_dialled_us_may_become_one_of_our_choice(town: Town, stack: AsyncExitStack) -> None:
    me = await stack.enter_async_context(town.run("me", "org-me"))
    await stack.enter_async_context(town.run("early", "org-e", peers=(me.address,), discovers=False))
    await town.wait(lambda: get_linked(me, LinkKind.CHOSEN) == ["early"], "the book has drawn it")
    assert me.is_chosen("early")
    assert me._gossip._peers["early"].is_chosen


async def test_links_without_use_are_tested_by_feelers(town: Town, stack: AsyncExitStack) -> None:
    slots = SlotLimits(links=8, chosen=1)
    first = await stack.enter_async_context(town.run("h0", "org0"))
    me = await stack.enter_async_context(town.run("me", "org-me", seeds=(first.address,), slots=slots))
    await town.wait(lambda: get_linked(me) == ["h0"], "linked")
    others = [await stack.enter_async_context(town.run(f"h{n}", f"org{n}")) for n in range(1, 4)]
    assert me.discovery is not None
    book = me.discovery.book
    for other in others:
        book.add(other.address, "org0")

    def is_all_tried() -> bool:
        return {entry.address for entry in book if entry.is_tried} >= {n.address for n in others}

    await town.wait(is_all_tried, "feelers have found all")
    assert len(get_linked(me, LinkKind.CHOSEN, LinkKind.SEED)) == 1


async def test_bans_survive_a_restart(town: Town, stack: AsyncExitStack) -> None:
    mallory = await stack.enter_async_context(town.run("mallory", "org-m"))
    store = MemoryPeerStore()
    async with town.run("me", "org-me", seeds=(mallory.address,), store=store) as me:
        await town.wait(lambda: get_linked(me) == ["mallory"], "linked")
        for _ in range(4):
            me.report("mallory", Fault.MALFORMED, "test")
        assert me.is_banned("mallory")
    async with town.run("me", "org-me", seeds=(mallory.address,), store=store) as again:
        await town.clock.run_for(60, turns=20)
        assert again.is_banned("mallory")
        assert get_linked(again) == []
        await town.clock.run_for(NetworkLimits().ban_s, turns=20)
        assert not again.is_banned("mallory")
        await town.wait(lambda: get_linked(again) == ["mallory"], "the ban is over", 900)


async def test_a_node_without_discovery_tells_nobody(town: Town, stack: AsyncExitStack) -> None:
    me = await stack.enter_async_context(town.run("me", "org-me", discovers=False))
    asker = town.hub.build_transport("asker:1", PeerIdentity("asker", "o"))
    reply = await ask_peers(asker, me.address)
    assert decode_message(PeersReply, reply.body) == PeersReply(())
    with pytest.raises(TransportError):
        await ask_peers(asker, "nobody:1")
    await asyncio.sleep(0)
