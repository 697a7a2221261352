"""Transfers, availability and expiry: who may, when, and where the money goes."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.settlement import compute_payout
from consensus.state import TaskStatus
from consensus.task import Available, Credit, ExpireTask
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Address, Signature
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_genesis,
    build_milestone_world,
)

OTHER = hash_domain("test", b"other")
NEWCOMER = SigningKey(b"n" * 32)


def refuse(world: World, transaction: SignedTransaction, after: int = 2_000) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context(after))
    assert world.state.root == before
    return caught.value.reason


# --- transfers --------------------------------------------------------------------------------


def test_transfer_moves_money_and_counts() -> None:
    world = World()
    world.carry(
        world.transfer(OUTSIDER, NEWCOMER, 100, 0),
        world.transfer(OUTSIDER, OUTSIDER, 50, 1),
        world.transfer(NEWCOMER, MINER_A, 40, 0),
    )
    assert world.state.get_account(NEWCOMER.address).balance == 60
    assert world.state.get_account(OUTSIDER.address).balance == 1_000_000 - 100
    assert world.state.get_account(OUTSIDER.address).nonce == 2


@pytest.mark.parametrize(
    ("amount", "nonce", "reason"),
    [
        (0, 0, Reason.TX_AMOUNT),
        (1_000_001, 0, Reason.TX_BALANCE),
        (1, 1, Reason.TX_NONCE_FUTURE),
        (1, -1, Reason.TX_NONCE),
        (-1, 0, Reason.TX_MALFORMED),
    ],
)
def test_wrong_transfer_is_refused(amount: int, nonce: int, reason: Reason) -> None:
    world = World()
    transaction = world.transfer(OUTSIDER, MINER_A, 1, 0)
    if amount >= 0:
        transaction = world.transfer(OUTSIDER, MINER_A, amount, nonce)
    else:
        transaction = replace(transaction, payload=replace(transaction.payload, amount=amount))
    assert refuse(world, transaction) == reason


def test_replayed_and_foreign_and_unsigned_transfers_are_refused() -> None:
    world, other = World(), World(build_genesis(name="other"))
    transaction = world.transfer(OUTSIDER, MINER_A, 5)
    world.carry(transaction)
    assert refuse(world, transaction) == Reason.TX_NONCE
    assert refuse(world, other.transfer(OUTSIDER, MINER_A, 5, 1)) == Reason.TX_CHAIN
    fresh = world.transfer(OUTSIDER, MINER_A, 5)
    assert refuse(world, replace(fresh, signature=Signature(b""))) == Reason.TX_SIGNATURE
    assert refuse(world, replace(fresh, sender=MINER_B.address)) == Reason.TX_SIGNATURE
    assert refuse(world, replace(fresh, sender=Address(bytes(31)))) == Reason.TX_MALFORMED


# --- availability -----------------------------------------------------------------------------


def test_a_task_opens_at_two_thirds_of_stake() -> None:
    world = World()
    world.publish()
    for key, status in (
        (CUSTODY, TaskStatus.PENDING),
        (MINER_A, TaskStatus.PENDING),
        (MINER_B, TaskStatus.OPEN),
        (COLLEAGUE, TaskStatus.OPEN),
    ):
        world.carry(world.sign(key, Available(world.task)))
        assert world.task_state.status == status
    assert world.task_state.available_stake == 40
    assert len(world.task_state.available) == 4


def test_wrong_promises_are_refused() -> None:
    world = World()
    world.publish()
    assert refuse(world, world.sign(OUTSIDER, Available(world.task))) == Reason.AVAILABLE_VALIDATOR
    assert refuse(world, world.sign(MINER_A, Available(OTHER))) == Reason.TASK_UNKNOWN
    late = world.sign(MINER_A, Available(world.task))
    assert refuse(world, late, after=2_000_000) == Reason.TASK_DEADLINE
    world.carry(world.sign(MINER_A, Available(world.task)))
    assert refuse(world, world.sign(MINER_A, Available(world.task))) == Reason.AVAILABLE_DOUBLED
    world.carry(world.sign(OUTSIDER, ExpireTask(world.task)), after=2_000_000)
    assert refuse(world, world.sign(MINER_B, Available(world.task))) == Reason.TASK_ENDED


# --- expiry -----------------------------------------------------------------------------------


def test_a_task_expires_after_its_deadline_only() -> None:
    world = World()
    world.publish()
    expire = world.sign(OUTSIDER, ExpireTask(world.task))
    publication = world.state.get_publication(world.task)
    assert publication is not None
    span = publication.deadline - world.header.time
    assert refuse(world, expire, span) == Reason.EXPIRE_EARLY
    before = world.count_money()
    world.carry(expire, after=span + 1)
    assert world.task_state.status == TaskStatus.EXPIRED
    # The bond stays within reach of evidence for a while.
    assert world.state.get_account(CUSTODY.address).balance == 1_000_000 - 5_000
    world.carry(after=world.params.evidence_ms)
    assert world.state.get_account(CUSTODY.address).balance == 1_000_000
    assert world.state.get_locks() == ()
    assert world.count_money() == before
    assert refuse(world, expire) == Reason.TASK_ENDED


def test_expiry_pays_every_credited_batch_its_fee_once() -> None:
    """Batches of a settled milestone, of a pending one, and of none."""
    world = build_milestone_world()
    world.add(world.build_work_block(MINER_A))
    world.settle()
    before = {key: world.state.get_account(key.address).balance for key in (MINER_A, MINER_B)}
    world.open_gradient()
    world.open_gradient()
    world.open_loss(45)
    world.open_gradient((MINER_B,))
    assert len(world.task_state.qualified) == 1
    money = world.count_money()
    world.carry(world.sign(MINER_B, ExpireTask(world.task)), after=2_000_000)
    earned = {key: world.state.get_account(key.address).balance - before[key] for key in before}
    assert earned == {MINER_A: 2 * 7, MINER_B: 4 * 7}
    assert world.task_state.qualified == ()
    assert world.task_state.escrow == world.task_state.bond == 0
    assert world.count_money() == money


def test_spent_openings_expire_a_task_unless_something_is_pending() -> None:
    world = World()
    world.open()
    expire = world.sign(OUTSIDER, ExpireTask(world.task))
    for step in range(6):
        if step in (0, 2, 4):
            world.open_loss(900)
        assert refuse(world, expire) == Reason.EXPIRE_EARLY
        world.open_gradient()
    # The loss at step 6 is scheduled and may still meet a rung.
    assert refuse(world, expire) == Reason.EXPIRE_EARLY
    world.open_loss(70)
    assert refuse(world, expire) == Reason.EXPIRE_EARLY
    winner = world.task_state.qualified[0].credits[0].miner
    world.add(world.build_work_block(MINER_A if winner == MINER_A.address else MINER_B))
    assert refuse(world, expire) == Reason.EXPIRE_EARLY
    money = world.count_money()
    world.carry(expire, after=world.params.verdict_ms)
    assert world.task_state.status == TaskStatus.EXPIRED
    assert world.task_state.settled is not None  # nobody rejected it in its time
    assert world.count_money() == money


def test_a_milestone_without_credits_pays_nobody() -> None:
    """The initial weights met the rung: its reward returns to the custody in the end."""
    world = World()
    world.open()
    world.open_loss(10)
    money = world.count_money()
    world.add(world.build_work_block(MINER_B))
    world.settle()
    assert world.task_state.status == TaskStatus.COMPLETE
    world.carry(after=world.params.evidence_ms)
    assert world.state.get_account(CUSTODY.address).balance == 1_000_000
    assert world.count_money() == money


@pytest.mark.parametrize(
    ("batches", "reward", "payout"),
    [
        ((), 100, ()),
        ((1,), 100, (102,)),
        ((1, 1, 1), 100, (36, 35, 35)),
        ((5, 2), 1, (11, 4)),
        ((3, 3), 0, (6, 6)),
    ],
)
def test_payout(batches: tuple[int, ...], reward: int, payout: tuple[int, ...]) -> None:
    credits = [Credit(MINER_A.address, count) for count in batches]
    assert compute_payout(credits, reward, 2) == payout
