"""Answers that are kept while nothing changes, and not a moment longer."""

from aiohttp.test_utils import TestClient

from node.api.answers import MOST_ANSWERS
from node.api.app import ANSWERS
from tests.unit.node_api.fakes import FakeNode


async def test_an_answer_is_kept_for_one_revision(api: TestClient, node: FakeNode) -> None:
    node.revision = 1
    first = await (await api.get("/v1/status")).json()
    node.grow()
    kept = await api.get("/v1/status")
    assert await kept.json() == first
    assert kept.headers["ETag"]
    assert kept.headers["Cache-Control"]
    node.revision = 2
    assert (await (await api.get("/v1/status")).json())["head"]["height"] == first["head"]["height"] + 1


async def test_a_kept_answer_is_whole(api: TestClient, node: FakeNode) -> None:
    for path in (
        "/v1/status",
        "/v1/blocks/head",
        "/v1/blocks?limit=2",
        "/v1/tasks",
        f"/v1/tasks/{node.task.hex()}",
    ):
        node.revision = None
        built = await api.get(path)
        node.revision = 7
        await api.get(path)
        kept = await api.get(path)
        assert await kept.read() == await built.read()
        names = ("Content-Type", "ETag", "Cache-Control", "X-Content-Type-Options", "Content-Length")
        assert [kept.headers.get(name) for name in names] == [built.headers.get(name) for name in names]
        known = await api.get(path, headers={"If-None-Match": kept.headers["ETag"]})
        assert known.status == 304
        assert (await api.head(path)).headers["ETag"] == kept.headers["ETag"]
        node.revision = 8
        await api.get(path)
        node.revision = 7


async def test_errors_and_other_queries_are_not_kept(api: TestClient, node: FakeNode) -> None:
    node.revision = 1
    missing = "/v1/blocks/" + "0" * 64
    assert (await api.get(missing)).status == 404
    assert (await api.get(missing)).status == 404
    assert len((await (await api.get("/v1/blocks?limit=1")).json())["items"]) == 1
    assert len((await (await api.get("/v1/blocks?limit=3")).json())["items"]) == 3
    assert (await api.get("/v1/blocks?limit=1&other=2")).status == 400


async def test_memory_is_bounded(api: TestClient, node: FakeNode) -> None:
    node.revision = 1
    for limit in range(1, 101):
        assert (await api.get(f"/v1/blocks?limit={limit}")).status == 200
        assert (await api.get(f"/v1/headers?limit={limit}")).status == 200
        assert (await api.get(f"/v1/tasks?limit={limit}")).status == 200
    assert len(api.server.app[ANSWERS]) == MOST_ANSWERS
