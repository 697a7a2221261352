"""The event bus: order, replay, bounded memory, readers that learn what they missed."""

import asyncio
import json
from pathlib import Path

import pytest

from consensus.federations import SubmitUpdate
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import ZERO_HASH, Amount, Millis
from node.announcer import build_federation, get_federation
from node.events import EventBus, EventKind
from tests.unit.node_api.fakes import BLOB, MINER, FakeNode

START = Millis(1_000)


def publish(bus: EventBus, count: int) -> list[int]:
    return [bus.publish(EventKind.HEAD, START, {"n": n}).id for n in range(count)]


def test_ids_only_grow_and_a_restart_goes_on_above() -> None:
    first = EventBus(8, START)
    ids = publish(first, 5)
    assert ids == list(range(ids[0], ids[0] + 5))
    assert publish(EventBus(8, Millis(START + 1)), 1)[0] > ids[-1]


def test_replay_after_an_id_gives_exactly_the_rest() -> None:
    bus = EventBus(8, START)
    ids = publish(bus, 6)
    gap, events = bus.get_since(ids[2])
    assert gap is None
    assert [event.id for event in events] == ids[3:]
    assert bus.get_since(ids[-1]) == (None, ())
    assert bus.get_since(ids[-1] + 1000) == (None, ())


def test_history_is_bounded_and_the_gap_is_told() -> None:
    bus = EventBus(4, START)
    ids = publish(bus, 10)
    gap, events = bus.get_since(ids[0])
    assert gap is not None
    assert (gap.after, gap.oldest) == (ids[0], ids[6])
    assert [event.id for event in events] == ids[6:]
    gap, events = bus.get_since(ids[0], limit=2)
    assert [event.id for event in events] == ids[6:8]


async def test_a_reader_waits_and_gets_every_event_in_order() -> None:
    bus = EventBus(64, START)
    seen: list[int] = []
    ready = asyncio.Event()

    async def read() -> None:
        with bus.subscribe() as subscription:
            ready.set()
            while len(seen) < 30:
                gap, events = await subscription.read()
                assert gap is None
                seen.extend(event.id for event in events)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(read())
        await ready.wait()
        ids = publish(bus, 10)
        await asyncio.sleep(0)
        ids += publish(bus, 20)
    assert seen == ids


async def test_a_slow_reader_is_told_and_costs_no_memory() -> None:
    bus = EventBus(4, START)
    with bus.subscribe() as subscription:
        ids = publish(bus, 100)
        gap, events = await subscription.read()
        assert gap is not None
        assert [event.id for event in events] == ids[-4:]
    assert not bus._changed


async def test_a_reader_from_before_a_restart_gets_the_gap_at_once() -> None:
    bus = EventBus(4, START)
    with bus.subscribe(after=5) as subscription:
        gap, events = await asyncio.wait_for(subscription.read(), 1)
        assert gap is not None
        assert events == ()


def test_history_must_hold_something() -> None:
    with pytest.raises(ValueError, match="history"):
        EventBus(0, START)


def test_a_federations_event_says_where_its_round_stands(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    block = node.records[-1].block
    data = build_federation(node.federation, block, node.state)
    record = node.state.get_federation(node.federation)
    assert record is not None
    assert (data["federation"], data["height"]) == (node.federation.hex(), block.header.height)
    assert (data["status"], data["round"]) == (record.status.value, record.round.number)
    assert data["last_ended"] is None or set(data["last_ended"]) == {"round", "outcome"}
    json.dumps(data)
    assert build_federation(ZERO_HASH, block, node.state) == {
        "federation": ZERO_HASH.hex(),
        "height": block.header.height,
    }
    submit = SubmitUpdate(node.federation, 1, BLOB)
    assert get_federation(sign_transaction(MINER, node.chain_id, 0, submit)) == node.federation
    assert (
        get_federation(sign_transaction(MINER, node.chain_id, 0, Transfer(MINER.address, Amount(1)))) is None
    )
