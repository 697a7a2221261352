"""New nodes from snapshots: over real networks, past crashes and liars; what such a node can and can't do."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sync_speed import run_both
from benchmarks.voted_chain import VotedChain
from consensus.block import Block
from consensus.codec import encode
from consensus.identifiers import compute_block_hash
from consensus.task import Transfer
from consensus.types import Amount, Hash32, Millis
from node.chain import ImportStatus
from node.gossip.limits import Fault
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.ledger.store import KeyValueStore, MemoryStore, StoreError
from node.sync.serving import ChainService
from node.sync.snapshot import TARGET_RECORD
from node.sync.state import verify_nodes
from tests.integration.peers import World
from tests.integration.rig import find_free_ports
from tests.integration.syncing import (
    PAYERS,
    ChainNode,
    build_chain,
    build_snapshot,
    build_trust,
    running,
    syncing,
)

LENGTH = 120
SEED = 20_261_122


@pytest.fixture(scope="module")
def source() -> VotedChain:
    """With more state than one reply carries, none of it that of genesis."""
    chain = build_chain()
    for height in range(LENGTH):
        payers = PAYERS[4 * height : 4 * height + 4]
        chain.add([chain.sign(payer, Transfer(payers[0].address, Amount(7 + height))) for payer in payers])
    return chain


@pytest.fixture(scope="module")
def filled(source: VotedChain) -> ChainNode:
    node = ChainNode("filled", source.genesis)
    node.fill(source.encoded)
    return node


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


@pytest.fixture(autouse=True)
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small state takes many of them."""
    monkeypatch.setattr("node.sync.serving.MAX_NODES", 20)
    monkeypatch.setattr("node.sync.state.NODES_A_JOB", 4)


