"""Federated rounds: who may take part, what is listed, summed, opened and judged, and when."""

from dataclasses import replace

import pytest

from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction, Reason
from consensus.federation import is_available, is_list_final
from consensus.federations import (
    AttestUpdates,
    EndFederation,
    FederationStatus,
    Participant,
    RoundOutcome,
    RoundPhase,
    SubmitUpdate,
)
from consensus.state import get_round_key
from consensus.task import Milestone
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.tree import verify_proof
from consensus.types import MAX_LADDER, ZERO_HASH, Amount, Hash32, Millis
from tests.unit.consensus.federated import CHECKERS, HOSPITALS, UPDATE_BYTES, Rounds, build_federation
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    World,
    build_blob,
)

FIRST, SECOND, THIRD = HOSPITALS


def refuse(rounds: Rounds | World, transaction: SignedTransaction, after: int = 2_000) -> Reason:
    world = rounds if isinstance(rounds, World) else rounds.world
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context(after))
    assert world.state.root == before
    return caught.value.reason


@pytest.fixture
def rounds() -> Rounds:
    return Rounds().create()


# --- creation ---------------------------------------------------------------------------------

PARTICIPANTS = build_federation().participants


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": ""}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"statement": "x" * 16_385}, "statement"),
        ({"network": build_blob("network", 0)}, "network"),
        ({"model": build_blob("model", 2**40 + 1)}, "model"),
        ({"keys": build_blob("keys", 0)}, "keys"),
        ({"parameters": 0}, "parameters"),
        ({"parameters": 2**26 + 1}, "parameters"),
        ({"update_bytes": 0}, "update_bytes"),
        ({"participants": PARTICIPANTS[:1]}, "participants: 2 to 64"),
        ({"participants": PARTICIPANTS[::-1]}, "participants: by ascending address, each once"),
        ({"participants": (PARTICIPANTS[0], *PARTICIPANTS)}, "participants: by ascending address, each once"),
        ({"participants": tuple(replace(item, weight=0) for item in PARTICIPANTS)}, "weight: 1 to 4096"),
        ({"participants": tuple(replace(item, weight=4097) for item in PARTICIPANTS)}, "weight: 1 to 4096"),
        ({"min_participants": 1}, "min_participants"),
        ({"min_participants": 4}, "min_participants"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 4097}, "rounds"),
        ({"max_openings": 0}, "max_openings"),
        ({"max_openings": 13}, "max_openings"),
        ({"train_ms": Millis(0)}, "train_ms"),
        ({"open_ms": Millis(2**40 + 1)}, "open_ms"),
        ({"judge_ms": Millis(0)}, "judge_ms"),
        ({"clip": 0}, "clip"),
        ({"clip": 2**53 // 7 + 1}, "clip"),
        ({"noise_std": -1}, "noise_std"),
        ({"slack": 2**40 + 1}, "slack"),
        ({"ladder": (Milestone(5, Amount(1)), Milestone(5, Amount(1)))}, "ladder"),
        ({"ladder": (Milestone(-1, Amount(1)),)}, "ladder"),
        ({"ladder": tuple(Milestone(99 - n, Amount(0)) for n in range(MAX_LADDER + 1))}, "ladder"),
        ({"deadline": Millis(START)}, "deadline"),
        ({"deadline": Millis(2**53)}, "deadline"),
    ],
)
def test_a_federation_with_a_wrong_field_is_refused(changes: dict[str, object], field: str) -> None:
    world = World()
    with pytest.raises(InvalidTransaction, match=field) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, build_federation(**changes)), world.get_context())
    assert caught.value.reason is Reason.FEDERATION_FIELD


@pytest.mark.parametrize("other", [OUTSIDER, CUSTODY])
def test_participants_are_of_one_organisation_each(other: SigningKey) -> None:
    """The outsider is of none, the custody of the colleague's."""
    world = World()
    addresses = sorted({item.address for item in PARTICIPANTS} | {other.address})
    members = tuple(Participant(address, 1) for address in addresses)
    assert (
        refuse(world, world.sign(CUSTODY, build_federation(participants=members))) is Reason.FEDERATION_FIELD
    )


