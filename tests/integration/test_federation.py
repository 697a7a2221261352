"""Services of federations in whole nodes: good rounds, bad members, and what is never opened."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from consensus.codec import decode, encode
from consensus.federations import FederationStatus, OpenSum, RoundOutcome, RoundPhase
from consensus.types import ZERO_HASH, Hash32
from node.events import EventKind
from node.federation_custody import OPENING_PREFIX, OpeningRecord, OpeningRefused
from node.federations import ClosedList, compute_round_owner, get_final_list
from tests.integration.echo_federation import UPDATE_BYTES, EchoFederation, decode_values
from tests.integration.fedcluster import CUSTODY, MEMBERS, TARGET, WEIGHTS, FederationCluster

GOOD = tuple(value // 2 for value in TARGET)
"""An update that brings the model half way."""
BAD = (-100_000, 100_000, 0)


pytestmark = pytest.mark.slow  # dozens of worker processes


def build_sum(numbers: Sequence[int], values: Sequence[tuple[int, ...]]) -> list[int]:
    """Of these members' weighted values."""
    weights = [WEIGHTS[MEMBERS.index(number)] for number in numbers]
    return [
        sum(weight * row[at] for weight, row in zip(weights, values, strict=True))
        for at in range(len(TARGET))
    ]


def get_listed(cluster: FederationCluster, number: int) -> set[int]:
    ended = cluster.get_ended(number)
    assert ended is not None
    return {n for n in MEMBERS if cluster.keys[f"node{n}"].address in ended.round.listed}


async def test_rounds_are_opened_once_judged_and_paid(tmp_path: Path) -> None:
    cluster = FederationCluster(tmp_path)
    async with cluster.run():
        await cluster.create()
        before = cluster.state.get_account(cluster.keys["node4"].address).balance
        for number in MEMBERS:
            cluster.submit(number, GOOD)
        first = await cluster.wait_ended(0)
        assert (first.outcome, first.rungs) == (RoundOutcome.ACCEPTED, (0,))
        assert get_listed(cluster, 0) == set(MEMBERS)
        for number in MEMBERS:
            cluster.submit(number, GOOD)
        second = await cluster.wait_ended(1)
        assert (second.outcome, second.rungs) == (RoundOutcome.ACCEPTED, (1,))
        await cluster.wait_for(
            lambda: cluster.get_record().status is FederationStatus.ENDED, "the last rung ends it"
        )
        path = cluster[CUSTODY].core.blobs.get_path(cluster.get_record().model.root)
        assert path is not None
        assert decode_values(path.read_bytes()) == [2 * value for value in GOOD]
        # 1500 by weight: four tenths of both rungs.
        after = cluster.state.get_account(cluster.keys["node4"].address).balance
        assert after - before == 600
        total = build_sum(MEMBERS, [GOOD] * 4)
        assert cluster.get_openings() == [(4, total), (4, total)]
        events = cluster[CUSTODY].core.events.get_since(0, limit=10_000)[1]
        told = [event.data for event in events if event.kind is EventKind.FEDERATION]
        assert {data["phase"] for data in told} == {"training", "summing", "opened"}
        assert (told[0]["round"], told[0]["last_ended"]) == (0, None)
        assert (told[-1]["status"], told[-1]["last_ended"]) == ("ended", {"round": 1, "outcome": "accepted"})
        cluster.check_agreement()


async def test_absent_late_and_malformed_updates_are_left_out(tmp_path: Path) -> None:
    cluster = FederationCluster(tmp_path)
    async with cluster.run():
        await cluster.create()
        cluster.submit(1, GOOD)
        cluster.submit(3, GOOD)
        cluster.submit(2, GOOD, data=b"x" * UPDATE_BYTES)  # of the right length
        ended = await cluster.wait_ended(0)
        assert ended.outcome is RoundOutcome.ACCEPTED
        assert get_listed(cluster, 0) == {1, 3}
        assert cluster.get_openings() == [(2, build_sum((1, 3), [GOOD] * 2))]


async def test_a_poisoned_update_is_found_by_leaving_one_out(tmp_path: Path) -> None:
    cluster = FederationCluster(tmp_path)
    async with cluster.run():
        await cluster.create(rounds=8, noise_std=1)
        for number in MEMBERS:
            cluster.submit(number, BAD if number == 2 else GOOD)
        first = await cluster.wait_ended(0)
        assert first.outcome is RoundOutcome.REJECTED
        suspect = cluster.keys["node2"].address
        while not cluster.get_record().suspects:
            current = cluster.get_record().round
            for number in MEMBERS:
                if cluster.keys[f"node{number}"].address != current.left_out:
                    cluster.submit(number, BAD if number == 2 else GOOD)
            await cluster.wait_ended(current.number)
        assert cluster.get_record().suspects == (suspect,)
        assert cluster.get_outcomes().count(RoundOutcome.ACCEPTED) == 1


