"""Drafts, contributions and publications: every field is checked before money moves."""

from dataclasses import replace

import pytest

from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.identifiers import compute_draft_hash
from consensus.publication import compute_escrow, get_task_batches, get_task_blobs
from consensus.state import TaskStatus
from consensus.task import Batch, DraftTask, Milestone, Optimizer, PatientRange
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.transition import apply_transaction
from consensus.types import Amount
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    OUTSIDER,
    START,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_publication,
)

OTHER = hash_domain("test", b"other")


def refuse(world: World, transaction: SignedTransaction) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    assert world.state.root == before
    return caught.value.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "mining"),
        ("title", "x" * 201),
        ("salt", bytes(15)),
        ("preset", ""),
        ("model", b""),
        ("model", bytes(65_537)),
        ("parameters", 0),
        ("parameters", 2**20 + 1),
        ("weight_box", 0),
        ("weight_box", 2**53),
        ("public_key", build_blob("empty", 0)),
        ("relin_keys", build_blob("public key")),
        ("clipping", "none"),
        ("gradient_scale_bits", 63),
        ("loss_scale_bits", -1),
        ("gradient_clip", 0),
        ("loss_clip", -5),
        ("gradient_noise", -1),
        ("loss_noise", 2**53),
        ("max_gradient_openings", 0),
        ("max_loss_openings", 0),
        ("max_loss_openings", 8),
        ("privacy", "x" * 16_385),
    ],
)
def test_draft_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    world = World()
    transaction = world.sign(CUSTODY, DraftTask(build_draft(**{field: value})))
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    assert caught.value.reason == Reason.DRAFT_FIELD
    assert caught.value.detail in (field, "relin_keys")


@pytest.fixture
def drafted() -> World:
    world = World()
    world.carry(world.sign(CUSTODY, DraftTask(build_draft())))
    world.draft = compute_draft_hash(world.chain_id, build_draft())
    return world


def test_a_draft_is_known_once(drafted: World) -> None:
    again = drafted.sign(COLLEAGUE, DraftTask(build_draft()))
    assert refuse(drafted, again) == Reason.DRAFT_KNOWN


PATIENTS = build_contribution(OTHER).patients


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"draft": OTHER}, Reason.DRAFT_UNKNOWN),
        ({"training": (), "validation": (), "patients": ()}, Reason.CONTRIBUTION_BATCHES),
        ({"validation": (Batch(build_blob("validation"), 0),)}, Reason.CONTRIBUTION_BATCHES),
        ({"validation": (Batch(build_blob("validation", 0), 4),)}, Reason.CONTRIBUTION_BATCHES),
        ({"validation": (Batch(build_blob("training 1"), 4),)}, Reason.CONTRIBUTION_BATCHES),
        ({"patients": PATIENTS[:-1]}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS, PatientRange(9, True, 0, 3, 4))}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS, PatientRange(9, True, 1, 0, 4))}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS, PatientRange(9, True, -1, 0, 4))}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS[:-1], PatientRange(3, True, 0, 0, 5))}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS[:-1], PatientRange(3, True, 0, 1, 4))}, Reason.CONTRIBUTION_PATIENTS),
        ({"patients": (*PATIENTS[:-1], PatientRange(1, True, 0, 0, 4))}, Reason.CONTRIBUTION_PATIENTS),
    ],
)
def test_wrong_contribution_is_refused(drafted: World, changes: dict[str, object], reason: Reason) -> None:
    contribution = build_contribution(drafted.draft)
    assert refuse(drafted, drafted.sign(OUTSIDER, replace(contribution, **changes))) == reason
    drafted.carry(drafted.sign(OUTSIDER, contribution))


@pytest.fixture
def contributed(drafted: World) -> tuple[World, SignedTransaction]:
    transaction = drafted.sign(OUTSIDER, build_contribution(drafted.draft))
    drafted.carry(transaction)
    return drafted, transaction


