"""Who is listened to, what is looked into, how often: accusations on a chain made by hand.

What a bundle's canonical root is was computed before, so far as these tests say so; the rest is real.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.claims import sign_claim
from consensus.crypto import SigningKey, hash_domain
from consensus.evidence import compute_accusation_id
from consensus.identifiers import compute_weights_digest
from consensus.payload import Accuse, WrongBundle, WrongLoss
from consensus.publication import get_step_batches
from consensus.records import TaskStatus
from consensus.task import BlobRef, Claim
from consensus.types import Hash32
from node.accuser import MAX_DISMISSED, MAX_WAITING_EACH, Accuser, accuse
from node.history import find_weights
from node.work import WorkerPool
from tests.integration.judged import JudgedWorld, Validator
from tests.integration.rig import wait_until
from tests.unit.consensus.world import CIPHERTEXT, COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER

RIGHT = hash_domain("test", b"canonical")
WRONG = hash_domain("test", b"something else")


@pytest.fixture
def world() -> JudgedWorld:
    made = JudgedWorld()
    made.begin()
    made.take_milestone(90)
    return made


@pytest.fixture
def node(world: JudgedWorld, tmp_path: Path, pool: WorkerPool) -> Validator:
    """Miner B's, who knows the canonical bundles of the first two steps."""
    made = Validator(world, tmp_path, pool)
    publication = world.state.get_publication(world.task)
    assert publication is not None
    for step in (0, 1):
        for batch in get_step_batches(publication, step):
            digest = compute_weights_digest(world.weights[step])
            key = b"canonical/" + world.task + digest + batch.to_bytes(4, "big")
            made.core.chain.ledger.put_record(key, RIGHT)
    return made


def build_claim(world: JudgedWorld, root: Hash32, step: int = 0, batch: int = 0) -> Claim:
    return sign_claim(MINER_A, world.chain_id, world.task, step, batch, BlobRef(root, 100))


