"""Encrypted fusion by a peer's API: what comes back, what is refused, and what is forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from consensus.identifiers import compute_weights_digest
from fusion_model.pictures import convert_to_bytes, recolour
from he.forward import FUSED_MAGIC
from node.api.app import build_public_app
from node.api.client import ApiError
from node.api.fusion_client import FusionClient
from node.clock import Clock, ManualClock, SystemClock
from node.fusions import SWEEP_S, FusionDesk, FusionState
from node.settings import FusionRequestSettings
from tests.integration.fusion_world import (
    MODEL,
    SMALL,
    SPEC,
    WEIGHTS,
    ModelNode,
    fuse_in_clear,
    make_pair,
)
from tests.unit.node_api.conftest import build_config
from tests.unit.node_api.test_openapi import check_documented
from workloads.base import WorkloadError
from workloads.encrypted_fusion import FuseJob
from workloads.fusion_request import FusionRequest

SETTINGS = FusionRequestSettings(waiting=3, per_client=2)
DIGEST = compute_weights_digest(WEIGHTS).hex()
OCTETS = {"Content-Type": "application/octet-stream"}
PATIENCE_S = 60.0


class Service:
    """A node's API with its desk; `work` says whether uploads are also evaluated."""

    def __init__(self, directory: Path, settings: FusionRequestSettings, clock: Clock) -> None:
        self.node = ModelNode(directory)
        self.folder = directory / "fusions"
        self.desk = FusionDesk(settings, self.folder, clock, SMALL)
        self.server = TestServer(build_public_app(self.node, build_config(directory), fusions=self.desk))
        self.http = TestClient(self.server)

    @property
    def task(self) -> str:
        return self.node.task.hex()

    @property
    def url(self) -> str:
        return str(self.server.make_url("/"))

    def build_query(self, **changes: str) -> dict[str, str]:
        return {"task": self.task, "weights": DIGEST, "tile": "1"} | changes

    async def post(self, data: object, headers: dict[str, str] = OCTETS, **changes: str) -> tuple[int, dict]:
        """Status and body; a change to an empty text leaves the parameter out."""
        query = {name: value for name, value in self.build_query(**changes).items() if value}
        response = await self.http.post("/v1/fusions", params=query, data=data, headers=headers)
        return response.status, await response.json(content_type=None)

    def list_folders(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()] if self.folder.exists() else []


@asynccontextmanager
async def serve(
    directory: Path,
    settings: FusionRequestSettings = SETTINGS,
    clock: Clock | None = None,
    *,
    work: bool = False,
) -> AsyncIterator[Service]:
    service = Service(directory, settings, clock or SystemClock())
    async with service.http:
        running = asyncio.create_task(service.desk.run()) if work else None
        yield service
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(scope="module")
def request_() -> FusionRequest:
    """One encrypted pair that takes a single request of tiles of 1x1."""
    made = FusionRequest(MODEL, WEIGHTS, make_pair(), SMALL)
    assert (made.parts, made.tile) == (1, 1)
    return made


@pytest.fixture(scope="module")
def upload(request_: FusionRequest) -> bytes:
    return request_.encrypt(0)


# --- the whole way ----------------------------------------------------------------------------


async def test_a_peer_fuses_what_it_can_not_see(
    tmp_path: Path, request_: FusionRequest, upload: bytes
) -> None:
    """Uploaded, evaluated in a worker process, fetched, decrypted: the clear result to a grey level."""
    sent: list[tuple[int, int]] = []
    states: list[str] = []
    async with serve(tmp_path, work=True) as service, FusionClient(service.url) as client:
        found = await client.post_fusion(service.task, DIGEST, 1, upload, lambda *at: sent.append(at))
        assert (found.state, found.request_bytes) == ("waiting", len(upload))
        done = await client.wait_fusion(found.id, lambda seen: states.append(seen.state))
        assert done.progress == 1.0
        assert done.seconds is not None
        result = await client.get_fusion_result(done)
        assert service.list_folders() == [found.id]
        await client.delete_fusion(found.id)
        assert service.list_folders() == []
        with pytest.raises(ApiError, match="No encrypted fusion"):
            await client.get_fusion(found.id)
    assert sent[-1] == (len(upload), len(upload))
    assert states[-1] == "done"
    assert set(states) <= {"waiting", "running", "done"}
    request_.decrypt(0, result)
    fused = request_.finish()
    clear = fuse_in_clear(make_pair())
    error = np.abs(fused.luminance - clear).max() * 255
    print(f"largest error {error:.4f} grey levels")
    assert error < 0.5
    assert fused.image.dtype == np.uint8
    assert np.abs(fused.image.astype(int) - np.clip(np.rint(clear * 255), 0, 255)).max() <= 1
    assert run_alone(tmp_path, upload) == result, "another peer comes to other bytes"


