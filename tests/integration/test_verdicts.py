"""Validators judge milestones on pairs of their own: once, the same after a restart; nothing else leaves."""

import asyncio
import logging
from pathlib import Path

import pytest

from consensus.payload import SettleTask, Verdict
from consensus.records import TaskStatus
from consensus.transaction import compute_transaction_id
from node.events import EventKind
from node.settings import VerdictSettings
from node.validator import Settler
from node.verdicts import Judge
from node.work import WorkerPool
from tests.integration.judged import PAIRS, JudgedWorld, Validator
from tests.integration.rig import wait_until
from tests.unit.consensus.world import COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER


@pytest.fixture
def world() -> JudgedWorld:
    """With an open task."""
    made = JudgedWorld()
    made.begin()
    return made


def get_verdict(node: Validator) -> Verdict:
    payload = node.get_sent(Verdict)[0].payload
    assert isinstance(payload, Verdict)
    return payload


async def wait_verdict(node: Validator) -> Verdict:
    await wait_until(lambda: bool(node.get_sent(Verdict)), "a verdict")
    return get_verdict(node)


@pytest.mark.parametrize(("factor", "accept"), [(1, True), (20, False)])
async def test_a_model_is_judged_by_what_it_does(
    world: JudgedWorld, tmp_path: Path, pool: WorkerPool, factor: int, accept: bool
) -> None:
    """The same weights as before are accepted, twenty times too large ones are not, whatever the custody says
    of its own validation loss."""
    world.take_milestone(90, factor)
    node = Validator(world, tmp_path, pool)
    async with node.judge():
        verdict = await wait_verdict(node)
    assert verdict.accept is accept
    assert (verdict.before == verdict.after) == (factor == 1)
    assert verdict.loss_opening == world.task_state.unsettled[0].milestone.loss_opening


async def test_one_milestone_gets_one_verdict(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    """Restarts with other pairs that would have said otherwise, before and after it was included."""
    world.take_milestone(90, 20)
    node = Validator(world, tmp_path, pool)
    async with node.judge():
        await wait_verdict(node)
    first = node.get_sent(Verdict)[0]
    again = Validator(world, tmp_path, pool, store=node.store)
    lenient = PAIRS.model_copy(update={"tolerance": 1e5})
    async with again.judge(lenient):
        await wait_verdict(again)
        assert list(map(compute_transaction_id, again.get_sent(Verdict))) == [compute_transaction_id(first)]
        world.carry(first)
        again.follow()
        assert not again.get_sent(Verdict)
        world.take_milestone(40)
        again.follow()
        second = await wait_verdict(again)
    assert second.loss_opening == world.task_state.unsettled[1].milestone.loss_opening
    assert second.accept


async def test_without_pairs_or_stake_nothing_is_said(
    world: JudgedWorld, tmp_path: Path, pool: WorkerPool
) -> None:
    world.take_milestone(90)
    poor = Validator(world, tmp_path / "poor", pool)
    await Judge(poor.core, VerdictSettings(), tmp_path).run()
    stranger = Validator(world, tmp_path / "stranger", pool, key=OUTSIDER)
    judging = Validator(world, tmp_path / "judging", pool)
    async with stranger.judge(), judging.judge():
        await wait_verdict(judging)
    assert not poor.get_sent(Verdict)
    assert not stranger.get_sent(Verdict)


async def test_unreadable_pairs_are_not_named_in_the_log(
    world: JudgedWorld, tmp_path: Path, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    world.take_milestone(90)
    node = Validator(world, tmp_path, pool)
    with caplog.at_level(logging.DEBUG):
        async with node.judge(VerdictSettings(pairs=tmp_path / "ward-7")):
            await wait_until(lambda: "no verdict on step 1" in caplog.text, "the failure is logged")
    assert "ward-7" not in caplog.text
    assert not node.get_sent(Verdict)


async def test_a_rejecting_majority_closes_the_task_and_the_node_copes(
    world: JudgedWorld, tmp_path: Path, pool: WorkerPool
) -> None:
    """Two of four reject: void, fees for the batches, the rest refunded; nobody goes on with the task."""
    world.take_milestone(90)
    money = world.count_money()
    before = world.state.get_account(CUSTODY.address).balance
    escrow, bond = world.task_state.escrow, world.task_state.bond
    node = Validator(world, tmp_path, pool)
    rejections = [world.sign(key, world.build_verdict(accept=False)) for key in (COLLEAGUE, MINER_A)]
    world.carry(*rejections)
    node.follow()
    assert world.task_state.status is TaskStatus.CLOSED
    assert world.task_state.settled is None
    fees = 2 * 7
    assert world.state.get_account(CUSTODY.address).balance == before + escrow - fees
    assert [lock.amount for lock in world.state.get_locks()] == [bond]
    assert world.count_money() == money
    seen = [event for event in node.events.get_since(0)[1] if event.kind is EventKind.VERDICT]
    assert [event.data["accept"] for event in seen] == [False, False]
    tip = node.core.get_tip(world.task)
    assert tip is not None
    assert tip.is_finished
    async with node.judge():
        node.core.pulse.beat()
        await asyncio.sleep(0)
    assert not node.get_sent(Verdict)


async def test_silence_settles_in_time(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    """A minority that rejects does not halt the chain: after `verdict_ms` anyone has the milestone settled,
    and after the next one again, by another request of the same sender."""
    node = Validator(world, tmp_path, pool)
    settling = asyncio.create_task(Settler(node.core).run())
    try:
        for number, loss in enumerate((90, 40)):
            world.take_milestone(loss)
            world.carry(world.sign(MINER_A, world.build_verdict(accept=False)))
            node.follow()
            node.clock.advance(world.params.verdict_ms / 1000 - 10)
            node.core.pulse.beat()
            await asyncio.sleep(0)
            assert not node.get_sent(SettleTask)
            node.clock.advance(10)
            node.core.pulse.beat()
            await wait_until(lambda: bool(node.get_sent(SettleTask)), "settlement is asked for")
            world.carry(*node.get_sent(SettleTask), after=world.params.verdict_ms + 2_000)
            node.follow()
            assert world.task_state.settled is not None
            assert world.task_state.settled.last_rung == number
            assert len(world.task_state.judged) == number + 1
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)


async def test_two_thirds_settle_at_once(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    """Three validators with pairs of their own, none of whom waits for the time to pass."""
    world.take_milestone(90)
    verdicts = []
    for seed, key in enumerate((COLLEAGUE, MINER_A, MINER_B)):
        node = Validator(world, tmp_path / str(seed), pool, key=key)
        async with node.judge(PAIRS.model_copy(update={"phantom_seed": seed})):
            await wait_verdict(node)
        verdicts += node.get_sent(Verdict)
    assert len({getattr(verdict.payload, "after", None) for verdict in verdicts}) == 3
    reward = world.state.get_account(MINER_A.address).balance
    world.carry(*verdicts)
    assert world.task_state.settled is not None
    assert world.state.get_account(MINER_A.address).balance > reward


def test_settings_are_not_shown() -> None:
    settings = VerdictSettings(pairs=Path("/ward-7"), phantom_seed=0)
    assert "ward" not in repr(settings)
    assert "ward" not in str(settings)
