"""The typed client: a method for every route, reads tried again, answers kept by ETags, pages joined."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from consensus.task import BlobRef, Transfer
from consensus.transaction import sign_transaction
from consensus.types import Amount, Hash32
from node.api.app import ALL_OPERATOR_ROUTES, EVERY_PUBLIC_ROUTE, build_operator_app, build_public_app
from node.api.client import ApiError, Client, SyncClient
from node.api.fusion_client import FusionClient
from node.api.fusion_payloads import FusionModel
from node.api.requests import Route
from node.api.view import Criterion, Readiness
from node.light import LightApi
from tests.unit.node_api.conftest import TOKEN, build_config
from tests.unit.node_api.fakes import MINER, FakeNode

ID = "ab" * 32
HASH = Hash32(bytes.fromhex(ID))
FUSION = FusionModel.model_construct(id=ID, result_bytes=0)
Call = Callable[["Everything"], Awaitable[object]]


class Everything(FusionClient, LightApi):
    """The client with its parts for encrypted fusion and for light clients."""


async def drain(items: AsyncIterator[object]) -> None:
    async for _ in items:
        return


def stream(client: Everything) -> Awaitable[None]:
    return drain(client.stream_events(reconnect=False, after=0))


CALLS: dict[str, Call] = {
    "getStatus": lambda c: c.get_status(),
    "listBlocks": lambda c: drain(c.iterate_blocks()),
    "getBlock": lambda c: c.get_block(),
    "listHeaders": lambda c: drain(c.iterate_headers()),
    "getTransaction": lambda c: c.get_transaction(ID),
    "submitTransaction": lambda c: c.submit_transaction(sign_transaction(MINER, HASH, 0, PAYMENT)),
    "getDraft": lambda c: c.get_draft(ID),
    "listTasks": lambda c: drain(c.iterate_tasks()),
    "getTask": lambda c: c.get_task(ID),
    "listSteps": lambda c: drain(c.iterate_steps(ID)),
    "listOpenings": lambda c: drain(c.iterate_openings(ID)),
    "listMilestones": lambda c: c.get_milestones(ID),
    "listModels": lambda c: drain(c.iterate_models()),
    "getModel": lambda c: c.get_model(ID),
    "getAccount": lambda c: c.get_account(ID),
    "listPeers": lambda c: c.get_peers(),
    "listMempool": lambda c: drain(c.iterate_mempool()),
    "getFinality": lambda c: c.get_finality(),
    "listValidators": lambda c: c.get_validators(),
    "getGovernance": lambda c: c.get_governance(),
    "listInferenceModels": lambda c: drain(c.iterate_inference_models()),
    "getInferenceModel": lambda c: c.get_inference_model(ID),
    "listInferenceJobs": lambda c: drain(c.iterate_jobs()),
    "getInferenceJob": lambda c: c.get_job(ID),
    "getInferenceResult": lambda c: c.get_job_result(ID),
    "listEvaluators": lambda c: c.get_evaluators(),
    "listFederations": lambda c: drain(c.iterate_federations()),
    "getFederation": lambda c: c.get_federation(ID),
    "getFederationRound": lambda c: c.get_federation_round(ID, 0),
    "listCeremonies": lambda c: drain(c.iterate_ceremonies()),
    "getCeremony": lambda c: c.get_ceremony(ID),
    "streamEvents": stream,
    "getLiveness": lambda c: c.is_live(),
    "getReadiness": lambda c: c.get_readiness(),
    "getMetrics": lambda c: c.get_metrics(),
    "getDocument": lambda c: c.get_document(),
    "getReference": lambda c: c.get_reference(),
    "listContributions": lambda c: c.get_contributions(ID),
    "listConfirmations": lambda c: drain(c.iterate_confirmations(ID)),
    "getModelPreview": lambda c: c.get_preview(ID),
    "listVotes": lambda c: c.get_votes(),
    "search": lambda c: c.search("0"),
    "getExplorer": lambda c: c.get_explorer(),
    "getExplorerFile": lambda c: c.get_explorer("app.js"),
    "getFinalityProof": lambda c: c.get_finality_proof(0),
    "listLightHeaders": lambda c: c.get_light_headers(1, 2),
    "getValidatorsProof": lambda c: c.get_validators_proof(1),
    "getAccountProof": lambda c: c.get_account_proof(MINER.address),
    "getTaskProof": lambda c: c.get_task_proof(HASH),
    "getReceiptProof": lambda c: c.get_receipt_proof(HASH),
    "getTransactionProof": lambda c: c.get_transaction_proof(HASH),
    "postFusion": lambda c: c.post_fusion(ID, ID, 4, b"x"),
    "getFusion": lambda c: c.get_fusion(ID),
    "getFusionResult": lambda c: c.get_fusion_result(FUSION),
    "deleteFusion": lambda c: c.delete_fusion(ID),
}
"""A call for every operation of the public document."""

OPERATOR_CALLS: dict[str, Callable[[Everything, Path], Awaitable[object]]] = {
    "signTransaction": lambda c, path: c.sign_and_submit(PAYMENT),
    "putBlob": lambda c, path: c.put_blob(path),
    "getBlob": lambda c, path: c.get_blob(BlobRef(HASH, 5), path.with_suffix(".got")),
    "getBlobInfo": lambda c, path: c.get_blob_info(ID),
    "getLedgerSnapshot": lambda c, path: c.get_ledger_snapshot(path.with_suffix(".snapshot")),
    "getDebug": lambda c, path: c.get_debug(),
    "getDrain": lambda c, path: c.get_drain(),
    "drain": lambda c, path: c.drain(),
    "getDocument": lambda c, path: c.get_operator_document(),
}
PAYMENT = Transfer(MINER.address, Amount(1))


@asynccontextmanager
async def record(routes: tuple[Route, ...]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server of these routes that answers nothing but notes the operation asked for."""
    asked: list[str] = []
    app = web.Application()

    def note(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            await request.read()
            asked.append(route.name)
            return web.Response(status=418)

        return handle

    for route in routes:
        app.router.add_route(route.method, route.path, note(route))
    async with TestServer(app) as server:
        yield str(server.make_url("/")), asked


async def call(request: Awaitable[object]) -> None:
    """Wait for a call, which may fail by the server's answer alone."""
    try:
        await request
    except ApiError as error:
        if error.status != 418:
            raise


def test_every_operation_has_a_call() -> None:
    assert {route.name for route in EVERY_PUBLIC_ROUTE} == CALLS.keys()
    assert {route.name for route in ALL_OPERATOR_ROUTES} == OPERATOR_CALLS.keys()


async def test_each_call_asks_for_its_route(tmp_path: Path) -> None:
    async with record(EVERY_PUBLIC_ROUTE) as (url, asked), Everything(url) as client:
        for name, make in CALLS.items():
            await call(make(client))
            assert asked == [name]
            asked.clear()


async def test_each_call_of_the_operator_asks_for_its_route(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"hello")
    async with (
        record(ALL_OPERATOR_ROUTES) as (url, asked),
        Everything("http://127.0.0.1:1", operator_url=url, token=TOKEN) as client,
    ):
        for name, make in OPERATOR_CALLS.items():
            await call(make(client, path))
            assert asked == [name]
            asked.clear()


@asynccontextmanager
async def fail_first(
    statuses: list[int], headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server whose first answers have these statuses (0: the link breaks), and then lists no peers."""
    seen: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        status = statuses[len(seen)] if len(seen) < len(statuses) else 200
        seen.append(status)
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"items": []}, status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), seen


@pytest.mark.parametrize("statuses", [[0], [503], [502, 504], [429]])
async def test_a_read_is_tried_again(statuses: list[int]) -> None:
    async with fail_first(statuses, {"Retry-After": "0"}) as (url, seen), Client(url) as client:
        assert (await client.get_peers()).items == ()
        assert seen == [*statuses, 200]


async def test_a_read_is_not_tried_for_ever_and_an_error_not_again() -> None:
    async with fail_first([503] * 9) as (url, seen), Client(url) as client:
        with pytest.raises(ApiError, match="503"):
            await client.get_peers()
        assert len(seen) == 3
    async with fail_first([404, 200]) as (url, seen), Client(url) as client:
        with pytest.raises(ApiError, match="404"):
            await client.get_peers()
        assert seen == [404]


async def test_a_write_is_sent_once() -> None:
    async with fail_first([503, 503]) as (url, seen), Client(url) as client:
        with pytest.raises(ApiError, match="503"):
            await client.submit_transaction(sign_transaction(MINER, HASH, 0, PAYMENT))
        assert seen == [503]


async def test_nobody_there_is_told_at_once() -> None:
    async with Client("http://127.0.0.1:1") as client:
        with pytest.raises(ApiError, match="Is the node running"):
            await client.get_status()


async def test_kept_answers_are_asked_for_by_their_etag(node: FakeNode, tmp_path: Path) -> None:
    app, statuses = build_public_app(node, build_config(tmp_path)), []

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        statuses.append(response.status)

    app.on_response_prepare.append(note)
    async with TestServer(app) as server, Client(str(server.make_url("/")), cached=2) as client:
        first = await client.get_block("1")
        assert await client.get_block("1") == first
        before = await client.get_validators()
        node.state = node.state.with_jailed((MINER.address,))
        assert await client.get_validators() != before
        await client.get_governance()
        await client.get_block("1")
        assert statuses == [200, 304, 200, 200, 200, 200]  # two are kept, the block had to go


@asynccontextmanager
async def open_node(node: FakeNode, directory: Path) -> AsyncIterator[Client]:
    app = build_public_app(node, build_config(directory))
    async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
        yield client


async def test_pages_are_joined(node: FakeNode, tmp_path: Path) -> None:
    for _ in range(250):
        node.grow()
    async with open_node(node, tmp_path) as client:
        heights = [header.height async for header in client.iterate_headers()]
    assert heights == list(range(heights[0], -1, -1))
    assert len(heights) > 250


async def test_readiness_tells_its_criteria_either_way(node: FakeNode, tmp_path: Path) -> None:
    lag = Criterion("lag", False, "12 blocks behind")
    async with open_node(node, tmp_path) as client:
        node.ready = Readiness(False, (lag.detail,), (lag,))
        found = await client.get_readiness()
        assert (found.ready, found.criteria[0].name) == (False, "lag")
        assert not await client.is_ready()
        node.ready = Readiness(True)
        assert await client.is_ready()
        assert await client.is_live()


async def test_the_operators_part(node: FakeNode, tmp_path: Path) -> None:
    async with TestServer(build_operator_app(node, node, build_config(tmp_path), TOKEN)) as server:
        url = str(server.make_url("/"))
        async with Client("http://127.0.0.1:1", operator_url=url, token=TOKEN) as client:
            path = tmp_path / "blob"
            path.write_bytes(b"hello")
            ref = await client.put_blob(path)
            assert (await client.get_blob_info(ref.root.hex())).complete
            document = await client.get_operator_document()
            assert "/v1/operator/blobs" in json.dumps(document)


def test_the_client_without_await(tmp_path: Path) -> None:
    with SyncClient("http://127.0.0.1:1", cached=4) as node, pytest.raises(ApiError, match="reached"):
        node.call(node.api.get_status())
