"""Full synchronising over real networks with real chains: proofs, forks, peers that vanish, stall or lie."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.voted_chain import VotedChain
from consensus.block import Block
from consensus.codec import decode, encode
from consensus.crypto import SigningKey, hash_domain
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.params import Validator
from consensus.payload import SetValidators
from consensus.types import Hash32, Millis
from consensus.vote import Checkpoint
from node.clock import ManualClock
from node.gossip.messages import FinalityReply, Kind, PeerStatus, SignedHeader
from node.sync.serving import ChainService
from tests.integration.peers import World
from tests.integration.syncing import (
    PAYERS,
    VALIDATORS,
    ChainNode,
    build_chain,
    build_trust,
    get_busy_peers,
    running,
    syncing,
)

LENGTH = 100
FILLED: dict[tuple[Hash32, Hash32], ChainNode] = {}
"""Ledgers that several tests use."""


@pytest.fixture(scope="module")
def source() -> VotedChain:
    return build_chain(LENGTH)


@pytest.fixture(scope="module")
def blocks(source: VotedChain) -> list[bytes]:
    return source.encoded


@pytest.fixture(params=["memory", "http"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param == "http")


@pytest.fixture
def memory(tmp_path: Path) -> World:
    return World(tmp_path, False)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def build_node(name: str, source: VotedChain, blocks: Sequence[bytes] = ()) -> ChainNode:
    if not blocks:
        return ChainNode(name, source.genesis)
    key = compute_chain_id(source.genesis), hash_domain("test", b"".join(blocks))
    if key not in FILLED:
        FILLED[key] = ChainNode("filled", source.genesis)
        FILLED[key].fill(blocks)
    return FILLED[key].copy(name)


def is_at(node: ChainNode, source: VotedChain, height: int = LENGTH) -> bool:
    return node.chain.head_hash == source.get_checkpoint(height).hash


# --- the honest way ---------------------------------------------------------------------------


async def test_from_nothing_with_several_peers(
    world: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    servers = [build_node(name, source, blocks) for name in "abc"]
    node = build_node("new", source)
    await stack.enter_async_context(running(world, *servers, node))
    begun = time.perf_counter()
    sync = await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))
    print(f"{LENGTH} blocks in {time.perf_counter() - begun:.2f} s")
    assert get_busy_peers(servers) == {"a", "b", "c"}
    assert [outcome.hash for outcome in node.taken] == [
        source.get_checkpoint(height).hash for height in range(1, LENGTH + 1)
    ]
    assert node.chain.head_state.root == source.state.root
    assert node.chain.finalized == servers[0].chain.finalized
    assert sync.progress.proved == servers[0].chain.finalized.height
    assert (sync.progress.height, sync.progress.target) == (LENGTH, LENGTH)
    assert not node.get_faults()


async def test_a_short_way_needs_no_proof(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a, node = build_node("a", source, blocks[:90]), build_node("new", source, blocks[:60])
    await stack.enter_async_context(running(memory, a, node))
    sync = await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source, 90))
    assert sync.progress.proved == 0
    for data in blocks[90:95]:
        a.fill([data])
    await node.wait_until(lambda: is_at(node, source, 95))


@pytest.mark.parametrize("fork", [0, 1, 39])
async def test_a_fork_without_finality_is_found_however_deep(
    memory: World, stack: AsyncExitStack, fork: int
) -> None:
    """Nobody votes, so the longer branch wins."""
    ours, theirs = build_chain(), build_chain()
    for chain, length in ((ours, 40), (theirs, 80)):
        for height in range(length):
            after = chain.genesis.params.idle_ms + (7 if chain is theirs and height >= fork else 0)
            chain.add(voters=(), after=after)
    a, node = build_node("a", theirs, theirs.encoded), build_node("new", ours, ours.encoded)
    await stack.enter_async_context(running(memory, a, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, theirs, 80))
    assert len(node.taken) == 80 - fork


async def test_sets_of_validators_change_on_the_way(memory: World, stack: AsyncExitStack) -> None:
    source = build_changing_chain(90)
    a, node = build_node("a", source, source.encoded), build_node("new", source)
    await stack.enter_async_context(running(memory, a, node))
    sync = await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source, 90))
    assert node.chain.head_state.get_validator_set().number == 2
    assert sync.progress.proved >= 88
    assert [change.target_set.validators.number for change in a.service.get_finality(0).changes] == [1, 2]


def build_changing_chain(length: int) -> VotedChain:
    """Two changes of set: one member leaves for another, then the other way round."""
    source = build_chain()
    members = [tuple(Validator(key.address, 100) for key in keys) for keys in (
        (*VALIDATORS[1:], PAYERS[0]), VALIDATORS)]  # fmt: skip
    for height in range(length):
        if height in (20, 50):
            source.add([source.govern(VALIDATORS[1], SetValidators(members[height == 50]))])
        else:
            source.add()
    return source


# --- peers that fail --------------------------------------------------------------------------


async def test_a_peer_that_stalls_does_not_stall_the_node(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    stalling, honest = build_node("a", source, blocks), build_node("b", source, blocks)
    node = build_node("new", source)
    await stack.enter_async_context(running(memory, stalling, honest, node))
    assert node.network is not None
    ask = node.network.request_objects
    forever = asyncio.Event()

    async def ask_or_stall(peer: str, kind: Kind, ids: tuple[Hash32, ...]):  # type: ignore[no-untyped-def]
        if peer == "a":
            await forever.wait()
        return await ask(peer, kind, ids)

    node.network.request_objects = ask_or_stall  # type: ignore[method-assign]
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))


async def test_a_peer_that_vanishes_midway_is_replaced(
    world: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a, b, node = build_node("a", source, blocks), build_node("b", source, blocks), build_node("new", source)
    vanishing = AsyncExitStack()
    network = await vanishing.enter_async_context(world.run(a))  # type: ignore[arg-type]
    network.serve_chain(a.service)
    network = await stack.enter_async_context(world.run(b))  # type: ignore[arg-type]
    network.serve_chain(b.service)
    await stack.enter_async_context(world.run(node, a, b))  # type: ignore[arg-type]
    await node.wait_linked(2)
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: len(node.taken) > 40)
    await vanishing.aclose()
    await node.wait_until(lambda: is_at(node, source))


async def test_bodies_that_nobody_holds_are_waited_for(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    """Peers from a snapshot lack old bodies, which is no fault."""
    a, node = build_node("a", source, blocks), build_node("new", source)
    old = {source.get_checkpoint(height).hash for height in range(1, 20)}
    is_pruned = True
    a.spoil = lambda block, data: None if is_pruned and block in old else data
    await stack.enter_async_context(running(memory, a, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: len(a.given) > 10)
    assert not node.taken
    is_pruned = False
    await node.wait_until(lambda: is_at(node, source))
    assert not node.get_faults()


# --- peers that lie ---------------------------------------------------------------------------


def spoil_body(data: bytes) -> bytes:
    """The same header over another body."""
    block = decode(Block, data)
    return encode(Block(block.header, block.signature, replace(block.body, votes=())))


@pytest.mark.parametrize("kind", ["another body", "garbage", "another block", "no signature"])
async def test_a_poisoned_body_costs_its_sender_alone(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes], kind: str
) -> None:
    liar, honest = build_node("a", source, blocks), build_node("b", source, blocks)
    node = build_node("new", source)
    unsigned = lambda data: encode(replace(decode(Block, data), signature=bytes(64)))  # noqa: E731
    spoils = {
        "another body": spoil_body,
        "garbage": lambda data: b"\x93" + data[:-1],
        "another block": lambda data: blocks[0] if data != blocks[0] else blocks[1],
        "no signature": unsigned,
    }
    liar.spoil = lambda block, data: spoils[kind](data)  # type: ignore[no-untyped-call]
    await stack.enter_async_context(running(memory, liar, honest, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))
    assert liar.given, "the liar was never asked"
    assert node.get_banned() == {"a"}
    assert set(node.get_faults()) == {"a"}


class Boaster(ChainService):
    """Claims a chain of headers that nobody else knows, as long as anybody asks for."""

    def __init__(self, chain, key: SigningKey) -> None:  # type: ignore[no-untyped-def]
        super().__init__(chain)
        self.key = key
        self.served = 0
        self.headers: list[SignedHeader] = []

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> list[SignedHeader]:
        headers = super().get_headers(from_height, count, signed=signed)
        while len(headers) < count:
            below = headers[-1].header if headers else self.headers[-1].header
            header = replace(
                below,
                height=type(below.height)(below.height + 1),
                parent=compute_block_hash(below),
                time=Millis(below.time + 1_500),
                proposer=self.key.address,
            )
            headers.append(SignedHeader(header, self.key.sign("block", compute_block_hash(header))))
        self.headers = headers
        self.served += len(headers)
        return headers


async def test_a_long_fake_chain_of_headers_costs_little(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    """A million claimed blocks: believed are no more than the peer's own signed window, and never stored."""
    liar, honest = build_node("a", source, blocks[:60]), build_node("b", source, blocks)
    boaster = liar.service = Boaster(liar.chain, SigningKey(b"m" * 32))
    status = liar.get_status()
    liar.get_status = lambda: PeerStatus(  # type: ignore[method-assign]
        status.chain_id, status.genesis, type(status.height)(10**6), Hash32(b"\x99" * 32), "boast"
    )
    node = build_node("new", source)
    await stack.enter_async_context(running(memory, liar, honest, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))
    await node.wait_until(lambda: boaster.served > 0)
    assert boaster.served < 8 * 512
    assert all(outcome.reason is None for outcome in node.taken)


