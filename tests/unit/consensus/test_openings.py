"""Openings: one unbroken chain signed by the custody, each exactly once, with exactly the step's claims."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.errors import InvalidBlock, InvalidTransaction, Reason
from consensus.identifiers import compute_opening_hash, compute_weights_digest
from consensus.openings import MAX_OPENING_BYTES
from consensus.optimizer import apply_opening, compute_weights
from consensus.payload import ReportOpenings, SignedOpening
from consensus.publication import get_step_batches
from consensus.task import Available, Credit, OpenGradient, OpenLoss
from consensus.transition import apply_transaction, check_transaction
from consensus.types import ZERO_HASH, Millis, Signature
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_blob,
    build_genesis,
)

OTHER = hash_domain("test", b"other")


@pytest.fixture
def world() -> World:
    """At step 1, where no loss is scheduled."""
    world = World()
    world.open()
    world.open_loss(900)
    world.open_gradient()
    return world


Build = Callable[[World], OpenGradient | OpenLoss]


def _change(**changes: object) -> Build:
    return lambda world: world.build_gradient(**changes)


def _change_claim(index: int, **changes: object) -> Build:
    def build(world: World) -> OpenGradient:
        claims = list(world.build_claims(world.task_state.step))
        claims[index] = replace(claims[index], **changes)
        return world.build_gradient(claims=tuple(claims))

    return build


def _reverse_claims(world: World) -> OpenGradient:
    return world.build_gradient(claims=world.build_claims(1)[::-1])


def _drop_claim(world: World) -> OpenGradient:
    return world.build_gradient(claims=world.build_claims(1)[:1])


def _double_claim(world: World) -> OpenGradient:
    claim = world.build_claims(1)[0]
    return world.build_gradient(claims=(claim, claim))


def _add_claim(world: World) -> OpenGradient:
    claims = world.build_claims(1)
    missing = ({0, 1, 2} - {claim.batch for claim in claims}).pop()
    extra = sign_claim(MINER_A, world.chain_id, world.task, 1, missing, build_blob("extra"))
    ordered = sorted((*claims, extra), key=lambda claim: claim.batch)
    return world.build_gradient(claims=tuple(ordered))


def _replay_claims_of_step_0(world: World) -> OpenGradient:
    return world.build_gradient(claims=world.build_claims(0))


def _claim_for_other_chain(world: World) -> OpenGradient:
    claims = world.build_claims(1)
    foreign = tuple(sign_claim(MINER_A, OTHER, world.task, 1, claim.batch, claim.bundle) for claim in claims)
    return world.build_gradient(claims=foreign)


def _claim_by_outsider(world: World) -> OpenGradient:
    return world.build_gradient(claims=world.build_claims(1, (OUTSIDER,)))


def _reopen_step_0(world: World) -> OpenGradient:
    return world.build_gradient(step=0, claims=world.build_claims(0))


def _skip_step(world: World) -> OpenGradient:
    return world.build_gradient(step=2, claims=world.build_claims(2))


REFUSED: list[tuple[Build, Reason]] = [
    (_reopen_step_0, Reason.OPENING_DOUBLED),
    (_skip_step, Reason.OPENING_STEP),
    (_change(step=2**40), Reason.OPENING_STEP),
    (_change(previous=OTHER), Reason.OPENING_CHAIN),
    (_change(previous=ZERO_HASH), Reason.OPENING_CHAIN),
    (_change(weights=OTHER), Reason.OPENING_WEIGHTS),
    (_change(task=OTHER), Reason.TASK_UNKNOWN),
    (_change(gradient=(1, 2)), Reason.OPENING_LENGTH),
    (_change(gradient=(1, 2, 3, 4)), Reason.OPENING_LENGTH),
    (_change(gradient=(1, 2, 2**53)), Reason.OPENING_BOUND),
    (_change(gradient=(1, 2, -(2**53))), Reason.OPENING_BOUND),
    (_change(claims=()), Reason.OPENING_CLAIMS),
    (_reverse_claims, Reason.OPENING_CLAIMS),
    (_drop_claim, Reason.OPENING_CLAIMS),
    (_double_claim, Reason.OPENING_CLAIMS),
    (_add_claim, Reason.OPENING_CLAIMS),
    (_replay_claims_of_step_0, Reason.OPENING_CLAIMS),
    (_change_claim(0, task=OTHER), Reason.OPENING_CLAIMS),
    (_change_claim(0, step=0), Reason.OPENING_CLAIMS),
    (_change_claim(1, bundle=build_blob("other")), Reason.OPENING_CLAIM_SIGNATURE),
    (_change_claim(0, miner=MINER_B.address), Reason.OPENING_CLAIM_SIGNATURE),
    (_claim_for_other_chain, Reason.OPENING_CLAIM_SIGNATURE),
    (_claim_by_outsider, Reason.OPENING_MINER),
    (lambda world: world.build_loss(10), Reason.OPENING_UNSCHEDULED),
    (lambda world: world.build_loss(10, step=0), Reason.OPENING_DOUBLED),
    (lambda world: world.build_loss(10, step=2), Reason.OPENING_STEP),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED)
def test_wrong_opening_is_refused_with_its_reason(world: World, build: Build, reason: Reason) -> None:
    valid = world.build_carrier(world.sign(CUSTODY, world.build_gradient()))
    wrong = world.sign(CUSTODY, build(world))
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, wrong, world.get_context())
    assert caught.value.reason == reason
    # The same in a block: B6, with the transaction's reason as its cause.
    body = replace(valid.body, transactions=(wrong,))
    with pytest.raises(InvalidBlock) as refused:
        world.validate(world.forge(valid, body=body))
    assert (refused.value.reason, refused.value.cause) == (Reason.B6_TRANSACTION, reason)
    assert world.state.root == before
    world.add(valid)
    assert world.task_state.step == 2


def test_two_openings_fit_into_one_report(world: World) -> None:
    """What is too large for that is refused before its claims are looked at."""
    claim = world.build_claims(1)[0]
    many = world.build_gradient(claims=(claim,) * (MAX_OPENING_BYTES // len(encode(claim))))
    assert len(encode(many)) > MAX_OPENING_BYTES
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, many), world.get_context())
    assert caught.value.reason == Reason.OPENING_LENGTH
    fewer = replace(many, claims=many.claims[1:])
    assert len(encode(fewer)) <= MAX_OPENING_BYTES
    pair = ReportOpenings(*(SignedOpening(fewer, Signature(bytes(64))) for _ in range(2)))
    check_transaction(world.sign(OUTSIDER, pair), world.chain_id)


@pytest.mark.parametrize("key", [COLLEAGUE, MINER_A, OUTSIDER])
def test_nobody_but_the_custody_opens(world: World, key: object) -> None:
    for opening in (world.build_gradient(), world.build_loss(1)):
        with pytest.raises(InvalidTransaction) as caught:
            apply_transaction(world.state, world.sign(key, opening), world.get_context())
        assert caught.value.reason == Reason.OPENING_CUSTODY


def test_forged_sender_is_refused(world: World) -> None:
    forged = replace(world.sign(OUTSIDER, world.build_gradient()), sender=CUSTODY.address)
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, forged, world.get_context())
    assert caught.value.reason == Reason.TX_SIGNATURE


def test_opening_is_not_replayed_on_another_chain_or_task(world: World) -> None:
    there = World(build_genesis(name="other"))
    there.open()
    there.open_loss(900)
    opening = world.sign(CUSTODY, world.build_gradient())
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(there.state, opening, there.get_context())
    assert caught.value.reason == Reason.TX_CHAIN
    resigned = there.sign(CUSTODY, opening.payload)
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(there.state, resigned, there.get_context())
    assert caught.value.reason == Reason.TASK_UNKNOWN


def test_the_same_opening_counts_once(world: World) -> None:
    opening = world.sign(CUSTODY, world.build_gradient())
    world.carry(opening)
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, opening, world.get_context())
    assert caught.value.reason == Reason.OPENING_DOUBLED


def test_openings_bear_no_nonce(world: World) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(
            world.state, world.sign(CUSTODY, world.build_gradient(), nonce=1), world.get_context()
        )
    assert caught.value.reason == Reason.TX_NONCE


def test_a_scheduled_loss_comes_before_the_gradient(world: World) -> None:
    world.open_gradient()
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, world.build_gradient()), world.get_context())
    assert caught.value.reason == Reason.OPENING_LOSS_DUE
    assert caught.value.is_premature
    # Signed behind the loss, but arriving before it: it only has to wait.
    loss = world.build_loss(500)
    ahead = world.sign(CUSTODY, world.build_gradient(previous=compute_opening_hash(loss)))
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, ahead, world.get_context())
    assert caught.value.is_premature
    world.carry(world.sign(CUSTODY, loss), ahead)
    assert (world.task_state.step, world.task_state.last_loss) == (3, 500)


def test_a_loss_is_opened_once(world: World) -> None:
    world.open_gradient()
    world.open_loss(500)
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, world.build_loss(400)), world.get_context())
    assert caught.value.reason == Reason.OPENING_DOUBLED


def test_a_loss_out_of_bounds_is_refused(world: World) -> None:
    world.open_gradient()
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, world.build_loss(-(2**53))), world.get_context())
    assert caught.value.reason == Reason.OPENING_BOUND


def test_openings_wait_for_the_task_to_open() -> None:
    world = World()
    world.publish()
    opening = world.sign(CUSTODY, world.build_loss(5))
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, opening, world.get_context())
    assert caught.value.reason == Reason.TASK_PENDING
    assert caught.value.is_premature
    world.carry(*(world.sign(key, Available(world.task)) for key in (COLLEAGUE, MINER_A)))
    with pytest.raises(InvalidTransaction):
        apply_transaction(world.state, opening, world.get_context())
    world.carry(world.sign(MINER_B, Available(world.task)), opening)
    assert world.task_state.loss_opened


def test_openings_end_with_the_deadline(world: World) -> None:
    opening = world.sign(CUSTODY, world.build_gradient())
    publication = world.state.get_publication(world.task)
    assert publication is not None
    span = publication.deadline - world.header.time
    apply_transaction(world.state, opening, world.get_context(span))
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, opening, world.get_context(span + 1))
    assert caught.value.reason == Reason.TASK_DEADLINE


def test_openings_end_with_the_last_rung(world: World) -> None:
    world.open_gradient()
    world.open_loss(5)
    assert world.task_state.next_rung == 3
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, world.build_gradient()), world.get_context())
    assert caught.value.reason == Reason.OPENING_FINISHED


def test_openings_end_with_their_number(world: World) -> None:
    for step in range(1, 6):
        if step in (2, 4):
            world.open_loss(500)
        world.open_gradient()
    world.open_loss(500)
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, world.build_gradient()), world.get_context())
    assert caught.value.reason == Reason.OPENING_LIMIT


def test_state_follows_the_optimiser_and_the_chain(world: World) -> None:
    publication = world.state.get_publication(world.task)
    assert publication is not None
    gradients = [(5, 6, -7)]
    assert world.task_state.weights == compute_weights(
        publication.initial_weights, gradients, publication.optimizer, 1_000
    )
    opening = world.build_gradient((-100, 3, 4))
    world.carry(world.sign(CUSTODY, opening))
    gradients.append((-100, 3, 4))
    expected = compute_weights(publication.initial_weights, gradients, publication.optimizer, 1_000)
    assert world.task_state.weights == expected
    assert world.task_state.previous == compute_opening_hash(opening)
    assert world.build_loss(1).weights == compute_weights_digest(expected)


def test_a_step_uses_the_order_round_and_round(world: World) -> None:
    publication = world.state.get_publication(world.task)
    assert publication is not None
    steps = [get_step_batches(publication, step) for step in range(4)]
    # order (2, 0, 1), two a step: 2 0 | 1 2 | 0 1 | 2 0
    assert steps == [(0, 2), (1, 2), (0, 1), (0, 2)]


def test_qualified_milestone_remembers_what_led_to_it(world: World) -> None:
    world.open_gradient((MINER_B,))
    previous, weights = world.task_state.previous, world.task_state.weights
    world.open_loss(100)
    (milestone,) = world.task_state.qualified
    assert (milestone.first_rung, milestone.last_rung, milestone.step, milestone.loss) == (0, 0, 2, 100)
    assert milestone.openings == previous
    assert milestone.loss_opening == world.task_state.previous
    assert milestone.weights_digest == compute_weights_digest(weights)
    assert milestone.credits == (Credit(MINER_B.address, 3), Credit(MINER_A.address, 1))
    assert (milestone.height, milestone.time) == (world.header.height, world.header.time)
    assert world.task_state.interval_credits == ()


def test_a_loss_above_the_next_rung_qualifies_nothing(world: World) -> None:
    world.open_gradient()
    world.open_loss(101)
    assert world.task_state.qualified == ()
    assert sum(credit.batches for credit in world.task_state.interval_credits) == 4


# --- the optimiser ----------------------------------------------------------------------------


def test_optimiser_floors_towards_minus_infinity_and_saturates() -> None:
    weights, momentum = apply_opening((0, 0, 95, -95), (-1, 5, 0, 0), (0, 0, -80, 80), 3, 2, 100)
    # floor(-9/10) = -1, floor(45/10) = 4; w - floor(3 * m / 4)
    assert momentum == (-1, 4, -80, 80)
    assert weights == (1, -3, 100, -100)


def test_optimiser_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        apply_opening((0, 0), (0, 0), (0,), 1, 1, 1)


def test_time_is_counted_in_the_header_only(world: World) -> None:
    """Openings hold on every fork: the same one applies in blocks of other heights and times."""
    opening = world.sign(CUSTODY, world.build_gradient())
    roots = set()
    for after in (2_000, 50_000):
        context = replace(world.get_context(after), time=Millis(world.header.time + after))
        roots.add(apply_transaction(world.state, opening, context).root)
    assert len(roots) == 1