def run_alone(directory: Path, upload: bytes, tile: int = 1) -> bytes:
    """What a second peer computes, in this process."""
    names = [directory / name for name in ("request", "result", "progress")]
    names[0].write_bytes(upload)
    SMALL.run(FuseJob(MODEL, WEIGHTS, tile, *names))
    return names[1].read_bytes()


async def test_what_the_gate_refuses_fails_with_its_reason(tmp_path: Path, upload: bytes) -> None:
    """In the worker, before the library sees a byte; the desk goes on with the next request."""
    plan = SMALL.build_plan(MODEL, WEIGHTS, 1)
    last = plan.relin_bytes + plan.get_tile_bodies()[-1].offset
    half = plan.get_tile_bodies()[-1].get_length(plan.params) // 2
    header = plan.relin_bytes
    cases = {
        "transparent": upload[: last + half] + bytes(half),
        "residue": upload[:-8] + b"\xff" * 8,
        "header": upload[:header] + plan.build_header(FUSED_MAGIC) + upload[header + 64 :],
        "header: not the header of this kind": b"x" + upload[1:],
    }
    async with serve(tmp_path, work=True) as service, FusionClient(service.url) as client:
        for reason, data in cases.items():
            found = await client.post_fusion(service.task, DIGEST, 1, data)
            with pytest.raises(ApiError, match=reason):
                await client.wait_fusion(found.id)
            response = await service.http.get(f"/v1/fusions/{found.id}/result")
            problem = await response.json(content_type=None)
            assert (response.status, problem["type"]) == (409, "urn:bmif:problem:fusion-failed")
            assert reason in problem["detail"]
            await client.delete_fusion(found.id)
        found = await client.post_fusion(service.task, DIGEST, 1, upload)
        assert (await client.wait_fusion(found.id)).state == "done"


# --- refused before or during the upload ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "kind", "field"),
    [
        ({"task": ""}, 400, "bad-parameter", "task"),
        ({"weights": ""}, 400, "bad-parameter", "weights"),
        ({"tile": ""}, 400, "bad-parameter", "tile"),
        ({"tile": "0"}, 400, "bad-parameter", "tile"),
        ({"tile": "1.5"}, 400, "bad-parameter", "tile"),
        ({"tile": "9"}, 422, "model-not-fit", None),
        ({"task": "ab"}, 400, "bad-parameter", "task"),
        ({"task": "ab" * 32}, 404, "not-found", "task"),
        ({"weights": "ab" * 32}, 409, "other-model", "weights"),
        ({"tile": "2"}, 422, "bad-body", "(body)"),
        ({"colour": "red"}, 400, "bad-parameter", "colour"),
    ],
)
async def test_a_wrong_query_is_refused(
    tmp_path: Path, upload: bytes, changes: dict[str, str], status: int, kind: str, field: str | None
) -> None:
    async with serve(tmp_path) as service:
        got, problem = await service.post(upload, **changes)
        assert (got, problem["type"], problem.get("field")) == (status, f"urn:bmif:problem:{kind}", field)
        assert problem["detail"]
        assert problem["remedy"]
        assert service.list_folders() == []


async def test_a_task_without_a_settled_model_is_refused(tmp_path: Path, upload: bytes) -> None:
    async with serve(tmp_path) as service:
        service.node.milestones.clear()
        status, problem = await service.post(upload)
        assert status == 404
        assert "settled model" in problem["detail"]


async def test_a_model_that_moved_on_is_told(tmp_path: Path, upload: bytes) -> None:
    """The request is bound to the weights that it was encrypted for, not to whatever is settled by then."""
    async with serve(tmp_path) as service:
        service.node.settle((WEIGHTS[0] + 1, *WEIGHTS[1:]))
        status, problem = await service.post(upload)
        assert (status, problem["type"]) == (409, "urn:bmif:problem:other-model")


