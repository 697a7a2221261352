"""Verdicts: accepted milestones settle in order, rejected ones close the task, silence settles in time."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction, Reason
from consensus.payload import SettleTask
from consensus.records import TaskStatus
from consensus.task import ExpireTask
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from tests.unit.consensus.test_evidence import build_double
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_milestone_world,
)

BY = {MINER_A.address: MINER_A, MINER_B.address: MINER_B}


def refuse(world: World, transaction: SignedTransaction, after: int = 2_000) -> Reason:
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context(after))
    return caught.value.reason


def judge(world: World, key: SigningKey, accept: bool = True, at: int = 0) -> SignedTransaction:
    return world.sign(key, world.build_verdict(accept, at))


def build_settle(world: World) -> SignedTransaction:
    first = world.task_state.unsettled[0].milestone.loss_opening
    return world.sign(OUTSIDER, SettleTask(world.task, first))


@pytest.fixture
def world() -> World:
    """One milestone is taken and not settled."""
    world = build_milestone_world()
    world.add(world.build_work_block(MINER_A))
    return world


@pytest.fixture
def double() -> World:
    """Two milestones are taken and not settled."""
    world = build_milestone_world()
    world.open_gradient()
    world.open_gradient()
    world.open_loss(40)
    second = world.task_state.qualified[1].credits[0].miner
    world.add(world.build_work_block(MINER_A))
    world.add(world.build_work_block(BY[second]))
    assert len(world.task_state.unsettled) == 2
    return world


def test_two_thirds_settle_at_once(world: World) -> None:
    money, before = world.count_money(), world.state.get_account(MINER_A.address).balance
    late = judge(world, CUSTODY)
    world.carry(judge(world, COLLEAGUE), judge(world, MINER_A))
    assert world.task_state.settled is None
    world.carry(judge(world, MINER_B))
    settled = world.task_state.settled
    assert settled is not None
    assert (settled.last_rung, settled.step, settled.loss) == (0, 2, 60)
    assert world.task_state.unsettled == ()
    assert world.state.get_account(MINER_A.address).balance == before + 750 + 3 * 7
    assert world.count_money() == money
    assert refuse(world, late) == Reason.VERDICT_SETTLED


def test_a_verdict_counts_once_and_only_a_validators(world: World) -> None:
    assert refuse(world, judge(world, OUTSIDER)) == Reason.VERDICT_VALIDATOR
    world.carry(judge(world, COLLEAGUE))
    assert refuse(world, judge(world, COLLEAGUE, accept=False)) == Reason.VERDICT_DOUBLED
    unknown = replace(world.build_verdict(), loss_opening=world.task)
    assert refuse(world, world.sign(MINER_A, unknown)) == Reason.VERDICT_MILESTONE
    huge = replace(world.build_verdict(), after=2**53)
    assert refuse(world, world.sign(MINER_A, huge)) == Reason.VERDICT_BOUND
    nowhere = replace(world.build_verdict(), task=world.build_verdict().loss_opening)
    assert refuse(world, world.sign(MINER_A, nowhere)) == Reason.TASK_UNKNOWN


def test_silence_settles_when_the_time_for_verdicts_is_over(world: World) -> None:
    settle = build_settle(world)
    taken = world.task_state.unsettled[0].time
    wait = taken + world.params.verdict_ms - world.header.time
    assert refuse(world, settle, wait - 1) == Reason.SETTLE_EARLY
    world.carry(judge(world, COLLEAGUE, accept=False))
    wait = taken + world.params.verdict_ms - world.header.time
    world.carry(settle, after=wait)
    assert world.task_state.settled is not None
    assert refuse(world, settle) == Reason.VERDICT_SETTLED


def test_more_than_a_third_against_close_the_task(world: World) -> None:
    money = world.count_money()
    before = {key: world.state.get_account(key.address).balance for key in (MINER_A, MINER_B)}
    late = judge(world, MINER_B)
    world.carry(judge(world, COLLEAGUE, accept=False), judge(world, CUSTODY))
    assert world.task_state.status == TaskStatus.OPEN
    world.carry(judge(world, MINER_A, accept=False))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.task_state.settled is None
    earned = {key: world.state.get_account(key.address).balance - before[key] for key in before}
    assert earned == {MINER_A: 3 * 7, MINER_B: 7}
    assert world.count_money() == money
    assert refuse(world, late) == Reason.TASK_ENDED
    assert refuse(world, world.sign(CUSTODY, world.build_gradient())) == Reason.TASK_ENDED


def test_milestones_settle_in_order(double: World) -> None:
    world = double
    world.carry(*(judge(world, key, at=1) for key in (COLLEAGUE, MINER_A, MINER_B)))
    assert world.task_state.settled is None
    world.carry(*(judge(world, key, at=0) for key in (COLLEAGUE, MINER_A, MINER_B)))
    settled = world.task_state.settled
    assert settled is not None
    assert settled.last_rung == 1
    assert world.task_state.unsettled == ()


def test_what_stands_before_a_rejected_milestone_keeps_its_chance(double: World) -> None:
    world, money = double, double.count_money()
    first = world.build_verdict(at=0)
    world.carry(*(judge(world, key, accept=False, at=1) for key in (COLLEAGUE, MINER_B)))
    assert world.task_state.status == TaskStatus.CLOSING
    assert [item.milestone.first_rung for item in world.task_state.unsettled] == [0]
    assert refuse(world, world.sign(CUSTODY, world.build_gradient())) == Reason.TASK_ENDED
    before = world.state.get_account(MINER_A.address).balance
    world.carry(*(world.sign(key, first) for key in (COLLEAGUE, MINER_A, MINER_B)))
    assert world.task_state.status == TaskStatus.CLOSED
    settled = world.task_state.settled
    assert settled is not None
    assert settled.last_rung == 0
    assert world.state.get_account(MINER_A.address).balance == before + 750 + 3 * 7
    assert world.count_money() == money


def test_a_closing_task_ends_by_silence_too(double: World) -> None:
    world, money = double, double.count_money()
    world.carry(*(judge(world, key, accept=False, at=1) for key in (COLLEAGUE, MINER_B)))
    expire = world.sign(OUTSIDER, ExpireTask(world.task))
    assert refuse(world, expire) == Reason.EXPIRE_EARLY
    world.carry(build_settle(world), after=world.params.verdict_ms)
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.task_state.settled is not None
    assert world.count_money() == money


def test_rejecting_the_first_voids_all_later_ones(double: World) -> None:
    world, money = double, double.count_money()
    world.carry(*(judge(world, key, at=1) for key in (COLLEAGUE, MINER_A, MINER_B)))
    world.carry(*(judge(world, key, accept=False, at=0) for key in (COLLEAGUE, MINER_B)))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.task_state.settled is None
    assert world.count_money() == money


def test_verdicts_of_the_jailed_do_not_count(world: World) -> None:
    world.carry(judge(world, COLLEAGUE, accept=False))
    world.carry(world.sign(OUTSIDER, build_double(world, COLLEAGUE)))
    assert refuse(world, judge(world, COLLEAGUE)) == Reason.VERDICT_VALIDATOR
    world.carry_by_turn(judge(world, MINER_B, accept=False))
    assert world.task_state.status == TaskStatus.OPEN


def test_a_task_with_a_milestone_under_judgement_does_not_expire(world: World) -> None:
    expire = world.sign(OUTSIDER, ExpireTask(world.task))
    publication = world.state.get_publication(world.task)
    assert publication is not None
    unsettled = world.task_state.unsettled[0]
    assert unsettled.time + world.params.verdict_ms < publication.deadline
    world.carry(expire, after=publication.deadline + 1 - world.header.time)
    assert world.task_state.status == TaskStatus.EXPIRED
    assert world.task_state.settled is not None
