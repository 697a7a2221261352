"""Jobs of encrypted inference: who may ask, commit and reveal, when, what confirms, where the fee goes."""

from dataclasses import replace

import pytest

from consensus.errors import InvalidTransaction, Reason
from consensus.governance import sign_governance
from consensus.inference import compute_commitment
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    EvaluatorRecord,
    ExpireJob,
    JobStatus,
    RetireModel,
    RevealResult,
)
from consensus.light import LightError, verify_receipt
from consensus.payload import Govern, Governance, SetMiningOrganisations, SetOrganisation
from consensus.state import get_receipt_key
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.transition import apply_transaction
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    VALIDATORS,
    World,
    build_blob,
    build_model,
)

EVALUATORS = (MINER_A, MINER_B, CUSTODY)
"""Of 10, 10 and, with the colleague's, 20 of 40 parts of stake."""
ROOT = build_blob("result").root


def refuse(world: World, transaction: SignedTransaction, after: int = 2_000) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context(after))
    assert world.state.root == before
    return caught.value.reason


@pytest.fixture
def world() -> World:
    """One job with a fee of 100 for a model at 7."""
    world = World()
    world.register()
    world.request()
    return world


def get_balances(world: World) -> list[int]:
    """Outsider (owner), colleague (requester), both miners, custody; less what they began with."""
    keys = (OUTSIDER, COLLEAGUE, MINER_A, MINER_B, CUSTODY)
    return [world.state.get_account(key.address).balance - 1_000_000 for key in keys]


# --- models -----------------------------------------------------------------------------------


def test_models_are_listed_in_order_and_known_by_their_transactions() -> None:
    world = World()
    for label in ("first", "second"):
        world.register(label=label)
    assert world.state.get_model_count() == 2
    ids = [world.state.get_model_id(number) for number in (0, 1, 2)]
    assert ids[1:] == [world.model, None]
    record = world.state.get_model(world.model)
    assert record is not None
    assert (record.register.label, record.owner, record.is_retired) == ("second", OUTSIDER.address, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": "fusion-training"},
        {"label": ""},
        {"label": "x" * 201},
        {"provenance": "x" * 16_385},
        {"model": build_blob("model", 0)},
        {"model": build_blob("model", 2**40 + 1)},
        {"keys_bytes": 0},
        {"request_bytes": -1},
        {"result_bytes": 2**40 + 1},
        {"keys": build_blob("keys", 399)},
        {"expires": Millis(START)},
        {"expires": Millis(2**53)},
    ],
)
def test_a_model_with_a_wrong_field_is_refused(changes: dict[str, object]) -> None:
    world = World()
    assert refuse(world, world.sign(OUTSIDER, build_model(**changes))) is Reason.MODEL_FIELD


def test_only_the_owner_retires_a_model_and_running_jobs_go_on(world: World) -> None:
    retire = RetireModel(world.model)
    assert refuse(world, world.sign(MINER_A, retire)) is Reason.MODEL_OWNER
    assert refuse(world, world.sign(OUTSIDER, RetireModel(ZERO_HASH))) is Reason.MODEL_UNKNOWN
    world.carry(world.sign(OUTSIDER, retire))
    assert refuse(world, world.sign(OUTSIDER, retire)) is Reason.MODEL_RETIRED
    assert refuse(world, world.sign(COLLEAGUE, world.build_request())) is Reason.MODEL_RETIRED
    world.carry(world.build_commit(MINER_A))
    assert len(world.job_record.evaluations) == 1


# --- requests ---------------------------------------------------------------------------------


