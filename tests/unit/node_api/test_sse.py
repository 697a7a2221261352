"""Server-sent events over a real socket: order, replay, kinds, limits, shutdown."""

import asyncio
import json
import socket

import pytest
from aiohttp.test_utils import TestClient

from node.api.client import ApiError, Client
from node.api.sse import STREAMS, EventEncoder
from node.events import EventKind
from tests.unit.node_api.fakes import START, FakeNode


async def read_events(response, count: int) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    async with asyncio.timeout(5):
        while len(events) < count:
            line = (await response.content.readline()).decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                events.append(fields)
                fields = {}
            else:
                fields = {}
    return events


async def test_events_come_in_order_and_replay_after_the_last_id(api: TestClient, node: FakeNode) -> None:
    first = await api.get("/v1/events")
    assert first.content_type == "text/event-stream"
    for height in range(3):
        node.events.publish(EventKind.HEAD, START, {"height": height})
    events = await read_events(first, 3)
    assert [json.loads(event["data"])["data"]["height"] for event in events] == [0, 1, 2]
    first.close()
    node.events.publish(EventKind.HEAD, START, {"height": 3})
    again = await api.get("/v1/events", headers={"Last-Event-ID": events[1]["id"]})
    assert [json.loads(e["data"])["data"]["height"] for e in await read_events(again, 2)] == [2, 3]
    again.close()


async def test_a_reader_that_was_away_too_long_gets_a_gap(api: TestClient, node: FakeNode) -> None:
    first = node.events.publish(EventKind.HEAD, START, {})
    for _ in range(100):
        node.events.publish(EventKind.HEAD, START, {})
    response = await api.get(f"/v1/events?after={first.id}")
    events = await read_events(response, 2)
    assert events[0]["event"] == "gap"
    assert json.loads(events[0]["data"])["oldest"] == int(events[1]["id"])
    response.close()


async def test_only_the_kinds_asked_for(api: TestClient, node: FakeNode) -> None:
    response = await api.get("/v1/events?kinds=step,milestone")
    for kind in (EventKind.HEAD, EventKind.STEP, EventKind.BLOCK, EventKind.MILESTONE):
        node.events.publish(kind, START, {})
    assert [event["event"] for event in await read_events(response, 2)] == ["step", "milestone"]
    response.close()


async def test_streams_are_limited_and_end_with_the_node(api: TestClient) -> None:
    streams = [await api.get("/v1/events") for _ in range(2)]
    refused = await api.get("/v1/events")
    assert refused.status == 503
    assert (await refused.json(content_type=None))["remedy"]
    async with asyncio.timeout(5):
        await api.server.close()
        for stream in streams:
            await stream.content.read()


async def test_the_client_follows_events_and_reads_problems(api: TestClient, node: FakeNode) -> None:
    node.events.publish(EventKind.STEP, START, {"step": 1})
    async with Client(str(api.make_url("/"))) as client:
        after = (await client.get_status()).last_event_id - 1
        async with asyncio.timeout(5):
            async for event in client.stream_events(after=after):
                assert (event.kind, event.data) == ("step", {"step": 1})
                break
        with pytest.raises(ApiError, match="No task") as caught:
            await client.get_task("ab" * 32)
        assert caught.value.status == 404
        heights = [block.height async for block in client.iterate_blocks()]
        assert heights[-1] == 0
    async with Client("http://127.0.0.1:9", timeout_s=2) as client:
        with pytest.raises(ApiError, match="Is the node running"):
            await client.get_status()


async def test_a_reader_that_never_reads_is_dropped_and_the_others_go_on(
    api: TestClient, node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "node.api.sse")
    reader = await api.get("/v1/events")
    url = api.make_url("/v1/events")
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect((url.host, url.port))
        idle.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # More than both sockets and the transport hold.
        sent, large = 0, "x" * 8_192
        async with asyncio.timeout(20):
            while "is dropped" not in caplog.text:
                node.events.publish(EventKind.TASK, START, {"text": large})
                sent += 1
                await read_events(reader, 1)
        assert len(api.server.app[STREAMS]) == 1
    assert sent > 8
    node.events.publish(EventKind.HEAD, START, {"height": 9})
    assert [event["event"] for event in await read_events(reader, 1)] == ["head"]
    reader.close()


def test_an_event_is_encoded_once(node: FakeNode) -> None:
    encoder = EventEncoder(kept=2)
    events = [node.events.publish(EventKind.HEAD, START, {"height": height}) for height in range(3)]
    first = encoder.encode(events[0])
    assert encoder.encode(events[0]) is first
    encoder.encode(events[1])
    encoder.encode(events[2])
    assert encoder.encode(events[0]) is not first
    assert encoder.encode(events[0]) == first