def test_rewards_are_escrowed_and_keys_are_used_once(rounds: Rounds) -> None:
    world, record = rounds.world, rounds.record
    assert record.escrow == 1_801
    assert world.state.get_account(CUSTODY.address).balance == 1_000_000 - 1_801
    assert (record.custody, record.status) == (CUSTODY.address, FederationStatus.RUNNING)
    assert (record.round.number, record.round.phase) == (0, RoundPhase.TRAINING)
    assert [world.state.get_federation_id(n) for n in (0, 1)] == [rounds.federation, None]
    again = world.sign(OUTSIDER, build_federation(title="another"))
    assert refuse(rounds, again) is Reason.FEDERATION_KEY_USED
    rich = build_federation(
        keys=build_blob("other keys"), ladder=(Milestone(1, Amount(2_000_000)),), title="another"
    )
    assert refuse(rounds, world.sign(OUTSIDER, rich)) is Reason.TX_BALANCE


# --- updates and their list -------------------------------------------------------------------


def test_participants_submit_once_in_time_and_what_nobody_submitted_before(rounds: Rounds) -> None:
    world = rounds.world
    assert refuse(rounds, rounds.build_submit(OUTSIDER)) is Reason.UPDATE_PARTICIPANT
    first = rounds.build_submit(FIRST)
    assert refuse(rounds, first, after=20_000) is Reason.UPDATE_LATE
    world.carry(first)
    assert refuse(rounds, first) is Reason.UPDATE_DOUBLED
    assert refuse(rounds, rounds.build_submit(FIRST, "another")) is Reason.UPDATE_DOUBLED
    assert refuse(rounds, world.sign(SECOND, first.payload)) is Reason.UPDATE_COPIED
    short = SubmitUpdate(rounds.federation, 0, build_blob("short", UPDATE_BYTES - 1))
    assert refuse(rounds, world.sign(SECOND, short)) is Reason.UPDATE_SIZE
    for number, reason in ((1, Reason.ROUND_FUTURE), (-1, Reason.ROUND_PAST)):
        moved = world.sign(SECOND, SubmitUpdate(rounds.federation, number, build_blob("x", UPDATE_BYTES)))
        assert refuse(rounds, moved) is reason
    unknown = world.sign(SECOND, SubmitUpdate(ZERO_HASH, 0, build_blob("x", UPDATE_BYTES)))
    assert refuse(rounds, unknown) is Reason.FEDERATION_UNKNOWN


def test_an_update_of_an_earlier_round_is_a_copy_too(rounds: Rounds) -> None:
    rounds.run_round(after=900)
    for key in (FIRST, SECOND):
        stale = rounds.build_submit(key, f"update 0 of {FIRST.address.hex()}")
        assert refuse(rounds, stale) is Reason.UPDATE_COPIED


def test_validators_attest_what_was_submitted_each_once(rounds: Rounds) -> None:
    world = rounds.world
    world.carry(rounds.build_submit(FIRST), rounds.build_submit(SECOND))
    attest = rounds.build_attest(MINER_A)
    assert refuse(rounds, rounds.build_attest(OUTSIDER)) is Reason.ATTEST_VALIDATOR
    for roots, reason in (
        ((), Reason.ATTEST_ORDER),
        (tuple(reversed(attest.payload.updates)), Reason.ATTEST_ORDER),
        (tuple(sorted(Hash32(bytes([n]) * 32) for n in range(65))), Reason.ATTEST_ORDER),
        ((build_blob("of another fork").root,), Reason.ATTEST_UNKNOWN),
    ):
        assert refuse(rounds, world.sign(MINER_A, AttestUpdates(rounds.federation, 0, roots))) is reason
    world.carry(rounds.build_attest(MINER_A, [FIRST]))
    assert refuse(rounds, attest) is Reason.ATTEST_DOUBLED
    world.carry(rounds.build_attest(MINER_A, [SECOND]), rounds.build_attest(MINER_B))
    assert not any(is_available(world.state, item) for item in rounds.current.submissions)
    world.carry(rounds.build_attest(CUSTODY, [FIRST]))
    available = [is_available(world.state, item) for item in rounds.current.submissions]
    assert available == [item.participant == FIRST.address for item in rounds.current.submissions]


