"""Openings that come before their task: nobody else's keeps the custody's out of the pool."""

from pathlib import Path

import pytest

from consensus.task import OpenLoss
from consensus.transaction import SignedTransaction
from node.ledger.store import MemoryStore
from node.work import WorkerPool
from tests.integration.judged import JudgedWorld, Validator
from tests.unit.consensus.world import CUSTODY, MINER_A, MINER_B


@pytest.fixture
def late(tmp_path: Path, pool: WorkerPool) -> Validator:
    """A validator that is still at the first block, of a world that goes on without it."""
    return Validator(JudgedWorld(), tmp_path, pool, store=MemoryStore())


def go_on(late: Validator) -> JudgedWorld:
    """The task is open, and this node knows nothing of it."""
    world = late.world
    world.begin()
    assert late.core.chain.head_state.get_task(world.task) is None
    return world


def get_openings(late: Validator) -> list[SignedTransaction]:
    return late.get_sent(OpenLoss)


def test_a_strangers_opening_holds_no_place(late: Validator) -> None:
    world = go_on(late)
    foreign = [world.sign(key, world.build_loss(1)) for key in (MINER_A, MINER_B)]
    real = world.sign(CUSTODY, world.build_loss(900))
    for transaction in (*foreign, real):
        assert late.core.admit(transaction).accepted
    late.follow()
    assert get_openings(late) == [real]
    assert late.core.mempool.get_opening(world.task, world.task_state.previous) == real
    tip = late.core.get_tip(world.task)
    assert tip is not None
    assert tip.state.last_loss == 900
    assert late.core.mempool.get_early() == []


def test_the_custodys_comes_after_the_block(late: Validator) -> None:
    world = go_on(late)
    assert late.core.admit(world.sign(MINER_A, world.build_loss(1))).accepted
    late.follow()
    assert get_openings(late) == []
    assert late.core.admit(world.sign(CUSTODY, world.build_loss(900))).accepted


def test_of_two_that_the_custody_signed_one_stays(late: Validator) -> None:
    world = go_on(late)
    first, second = (world.sign(CUSTODY, world.build_loss(loss)) for loss in (900, 901))
    assert late.core.admit(first).accepted
    assert late.core.admit(second).accepted
    late.follow()
    assert get_openings(late) == [first]
    assert late.core.mempool.size > 0
    late.core.mempool.remove([item.id for item in late.core.mempool.get_all()])
    assert (late.core.mempool.size, len(late.core.mempool)) == (0, 0)


def test_one_of_a_later_step_waits_with_its_place(late: Validator) -> None:
    """A node that is several blocks behind gets the custody's openings in any order."""
    world = go_on(late)
    loss = world.sign(CUSTODY, world.build_loss(900))
    world.carry(loss)
    gradient = world.sign(CUSTODY, world.build_gradient((0,) * len(world.task_state.weights)))
    assert late.core.admit(gradient).accepted
    assert late.core.admit(loss).accepted
    late.follow()
    assert [item.transaction for item in late.core.mempool.get_all()] == [gradient]
    tip = late.core.get_tip(world.task)
    assert tip is not None
    assert tip.state.step == 1
