"""Routes of encrypted fusion: upload an encrypted pair, watch it, fetch the encrypted image, forget it.

Who may see a request is who knows its random id. The upload is streamed to disk; its exact length follows
from the model, so that one of another length is refused before a byte of it is read.
"""

import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus

from aiohttp import web

from consensus.types import Hash32
from node.api.convert import TaskReader
from node.api.errors import Problem, build_not_found, build_parameter_problem
from node.api.fusion_payloads import FusionModel, build_fusion
from node.api.requests import OCTETS, Route, answer, check_octets, get_view, parse_hash
from node.fusions import (
    FusionDesk,
    FusionOrder,
    FusionRecord,
    FusionRefused,
    FusionState,
    Refusal,
)

FUSIONS = web.AppKey("fusions", FusionDesk)
UPLOAD_PATH = "/v1/fusions"
READ_BYTES = 256 * 1024
TILE = re.compile(r"[1-9][0-9]?")
RETRY_S = "5"

_STATUSES: Mapping[Refusal, tuple[int, str]] = {
    Refusal.OFF: (503, "fusions-off"),
    Refusal.FULL: (503, "fusions-full"),
    Refusal.CLIENT: (429, "too-many-fusions"),
    Refusal.MODEL: (422, "model-not-fit"),
    Refusal.SIZE: (413, "body-too-large"),
    Refusal.LENGTH: (422, "bad-body"),
    Refusal.LATE: (408, "upload-too-slow"),
}


def _build_problem(error: FusionRefused) -> Problem:
    status, kind = _STATUSES[error.refusal]
    waits = error.refusal in (Refusal.FULL, Refusal.CLIENT)
    return Problem(
        status,
        kind,
        error.detail,
        field="(body)" if error.refusal in (Refusal.LENGTH, Refusal.SIZE) else None,
        remedy=error.remedy,
        headers={"Retry-After": RETRY_S} if waits else None,
    )


def _get_parameter(request: web.Request, name: str) -> str:
    text = request.query.get(name)
    if text is None:
        raise build_parameter_problem(name, "Missing query parameter", f"Add {name}=…, see /openapi.json")
    return text


def _read_order(request: web.Request) -> FusionOrder:
    """The settled model that the query names, if it is still the one that the client encrypted for."""
    task = parse_hash(_get_parameter(request, "task"), "task")
    digest = parse_hash(_get_parameter(request, "weights"), "weights")
    tile = _get_parameter(request, "tile")
    if not TILE.fullmatch(tile):
        raise build_parameter_problem("tile", "Expected the side of a tile's result in pixels", "Try 4")
    view = get_view(request)
    try:
        model = TaskReader(view, view.get_state(), task).build_model()
    except LookupError as error:
        raise build_not_found("task", f"task {task.hex()}", "See /v1/tasks") from error
    if model is None:
        remedy = "Wait for its first milestone (GET /v1/tasks/{id}), or ask a node that holds its history"
        raise build_not_found("task", f"settled model of task {task.hex()} here", remedy)
    if model.weights_digest != digest.hex():
        raise Problem(
            409,
            "other-model",
            f"The settled model of this task has the weights {model.weights_digest}",
            field="weights",
            remedy="Fetch the model again (GET /v1/models/{task}) and encrypt for it",
        )
    specification = bytes.fromhex(model.specification)
    return FusionOrder(task, model.kind, specification, model.weights, digest, int(tile))


async def _read_pieces(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_chunked(READ_BYTES):
        yield piece


async def post_fusion(request: web.Request) -> web.Response:
    """Takes the upload; everything that can be known before it is checked before it."""
    check_octets(request)
    desk = request.app[FUSIONS]
    try:
        desk.check_open()
        record = desk.open(request.remote or "", _read_order(request), request.content_length)
        await desk.receive(record, _read_pieces(request))
    except FusionRefused as error:
        raise _build_problem(error) from error
    response = answer(build_fusion(desk, record), HTTPStatus.ACCEPTED)
    response.headers["Location"] = f"{UPLOAD_PATH}/{record.id.hex()}"
    return response


def _read_record(request: web.Request) -> FusionRecord:
    identifier: Hash32 = parse_hash(request.match_info["fusion"], "fusion")
    record = request.app[FUSIONS].get(identifier)
    if record is None:
        raise build_not_found(
            "fusion", "encrypted fusion of this id", "It expired, was deleted, or was asked of another node"
        )
    return record


async def get_fusion(request: web.Request) -> web.Response:
    return answer(build_fusion(request.app[FUSIONS], _read_record(request)))


async def get_result(request: web.Request) -> web.StreamResponse:
    record = _read_record(request)
    if record.state is FusionState.FAILED:
        raise Problem(
            409,
            "fusion-failed",
            record.detail,
            remedy="Correct the request and upload it again",
            field="(body)",
        )
    if record.state is not FusionState.DONE:
        raise Problem(
            409,
            "not-ready",
            f"The fusion is {record.state.value}",
            remedy="Wait until its state is `done` (GET /v1/fusions/{fusion})",
            headers={"Retry-After": "1"},
        )
    return web.FileResponse(record.result, headers={"Content-Type": OCTETS, "Cache-Control": "no-store"})


async def delete_fusion(request: web.Request) -> web.Response:
    request.app[FUSIONS].drop(_read_record(request))
    return web.Response(status=HTTPStatus.NO_CONTENT)


FUSION_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        UPLOAD_PATH,
        "postFusion",
        post_fusion,
        "Have an encrypted pair fused with a task's settled model",
        FusionModel,
        status=202,
        query=("task", "weights", "tile"),
        body_media=(OCTETS,),
        errors=(400, 404, 408, 409, 413, 415, 422, 429, 503),
    ),
    Route(
        "GET",
        UPLOAD_PATH + "/{fusion}",
        "getFusion",
        get_fusion,
        "How far an encrypted fusion is",
        FusionModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        UPLOAD_PATH + "/{fusion}/result",
        "getFusionResult",
        get_result,
        "The encrypted image",
        media=OCTETS,
        errors=(400, 404, 409),
    ),
    Route(
        "DELETE",
        UPLOAD_PATH + "/{fusion}",
        "deleteFusion",
        delete_fusion,
        "Forget a fusion and its files",
        status=204,
        media="",
        errors=(400, 404),
    ),
)