def test_the_list_is_what_is_available_when_the_window_is_over(rounds: Rounds) -> None:
    world = rounds.world
    rounds.submit([FIRST, THIRD])
    world.carry(rounds.build_submit(SECOND))
    assert refuse(rounds, rounds.build_close()) is Reason.CLOSE_EARLY
    rounds.close()
    assert rounds.current.phase is RoundPhase.SUMMING
    assert rounds.current.listed == (FIRST.address, THIRD.address)
    assert rounds.current.closed_height == world.header.height
    assert rounds.current.closed_time == world.header.time
    for late in (rounds.build_submit(SECOND), rounds.build_attest(CUSTODY), rounds.build_close()):
        assert refuse(rounds, late) is Reason.ROUND_CLOSED


def test_who_closes_in_haste_cuts_nothing_off(rounds: Rounds) -> None:
    """While an attestation is missing, the list waits a quarter of the window longer; else for nothing."""
    world = rounds.world
    rounds.submit([FIRST, THIRD])
    world.carry(rounds.build_submit(SECOND))
    begun, window = rounds.current.started, rounds.record.create.train_ms
    over = begun + window - world.header.time
    assert refuse(rounds, rounds.build_close(), over) is Reason.CLOSE_EARLY
    world.carry(*(rounds.build_attest(key, [SECOND]) for key in CHECKERS))
    assert refuse(rounds, rounds.build_close(), over - 2_001) is Reason.CLOSE_EARLY
    world.carry(rounds.build_close(), after=over - 2_000)
    assert rounds.current.closed_time == begun + window
    assert rounds.current.listed == (FIRST.address, SECOND.address, THIRD.address)


def test_too_few_updates_lapse_and_the_next_round_begins(rounds: Rounds) -> None:
    rounds.submit([FIRST])
    rounds.close()
    ended = rounds.get_ended(0)
    assert (ended.outcome, ended.round.listed, ended.round.opened) == (
        RoundOutcome.LAPSED,
        (FIRST.address,),
        None,
    )
    assert (rounds.current.number, rounds.current.phase) == (1, RoundPhase.TRAINING)
    assert (rounds.record.openings, rounds.record.probation) == (0, ())


# --- the sum and its opening ------------------------------------------------------------------


def test_a_sum_waits_for_its_list_to_be_final(rounds: Rounds) -> None:
    world = rounds.world
    rounds.submit()
    assert refuse(rounds, rounds.build_confirm(MINER_A)) is Reason.ROUND_OPEN
    rounds.close()
    assert not is_list_final(world.state, rounds.record)
    assert refuse(rounds, rounds.build_confirm(MINER_A)) is Reason.ROUND_NOT_FINAL
    rounds.finalize()
    assert is_list_final(world.state, rounds.record)
    assert refuse(rounds, rounds.build_confirm(OUTSIDER)) is Reason.SUM_VALIDATOR
    assert refuse(rounds, rounds.build_open()) is Reason.SUM_UNCONFIRMED
    world.carry(rounds.build_confirm(MINER_A), rounds.build_confirm(MINER_B, "wrong"))
    assert rounds.current.total is None
    assert refuse(rounds, rounds.build_confirm(MINER_A, "wrong")) is Reason.SUM_DOUBLED
    world.carry(rounds.build_confirm(COLLEAGUE))
    assert rounds.current.total == build_blob("sum 0").root
    assert refuse(rounds, rounds.build_confirm(CUSTODY)) is Reason.SUM_CONFIRMED


def test_the_custody_opens_the_confirmed_sum_once_and_in_time(rounds: Rounds) -> None:
    world = rounds.world
    rounds.submit()
    rounds.close()
    rounds.finalize()
    world.carry(rounds.build_confirm(MINER_A), rounds.build_confirm(MINER_B))
    update = rounds.current.submissions[0].update
    assert refuse(rounds, rounds.build_open(MINER_A)) is Reason.SUM_CUSTODY
    assert refuse(rounds, rounds.build_open(total=update.root)) is Reason.SUM_TOTAL
    assert refuse(rounds, rounds.build_open(model=build_blob("model", 65))) is Reason.SUM_SIZE
    assert refuse(rounds, rounds.build_open(opened=build_blob("opened", 0))) is Reason.SUM_SIZE
    assert refuse(rounds, rounds.build_open(), after=40_000) is Reason.SUM_LATE
    assert refuse(rounds, rounds.build_judge(MINER_A, 1, 1)) is Reason.ROUND_UNOPENED
    world.carry(rounds.build_open())
    assert (rounds.current.phase, rounds.record.openings) == (RoundPhase.OPENED, 1)
    assert rounds.record.model == build_blob("model 0", 64)
    for again in (rounds.build_open(), rounds.build_open(opened=build_blob("noised anew", 80))):
        assert refuse(rounds, again) is Reason.ROUND_OPENED