async def test_a_snapshot_and_then_the_chain(
    world: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode, tmp_path: Path
) -> None:
    servers = [filled.copy(name) for name in "abc"]
    store = LevelStore(tmp_path / "ledger")
    stack.callback(store.close)
    node = ChainNode("new", source.genesis, store)
    await stack.enter_async_context(running(world, *servers, node))
    snapshot = build_snapshot(node)
    assert await snapshot.run()
    base = node.chain.head.height
    assert base >= LENGTH - 3
    assert (node.chain.ledger.base, node.chain.finalized.height) == (base, base)
    assert node.chain.head_state.root == source.states[base].root
    assert check_ledger(node.chain.ledger) == []
    # Everything but old bodies is there.
    for height in (1, 2, base // 2, base - 1):
        block = source.get_checkpoint(height)
        assert node.chain.get_hash_by_height(height) == block.hash
        assert node.chain.get_header(block.hash) == source.get_header(height)
        assert node.chain.get_block(block.hash) is None
        assert not node.chain.has_state(block.hash)
    assert not node.chain.ledger.get_record(TARGET_RECORD)
    # It goes on as a full node: judges what follows, starts again, and serves others.
    await stack.enter_async_context(syncing(node))
    await node.wait_until(lambda: node.chain.head_hash == source.head.hash)
    assert not node.get_faults()
    again = ChainNode("again", source.genesis, store)
    assert again.chain.head_hash == source.head.hash
    assert again.service.prover.get_proof() is not None


async def test_a_second_node_from_the_first_ones_snapshot(
    memory: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode
) -> None:
    """Proofs, headers and state are served by a node that never held the old bodies."""
    a, node = filled.copy("a"), ChainNode("new", source.genesis)
    first = AsyncExitStack()
    await first.enter_async_context(running(memory, a, node))
    assert await build_snapshot(node).run()
    await first.aclose()
    node.network = None
    third = ChainNode("third", source.genesis)
    await stack.enter_async_context(running(memory, node, third))
    assert await build_snapshot(third).run()
    assert third.chain.head_hash == node.chain.head_hash
    # In full it can't be: old bodies are with nodes that were there.
    fourth = ChainNode("fourth", source.genesis)
    await stack.enter_async_context(memory.run(fourth, node))  # type: ignore[arg-type]
    await fourth.wait_linked()
    async with syncing(fourth):
        await fourth.wait_until(lambda: len(node.given) > 3)
    assert fourth.chain.head.height == 0
    assert not fourth.get_faults()


async def test_a_node_with_a_chain_takes_no_snapshot(
    memory: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode
) -> None:
    a, node = filled.copy("a"), ChainNode("new", source.genesis)
    node.fill(source.encoded[:3])
    await stack.enter_async_context(running(memory, a, node))
    assert not await build_snapshot(node).run()


async def test_a_young_chain_has_none(memory: World, stack: AsyncExitStack, source: VotedChain) -> None:
    a, node = ChainNode("a", source.genesis), ChainNode("new", source.genesis)
    a.fill(source.encoded[:1])
    await stack.enter_async_context(running(memory, a, node))
    assert not await build_snapshot(node).run()
    assert not build_snapshot(node).is_begun


async def test_a_snapshot_from_the_operators_checkpoint(
    memory: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode
) -> None:
    a, node = filled.copy("a"), ChainNode("new", source.genesis)
    await stack.enter_async_context(running(memory, a, node))
    trust = build_trust(node, source.get_checkpoint(70), refuses_stale=True)
    assert await build_snapshot(node, trust).run()
    assert node.chain.head.height >= LENGTH - 3


# --- liars ------------------------------------------------------------------------------------


class Poisoner(ChainService):
    """Serves one state node that is not what was asked for, among right ones."""

    def __init__(self, chain, spoil) -> None:  # type: ignore[no-untyped-def]
        super().__init__(chain)
        self.spoil = spoil
        self.replies = 0

    def get_state_nodes(self, nodes: Sequence[Hash32]) -> list[bytes]:
        self.replies += 1
        return self.spoil(super().get_state_nodes(nodes), self.replies)


SPOILS = {
    "a flipped bit": lambda found, _: [*found[:-1], found[-1][:-1] + bytes([found[-1][-1] ^ 1])],
    "a node of elsewhere": lambda found, _: [*found, b"\x00" + bytes(40)],
    "a node twice": lambda found, _: [*found, found[-1]],
    "garbage": lambda found, _: [b"", *found],
    "only late": lambda found, number: found if number < 3 else [*found, b"\x01" * 66],
}


@pytest.mark.parametrize("spoil", SPOILS)
async def test_a_poisoned_chunk_is_refused_and_its_sender_banned(
    memory: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode, spoil: str
) -> None:
    liar, honest, node = filled.copy("a"), filled.copy("b"), ChainNode("new", source.genesis)
    service = liar.service = Poisoner(liar.chain, SPOILS[spoil])
    await stack.enter_async_context(running(memory, liar, honest, node))
    assert await build_snapshot(node).run()
    assert service.replies
    assert node.get_banned() == {"a"}
    assert node.chain.head_state.root == source.states[node.chain.head.height].root
    assert check_ledger(node.chain.ledger) == []


async def test_a_peer_that_never_answers_stalls_nothing(
    memory: World, stack: AsyncExitStack, source: VotedChain, filled: ChainNode
) -> None:
    a, b, node = filled.copy("a"), filled.copy("b"), ChainNode("new", source.genesis)
    await stack.enter_async_context(running(memory, a, b, node))
    network = node.network
    assert network is not None
    forever = asyncio.Event()
    for name in ("request_state", "request_headers", "request_objects"):
        ask = getattr(network, name)

        async def ask_or_stall(peer: str, *args: object, ask=ask, **more: object):  # type: ignore[no-untyped-def]
            if peer == "a":
                await forever.wait()
            return await ask(peer, *args, **more)

        setattr(network, name, ask_or_stall)
    assert await build_snapshot(node).run()
    assert not node.get_faults()


def test_only_what_is_named_is_accepted(filled: ChainNode) -> None:
    class Judge:
        def __init__(self) -> None:
            self.faults: list[tuple[str, Fault]] = []

        def report(self, node_id: str, fault: Fault, detail: str) -> None:
            self.faults.append((node_id, fault))

    root = filled.chain.head.state_root
    nodes = filled.service.get_state_nodes((root,))
    judge = Judge()
    accepted, wanted = verify_nodes(judge, "a", (root,), nodes)  # type: ignore[arg-type]
    assert set(accepted).isdisjoint(wanted)
    assert len(accepted) == len(nodes)
    with pytest.raises(Exception, match="nothing names"):
        verify_nodes(judge, "a", (wanted[0],), nodes)  # type: ignore[arg-type]
    assert judge.faults == [("a", Fault.POISONED)]


# --- crashes ----------------------------------------------------------------------------------


class DyingStore:
    """A store whose process dies before or after one of its batches."""

    def __init__(self, store: MemoryStore, at: int, is_before: bool) -> None:
        self._store, self._left, self._is_before = store, at, is_before
        self.batches = 0

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def iterate(self, prefix: bytes):  # type: ignore[no-untyped-def]
        return self._store.iterate(prefix)

    def write_batch(self, puts, deletes=(), sync: bool = True) -> None:  # type: ignore[no-untyped-def]
        self.batches += 1
        self._left -= 1
        if not self._left and self._is_before:
            raise StoreError("dead")
        self._store.write_batch(puts, deletes, sync)
        if not self._left:
            raise StoreError("dead")

    def close(self) -> None:
        pass


async def take(world: World, source: VotedChain, server: ChainNode, store: KeyValueStore) -> ChainNode:
    node = ChainNode("new", source.genesis, store)
    async with running(world, server, node):
        assert node.chain.head.height or await build_snapshot(node).run()
    return node


async def test_a_crash_at_any_batch_is_gone_on_from(
    tmp_path: Path, source: VotedChain, filled: ChainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever came is kept, and the result is that of a node that never died."""
    monkeypatch.setattr("node.ledger.snapshot.HEADERS_AT_ONCE", 16)
    monkeypatch.setattr("node.sync.headers.MAX_HEADERS", 16)
    server = filled.copy("a")
    counting = DyingStore(MemoryStore(), 0, False)
    whole = await take(World(tmp_path, False), source, server, counting)
    rng = random.Random(SEED)
    last = counting.batches
    assert last > 20
    chosen = sorted({2, 3, *rng.sample(range(4, last - 2), 5), last - 2, last - 1, last})
    print(f"seed {SEED}: batches {chosen} of {counting.batches}")
    for at in chosen:
        for is_before in (True, False):
            store = MemoryStore()
            with pytest.raises((StoreError, ExceptionGroup)):
                await take(World(tmp_path, False), source, server, DyingStore(store, at, is_before))
            held = sum(1 for _ in store.iterate(b"n"))
            again = ChainNode("new", source.genesis, store)
            assert sum(1 for _ in again.store.iterate(b"n")) == held
            node = await take(World(tmp_path, False), source, server, store)
            assert node.chain.head_hash == whole.chain.head_hash
            assert node.chain.head_state.root == whole.chain.head_state.root
            assert list(store.iterate(b"")) == list(counting.iterate(b""))
            assert check_ledger(node.chain.ledger) == []


async def test_a_node_goes_on_with_what_it_has(memory: World, source: VotedChain, filled: ChainNode) -> None:
    """After a crash only what is missing is asked for."""
    given: list[bytes] = []

    class Noting(ChainService):
        def get_state_nodes(self, nodes: Sequence[Hash32]) -> list[bytes]:
            found = super().get_state_nodes(nodes)
            given.extend(found)
            return found

    server = filled.copy("a")
    server.service = Noting(server.chain)
    store = MemoryStore()
    with pytest.raises((StoreError, ExceptionGroup)):
        await take(memory, source, server, DyingStore(store, 9, False))
    # What genesis has of it too comes again below a branch that it has not.
    genesis = {value for _, value in ChainNode("fresh", source.genesis).store.iterate(b"n")}
    held = {value for _, value in store.iterate(b"n")} - genesis
    assert len(held) > 100
    given.clear()
    await take(memory, source, server, store)
    assert given
    assert held.isdisjoint(given)


async def test_blocks_are_refused_that_lie_below_the_snapshot(
    memory: World, source: VotedChain, filled: ChainNode
) -> None:
    node = await take(memory, source, filled.copy("a"), MemoryStore())
    block = source.blocks[30]
    header = replace(block.header, time=Millis(block.header.time + 7))
    signature = source.keys[header.proposer].sign("block", compute_block_hash(header))
    outcome = node.chain.submit(encode(Block(header, signature, block.body)))
    assert outcome.status is ImportStatus.INVALID
    assert not outcome.peer_at_fault


# --- whole nodes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_new_processes_come_to_the_head_in_full_and_by_snapshot(tmp_path: Path) -> None:
    """As `bmif run` does it with `sync: full` and with `sync: snapshot`."""
    full, snapshot = run_both(tmp_path / "net", find_free_ports(12), 100)
    print(full, snapshot)
    assert snapshot.received < full.received
