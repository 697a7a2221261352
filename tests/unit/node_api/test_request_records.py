"""Ids of requests, what is recorded of them, and that nobody can forge a record or find a secret in one."""

import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from node.api.app import build_operator_app, build_public_app
from node.logs import REQUEST, JsonFormatter, TextFormatter, configure_logging, escape, get_recent_lines
from node.settings import LogSettings
from tests.unit.node_api.conftest import TOKEN, build_config
from tests.unit.node_api.fakes import FakeNode

HEADER = "X-Request-ID"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process records, as JSON lines; the root logger is given back as it was."""
    root = logging.getLogger()
    handlers, level, stderr = root.handlers[:], root.level, sys.stderr
    sys.stderr = stream = io.StringIO()
    try:
        configure_logging(LogSettings(level="debug", format="json"), "node1")
        yield stream
    finally:
        sys.stderr = stderr
        root.handlers[:] = handlers
        root.setLevel(level)


def read(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
async def watched(node: FakeNode, tmp_path: Path) -> AsyncIterator[TestClient]:
    """An API that records every request."""
    config = build_config(tmp_path).model_copy(update={"log": LogSettings(access=True)})
    async with TestClient(TestServer(build_public_app(node, config))) as client:
        yield client


async def test_a_request_keeps_its_id_if_that_is_well_formed(api: TestClient) -> None:
    kept = await api.get("/livez", headers={HEADER: "trace-7.a_B"})
    assert kept.headers[HEADER] == "trace-7.a_B"
    made = {(await api.get("/livez")).headers[HEADER] for _ in range(3)}
    assert len(made) == 3
    for wrong in ("", "a b", "x" * 65, "é", 'a"b', "a;b"):
        answer = await api.get("/livez", headers={HEADER: wrong})
        assert answer.headers[HEADER] != wrong
        assert len(answer.headers[HEADER]) == 16


async def test_every_kind_of_answer_has_an_id(api: TestClient, operator: TestClient) -> None:
    for client, method, path, status in (
        (api, "GET", "/nowhere", 404),
        (api, "PUT", "/livez", 405),
        (api, "POST", "/v1/transactions", 415),
        (operator, "POST", "/v1/operator/transactions", 401),
    ):
        answer = await client.request(method, path, headers={HEADER: "one"})
        assert (answer.status, answer.headers[HEADER]) == (status, "one")
    async with api.get("/v1/events", headers={HEADER: "stream"}) as stream:
        assert stream.headers[HEADER] == "stream"


async def test_records_of_a_request_carry_its_id(
    node: FakeNode, api: TestClient, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(node, "get_finalized", fail)
    answer = await api.get("/v1/status", headers={HEADER: "seven"})
    assert answer.status == 500
    records = [record for record in read(lines) if record.get("request")]
    assert {record["request"] for record in records} == {"seven"}
    failure, summary = records
    assert "the disk is gone" in failure["error"]
    assert summary["level"] == "warning"
    assert summary["message"].startswith("GET /v1/status: 500 in ")
    assert REQUEST.get() == ""
    assert get_recent_lines() == tuple(lines.getvalue().splitlines())


async def test_ordinary_requests_are_recorded_where_that_is_wanted(
    api: TestClient, watched: TestClient, lines: io.StringIO
) -> None:
    await api.get("/v1/status")
    assert not [record for record in read(lines) if record["logger"] == "node.metrics.requests"]
    await watched.get("/v1/status?limit=secret-of-a-query")
    (record,) = [record for record in read(lines) if record["logger"] == "node.metrics.requests"]
    assert record["level"] == "info"
    assert "/v1/status: 400" in record["message"]
    assert "secret-of-a-query" not in lines.getvalue()


async def test_slow_requests_are_warnings(node: FakeNode, tmp_path: Path, lines: io.StringIO) -> None:
    settings = LogSettings(slow_request_s=1e-9)
    config = build_config(tmp_path).model_copy(update={"log": settings})
    async with TestClient(TestServer(build_public_app(node, config))) as client:
        await client.get("/livez")
    assert any(r["level"] == "warning" and "/livez: 200" in r["message"] for r in read(lines))


async def test_neither_bodies_nor_tokens_are_recorded(
    node: FakeNode, tmp_path: Path, lines: io.StringIO
) -> None:
    config = build_config(tmp_path).model_copy(update={"log": LogSettings(access=True)})
    async with TestClient(TestServer(build_operator_app(node, node, config, TOKEN))) as client:
        for token in (TOKEN, "a-wrong-token"):
            await client.post(
                "/v1/operator/transactions",
                json={"payload": {"kind": "canary-body"}},
                headers={"Authorization": f"Bearer {token}", "Cookie": "canary-cookie"},
            )
        await client.put(
            "/v1/operator/blobs", data=b"canary-blob", headers={"Authorization": f"Bearer {TOKEN}"}
        )
    assert len([r for r in read(lines) if r["logger"] == "node.metrics.requests"]) == 3
    for secret in (TOKEN, "a-wrong-token", "canary"):
        assert secret not in lines.getvalue()


FORGERY = "x\n12:00:00.000 INFO    node1 node.voter: all is well\r\x1b[2J\u2028\u202e\x85"


def build_record(message: str, error: Exception | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("node.api", logging.INFO, "", 0, "%s", (message,), info)


def test_nobody_forges_a_text_record() -> None:
    line = TextFormatter("node1").format(build_record(FORGERY))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert r"x\n12:00:00.000" in line
    trace = TextFormatter("node1").format(build_record("failed", ValueError(FORGERY))).splitlines()
    assert all(part.startswith("    | ") for part in trace[1:])
    assert all(part.isprintable() for part in trace)


def test_nobody_forges_a_json_record() -> None:
    for record in (build_record(FORGERY), build_record("failed", ValueError(FORGERY))):
        line = JsonFormatter("node1").format(record)
        assert line.isprintable()
        assert FORGERY in (json.loads(line)["message"] + json.loads(line).get("error", ""))


async def test_a_path_forges_no_record(watched: TestClient, lines: io.StringIO) -> None:
    await watched.get("/v1/%0a12:00:00.000%20INFO%20forged%1b%5b2J")
    assert lines.getvalue().isascii()
    assert all(line.isprintable() for line in lines.getvalue().splitlines())
    read(lines)


def test_printable_text_stays_as_it_is() -> None:
    for text in ("", "Köln: μ = 3", "a\\nb"):
        assert escape(text) == text


async def test_metrics_of_a_view_are_well_formed_and_bounded(node: FakeNode, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    app = build_public_app(node, build_config(tmp_path), registry)
    async with TestClient(TestServer(app)) as client:
        for name in ("a", "b", "c"):
            await client.get(f"/v1/{name}-that-is-no-route")
        async with client.get("/v1/events"):
            text = await (await client.get("/metrics")).text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    task = ("task", node.task.hex())
    assert values["bmif_head_height", ()] == len(node.records) - 1
    assert values["bmif_task_loss", (task,)] == 1.5
    assert values["bmif_task_target_loss", (task,)] == 1.0
    assert values["bmif_task_loss_margin", (task,)] == -0.5
    assert values["bmif_task_openings_left", (("kind", "gradient"), task)] == 7
    assert values["bmif_task_ciphertext_bytes", (("part", "training"), task)] == 2_000
    assert values["bmif_tasks", (("status", "open"),)] == 1
    assert values["bmif_event_streams", ()] == 1
    unknown = (("method", "GET"), ("route", "unknown"), ("status", "404"))
    assert values["bmif_api_requests_total", unknown] == 3
