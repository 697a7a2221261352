"""Two openings of one step, both signed by the custody: whoever sees both reports them, the bond is lost."""

from pathlib import Path

import pytest

from consensus.payload import ReportOpenings, SignedOpening
from consensus.records import TaskStatus
from consensus.task import OpenLoss
from consensus.transaction import SignedTransaction
from node.equivocation import OpeningWitness
from node.work import WorkerPool
from tests.integration.judged import JudgedWorld, Validator
from tests.unit.consensus.world import CUSTODY, MINER_A


@pytest.fixture
def world() -> JudgedWorld:
    made = JudgedWorld()
    made.begin()
    return made


def check_conviction(world: JudgedWorld, node: Validator) -> None:
    """One report is waiting, and it closes the task."""
    [report] = node.get_sent(ReportOpenings)
    bond, money = world.task_state.bond, world.count_money()
    world.carry(report)
    node.follow()
    assert world.task_state.status is TaskStatus.CLOSED
    assert world.state.get_charter().treasury == bond
    assert world.count_money() == money
    assert not node.get_sent(ReportOpenings)


def test_both_are_waiting(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    node = Validator(world, tmp_path, pool)
    OpeningWitness(node.core)
    first, second = (world.sign(CUSTODY, world.build_loss(loss)) for loss in (900, 901))
    assert node.core.admit(first).accepted
    assert not node.core.admit(second).accepted
    check_conviction(world, node)


def test_the_first_is_on_the_chain(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    """A node that was restarted in between remembers nothing but the chain."""
    second = world.sign(CUSTODY, world.build_loss(901))
    world.open_loss(900)
    world.take_milestone(90)
    node = Validator(world, tmp_path, pool)
    OpeningWitness(node.core)
    assert not node.core.admit(second).accepted
    check_conviction(world, node)


def test_what_is_no_evidence_is_not_reported(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> None:
    """The same one again, another step's, and one that only looks like the custody's."""
    node = Validator(world, tmp_path, pool)
    OpeningWitness(node.core)
    first = world.sign(CUSTODY, world.build_loss(900))
    forged: list[SignedTransaction] = [
        world.sign(MINER_A, world.build_loss(901)),
        world.sign(CUSTODY, world.build_loss(900, step=1)),
        first,
    ]
    for transaction in (first, *forged):
        node.core.admit(transaction)
    assert not node.get_sent(ReportOpenings)
    payload = first.payload
    assert isinstance(payload, OpenLoss)
    own = SignedOpening(payload, first.signature)
    assert not node.core.admit(node.core.sign(ReportOpenings(own, own))).accepted