RATES = (8,) * 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"draft": OTHER}, Reason.DRAFT_UNKNOWN),
        ({"contributions": ()}, Reason.PUBLISH_CONTRIBUTIONS),
        ({"contributions": (OTHER,)}, Reason.CONTRIBUTION_UNKNOWN),
        ({"order": (0, 1)}, Reason.PUBLISH_ORDER),
        ({"order": (0, 1, 1)}, Reason.PUBLISH_ORDER),
        ({"order": (0, 1, 3)}, Reason.PUBLISH_ORDER),
        ({"batches_per_step": 0}, Reason.PUBLISH_STEP),
        ({"batches_per_step": 4}, Reason.PUBLISH_STEP),
        ({"initial_weights": (1, 2)}, Reason.PUBLISH_WEIGHTS),
        ({"initial_weights": (1, 2, 1_001)}, Reason.PUBLISH_WEIGHTS),
        ({"initial_weights": (1, 2, -1_001)}, Reason.PUBLISH_WEIGHTS),
        ({"optimizer": Optimizer(-1, RATES)}, Reason.PUBLISH_OPTIMIZER),
        ({"optimizer": Optimizer(257, RATES)}, Reason.PUBLISH_OPTIMIZER),
        ({"optimizer": Optimizer(4, RATES[1:])}, Reason.PUBLISH_OPTIMIZER),
        ({"optimizer": Optimizer(4, (*RATES[1:], -1))}, Reason.PUBLISH_OPTIMIZER),
        ({"loss_schedule": ()}, Reason.PUBLISH_SCHEDULE),
        ({"loss_schedule": (0, 2, 2)}, Reason.PUBLISH_SCHEDULE),
        ({"loss_schedule": (2, 1)}, Reason.PUBLISH_SCHEDULE),
        ({"loss_schedule": (-1, 2)}, Reason.PUBLISH_SCHEDULE),
        ({"loss_schedule": (2, 7)}, Reason.PUBLISH_SCHEDULE),
        ({"loss_schedule": (0, 1, 2, 3, 4, 5)}, Reason.PUBLISH_SCHEDULE),
        ({"ladder": ()}, Reason.PUBLISH_LADDER),
        ({"ladder": (Milestone(5, Amount(1)), Milestone(5, Amount(1)))}, Reason.PUBLISH_LADDER),
        ({"ladder": (Milestone(5, Amount(1)), Milestone(6, Amount(1)))}, Reason.PUBLISH_LADDER),
        ({"ladder": tuple(Milestone(-i, Amount(1)) for i in range(65))}, Reason.PUBLISH_LADDER),
        ({"ladder": (Milestone(2**53, Amount(1)),)}, Reason.PUBLISH_LADDER),
        ({"deadline": START}, Reason.PUBLISH_DEADLINE),
        ({"bond": Amount(10**9)}, Reason.TX_BALANCE),
        ({"batch_fee": Amount(10**6)}, Reason.TX_BALANCE),
        ({"ladder": (Milestone(5, Amount(10**6)),)}, Reason.TX_BALANCE),
    ],
)
def test_wrong_publication_is_refused(
    contributed: tuple[World, SignedTransaction], changes: dict[str, object], reason: Reason
) -> None:
    world, contribution = contributed
    publication = build_publication(world.draft, (compute_transaction_id(contribution),))
    assert refuse(world, world.sign(CUSTODY, replace(publication, **changes))) == reason
    world.carry(world.sign(CUSTODY, publication))


def test_only_the_drafts_sender_publishes(contributed: tuple[World, SignedTransaction]) -> None:
    world, contribution = contributed
    publication = build_publication(world.draft, (compute_transaction_id(contribution),))
    assert refuse(world, world.sign(COLLEAGUE, publication)) == Reason.PUBLISH_CUSTODY


def test_contribution_to_another_draft_is_refused(contributed: tuple[World, SignedTransaction]) -> None:
    world, contribution = contributed
    other = build_draft(salt=b"s" * 16)
    world.carry(world.sign(CUSTODY, DraftTask(other)))
    draft = compute_draft_hash(world.chain_id, other)
    publication = build_publication(draft, (compute_transaction_id(contribution),))
    assert refuse(world, world.sign(CUSTODY, publication)) == Reason.CONTRIBUTION_DRAFT


