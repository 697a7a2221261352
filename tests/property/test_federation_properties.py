"""Federations under any sequence of payloads: money stays; one sum a round is opened, never of too few."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import decode, encode
from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction
from consensus.federations import (
    EndedRound,
    EndFederation,
    FederationRecord,
    FederationStatus,
    RoundOutcome,
    RoundPhase,
    RoundRecord,
)
from consensus.payload import Payload
from consensus.task import Milestone
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Amount, Millis
from tests.unit.consensus.federated import HOSPITALS, Rounds
from tests.unit.consensus.world import CUSTODY, KEYS, OUTSIDER, START, VALIDATORS

keys = st.sampled_from(KEYS)
losses = st.sampled_from([0, 100, 480, 890, 1_000, 1_004, 1_500])
SPANS = [2_000, 2_000, 2_000, 2_000, 21_000, 31_000, 45_000]


def draw_part(rounds: Rounds, data: st.DataObject) -> SignedTransaction:
    """Anything by anyone: often too early, too late or by the wrong one."""
    kind = data.draw(
        st.sampled_from(["submit", "attest", "close", "confirm", "open", "judge", "settle", "end"])
    )
    key = data.draw(keys)
    payload: Payload
    match kind:
        case "submit":
            return rounds.build_submit(key, data.draw(st.sampled_from([None, "copy"])))
        case "attest":
            return rounds.build_attest(key)
        case "close":
            return rounds.build_close()
        case "confirm":
            return rounds.build_confirm(key, data.draw(st.sampled_from(["sum", "sum", "wrong"])))
        case "open":
            return rounds.build_open(data.draw(st.sampled_from([CUSTODY, CUSTODY, key])))
        case "judge":
            return rounds.build_judge(key, 1_000, data.draw(losses))
        case "settle":
            return rounds.build_settle()
        case _:
            payload = EndFederation(rounds.federation)
            return rounds.world.sign(key, payload)


def draw_progress(
    rounds: Rounds, data: st.DataObject, poisoner: SigningKey | None
) -> tuple[list[SignedTransaction], int]:
    """What honest parties would send now, now and then without one of them; and how long after the head."""

    def draw_some(parties: Sequence[SigningKey]) -> list[SigningKey]:
        missing = data.draw(st.integers(0, 40))
        return [key for at, key in enumerate(parties) if at != missing]

    current = rounds.current
    if current.phase is RoundPhase.TRAINING:
        if not current.submissions:
            return [rounds.build_submit(key) for key in draw_some(HOSPITALS)], 2_000
        if not current.submissions[0].attested:
            return [rounds.build_attest(key) for key in draw_some(VALIDATORS)], 2_000
        return [rounds.build_close()], 25_000
    if current.phase is RoundPhase.SUMMING:
        if current.total is not None:
            return [rounds.build_open()], 2_000
        return [rounds.build_confirm(key) for key in draw_some(VALIDATORS)], 2_000
    is_spoiled = poisoner is not None and poisoner.address in current.listed
    after = 1_500 if is_spoiled else data.draw(st.sampled_from([480, 890, 1_000, 1_000]))
    judgements = [rounds.build_judge(key, 1_000, after) for key in draw_some(VALIDATORS)]
    return [*judgements, rounds.build_settle()], 2_000


def check_round(rounds: Rounds, found: RoundRecord) -> None:
    """Whatever was opened is the confirmed sum of enough distinct updates that were submitted."""
    submitted = {item.participant: item.update.root for item in found.submissions}
    assert len(set(submitted.values())) == len(submitted) == len(found.submissions)
    assert set(found.listed) <= set(submitted)
    assert list(found.listed) == sorted(set(found.listed))
    assert found.left_out not in found.listed
    if found.opened is not None:
        assert len(found.listed) >= rounds.record.create.min_participants
        assert found.total is not None
        assert found.model is not None
        assert found.total not in submitted.values()


def check(rounds: Rounds, total: int) -> None:
    world, record = rounds.world, rounds.record
    assert world.count_money() == total
    assert all(world.state.get_account(key.address).balance >= 0 for key in KEYS)
    assert decode(FederationRecord, encode(record)) == record
    ended = [
        found
        for number in range(record.create.rounds)
        if (found := world.state.get_ended_round(rounds.federation, number)) is not None
    ]
    assert [item.round.number for item in ended] == list(range(len(ended)))
    for item in ended:
        assert decode(EndedRound, encode(item)) == item
        check_round(rounds, item.round)
    check_round(rounds, record.round)
    is_running = record.status is FederationStatus.RUNNING
    assert record.round.number == len(ended) - (not is_running)
    opened = [*(item.round for item in ended), *([record.round] if is_running else [])]
    assert sum(found.opened is not None for found in opened) == record.openings <= record.create.max_openings
    assert sum(item.outcome is RoundOutcome.ACCEPTED for item in ended) == record.accepted
    assert sum(len(item.rungs) for item in ended) == record.next_rung
    roots = [item.update.root for found in opened for item in found.submissions]
    assert len(set(roots)) == len(roots)
    assert not set(record.suspects) & set(record.round.listed) or not is_running
    rewards = [rung.reward for rung in record.create.ladder]
    if is_running:
        assert sum(rewards[record.next_rung :]) <= record.escrow <= sum(rewards)
    else:
        assert record.escrow == 0


@settings(max_examples=24, deadline=None)
@given(st.data())
def test_whatever_comes_money_stays_and_sums_alone_are_opened(data: st.DataObject) -> None:
    rounds = Rounds()
    world = rounds.world
    total = world.count_money()
    rewards = [Amount(data.draw(st.integers(0, 5_000))) for _ in range(3)]
    poisoner = data.draw(st.sampled_from([None, *HOSPITALS]))
    openings = data.draw(st.sampled_from([9, 5, 1]))
    rounds.create(
        ladder=tuple(Milestone(at, reward) for at, reward in zip((900, 500, 200), rewards, strict=True)),
        max_openings=openings,
        rounds=data.draw(st.integers(openings, 12)),
        min_participants=data.draw(st.sampled_from([2, 2, 3])),
        deadline=Millis(START + data.draw(st.sampled_from([10_000_000, 10_000_000, 150_000]))),
    )
    check(rounds, total)
    for _ in range(data.draw(st.sampled_from([45, 30, 5]))):
        if data.draw(st.integers(0, 15)):
            wanted, after = draw_progress(rounds, data, poisoner)
        else:
            wanted, after = [draw_part(rounds, data)], data.draw(st.sampled_from(SPANS))
        context, state, valid = world.get_context(after), world.state, []
        for transaction in wanted:
            try:
                state = apply_transaction(state, transaction, context)
            except InvalidTransaction:
                continue
            valid.append(transaction)
        world.carry(*valid, after=after)
        check(rounds, total)
        if rounds.record.status is FederationStatus.ENDED:
            break
    if rounds.record.status is FederationStatus.RUNNING:
        world.carry(world.sign(OUTSIDER, EndFederation(rounds.federation)), after=20_000_000)
    check(rounds, total)
    assert rounds.record.status is FederationStatus.ENDED
