"""Evidence: what convicts, what it costs, and what convicts nobody."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.payload import Accuse, ReportOpenings, ReportVotes, SignedOpening, WrongBundle, WrongLoss
from consensus.records import TaskStatus
from consensus.task import OpenGradient, OpenLoss, Transfer
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Amount, Height
from consensus.vote import Checkpoint, Vote, sign_vote
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_milestone_world,
)

CANONICAL = hash_domain("test", b"canonical")


def refuse(world: World, transaction: SignedTransaction) -> Reason:
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    return caught.value.reason


def build_double(
    world: World, key: SigningKey, heights: tuple[int, int, int, int] = (0, 5, 0, 5)
) -> ReportVotes:
    def sign(source: int, target: int, name: bytes) -> Vote:
        block = hash_domain("test", name)
        return sign_vote(
            key, world.chain_id, Checkpoint(Height(source), block), Checkpoint(Height(target), block)
        )

    return ReportVotes(sign(*heights[:2], b"one"), sign(*heights[2:], b"two"))


# --- votes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("heights", [(0, 5, 0, 5), (0, 5, 1, 4), (1, 4, 0, 5)])
def test_two_slashable_votes_cost_jail_and_all_stake(heights: tuple[int, int, int, int]) -> None:
    world = World()
    money = world.count_money()
    report = world.sign(OUTSIDER, build_double(world, MINER_A, heights))
    world.carry(report)
    assert world.state.get_jailed() == (MINER_A.address,)
    assert world.state.get_charter().treasury == 10
    assert world.state.get_stake(MINER_A.address) == 0
    assert world.state.get_total_stake() == 40
    assert world.count_money() == money
    assert refuse(world, report) == Reason.EVIDENCE_KNOWN


def test_harmless_votes_convict_nobody() -> None:
    world = World()
    report = build_double(world, MINER_A, (0, 3, 3, 5))
    assert refuse(world, world.sign(OUTSIDER, report)) == Reason.EVIDENCE_HARMLESS
    same = replace(report, second=report.first)
    assert refuse(world, world.sign(OUTSIDER, same)) == Reason.EVIDENCE_HARMLESS
    double = build_double(world, MINER_A)
    forged = replace(double, second=replace(double.second, signature=double.first.signature))
    assert refuse(world, world.sign(OUTSIDER, forged)) == Reason.EVIDENCE_SIGNATURE
    assert refuse(world, world.sign(MINER_A, build_double(world, OUTSIDER))) == Reason.EVIDENCE_LATE
    foreign = build_double(World(), MINER_A)
    other = replace(world.sign(OUTSIDER, foreign), chain_id=CANONICAL)
    assert refuse(world, other) == Reason.TX_CHAIN


def test_the_jailed_neither_vote_nor_propose_nor_judge() -> None:
    world = World()
    world.carry(world.sign(OUTSIDER, build_double(world, MINER_A)))
    assert [member.address for member in world.state.get_acting_validators()] == [
        CUSTODY.address,
        COLLEAGUE.address,
        MINER_B.address,
    ]
    proposers = set()
    for turn in range(6):
        after = 1_500 + 2_000 * turn
        number = (world.header.height + 1 + turn) % 3
        proposers.add(world.state.get_acting_validators()[number].address)
        assert after
    assert MINER_A.address not in proposers
    # Three of four still are three quarters of all stake.
    keys = (CUSTODY, COLLEAGUE, MINER_B)
    world.carry_by_turn(votes=world.build_votes(keys))
    assert world.state.get_finality().justified.height == 1
    world.carry_by_turn(votes=world.build_votes(keys[:2]))
    assert world.state.get_finality().justified.height == 1


# --- openings ---------------------------------------------------------------------------------


def sign_opening(world: World, opening: OpenGradient | OpenLoss, key: SigningKey = CUSTODY) -> SignedOpening:
    return SignedOpening(opening, world.sign(key, opening).signature)


def test_two_openings_of_a_step_close_the_task_and_cost_the_bond() -> None:
    world = build_milestone_world()
    world.add(world.build_work_block(MINER_A))
    money = world.count_money()
    miner = world.state.get_account(MINER_A.address).balance
    first, second = (sign_opening(world, world.build_gradient((n, 0, 0))) for n in (1, 2))
    world.carry_by_turn(world.sign(OUTSIDER, ReportOpenings(first, second)))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.state.get_charter().treasury == 5_000
    # Credited batches keep their fee, though not the reward of a milestone that was not settled.
    assert world.state.get_account(MINER_A.address).balance == miner + 3 * 7
    assert world.count_money() == money
    report = world.sign(OUTSIDER, ReportOpenings(second, first))
    assert refuse(world, report) == Reason.EVIDENCE_LATE


def test_equivocation_costs_the_bond_of_an_ended_task_too_until_it_is_released() -> None:
    world = World()
    world.open()
    first, second = (sign_opening(world, world.build_loss(n)) for n in (10, 11))
    world.carry(world.sign(CUSTODY, first.opening))
    for _ in range(2):
        world.carry()
    world.add(world.build_work_block(MINER_A))
    verdicts = [world.sign(key, world.build_verdict()) for key in (COLLEAGUE, MINER_A, MINER_B)]
    world.carry_by_turn(*verdicts)
    assert world.task_state.status == TaskStatus.COMPLETE
    report = world.sign(OUTSIDER, ReportOpenings(first, second))
    money = world.count_money()
    apply_transaction(world.state, report, world.get_context())
    late = World()
    late.__dict__.update(world.__dict__)
    late.carry_by_turn(after=late.params.evidence_ms)
    assert refuse(late, report) == Reason.EVIDENCE_LATE
    world.carry_by_turn(report)
    assert world.task_state.status == TaskStatus.COMPLETE
    assert (world.state.get_charter().treasury, world.state.get_locks()) == (5_000, ())
    assert world.count_money() == money


def test_openings_that_are_no_evidence() -> None:
    world = World()
    world.open()
    loss = world.build_loss(10)
    world.carry(world.sign(CUSTODY, loss))
    first = sign_opening(world, loss)
    other_step = sign_opening(world, replace(loss, step=1))
    other_kind = sign_opening(world, world.build_gradient())
    forged = sign_opening(world, replace(loss, loss=11), MINER_A)

    def report(second: SignedOpening) -> Reason:
        return refuse(world, world.sign(OUTSIDER, ReportOpenings(first, second)))

    assert report(first) == Reason.EVIDENCE_HARMLESS
    assert report(other_step) == Reason.EVIDENCE_HARMLESS
    assert report(other_kind) == Reason.EVIDENCE_HARMLESS
    assert report(forged) == Reason.EVIDENCE_SIGNATURE
    unknown = replace(loss, task=CANONICAL)
    pair = ReportOpenings(sign_opening(world, unknown), sign_opening(world, replace(unknown, loss=11)))
    assert refuse(world, world.sign(OUTSIDER, pair)) == Reason.TASK_UNKNOWN


# --- recomputations ---------------------------------------------------------------------------


def test_a_wrong_bundle_suspends_the_organisation_at_two_thirds() -> None:
    world = World()
    world.open()
    claim = world.build_claims(0)[0]
    accusation = Accuse(WrongBundle(claim, CANONICAL))
    for count, key in enumerate((CUSTODY, COLLEAGUE, MINER_B), 1):
        assert world.state.may_account_mine(claim.miner)
        assert refuse(world, world.sign(OUTSIDER, accusation)) == Reason.ACCUSE_VALIDATOR
        world.carry(world.sign(key, accusation))
        assert refuse(world, world.sign(key, accusation)) == Reason.ACCUSE_DOUBLED
        assert world.state.get_suspended() == (("lab-a",) if count == 3 else ())
    assert not world.state.may_account_mine(claim.miner)
    world.open_loss(900)
    opening = world.sign(CUSTODY, world.build_gradient())
    assert refuse(world, opening) == Reason.OPENING_MINER


def test_different_canonical_roots_do_not_add_up() -> None:
    world = World()
    world.open()
    claim = world.build_claims(0)[0]
    for key, root in ((CUSTODY, CANONICAL), (COLLEAGUE, CANONICAL), (MINER_B, world.task)):
        world.carry(world.sign(key, Accuse(WrongBundle(claim, root))))
    assert world.state.get_suspended() == ()


def test_accusations_that_accuse_nobody() -> None:
    world = World()
    world.open()
    claim = world.build_claims(0)[0]

    def accuse(accusation: WrongBundle | WrongLoss) -> Reason:
        return refuse(world, world.sign(MINER_B, Accuse(accusation)))

    assert accuse(WrongBundle(claim, claim.bundle.root)) == Reason.EVIDENCE_HARMLESS
    assert accuse(WrongBundle(replace(claim, batch=9), CANONICAL)) == Reason.EVIDENCE_HARMLESS
    assert accuse(WrongBundle(replace(claim, miner=MINER_B.address), CANONICAL)) == Reason.EVIDENCE_SIGNATURE
    assert accuse(WrongBundle(replace(claim, task=CANONICAL), CANONICAL)) == Reason.TASK_UNKNOWN
    loss = world.build_loss(10)
    signature = world.sign(CUSTODY, loss).signature
    assert accuse(WrongLoss(loss, signature, loss.ciphertext)) == Reason.EVIDENCE_HARMLESS
    assert accuse(WrongLoss(replace(loss, loss=11), signature, CANONICAL)) == Reason.EVIDENCE_SIGNATURE


def test_a_wrong_loss_closes_the_task_and_costs_the_bond() -> None:
    world = World()
    world.open()
    loss = world.build_loss(10)
    signed = world.sign(CUSTODY, loss)
    money = world.count_money()
    accusation = Accuse(WrongLoss(loss, signed.signature, CANONICAL))
    world.carry(signed)
    world.carry(*(world.sign(key, accusation) for key in (MINER_A, MINER_B)))
    assert world.task_state.status == TaskStatus.OPEN
    world.carry(world.sign(COLLEAGUE, accusation))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.state.get_charter().treasury == 5_000
    assert world.count_money() == money


def test_forfeited_money_is_nobodys_to_spend() -> None:
    world = World()
    world.carry(world.sign(OUTSIDER, build_double(world, MINER_A)))
    spend = world.sign(MINER_A, Transfer(OUTSIDER.address, Amount(1_000_001)))
    assert refuse(world, spend) == Reason.TX_BALANCE