def test_a_request_escrows_its_fee(world: World) -> None:
    assert get_balances(world) == [0, -100, 0, 0, 0]
    assert (world.job_record.escrow, world.job_record.status) == (100, JobStatus.OPEN)
    assert world.state.get_job_id(0) == world.job
    assert world.count_money() == World().count_money()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": ZERO_HASH}, Reason.MODEL_UNKNOWN),
        ({"request": build_blob("request", 299)}, Reason.JOB_SIZE),
        ({"keys": build_blob("keys", 401)}, Reason.JOB_SIZE),
        ({"fee": Amount(6)}, Reason.JOB_FEE),
        ({"fee": Amount(1_000_001)}, Reason.TX_BALANCE),
        ({"commit_until": Millis(START)}, Reason.JOB_TIMES),
        ({"commit_until": Millis(START + 50_000), "deadline": Millis(START + 50_000)}, Reason.JOB_TIMES),
        ({"deadline": Millis(START + 10_000_001)}, Reason.MODEL_EXPIRED),
    ],
)
def test_a_wrong_request_is_refused(world: World, changes: dict[str, object], reason: Reason) -> None:
    assert refuse(world, world.sign(COLLEAGUE, world.build_request(**changes))) is reason


def test_requests_for_an_encrypted_model_name_its_keys() -> None:
    world = World()
    keys = build_blob("the custody's keys", 400)
    world.register(keys=keys)
    assert refuse(world, world.sign(COLLEAGUE, world.build_request())) is Reason.JOB_KEYS
    world.request(keys=keys)
    assert world.job_record.request.keys == keys


def test_equal_requests_are_two_jobs(world: World) -> None:
    first = world.job
    again = world.sign(COLLEAGUE, world.job_record.request)
    world.carry(again)
    assert compute_transaction_id(again) != first
    assert world.state.get_job_count() == 2


# --- commitments ------------------------------------------------------------------------------


def test_an_organisation_commits_once_and_two_thirds_close_the_list(world: World) -> None:
    assert refuse(world, world.build_commit(OUTSIDER)) is Reason.EVALUATOR_ORGANISATION
    world.carry(world.build_commit(MINER_A))
    assert refuse(world, world.build_commit(MINER_A, "another")) is Reason.COMMIT_DOUBLED
    assert refuse(world, world.build_reveal(MINER_A)) is Reason.REVEAL_EARLY
    world.carry(world.build_commit(CUSTODY))
    assert refuse(world, world.build_commit(COLLEAGUE)) is Reason.COMMIT_DOUBLED
    assert world.job_record.status is JobStatus.REVEALING
    assert refuse(world, world.build_commit(MINER_B)) is Reason.COMMIT_CLOSED


def test_the_end_of_the_window_closes_the_list_only_above_a_third(world: World) -> None:
    close = world.sign(OUTSIDER, CloseCommits(world.job))
    world.carry(world.build_commit(MINER_A))
    assert refuse(world, close, 70_000) is Reason.CLOSE_EARLY
    world.carry(world.build_commit(MINER_B))
    assert refuse(world, close, 2_000) is Reason.CLOSE_EARLY
    # Time alone closes nothing.
    assert refuse(world, world.build_reveal(MINER_A), 70_000) is Reason.REVEAL_EARLY
    world.carry(close, after=70_000)
    assert world.job_record.status is JobStatus.REVEALING
    assert refuse(world, close) is Reason.COMMIT_CLOSED
    assert refuse(world, world.build_commit(CUSTODY)) is Reason.COMMIT_CLOSED
    world.carry(world.build_reveal(MINER_A))
    assert world.job_record.status is JobStatus.REVEALING


def test_nobody_commits_to_what_another_showed(world: World) -> None:
    """The commitment of one account fits no other, and none is taken once results may be shown."""
    world.carry(world.build_commit(MINER_A), world.build_commit(CUSTODY))
    world.carry(world.build_reveal(CUSTODY))
    assert refuse(world, world.build_commit(MINER_B)) is Reason.COMMIT_CLOSED
    world = World()
    world.register()
    world.request()
    copied = CommitResult(world.job, compute_commitment(world.job, ROOT, MINER_A.address))
    world.carry(world.build_commit(MINER_A), world.sign(MINER_B, copied), world.build_commit(CUSTODY))
    world.carry(world.build_reveal(MINER_A))
    assert refuse(world, world.build_reveal(MINER_B)) is Reason.REVEAL_COMMITMENT