async def test_too_few_updates_are_never_opened(tmp_path: Path) -> None:
    cluster = FederationCluster(tmp_path)
    async with cluster.run():
        await cluster.create(rounds=2)
        cluster.submit(1, GOOD)
        ended = await cluster.wait_ended(0)
        assert ended.outcome is RoundOutcome.LAPSED
        assert cluster.get_openings() == []


async def test_a_single_update_is_not_opened_whatever_validators_confirm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of stake calls one participant's update the sum of the round; the custody adds by itself."""
    works = dict.fromkeys((1, 2, 3, 4), EchoFederation(betrays=True))
    cluster = FederationCluster(tmp_path, works=works)
    async with cluster.run():
        await cluster.create(rounds=2)
        for number in MEMBERS:
            cluster.submit(number, GOOD)
        await cluster.wait_for(lambda: cluster.get_record().round.total is not None, "a sum is confirmed")
        current = cluster.get_record().round
        assert current.total in {item.update.root for item in current.submissions}
        with pytest.raises(OpeningRefused, match="not that of the list"):
            await cluster[CUSTODY].custody.open(cluster.federation)
        ended = await cluster.wait_ended(0)
        assert ended.outcome is RoundOutcome.LAPSED
        assert cluster.get_openings() == []
        assert cluster.get_record().openings == 0
    assert "nothing is opened" in caplog.text


async def test_the_custody_goes_on_with_the_same_opening_and_no_other(tmp_path: Path) -> None:
    """It dies after it has opened and before it has sent; then its disk has a record of another list."""
    cluster = FederationCluster(tmp_path, idle=True)
    async with cluster.run():
        await cluster.create(noise_std=7)
        for number in MEMBERS:
            cluster.submit(number, GOOD)

        def is_final() -> bool:
            closed = get_final_list(cluster[CUSTODY].core, cluster.federation)
            return closed is not None and cluster.get_record().round.total is not None

        await cluster.wait_for(is_final, "the list is final, the sum confirmed")
        assert cluster.get_record().round.phase is RoundPhase.SUMMING
        assert cluster.get_openings() == []
        custody = cluster[CUSTODY].custody
        first = await custody.open(cluster.federation)
        assert isinstance(first, OpenSum)
        key = OPENING_PREFIX + compute_round_owner(cluster.federation, 0)
        record = custody._core.chain.ledger.get_record(key)
        assert record is not None
        await cluster.stop(CUSTODY)
        cluster.start(CUSTODY)
        await cluster.pass_time(1.0)
        custody = cluster[CUSTODY].custody
        assert await custody.open(cluster.federation) == first
        assert len(cluster.get_openings()) == 1  # stored: not opened again

        # The crash came before the result was stored: opened again, to the same bytes.
        stored = decode(OpeningRecord, record)
        ledger = custody._core.chain.ledger
        ledger.put_record(key, encode(_without_result(stored)))
        assert await custody.open(cluster.federation) == first
        openings = cluster.get_openings()
        assert len(openings) == 2
        assert openings[0] == openings[1]

        ledger.put_record(key, encode(_with_other_list(stored)))
        with pytest.raises(OpeningRefused, match="there is only one"):
            await custody.open(cluster.federation)
        ledger.put_record(key, record)
        cluster.idle = False
        await cluster.stop(CUSTODY)
        cluster.start(CUSTODY)
        ended = await cluster.wait_ended(0)
        assert (ended.round.opened, ended.round.model) == (first.opened, first.model), ended
        assert cluster.get_record().openings == 1


async def test_short_lists_and_copies_are_refused(tmp_path: Path) -> None:
    """Even a final block's list: the rules and the custody's own check are two locks of one door."""
    cluster = FederationCluster(tmp_path)
    async with cluster.run():
        await cluster.create(min_participants=3)
        for number in MEMBERS:
            cluster.submit(number, GOOD)
        await cluster.wait_for(lambda: cluster.get_record().round.total is not None, "a sum is confirmed")
        record, custody = cluster.get_record(), cluster[CUSTODY].custody
        closed = get_final_list(cluster[CUSTODY].core, cluster.federation)
        assert closed is not None
        one = ClosedList(cluster.federation, 0, closed.participants[:1], closed.updates[:1], 1)
        copies = ClosedList(cluster.federation, 0, closed.participants, (closed.updates[0],) * 4, 10)
        for forged in (one, copies):
            with pytest.raises(OpeningRefused):
                custody._check(record, forged)


def _without_result(record: OpeningRecord) -> OpeningRecord:
    return OpeningRecord(record.federation, record.round, record.digest, record.total, None, None)


def _with_other_list(record: OpeningRecord) -> OpeningRecord:
    return OpeningRecord(
        record.federation, record.round, Hash32(ZERO_HASH), record.total, record.opened, record.model
    )
