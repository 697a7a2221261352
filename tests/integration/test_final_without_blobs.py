"""A work block whose validation blobs nobody has any more is followed once it is proved final, not before."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.block import Block
from consensus.identifiers import compute_block_hash
from consensus.work import LossCheck
from node.blobs import BlobError
from node.chain import ImportStatus
from node.recomputer import RETRY_S, TRIES
from node.tasks import TaskDefinition
from tests.integration.test_forged_blocks import Follower, RecordedWorld, RecordingCore
from tests.unit.consensus.world import MINER_A

TURNS = 50


class ForgetfulCore(RecordingCore):
    """No peer has the validation blobs any more."""

    asked = 0

    async def hold_validation(self, definition: TaskDefinition) -> None:
        self.asked += 1
        raise BlobError("nobody has it")


@pytest.fixture
def world() -> RecordedWorld:
    """A milestone is pending."""
    world = RecordedWorld()
    world.open()
    world.open_loss(900)
    world.open_gradient()
    world.open_gradient()
    world.open_loss(60)
    return world


@pytest.fixture
def follower(world: RecordedWorld, tmp_path: Path) -> Iterator[Follower]:
    follower = Follower(world, tmp_path)
    follower.core.__class__ = ForgetfulCore
    yield follower
    follower.chain.ledger.close()


async def give_work(world: RecordedWorld, follower: Follower) -> tuple[Block, LossCheck]:
    """The follower has everything up to the milestone, then gets the block that takes it."""
    await follower.follow()
    block = world.build_work_block(MINER_A)
    world.add(block)
    await follower.give(block)
    imported = follower.core.imported
    assert imported.status is ImportStatus.WAITING
    assert imported.check is not None
    return block, imported.check


async def test_only_a_proved_block_goes_without_its_recomputation(
    world: RecordedWorld, follower: Follower
) -> None:
    block, check = await give_work(world, follower)
    block_hash = compute_block_hash(block.header)
    follower.chain.note_proved([world.chain_id])
    assert follower.chain.retry_on_finality(check) == []
    follower.chain.note_proved([block_hash])
    (imported,) = follower.chain.retry_on_finality(check)
    assert imported.status is ImportStatus.ACCEPTED
    assert follower.mark == (block_hash, world.state.root)


async def test_the_recomputer_tries_before_it_believes(world: RecordedWorld, follower: Follower) -> None:
    block, _ = await give_work(world, follower)
    core = follower.core
    assert isinstance(core, ForgetfulCore)
    running = asyncio.create_task(follower.recomputer.run())
    await follower.clock.run_for(RETRY_S * (TRIES + 1), turns=TURNS)
    assert core.asked > TRIES
    assert follower.chain.head.height == block.header.height - 1
    follower.chain.note_proved([compute_block_hash(block.header)])
    await follower.clock.run_for(RETRY_S * 2, turns=TURNS)
    assert follower.chain.head_hash == compute_block_hash(block.header)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