def test_a_suspended_or_unlisted_organisation_has_no_part(world: World) -> None:
    world.carry(world.build_commit(MINER_A), world.build_commit(CUSTODY))
    govern(world, SetMiningOrganisations(("hospital",)))
    assert refuse(world, world.build_reveal(MINER_A)) is Reason.EVALUATOR_ORGANISATION
    govern(world, SetMiningOrganisations(("hospital", "lab-a", "lab-b")))
    govern(world, SetOrganisation(MINER_A.address, "lab-b"))
    assert refuse(world, world.build_reveal(MINER_A)) is Reason.EVALUATOR_ORGANISATION


def govern(world: World, action: SetMiningOrganisations | SetOrganisation) -> None:
    governance = Governance(world.state.get_charter().sequence, action)
    approvals = [sign_governance(key, world.chain_id, governance) for key in VALIDATORS]
    ordered = tuple(sorted(approvals, key=lambda approval: approval.validator))
    world.carry(world.sign(OUTSIDER, Govern(governance, ordered)))


# --- results ----------------------------------------------------------------------------------


def test_a_third_that_agrees_is_paid_and_the_liar_is_caught(world: World) -> None:
    total = world.count_money()
    world.carry(
        world.build_commit(MINER_A), world.build_commit(MINER_B, "wrong"), world.build_commit(CUSTODY)
    )
    world.carry(world.build_reveal(MINER_B, "wrong"))
    world.carry(world.build_reveal(MINER_A))
    assert world.job_record.result is None
    world.carry(world.build_reveal(CUSTODY))
    record, receipt = world.job_record, world.state.get_receipt(world.job)
    assert (record.status, record.result, record.escrow) == (JobStatus.SETTLED, ROOT, 0)
    assert receipt is not None
    assert (receipt.job, receipt.model, receipt.requester) == (world.job, world.model, COLLEAGUE.address)
    assert (receipt.result.root, receipt.result.length) == (ROOT, 50)
    assert (receipt.height, receipt.time) == (world.header.height, world.header.time)
    assert receipt.evaluators == (MINER_A.address, CUSTODY.address)
    assert (receipt.caught, receipt.silent) == ((MINER_B.address,), ())
    # 93 between two; what does not divide goes back.
    assert get_balances(world) == [7, -99, 46, 0, 46]
    assert world.count_money() == total
    counts = [world.state.get_evaluator(name) for name in ("lab-a", "lab-b", "hospital")]
    assert counts == [EvaluatorRecord(1, 0, 0), EvaluatorRecord(0, 1, 0), EvaluatorRecord(1, 0, 0)]
    assert refuse(world, world.build_reveal(MINER_B)) is Reason.JOB_ENDED


def test_a_confirmed_job_waits_for_the_rest_and_its_deadline_pays(world: World) -> None:
    world.carry(*(world.build_commit(key) for key in EVALUATORS))
    world.carry(world.build_reveal(MINER_A), world.build_reveal(MINER_B))
    record = world.job_record
    assert (record.status, record.result, record.result_height) == (
        JobStatus.CONFIRMED,
        ROOT,
        world.header.height,
    )
    assert world.state.get_receipt(world.job) is None
    expire = world.sign(OUTSIDER, ExpireJob(world.job))
    assert refuse(world, expire) is Reason.JOB_EARLY
    assert refuse(world, world.build_reveal(CUSTODY), 400_000) is Reason.JOB_DEADLINE
    confirmed_at = world.header.height
    world.carry(expire, after=400_000)
    receipt = world.state.get_receipt(world.job)
    assert receipt is not None
    assert (receipt.silent, receipt.height) == ((CUSTODY.address,), confirmed_at)
    assert get_balances(world) == [7, -99, 46, 46, 0]
    assert world.state.get_evaluator("hospital") == EvaluatorRecord(0, 0, 1)
    assert refuse(world, expire) is Reason.JOB_ENDED


