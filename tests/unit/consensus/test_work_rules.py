"""Rules W1 to W7, and B7 for work blocks: forged work is refused with its reason, the valid one counts."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.block import Block, Work
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidBlock, NeedsWork, Reason
from consensus.proposal import build_block, build_work, get_work_entitled_time
from consensus.state import TaskStatus
from consensus.task import Available, Credit, ExpireTask
from consensus.types import ZERO_HASH, Millis
from consensus.work import LossCheck, NoProofVerifier, WorkVerdict
from tests.unit.consensus.world import (
    CIPHERTEXT,
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    VERIFIER,
    World,
    build_milestone_world,
)

OTHER = hash_domain("test", b"other")


@pytest.fixture
def world() -> World:
    return build_milestone_world()


Forge = Callable[[World, Block], Block]


def _set(**work: object) -> Forge:
    return lambda world, block: world.forge_work(block, **work)


def _set_later_loss(world: World, block: Block) -> Block:
    """A later scheduled opening, still lower, claimed in place of the first that meets the rung."""
    return world.forge_work(block, step=4, loss=55, loss_opening=OTHER)


def _set_earlier_loss(world: World, block: Block) -> Block:
    """The loss at step 0, which is above the rung."""
    return world.forge_work(block, step=0, loss=900)


def _move_weight(world: World, block: Block) -> Block:
    first, *rest = block.body.work.weights
    return world.forge_work(block, weights=(first + 1, *rest))


def _swap_credits(world: World, block: Block) -> Block:
    return world.forge_work(block, credits=tuple(reversed(block.body.work.credits)))


def _raise_credit(world: World, block: Block) -> Block:
    first, *rest = block.body.work.credits
    return world.forge_work(block, credits=(Credit(first.miner, first.batches + 1), *rest))


def _add_credit(world: World, block: Block) -> Block:
    return world.forge_work(block, credits=(*block.body.work.credits, Credit(OUTSIDER.address, 1)))


def _propose_as(key: SigningKey) -> Forge:
    return lambda world, block: world.forge(block, key=key)


def _propose_second_rank_early(world: World, block: Block) -> Block:
    milestone = world.task_state.qualified[0]
    return world.forge(block, key=MINER_B, time=Millis(milestone.time + world.params.rank_ms - 1))


FORGERIES: list[tuple[Forge, Reason]] = [
    (_set(task=OTHER), Reason.W1_TASK),
    (_set(first_rung=1), Reason.W1_MILESTONE),
    (_propose_as(CUSTODY), Reason.W2_CUSTODY),
    (_propose_as(COLLEAGUE), Reason.W2_CUSTODY),
    (_set(loss_opening=OTHER), Reason.W3_OPENINGS),
    (_set(loss=59), Reason.W3_OPENINGS),
    (_set(openings=OTHER), Reason.W3_OPENINGS),
    (_set(openings=ZERO_HASH), Reason.W3_OPENINGS),
    (_set(loss=101), Reason.W5_LOSS),
    (_set(last_rung=1), Reason.W5_LOSS),
    (_set(last_rung=2), Reason.W5_LOSS),
    (_set_earlier_loss, Reason.W5_LOSS),
    (_set_later_loss, Reason.W5_FIRST),
    (_set(last_rung=3), Reason.W5_RUNGS),
    (_set(last_rung=-1), Reason.W5_RUNGS),
    (_move_weight, Reason.W6_WEIGHTS),
    (_set(weights=()), Reason.W6_WEIGHTS),
    (_set(weights=(1_001, 0, 0)), Reason.W6_BOX),
    (_swap_credits, Reason.W7_CREDITS),
    (_raise_credit, Reason.W7_CREDITS),
    (_add_credit, Reason.W7_CREDITS),
    (_set(credits=()), Reason.W7_CREDITS),
    (_propose_second_rank_early, Reason.B7_RANK),
    (_propose_as(OUTSIDER), Reason.B7_RANK),
]


@pytest.mark.parametrize(("forge", "reason"), FORGERIES)
def test_forged_work_is_refused_with_its_reason(world: World, forge: Forge, reason: Reason) -> None:
    block = world.build_work_block(MINER_A)
    before = world.state.root
    with pytest.raises(InvalidBlock) as caught:
        world.validate(forge(world, block))
    assert caught.value.reason == reason
    assert world.state.root == before
    world.add(block)
    assert world.task_state.next_taken_rung == 1


def _refuse_own_work(world: World, key: SigningKey = MINER_A, after: int = 60_000) -> Reason:
    """The reason why the right work in a well-signed block is refused now."""
    work = _get_any_work(world)
    carrier = world.build_carrier(after=after)
    block = world.forge(carrier, key=key, body=replace(carrier.body, work=work))
    with pytest.raises(InvalidBlock) as caught:
        world.validate(block)
    return caught.value.reason


def _get_any_work(world: World) -> Work:
    if world.task_state.qualified:
        return world.build_work()
    weights = world.weights[0]
    return Work(world.task, 0, 0, 0, OTHER, 0, ZERO_HASH, weights, (Credit(MINER_A.address, 1),))


def test_work_before_the_task_opens_is_refused() -> None:
    world = World()
    world.publish()
    assert _refuse_own_work(world) == Reason.W1_STATUS


def test_work_without_a_met_rung_is_refused() -> None:
    world = World()
    world.open()
    world.carry()
    assert _refuse_own_work(world) == Reason.W1_MILESTONE


def test_work_taken_twice_is_refused(world: World) -> None:
    block = world.build_work_block(MINER_A)
    world.add(block)
    work = block.body.work
    carrier = world.build_carrier()
    again = world.forge(carrier, key=MINER_A, body=replace(carrier.body, work=work))
    with pytest.raises(InvalidBlock) as caught:
        world.validate(again)
    assert caught.value.reason == Reason.W1_MILESTONE


def test_work_after_the_deadline_is_refused(world: World) -> None:
    assert _refuse_own_work(world, after=2_000_000) == Reason.W1_DEADLINE


def test_work_of_an_ended_task_is_refused(world: World) -> None:
    world.carry(world.sign(OUTSIDER, ExpireTask(world.task)), after=2_000_000)
    assert world.task_state.status == TaskStatus.EXPIRED
    assert _refuse_own_work(world) == Reason.W1_STATUS


def test_work_whose_publication_is_not_final_is_refused() -> None:
    world = World()
    world.publish()
    promises = [world.sign(key, Available(world.task)) for key in (CUSTODY, MINER_A, MINER_B)]
    world.carry(*promises, votes=())
    world.carry(world.sign(CUSTODY, world.build_loss(60)), votes=())
    for _ in range(2):
        assert world.state.get_finality().finalized.height < world.task_state.published_height
        assert _refuse_own_work(world) == Reason.W1_FINAL
        assert (
            get_work_entitled_time(
                world.state, world.task, MINER_A.address, world.header, world.params, world.header.time
            )
            is None
        )
        world.carry()
    # Nobody is credited, so the turn holder takes it; the first of them who is not of the custody's side.
    world.add(world.build_work_block(MINER_A))
    assert world.task_state.next_taken_rung == 1


# --- W4 ---------------------------------------------------------------------------------------


class NoVerdict:
    def get_verdict(self, check: LossCheck) -> WorkVerdict | None:
        return None


class WrongQuestion:
    """Answers for other weights than asked."""

    def get_verdict(self, check: LossCheck) -> WorkVerdict | None:
        return WorkVerdict(replace(check, weights=()), CIPHERTEXT)


@pytest.mark.parametrize("verifier", [NoVerdict(), WrongQuestion()])
def test_block_waits_for_the_recomputed_loss(world: World, verifier: NoVerdict) -> None:
    block = world.build_work_block(MINER_A)
    with pytest.raises(NeedsWork) as caught:
        world.validate(block, verifier)
    assert caught.value.check == LossCheck(world.task, 2, world.weights[2])
    world.add(block)


def test_other_loss_ciphertext_is_refused(world: World) -> None:
    block = world.build_work_block(MINER_A)
    with pytest.raises(InvalidBlock) as caught:
        world.validate(block, NoProofVerifier(OTHER))
    assert caught.value.reason == Reason.W4_CIPHERTEXT


def test_invalid_block_never_waits(world: World) -> None:
    forged = world.forge(world.build_work_block(MINER_A), state_root=ZERO_HASH)
    with pytest.raises(InvalidBlock) as caught:
        world.validate(forged, NoVerdict())
    assert caught.value.reason == Reason.B9_STATE_ROOT


# --- who may propose --------------------------------------------------------------------------


def test_ranks_are_by_credited_batches(world: World) -> None:
    milestone = world.task_state.qualified[0]
    assert milestone.credits == (Credit(MINER_A.address, 3), Credit(MINER_B.address, 1))
    first = get_work_entitled_time(
        world.state, world.task, MINER_A.address, world.header, world.params, START
    )
    assert first == world.header.time + world.params.min_block_ms
    second = world.build_work_block(MINER_B)
    assert second.header.time == milestone.time + world.params.rank_ms
    world.add(second)


def test_after_the_last_rank_the_turn_holder_may_propose(world: World) -> None:
    """Any validator but those of the custody's organisation, in its carrier's turn."""
    world = build_milestone_world((MINER_A, MINER_A, MINER_A))
    milestone = world.task_state.qualified[0]
    block = world.build_work_block(MINER_B)
    assert block.header.time >= milestone.time + world.params.rank_ms
    out_of_turn = world.forge(block, time=Millis(block.header.time + world.params.slot_ms))
    with pytest.raises(InvalidBlock) as caught:
        world.validate(out_of_turn)
    assert caught.value.reason == Reason.B7_TURN
    world.add(block)


def test_outsiders_and_the_custodys_side_are_never_entitled(world: World) -> None:
    for key in (OUTSIDER, CUSTODY, COLLEAGUE):
        time = get_work_entitled_time(
            world.state, world.task, key.address, world.header, world.params, world.header.time
        )
        assert time is None


def test_credits_of_the_custodys_own_miners_keep_their_rank_but_may_not_propose() -> None:
    world = build_milestone_world((COLLEAGUE, COLLEAGUE, MINER_B))
    assert world.task_state.qualified[0].credits[0].miner == COLLEAGUE.address
    before = world.state.get_account(COLLEAGUE.address).balance
    block = world.build_work_block(MINER_B)
    with pytest.raises(InvalidBlock) as caught:
        world.validate(world.forge(block, key=COLLEAGUE))
    assert caught.value.reason == Reason.W2_CUSTODY
    world.add(block)
    world.settle()
    assert world.state.get_account(COLLEAGUE.address).balance > before


# --- pay --------------------------------------------------------------------------------------


def test_reward_is_split_pro_rata_with_fees_and_the_rest_goes_to_the_first(world: World) -> None:
    money = world.count_money()
    before = {key: world.state.get_account(key.address).balance for key in (MINER_A, MINER_B)}
    world.open_gradient()
    world.open_gradient()
    world.add(world.build_work_block(MINER_A))
    assert all(world.state.get_account(key.address).balance == before[key] for key in before)
    world.settle()
    earned = {key: world.state.get_account(key.address).balance - before[key] for key in before}
    assert earned == {MINER_A: 750 + 3 * 7, MINER_B: 250 + 7}
    # Rungs 1 and 2 are met by one loss: 801 for four batches, two each.
    world.open_loss(20)
    milestone = world.task_state.qualified[0]
    assert (milestone.first_rung, milestone.last_rung) == (1, 2)
    winner, second = (BY[credit.miner] for credit in milestone.credits)
    before = {key: world.state.get_account(key.address).balance for key in (MINER_A, MINER_B)}
    custody = world.state.get_account(CUSTODY.address).balance
    left = world.task_state.escrow
    world.add(world.build_work_block(winner))
    world.settle()
    earned = {key: world.state.get_account(key.address).balance - before[key] for key in before}
    assert earned == {winner: 401 + 2 * 7, second: 400 + 2 * 7}
    assert world.task_state.status == TaskStatus.COMPLETE
    assert world.state.get_account(CUSTODY.address).balance == custody + left - 801 - 4 * 7
    assert (world.task_state.escrow, world.task_state.bond) == (0, 0)
    assert world.count_money() == money


BY = {MINER_A.address: MINER_A, MINER_B.address: MINER_B}


def test_milestones_are_taken_in_order(world: World) -> None:
    world.open_gradient()
    world.open_gradient()
    world.open_loss(40)
    assert [item.first_rung for item in world.task_state.qualified] == [0, 1]
    second = world.task_state.qualified[1]
    block = world.build_work_block(MINER_A)
    skipping = world.forge_work(
        block,
        first_rung=1,
        last_rung=1,
        step=second.step,
        loss=second.loss,
        loss_opening=second.loss_opening,
        openings=second.openings,
        weights=world.weights[4],
        credits=second.credits,
    )
    with pytest.raises(InvalidBlock) as caught:
        world.validate(skipping)
    assert caught.value.reason == Reason.W1_MILESTONE
    world.add(block)
    world.add(world.build_work_block(BY[second.credits[0].miner]))
    assert world.task_state.next_taken_rung == 2


def test_transactions_of_a_work_block_see_the_state_after_the_work(world: World) -> None:
    """The custody's next opening and the milestone share a block."""
    opening = world.sign(CUSTODY, world.build_gradient())
    world.add(world.build_work_block(MINER_A, opening))
    assert (world.task_state.step, world.task_state.next_taken_rung) == (3, 1)


def test_building_work_needs_the_right_weights(world: World) -> None:
    with pytest.raises(ValueError, match="Expected weights"):
        build_work(world.state, world.task, (0, 0, 0))
    with pytest.raises(ValueError, match="pending milestone"):
        build_work(world.state, OTHER, world.weights[2])


def test_building_a_block_that_would_be_refused_is_refused(world: World) -> None:
    work = world.build_work()
    with pytest.raises(InvalidBlock) as caught:
        build_block(
            world.header,
            world.state,
            (),
            work,
            Millis(world.header.time + 500),
            MINER_B,
            world.params,
            world.chain_id,
        )
    assert caught.value.reason == Reason.B7_RANK
    assert VERIFIER.get_verdict(LossCheck(world.task, 2, ())) is not None