def test_what_is_not_opened_in_time_lapses(rounds: Rounds) -> None:
    rounds.submit()
    assert refuse(rounds, rounds.build_settle(), after=100_000) is Reason.ROUND_OPEN
    rounds.close()
    assert refuse(rounds, rounds.build_settle(), after=40_000) is Reason.SETTLE_EARLY
    rounds.world.carry(rounds.build_settle(), after=40_001)
    assert rounds.get_ended(0).outcome is RoundOutcome.LAPSED
    assert (rounds.current.number, rounds.record.openings, rounds.record.accused) == (1, 0, ())


# --- judgements -------------------------------------------------------------------------------


def test_validators_judge_this_model_once_and_in_time(rounds: Rounds) -> None:
    world = rounds.world
    rounds.reach_opened()
    assert refuse(rounds, rounds.build_judge(OUTSIDER, 1, 1)) is Reason.JUDGE_VALIDATOR
    assert refuse(rounds, rounds.build_judge(MINER_A, -1, 1)) is Reason.JUDGE_BOUND
    assert refuse(rounds, rounds.build_judge(MINER_A, 1, 2**53)) is Reason.JUDGE_BOUND
    assert refuse(rounds, rounds.build_judge(MINER_A, 1, 1), after=30_000) is Reason.JUDGE_LATE
    judge = rounds.build_judge(MINER_A, 1, 1)
    other = replace(judge.payload, model=build_blob("of another fork").root)
    assert refuse(rounds, world.sign(MINER_A, other)) is Reason.JUDGE_MODEL
    world.carry(judge)
    assert refuse(rounds, rounds.build_judge(MINER_A, 2, 2)) is Reason.JUDGE_DOUBLED
    assert refuse(rounds, rounds.build_settle()) is Reason.SETTLE_EARLY


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([], RoundOutcome.LAPSED),
        ([(100, 0)], RoundOutcome.LAPSED),
        ([(1000, 1005), (7, 0)], RoundOutcome.ACCEPTED),
        ([(1000, 1006), (7, 0)], RoundOutcome.REJECTED),
        ([(1000, 1006), (7, 0), (9, 9)], RoundOutcome.REJECTED),
        ([(1000, 1006), (7, 0), (9, 9), (5, 5)], RoundOutcome.ACCEPTED),
    ],
)
def test_more_than_two_thirds_of_more_than_a_third_accept(
    rounds: Rounds, losses: list[tuple[int, int]], outcome: RoundOutcome
) -> None:
    rounds.reach_opened()
    judges = (MINER_A, MINER_B, CUSTODY, COLLEAGUE)
    rounds.world.carry(*(rounds.build_judge(key, *pair) for key, pair in zip(judges, losses, strict=False)))
    rounds.world.carry(rounds.build_settle(), after=30_000)
    assert rounds.get_ended(0).outcome is outcome
    is_taken = rounds.record.model == build_blob("model 1", 64)
    assert is_taken == (outcome is RoundOutcome.ACCEPTED)
    assert rounds.record.accepted == is_taken
    assert bool(rounds.record.accused) == (outcome is RoundOutcome.REJECTED)


