"""Synchronising over real networks: from nothing, over a fork, past peers that vanish or lie."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from consensus.types import Hash32
from node.gossip.messages import Kind
from node.sync import Synchroniser
from tests.integration.peers import GENESIS, FakeNode, World, build_blocks, compute_id

BLOCK = Kind.BLOCK


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


def build_node(name: str, blocks: list[bytes]) -> FakeNode:
    node = FakeNode(name)
    for block in blocks:
        assert node.add_block(block)
    return node


@asynccontextmanager
async def syncing(node: FakeNode, world: World, patience_s: float = 30.0) -> AsyncIterator[Synchroniser]:
    assert node.network is not None
    sync = Synchroniser(node.network, node, world.clock, idle_s=0.3, batch=64, patience_s=patience_s)
    task = asyncio.create_task(sync.run())
    try:
        yield sync
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_at(node: FakeNode, block: bytes) -> bool:
    return node.chain[-1] == compute_id(block)


async def test_a_thousand_blocks_from_nothing(world: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(1000, size=2500)
    a, b = build_node("a", blocks), FakeNode("b")
    await stack.enter_async_context(world.run(a))
    await stack.enter_async_context(world.run(b, a))
    start = time.perf_counter()
    sync = await stack.enter_async_context(syncing(b, world))
    await b.wait_until(lambda: is_at(b, blocks[-1]), timeout_s=20)
    print(f"1000 blocks of 2.5 kB in {time.perf_counter() - start:.2f} s")
    assert [object_id for _, object_id, _ in b.judged] == [compute_id(block) for block in blocks]
    assert (sync.progress.height, sync.progress.target) == (1000, 1000)


async def test_more_blocks_than_one_page_of_hashes(memory: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(5000)
    a, b = build_node("a", blocks), build_node("b", blocks[:17])
    await stack.enter_async_context(memory.run(a))
    await stack.enter_async_context(memory.run(b, a))
    await stack.enter_async_context(syncing(b, memory))
    await b.wait_until(lambda: is_at(b, blocks[-1]))
    assert len(b.judged) == 5000 - 17


@pytest.mark.parametrize("fork", [0, 1, 299])
async def test_the_fork_is_found_however_deep(memory: World, stack: AsyncExitStack, fork: int) -> None:
    shared = build_blocks(fork)
    tip = compute_id(shared[-1]) if shared else GENESIS
    ours, theirs = build_blocks(300 - fork, tip, "ours"), build_blocks(310 - fork, tip, "theirs")
    a, b = build_node("a", shared + theirs), build_node("b", shared + ours)
    await stack.enter_async_context(memory.run(a))
    await stack.enter_async_context(memory.run(b, a))
    await stack.enter_async_context(syncing(b, memory))
    await b.wait_until(lambda: is_at(b, theirs[-1]))
    assert [object_id for _, object_id, _ in b.judged] == [compute_id(block) for block in theirs]


async def test_large_blocks_come_in_replies_of_bounded_size(world: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(12, size=1_500_000)
    a, b = build_node("a", blocks), FakeNode("b")
    await stack.enter_async_context(world.run(a))
    await stack.enter_async_context(world.run(b, a))
    await stack.enter_async_context(syncing(b, world))
    await b.wait_until(lambda: is_at(b, blocks[-1]))


async def test_following_a_peer_that_goes_on(world: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(20)
    a, b = build_node("a", blocks[:5]), FakeNode("b")
    await stack.enter_async_context(world.run(a))
    await stack.enter_async_context(world.run(b, a))
    await stack.enter_async_context(syncing(b, world))
    await b.wait_until(lambda: is_at(b, blocks[4]))
    for block in blocks[5:]:
        a.add_block(block)
    await b.wait_until(lambda: is_at(b, blocks[-1]))


async def test_a_peer_that_vanishes_midway_is_replaced(world: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(600, size=500)
    a, c, b = build_node("a", blocks), build_node("c", blocks[:-1]), FakeNode("b")
    await stack.enter_async_context(world.run(c))
    vanishing = AsyncExitStack()
    await vanishing.enter_async_context(world.run(a))
    await stack.enter_async_context(world.run(b, a, c))
    await b.wait_linked(2)
    reached = asyncio.Event()
    go_on = asyncio.Event()
    judge = b.on_object

    async def judge_slowly(kind: Kind, object_id: Hash32, data: bytes, peer: str):  # type: ignore[no-untyped-def]
        outcome = await judge(kind, object_id, data, peer)
        if len(b.judged) == 200:
            reached.set()
            await go_on.wait()
        return outcome

    b.on_object = judge_slowly  # type: ignore[method-assign]
    await stack.enter_async_context(syncing(b, world))
    await reached.wait()
    assert b.judged[-1][2] == "a"
    await vanishing.aclose()
    go_on.set()
    await b.wait_until(lambda: is_at(b, blocks[-2]))
    assert {peer for _, _, peer in b.judged} == {"a", "c"}


async def test_an_invalid_block_stops_and_another_peer_is_followed(
    memory: World, stack: AsyncExitStack
) -> None:
    good = build_blocks(50)
    bad = build_blocks(60, compute_id(good[9]), "{bad}")
    a, c, b = build_node("a", good[:10] + bad), build_node("c", good), FakeNode("b")
    await stack.enter_async_context(memory.run(a))
    await stack.enter_async_context(memory.run(c))
    await stack.enter_async_context(memory.run(b, a, c))
    await b.wait_linked(2)
    await stack.enter_async_context(syncing(b, memory))
    await b.wait_until(lambda: is_at(b, good[-1]))
    assert b.network is not None
    assert {peer.node_id: peer.score > 0 for peer in b.network.peers()} == {"a": True, "c": False}


async def test_a_peer_that_boasts_is_left_alone(memory: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(30)
    a, c, b = build_node("a", blocks[:3]), build_node("c", blocks), FakeNode("b")
    status = a.get_status()
    a.get_status = lambda: type(status)(  # type: ignore[method-assign]
        status.chain_id, status.genesis, type(status.height)(10**9), Hash32(b"\x99" * 32), "boast"
    )
    for node in (a, c):
        await stack.enter_async_context(memory.run(node))
    await stack.enter_async_context(memory.run(b, a, c))
    await b.wait_linked(2)
    await stack.enter_async_context(syncing(b, memory))
    await b.wait_until(lambda: is_at(b, blocks[-1]))


async def test_a_block_kept_aside_is_waited_for(memory: World, stack: AsyncExitStack) -> None:
    blocks = build_blocks(30)
    a, b = build_node("a", blocks), FakeNode("b")
    aside = compute_id(blocks[12])
    b.is_aside = lambda block: block == aside
    await stack.enter_async_context(memory.run(a))
    await stack.enter_async_context(memory.run(b, a))
    sync = await stack.enter_async_context(syncing(b, memory))
    await b.wait_until(lambda: any(object_id == aside for _, object_id, _ in b.judged))
    assert is_at(b, blocks[11])
    # Its recomputation has finished.
    b.add_block(blocks[12])
    sync.poke()
    await b.wait_until(lambda: is_at(b, blocks[-1]))
    assert len(b.judged) == 30


async def test_a_block_kept_aside_for_too_long_is_asked_for_again(
    memory: World, stack: AsyncExitStack
) -> None:
    blocks = build_blocks(5)
    a, b = build_node("a", blocks), FakeNode("b")
    b.is_aside = lambda block: block == compute_id(blocks[2]) and len(b.judged) < 6
    await stack.enter_async_context(memory.run(a))
    await stack.enter_async_context(memory.run(b, a))
    await stack.enter_async_context(syncing(b, memory, patience_s=0.1))
    await b.wait_until(lambda: is_at(b, blocks[-1]))