@asynccontextmanager
async def listen(node: Validator) -> AsyncIterator[None]:
    """Its accuser runs."""
    task = asyncio.create_task(Accuser(node.core, node.directory / "scratch").run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def send(
    world: JudgedWorld, node: Validator, accusation: WrongBundle | WrongLoss, by: SigningKey = COLLEAGUE
) -> None:
    node.core.admit(world.sign(by, Accuse(accusation)))


def get_own(node: Validator) -> list[WrongBundle | WrongLoss]:
    sent = [t for t in node.get_sent(Accuse) if t.sender == node.core.address]
    return [t.payload.accusation for t in sent if isinstance(t.payload, Accuse)]


def count_dismissed(node: Validator) -> int:
    return len(list(node.core.chain.ledger.iterate_records(b"dismissed/")))


async def test_a_right_accusation_is_joined_and_suspends(world: JudgedWorld, node: Validator) -> None:
    accusation = WrongBundle(build_claim(world, WRONG), RIGHT)
    async with listen(node):
        send(world, node, accusation)
        await wait_until(lambda: get_own(node) == [accusation], "it is joined")
        world.carry(*node.get_sent(Accuse), world.sign(CUSTODY, Accuse(accusation)))
        node.follow()
        assert world.state.get_suspended() == ("lab-a",)
        node.core.pulse.beat()
        await wait_until(
            lambda: not list(node.core.chain.ledger.iterate_records(b"accused/")), "nothing is sent again"
        )


async def test_one_who_names_the_wrong_canonical_root_is_corrected(
    world: JudgedWorld, node: Validator
) -> None:
    """The claim is wrong all the same: said with this node's own result."""
    claim = build_claim(world, WRONG)
    async with listen(node):
        send(world, node, WrongBundle(claim, hash_domain("test", b"invented")))
        await wait_until(lambda: get_own(node) == [WrongBundle(claim, RIGHT)], "it is corrected")


async def test_false_accusations_are_dismissed_and_their_author_not_heard_for_ever(
    world: JudgedWorld, node: Validator
) -> None:
    claims = [
        sign_claim(MINER_A, world.chain_id, world.task, 0, 0, BlobRef(RIGHT, 100 + i))
        for i in range(MAX_DISMISSED)
    ]
    truth = WrongBundle(build_claim(world, WRONG), RIGHT)
    async with listen(node):
        for number, claim in enumerate(claims):
            send(world, node, WrongBundle(claim, WRONG))
            await wait_until(lambda n=number: count_dismissed(node) == n + 1, "it is dismissed")  # type: ignore[misc]
        assert get_own(node) == []
        send(world, node, truth)  # by the same author
        node.core.pulse.beat()
        await asyncio.sleep(0)
        assert get_own(node) == []
    again = Validator(world, node.directory, node.core.work.verifiers, store=node.store)
    async with listen(again):  # a restart forgets nothing
        send(world, again, truth)
        again.core.pulse.beat()
        await asyncio.sleep(0)
        assert get_own(again) == []
        send(world, again, truth, by=CUSTODY)  # another author is heard
        await wait_until(lambda: get_own(again) == [truth], "it is joined")


async def test_what_is_not_worth_a_computation(world: JudgedWorld, node: Validator) -> None:
    """No validator's, forged, of no batch of the step, of a future step: nothing is computed or sent."""
    forged = build_claim(world, WRONG)
    accuser = Accuser(node.core, node.directory)
    for accusation, by in (
        (WrongBundle(build_claim(world, WRONG), RIGHT), OUTSIDER),
        (WrongBundle(build_claim(world, RIGHT), RIGHT), COLLEAGUE),
        (
            WrongBundle(
                Claim(*_get_fields(forged), miner=MINER_B.address, signature=forged.signature), RIGHT
            ),
            COLLEAGUE,
        ),
        (WrongBundle(build_claim(world, WRONG, batch=1), RIGHT), COLLEAGUE),
    ):
        send(world, node, accusation, by)
    assert not accuser._waiting
    send(world, node, WrongBundle(build_claim(world, WRONG, step=5, batch=get_batch(world, 5)), RIGHT))
    assert len(accuser._waiting) == 1  # waits for its step
    await accuser._look()
    assert len(accuser._waiting) == 1
    assert get_own(node) == []


def _get_fields(claim: Claim) -> tuple[Hash32, int, int, BlobRef]:
    return claim.task, claim.step, claim.batch, claim.bundle


def get_batch(world: JudgedWorld, step: int) -> int:
    publication = world.state.get_publication(world.task)
    assert publication is not None
    return get_step_batches(publication, step)[0]


async def test_one_accuser_can_not_fill_the_queue(world: JudgedWorld, node: Validator) -> None:
    accuser = Accuser(node.core, node.directory)
    for number in range(2 * MAX_WAITING_EACH):
        claim = sign_claim(
            MINER_A, world.chain_id, world.task, 5, get_batch(world, 5), BlobRef(WRONG, 100 + number)
        )
        send(world, node, WrongBundle(claim, RIGHT))
    assert len(accuser._waiting) == MAX_WAITING_EACH


async def test_own_accusations_survive_a_restart(
    world: JudgedWorld, node: Validator, pool: WorkerPool
) -> None:
    accusation = WrongBundle(build_claim(world, WRONG), RIGHT)
    assert accuse(node.core, accusation)
    again = Validator(world, node.directory, pool, store=node.store)
    assert get_own(again) == []
    async with listen(again):
        await wait_until(lambda: get_own(again) == [accusation], "it is sent again")


async def test_accusations_on_the_chain_are_found_after_an_absence(
    world: JudgedWorld, node: Validator
) -> None:
    accusation = WrongBundle(build_claim(world, WRONG), RIGHT)
    world.carry(world.sign(COLLEAGUE, Accuse(accusation)))
    node.follow()
    async with listen(node):
        await wait_until(lambda: get_own(node) == [accusation], "it is joined")
    record = world.state.get_accusation(compute_accusation_id(accusation))
    assert record is not None
    assert not record.took_effect


async def test_a_loss_that_does_not_recompute_is_accused_at_once(world: JudgedWorld, node: Validator) -> None:
    """Every validator does so by itself; three of four close the task and the custody's bond is forfeited."""
    wrong = world.build_loss(50, ciphertext=WRONG) if not world.task_state.loss_opened else None
    if wrong is None:
        world.carry(world.sign(CUSTODY, world.build_gradient((0,) * len(world.task_state.weights))))
        world.weights[world.task_state.step] = world.task_state.weights
        wrong = world.build_loss(55, ciphertext=WRONG)
    transaction = world.sign(CUSTODY, wrong)
    bond, money = world.task_state.bond, world.count_money()
    world.carry(transaction)
    node.follow()
    expected = WrongLoss(wrong, transaction.signature, CIPHERTEXT)
    assert get_own(node) == [expected]
    world.carry(*(world.sign(key, Accuse(expected)) for key in (COLLEAGUE, MINER_A, MINER_B)))
    node.follow()
    assert world.task_state.status is TaskStatus.CLOSED
    assert world.state.get_charter().treasury == bond
    assert world.count_money() == money


def test_weights_are_found_for_every_step(world: JudgedWorld, node: Validator) -> None:
    world.take_milestone(40, 2)
    node.follow()
    for step, weights in world.weights.items():
        assert find_weights(node.core.chain, world.task, step) == weights
    assert find_weights(node.core.chain, world.task, 9) is None
    assert find_weights(node.core.chain, WRONG, 0) is None