async def stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("extra", [-8, 8, 5_000_000])
async def test_another_length_is_refused(tmp_path: Path, upload: bytes, extra: int) -> None:
    """As announced, and as it comes where nothing is announced."""
    data = upload[:extra] if extra < 0 else upload + bytes(extra)
    async with serve(tmp_path) as service:
        for body in (data, stream(data)):
            status, problem = await service.post(body)
            assert (status, problem["type"]) == (422, "urn:bmif:problem:bad-body")
            assert f"exactly {len(upload)}" in problem["detail"]
        assert service.list_folders() == []


async def test_another_type_is_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as service:
        status, problem = await service.post(b"{}", {"Content-Type": "application/json"})
        assert (status, problem["field"]) == (415, "Content-Type")


async def test_a_node_takes_none_unless_it_is_told_to(tmp_path: Path, upload: bytes) -> None:
    assert FusionRequestSettings().waiting == 0
    async with serve(tmp_path, FusionRequestSettings(), work=True) as service:
        status, problem = await service.post(upload)
        assert (status, problem["type"]) == (503, "urn:bmif:problem:fusions-off")
        assert "fusion_requests.waiting" in problem["remedy"]


async def test_a_request_above_the_limit_is_refused(tmp_path: Path, upload: bytes) -> None:
    small = FusionRequestSettings(waiting=1, max_upload_bytes=len(upload) - 1)
    async with serve(tmp_path, small) as service:
        status, problem = await service.post(upload)
        assert (status, problem["type"]) == (413, "urn:bmif:problem:body-too-large")


async def test_requests_are_bounded(tmp_path: Path, upload: bytes) -> None:
    """Two of a client, three in all; a deleted one gives its place back."""
    async with serve(tmp_path) as service:
        first = (await service.post(upload))[1]["id"]
        assert (await service.post(upload))[0] == 202
        status, problem = await service.post(upload)
        assert (status, problem["type"]) == (429, "urn:bmif:problem:too-many-fusions")
        for record in service.desk._records.values():
            record.client = "192.0.2.1"
        found = (await service.post(upload))[1]
        assert found["ahead"] == 2
        status, problem = await service.post(upload)
        assert (status, problem["type"]) == (503, "urn:bmif:problem:fusions-full")
        response = await service.http.delete(f"/v1/fusions/{first}")
        assert response.status == 204
        assert (await service.post(upload))[0] == 202
        assert len(service.list_folders()) == 3


async def test_the_result_is_not_there_before_it_is_done(tmp_path: Path, upload: bytes) -> None:
    async with serve(tmp_path) as service:
        identifier = (await service.post(upload))[1]["id"]
        response = await service.http.get(f"/v1/fusions/{identifier}/result")
        problem = await response.json(content_type=None)
        assert (response.status, problem["type"]) == (409, "urn:bmif:problem:not-ready")
        for path in (f"/v1/fusions/{'ab' * 32}", f"/v1/fusions/{'ab' * 32}/result"):
            assert (await service.http.get(path)).status == 404


async def test_an_upload_that_stalls_gives_its_place_back(tmp_path: Path, upload: bytes) -> None:
    clock, stalled = ManualClock(), asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield upload[:1000]
        await stalled.wait()

    async with serve(tmp_path, clock=clock) as service:
        posting = asyncio.create_task(service.post(trickle()))
        await wait_for(lambda: clock.sleepers > 0)
        clock.advance(SETTINGS.upload_s + 1)
        await wait_for(lambda: not service.desk._records)
        stalled.set()
        status, problem = await posting
        assert (status, problem["type"]) == (408, "urn:bmif:problem:upload-too-slow")
        assert service.list_folders() == []


async def test_a_connection_that_breaks_gives_its_place_back(tmp_path: Path, upload: bytes) -> None:
    async with serve(tmp_path) as service:
        reader, writer = await asyncio.open_connection(service.server.host, service.server.port)
        query = "&".join(f"{name}={value}" for name, value in service.build_query().items())
        head = f"POST /v1/fusions?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(upload)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + upload[:5000])
        await wait_for(lambda: bool(service.desk._records))
        writer.transport.abort()
        await wait_for(lambda: not service.desk._records)
        assert service.list_folders() == []
        del reader