def test_disagreement_is_refunded_as_soon_as_all_have_shown(world: World) -> None:
    world.carry(world.build_commit(MINER_A), world.build_commit(MINER_B, "other"))
    world.close_commits()
    world.carry(world.build_reveal(MINER_A))
    world.carry(world.build_reveal(MINER_B, "other"))
    assert world.job_record.status is JobStatus.REFUNDED
    assert world.state.get_receipt(world.job) is None
    assert get_balances(world) == [0, 0, 0, 0, 0]
    # Whose result was wrong is not known.
    assert world.state.get_evaluator("lab-a") == EvaluatorRecord(0, 0, 0)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_job_that_nobody_finishes_is_refunded(world: World, silent: int) -> None:
    """Silence counts only where results were asked for."""
    world.carry(world.build_commit(MINER_A), world.build_commit(MINER_B))
    if silent:
        world.close_commits()
    else:
        assert refuse(world, world.build_commit(CUSTODY), 400_000) is Reason.JOB_DEADLINE
        close = world.sign(OUTSIDER, CloseCommits(world.job))
        assert refuse(world, close, 400_000) is Reason.JOB_DEADLINE
    world.carry(world.sign(OUTSIDER, ExpireJob(world.job)), after=400_000)
    assert world.job_record.status is JobStatus.REFUNDED
    assert get_balances(world) == [0, 0, 0, 0, 0]
    assert world.state.get_evaluator("lab-a").silent == silent


def test_an_organisation_counts_once_whatever_its_stake(world: World) -> None:
    """The hospital's half of all stake confirms alone: stake is what counts, by organisations."""
    world.carry(world.build_commit(CUSTODY), world.build_commit(MINER_A, "other"))
    world.carry(world.build_reveal(MINER_A, "other"))
    assert world.job_record.result is None
    world.carry(world.build_reveal(CUSTODY))
    assert world.job_record.status is JobStatus.SETTLED
    assert get_balances(world) == [7, -100, 0, 0, 93]


def test_reveals_that_do_not_belong_are_refused(world: World) -> None:
    world.carry(world.build_commit(MINER_A), world.build_commit(CUSTODY))
    assert refuse(world, world.build_reveal(MINER_B)) is Reason.REVEAL_UNCOMMITTED
    assert refuse(world, world.build_reveal(MINER_A, "other")) is Reason.REVEAL_COMMITMENT
    unknown = world.sign(MINER_A, RevealResult(ZERO_HASH, ROOT))
    assert refuse(world, unknown) is Reason.JOB_UNKNOWN
    world.carry(world.build_reveal(MINER_A))
    assert refuse(world, world.build_reveal(MINER_A)) is Reason.REVEAL_DOUBLED


@pytest.mark.parametrize("kind", ["commit", "close", "reveal", "expire", "retire"])
def test_kinds_that_are_idempotent_carry_no_nonce(world: World, kind: str) -> None:
    payload = {
        "commit": CommitResult(world.job, ZERO_HASH),
        "close": CloseCommits(world.job),
        "reveal": RevealResult(world.job, ROOT),
        "expire": ExpireJob(world.job),
        "retire": RetireModel(Hash32(world.model)),
    }[kind]
    assert refuse(world, world.sign(MINER_A, payload, 1)) is Reason.TX_NONCE


def test_a_receipt_is_proved_under_the_header_that_holds_it(world: World) -> None:
    world.carry(world.build_commit(CUSTODY), world.build_commit(MINER_A))
    nothing = world.state.tree.get_proof(get_receipt_key(world.job))
    verify_receipt(world.header, world.job, None, nothing)
    world.carry(world.build_reveal(CUSTODY), world.build_reveal(MINER_A))
    receipt = world.state.get_receipt(world.job)
    assert receipt is not None
    proof = world.state.tree.get_proof(get_receipt_key(world.job))
    verify_receipt(world.header, world.job, receipt, proof)
    for forged in (replace(receipt, evaluators=(MINER_B.address,)), None):
        with pytest.raises(LightError):
            verify_receipt(world.header, world.job, forged, proof)