def test_rungs_are_met_by_those_who_accept_and_paid_by_weight(rounds: Rounds) -> None:
    world = rounds.world
    balances = {key: world.state.get_account(key.address).balance for key in HOSPITALS}
    rounds.run_round(after=450)
    assert rounds.get_ended(0).rungs == (0, 1)
    earned = {key: world.state.get_account(key.address).balance - before for key, before in balances.items()}
    shares = [1_000 * weight // 7 + 500 * weight // 7 for weight in (2, 1, 4)]
    assert [earned[key] for key in HOSPITALS] == shares
    assert rounds.record.escrow == 1_801 - sum(shares)
    assert rounds.record.next_rung == 2


def test_a_rejection_meets_no_rung(rounds: Rounds) -> None:
    """Small numbers by which a model that does not follow is rejected are no losses."""
    rounds.reach_opened()
    pairs = ((MINER_A, 1_000, 300), (MINER_B, 1_000, 300), (CUSTODY, 1_000, 300), (COLLEAGUE, 0, 6))
    rounds.world.carry(*(rounds.build_judge(key, *pair) for key, *pair in pairs))
    rounds.world.carry(rounds.build_settle())
    assert rounds.get_ended(0).rungs == (0, 1)


def test_the_last_rung_ends_the_federation_and_dust_goes_back(rounds: Rounds) -> None:
    world = rounds.world
    total = world.count_money()
    custody = world.state.get_account(CUSTODY.address).balance
    rounds.run_round(after=100)
    record = rounds.record
    assert (record.status, record.escrow, record.next_rung) == (FederationStatus.ENDED, 0, 3)
    dust = 1_801 - sum(reward * w // 7 for reward in (1_000, 500, 301) for w in (2, 1, 4))
    assert dust > 0
    assert world.state.get_account(CUSTODY.address).balance == custody + dust
    assert world.count_money() == total
    late = world.sign(OUTSIDER, EndFederation(rounds.federation))
    for transaction in (late, rounds.build_submit(FIRST), rounds.build_settle()):
        assert refuse(rounds, transaction) is Reason.FEDERATION_ENDED


def test_an_ended_round_is_proved(rounds: Rounds) -> None:
    rounds.run_round(after=900)
    state, key = rounds.world.state, get_round_key(rounds.federation, 0)
    value = encode(rounds.get_ended(0))
    assert verify_proof(state.root, key, value, state.tree.get_proof(key))


# --- ends -------------------------------------------------------------------------------------


def test_anyone_ends_it_after_the_deadline(rounds: Rounds) -> None:
    world = rounds.world
    end = world.sign(OUTSIDER, EndFederation(rounds.federation))
    assert refuse(rounds, end) is Reason.FEDERATION_EARLY
    rounds.submit()
    rounds.close()
    rounds.finalize()
    world.carry(rounds.build_confirm(MINER_A), rounds.build_confirm(MINER_B))
    world.carry(end, after=10_000_000)
    assert rounds.get_ended(0).outcome is RoundOutcome.LAPSED
    assert (rounds.record.status, rounds.record.escrow) == (FederationStatus.ENDED, 0)
    assert world.state.get_account(CUSTODY.address).balance == 1_000_000


def test_nothing_is_opened_after_the_deadline() -> None:
    rounds = Rounds().create(open_ms=Millis(2**40), deadline=Millis(START + 60_000))
    rounds.submit()
    rounds.close()
    rounds.finalize()
    rounds.world.carry(rounds.build_confirm(MINER_A), rounds.build_confirm(MINER_B))
    assert refuse(rounds, rounds.build_open(), after=60_000) is Reason.FEDERATION_DEADLINE


def test_what_was_opened_before_the_deadline_is_judged_first() -> None:
    rounds = Rounds().create(judge_ms=Millis(200_000), deadline=Millis(START + 60_000))
    rounds.reach_opened()
    world = rounds.world
    world.carry(after=100_000)
    end = world.sign(OUTSIDER, EndFederation(rounds.federation))
    assert refuse(rounds, end) is Reason.FEDERATION_EARLY
    world.carry(*(rounds.build_judge(key, 1_000, 800) for key in CHECKERS))
    world.carry(end, after=100_000)
    assert (rounds.get_ended(0).outcome, rounds.get_ended(0).rungs) == (RoundOutcome.ACCEPTED, (0,))
    assert (rounds.record.status, rounds.record.model) == (
        FederationStatus.ENDED,
        build_blob("model 1", 64),
    )


@pytest.mark.parametrize("changes", [{"rounds": 2, "max_openings": 2}, {"max_openings": 2}])
def test_rounds_and_openings_are_used_up(changes: dict[str, object]) -> None:
    rounds = Rounds().create(**changes)
    rounds.run_round(after=950)
    assert rounds.record.status is FederationStatus.RUNNING
    rounds.run_round(after=950)
    assert (rounds.record.status, rounds.record.openings) == (FederationStatus.ENDED, 2)
    assert (rounds.record.round.number, rounds.record.escrow) == (1, 0)
    assert rounds.world.state.get_ended_round(rounds.federation, 2) is None


def test_without_a_ladder_it_runs_unpaid() -> None:
    rounds = Rounds().create(ladder=())
    rounds.run_round(after=10)
    assert (rounds.record.status, rounds.record.accepted) == (FederationStatus.RUNNING, 1)