async def wait_for(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.01)


# --- what is forgotten ------------------------------------------------------------------------


async def test_results_expire(tmp_path: Path, upload: bytes) -> None:
    clock = ManualClock()
    async with serve(tmp_path, clock=clock, work=True) as service:
        identifier = (await service.post(upload))[1]["id"]
        record = next(iter(service.desk._records.values()))
        await wait_for(lambda: record.state is FusionState.DONE)
        assert not record.request.exists(), "the upload is not needed any more"
        clock.advance(SETTINGS.keep_s - SWEEP_S)
        await asyncio.sleep(0)
        assert (await service.http.get(f"/v1/fusions/{identifier}")).status == 200
        await wait_for(lambda: clock.sleepers > 0)
        clock.advance(2 * SWEEP_S)
        await wait_for(lambda: not service.desk._records)
        assert (await service.http.get(f"/v1/fusions/{identifier}")).status == 404
        assert service.list_folders() == []


async def test_a_running_fusion_keeps_its_place_until_it_ends(tmp_path: Path, upload: bytes) -> None:
    """Deleting must not be a way round the bounds."""
    async with serve(tmp_path, work=True) as service:
        identifier = (await service.post(upload))[1]["id"]
        record = next(iter(service.desk._records.values()))
        await wait_for(lambda: record.state is FusionState.RUNNING)
        response = await service.http.delete(f"/v1/fusions/{identifier}")
        assert response.status == 204
        assert (await service.http.get(f"/v1/fusions/{identifier}")).status == 404
        await wait_for(lambda: not service.desk._records)
        assert record.state is FusionState.DONE
        assert service.list_folders() == []


async def test_nothing_survives_a_restart(tmp_path: Path, upload: bytes) -> None:
    async with serve(tmp_path) as service:
        await service.post(upload)
        assert len(service.list_folders()) == 1
    async with serve(tmp_path) as service:
        assert service.list_folders() == []


# --- the document -----------------------------------------------------------------------------


async def test_the_routes_are_documented(tmp_path: Path, upload: bytes) -> None:
    async with serve(tmp_path) as service:
        await check_documented(service.http)
        document = await (await service.http.get("/openapi.json")).json()
        OpenAPIV31SpecValidator(document).validate()
        status, found = await service.post(upload)
        assert status == 202
        for method, path in (("post", "/v1/fusions"), ("get", "/v1/fusions/{fusion}")):
            responses = document["paths"][path][method]["responses"]
            schema = responses["202" if method == "post" else "200"]["content"]["application/json"]["schema"]
            Draft202012Validator({**schema, "components": document["components"]}).validate(found)
        text = json.dumps(document["paths"]["/v1/fusions"])
        assert all(f'"{name}"' in text for name in ("task", "weights", "tile"))


def test_the_model_is_worth_the_test() -> None:
    """Branches, an extra plane and another skip than the mean: nothing of the specification is left out."""
    assert len(set(SPEC.kernels)) == 2
    assert SPEC.planes
    assert SPEC.skip != "mean"


def test_large_and_coloured_pairs(tmp_path: Path) -> None:
    """More tiles than slots take several requests; colours never leave the requester."""
    grey = make_pair(height=260, width=270)
    chroma = np.stack([np.full(grey.first.shape, 0.1), np.full(grey.first.shape, -0.2)])
    made = FusionRequest(MODEL, WEIGHTS, replace(grey, chroma=chroma), SMALL)
    assert (made.parts, made.tile) == (2, 6)
    for part in range(made.parts):
        upload = made.encrypt(part)
        assert len(upload) == made.request_bytes
        with pytest.raises(WorkloadError, match=f"{made.parts - part} of 2 results are missing"):
            made.finish()
        made.decrypt(part, run_alone(tmp_path, upload, made.tile))
    fused = made.finish()
    assert np.abs(fused.luminance - fuse_in_clear(grey)).max() * 255 < 0.5
    assert fused.image.shape == (260, 270, 3)
    assert (fused.image == recolour(convert_to_bytes(fused.luminance), chroma)).all()
    with pytest.raises(WorkloadError, match="the peer's result: length"):
        made.decrypt(0, b"")