def test_a_task_needs_validation_and_training_batches(drafted: World) -> None:
    world = drafted
    training_only = build_contribution(world.draft, validation=(), patients=PATIENTS[:-1])
    validation_only = build_contribution(world.draft, training=(), patients=PATIENTS[-1:])
    for contribution in (training_only, validation_only):
        transaction = world.sign(OUTSIDER, contribution)
        world.carry(transaction)
        publication = build_publication(world.draft, (compute_transaction_id(transaction),))
        assert refuse(world, world.sign(CUSTODY, publication)) == Reason.PUBLISH_BATCHES


def test_a_batch_contributed_twice_is_refused(contributed: tuple[World, SignedTransaction]) -> None:
    world, contribution = contributed
    copied = world.sign(MINER_A, build_contribution(world.draft))
    world.carry(copied)
    listed = (compute_transaction_id(contribution), compute_transaction_id(copied))
    publication = build_publication(world.draft, listed, order=tuple(range(6)))
    assert refuse(world, world.sign(CUSTODY, publication)) == Reason.PUBLISH_BATCHES


def test_a_contribution_is_listed_once(contributed: tuple[World, SignedTransaction]) -> None:
    world, contribution = contributed
    publication = build_publication(world.draft, (compute_transaction_id(contribution),) * 2)
    assert refuse(world, world.sign(CUSTODY, publication)) == Reason.PUBLISH_CONTRIBUTIONS


def test_a_draft_is_published_and_contributed_to_once() -> None:
    world = World()
    publication = world.publish()
    assert refuse(world, world.sign(CUSTODY, publication)) == Reason.DRAFT_USED
    late = build_contribution(world.draft, training=(Batch(build_blob("late"), 8),), patients=PATIENTS[-1:])
    assert refuse(world, world.sign(OUTSIDER, late)) == Reason.DRAFT_USED


@pytest.mark.parametrize("field", ["public_key", "relin_keys"])
def test_a_key_appears_in_one_task_only(field: str) -> None:
    """Even swapped: a root is used whatever it was used as."""
    world = World()
    world.publish()
    fresh = {"public_key": build_blob("new public key"), "relin_keys": build_blob("new relin keys")}
    for used in (build_blob("public key"), build_blob("relin keys")):
        draft = build_draft(**(fresh | {field: used}))
        world.carry(world.sign(CUSTODY, DraftTask(draft)))
        draft_hash = compute_draft_hash(world.chain_id, draft)
        contribution = world.sign(OUTSIDER, build_contribution(draft_hash))
        world.carry(contribution)
        publication = build_publication(draft_hash, (compute_transaction_id(contribution),))
        assert refuse(world, world.sign(CUSTODY, publication)) == Reason.PUBLISH_KEY_USED


def test_publication_escrows_rewards_fees_and_bond() -> None:
    world = World()
    money, before = world.count_money(), world.state.get_account(CUSTODY.address).balance
    publication = world.publish()
    escrow = 1_000 + 500 + 301 + 7 * 2 * 6
    assert compute_escrow(publication, build_draft()) == escrow
    task = world.task_state
    assert (task.status, task.escrow, task.bond) == (TaskStatus.PENDING, escrow, 5_000)
    assert world.state.get_account(CUSTODY.address).balance == before - escrow - 5_000
    assert world.count_money() == money
    assert world.state.get_tasks() == (world.task,)
    assert world.state.get_publication(world.task) == publication
    assert task.published_height == world.header.height


def test_task_lists_its_batches_and_blobs() -> None:
    world = World()
    publication = world.publish()
    names = [build_blob(f"training {i}") for i in range(3)]
    assert [b.blob for b in get_task_batches(world.state, publication, validation=False)] == names
    validation = build_blob("validation")
    keys = (build_blob("public key"), build_blob("relin keys"))
    assert get_task_blobs(world.state, publication, validation_only=True) == (*keys, validation)
    assert get_task_blobs(world.state, publication, validation_only=False) == (*keys, *names, validation)