class Forger(ChainService):
    """Serves proofs and headers that somebody spoiled."""

    def __init__(self, chain, change_proof=None, change_header=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(chain)
        self.change_proof = change_proof
        self.change_header = change_header

    def get_finality(self, set_number: int) -> FinalityReply:
        reply = super().get_finality(set_number)
        return self.change_proof(reply) if self.change_proof else reply

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> list[SignedHeader]:
        headers = super().get_headers(from_height, count, signed=signed)
        return self.change_header(headers) if self.change_header else headers


async def test_a_forged_finality_proof_is_blamed(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    liar, honest = build_node("a", source, blocks), build_node("b", source, blocks)
    node = build_node("new", source)

    def forge(reply: FinalityReply) -> FinalityReply:
        assert reply.proof is not None
        return FinalityReply((), replace(reply.proof, votes=reply.proof.votes[:1]))

    liar.service = Forger(liar.chain, change_proof=forge)
    await stack.enter_async_context(running(memory, liar, honest, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))
    assert set(node.get_faults()) == {"a"}


async def test_headers_that_lead_elsewhere_are_blamed(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    """Linked among themselves, but not what the proved header names."""
    other = build_chain()
    for _ in range(LENGTH):
        other.add(after=other.genesis.params.idle_ms + 7)
    liar, honest = build_node("a", source, blocks), build_node("b", source, blocks)
    node = build_node("new", source)

    def forge(headers: list[SignedHeader]) -> list[SignedHeader]:
        return [SignedHeader(other.get_header(signed.header.height), signed.signature) for signed in headers]

    liar.service = Forger(liar.chain, change_header=forge)
    await stack.enter_async_context(running(memory, liar, honest, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source))
    assert "b" not in node.get_faults()


async def test_an_invalid_block_stops_and_another_peer_is_followed(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    """A branch that breaks a rule of the state: only whoever claims it is blamed."""
    liar, honest = build_node("a", source, blocks[:30]), build_node("b", source, blocks[:55])
    bad = forge_branch(source, 30, 30)
    liar.service = Branch(liar.chain, 30, bad)
    hashes = {compute_block_hash(block.header): encode(block) for block in bad}
    liar.get_object = lambda kind, block: hashes.get(block) or liar.chain.ledger.get_block(block)  # type: ignore[method-assign]
    status = liar.get_status()
    top = compute_block_hash(bad[-1].header)
    liar.get_status = lambda: PeerStatus(  # type: ignore[method-assign]
        status.chain_id, status.genesis, bad[-1].header.height, top, "test"
    )
    node = build_node("new", source)
    await stack.enter_async_context(running(memory, liar, honest, node))
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: is_at(node, source, 55))
    assert set(node.get_faults()) == {"a"}


class Branch(ChainService):
    def __init__(self, chain, fork: int, blocks: Sequence[Block]) -> None:  # type: ignore[no-untyped-def]
        super().__init__(chain)
        self.fork = fork
        self.blocks = blocks

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> list[SignedHeader]:
        headers = super().get_headers(from_height, count, signed=signed)
        wanted = range(max(self.fork + 1, from_height), from_height + count)
        return headers + [
            SignedHeader(block.header, block.signature)
            for block in self.blocks
            if block.header.height in wanted
        ]


def forge_branch(source: VotedChain, fork: int, length: int) -> list[Block]:
    """Empty blocks signed by somebody without a turn, with a state root of his own."""
    key, below, forged = SigningKey(b"m" * 32), source.get_header(fork), []
    empty = source.blocks[0]
    for _ in range(length):
        header = replace(
            below,
            height=type(below.height)(below.height + 1),
            parent=compute_block_hash(below),
            time=Millis(below.time + 1_600),
            proposer=key.address,
            transactions_root=empty.header.transactions_root,
            votes_root=empty.header.votes_root,
            work_root=empty.header.work_root,
        )
        forged.append(Block(header, key.sign("block", compute_block_hash(header)), empty.body))
        below = header
    return forged


# --- trust ------------------------------------------------------------------------------------


async def test_trust_that_is_too_old_may_be_refused(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a, node = build_node("a", source, blocks), build_node("new", source)
    await stack.enter_async_context(running(memory, a, node))
    trust = build_trust(node, refuses_stale=True)
    await stack.enter_async_context(syncing(node, trust))
    with pytest.raises(Exception, match="trusted_checkpoint"):
        await trust.refresh(["a"])
    assert node.chain.head.height == 0


async def test_a_checkpoint_of_the_operator_is_trusted_at_any_age(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a, node = build_node("a", source, blocks), build_node("new", source)
    await stack.enter_async_context(running(memory, a, node))
    trust = build_trust(node, source.get_checkpoint(80), refuses_stale=True)
    await stack.enter_async_context(syncing(node, trust))
    await node.wait_until(lambda: is_at(node, source))


async def test_a_chain_without_the_operators_checkpoint_is_not_followed(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a, node = build_node("a", source, blocks), build_node("new", source, blocks[:50])
    await stack.enter_async_context(running(memory, a, node))
    wrong = Checkpoint(source.get_checkpoint(80).height, Hash32(b"\x42" * 32))
    with pytest.raises(Exception, match="no peer holds"):
        await build_trust(node, wrong).refresh(["a"])
    wrong = Checkpoint(source.get_checkpoint(20).height, Hash32(b"\x42" * 32))
    with pytest.raises(Exception, match="correct the setting"):
        await build_trust(node, wrong).refresh(["a"])


async def test_conflicting_finality_stops_everything(memory: World, stack: AsyncExitStack) -> None:
    """All validators sign two chains: nobody can say which is right, and the node says so."""
    first, second = build_chain(30), build_chain(20)
    for _ in range(80):
        second.add(after=second.genesis.params.idle_ms + 7)
    a, node = build_node("a", second, second.encoded), build_node("new", first, first.encoded)
    await stack.enter_async_context(running(memory, a, node))
    trust = build_trust(node)
    await stack.enter_async_context(syncing(node, trust))
    await node.wait_until(lambda: trust.conflict is not None)
    assert node.chain.head_hash == first.get_checkpoint(30).hash


async def test_a_block_of_the_future_is_waited_for(
    memory: World, stack: AsyncExitStack, source: VotedChain, blocks: list[bytes]
) -> None:
    a = build_node("a", source, blocks[:40])
    clock = ManualClock(source.get_header(20).time)
    node = ChainNode("new", source.genesis, clock=clock)
    node.clock = memory.clock
    await stack.enter_async_context(running(memory, a, node))
    sync = await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: node.chain.head.height == 20 and len(node.taken) > 20)
    clock.advance(3_600)
    node.chain.on_tick()
    sync.poke()
    await node.wait_until(lambda: is_at(node, source, 40))
