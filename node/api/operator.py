"""The operator's routes: sign with the node's key, put and get blobs. Every one needs the bearer token."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from consensus.task import BlobRef
from node.api.ceremonies import Ceremony, build_ceremony
from node.api.errors import Handler, Problem, build_not_found, build_parameter_problem
from node.api.fields import BlobRefModel
from node.api.parameters import MAX_NUMBER
from node.api.payloads import decode_payload
from node.api.requests import (
    HEIGHT,
    OCTETS,
    Route,
    answer,
    answer_file,
    check_octets,
    get_view,
    parse_hash,
    read_json,
)
from node.api.schemas import SignModel, StoredBlobModel, SubmittedModel
from node.api.view import OperatorView, ViewError
from node.keystore import write_private_file

logger = logging.getLogger(__name__)

OPERATOR = web.AppKey("operator", OperatorView)
BLOB_LIMIT = web.AppKey("blob_limit", int)
READ_BYTES = 1024 * 1024


def load_token(path: Path) -> str:
    """The bearer token in the file; a fresh one is made there, mode 0600, if there is none."""
    if not path.exists():
        write_private_file(path, secrets.token_urlsafe(32).encode() + b"\n")
    return path.read_text(encoding="ascii").strip()


def build_token_middleware(token: str) -> Middleware:
    """Refuses every request without the token; compares in constant time."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, expected):
            raise Problem(
                401,
                "not-the-operator",
                "The bearer token is missing or wrong",
                field="Authorization",
                remedy="Send `Authorization: Bearer <content of the node's operator.token file>`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    return check


async def post_transaction(request: web.Request) -> web.Response:
    payload = decode_payload((await read_json(request, SignModel)).payload)
    transaction = await request.app[OPERATOR].sign_and_submit(payload)
    response = answer(SubmittedModel(id=transaction.hex()), 202)
    response.headers["Location"] = f"/v1/transactions/{transaction.hex()}"
    return response


async def _read_chunks(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    length = 0
    async for chunk in request.content.iter_chunked(READ_BYTES):
        length += len(chunk)
        if length > limit:
            raise _build_oversize(limit)
        yield chunk


def _build_oversize(limit: int) -> Problem:
    return Problem(
        413,
        "body-too-large",
        f"The blob is longer than {limit} bytes",
        field="(body)",
        remedy="Split it, or raise limits.max_blob_bytes",
    )


async def put_blob(request: web.Request) -> web.Response:
    """Stores the body as one blob, streaming; the answer names it."""
    check_octets(request)
    limit = request.app[BLOB_LIMIT]
    if request.content_length == 0:
        raise Problem(422, "bad-body", "The blob is empty", field="(body)", remedy="Send its bytes")
    if (request.content_length or 0) > limit:
        raise _build_oversize(limit)
    ref = await request.app[OPERATOR].put_blob(_read_chunks(request, limit))
    return answer(BlobRefModel.model_validate(ref), 201)


async def get_blob(request: web.Request) -> web.StreamResponse:
    """The blob's bytes; with `length` it is fetched from peers if it is not here."""
    root = parse_hash(request.match_info["root"], "root")
    operator = request.app[OPERATOR]
    path = operator.get_blob_path(root)
    text = request.query.get("length")
    if path is None and text is not None:
        if not text.isascii() or not text.isdigit() or not 0 < int(text) <= request.app[BLOB_LIMIT]:
            raise build_parameter_problem(
                "length", "Expected the blob's length in bytes", "Take it from its BlobRef"
            )
        path = await operator.fetch_blob(BlobRef(root, int(text)))
    if path is None:
        raise build_not_found("root", f"blob {root.hex()}", "Give `length` to fetch it from peers")
    return answer_file(request, path, root, "private, max-age=31536000, immutable")


async def get_blob_info(request: web.Request) -> web.Response:
    root = parse_hash(request.match_info["root"], "root")
    info = get_view(request).get_blob(root)
    if info is None:
        raise build_not_found("root", f"blob {root.hex()}", "It is not on this node")
    return answer(
        StoredBlobModel(
            blob=BlobRefModel.model_validate(info.ref), complete=info.complete, held_bytes=info.held_bytes
        )
    )


async def get_ledger_snapshot(request: web.Request) -> web.StreamResponse:
    """A final state as one file; one that breaks off lacks its end, which its reader notices."""
    text = request.query.get("height")
    if text is not None and (not HEIGHT.fullmatch(text) or not 1 <= int(text) <= MAX_NUMBER):
        raise build_parameter_problem(
            "height", "Expected a height from 1 on", "See /v1/status for the head's"
        )
    pieces = request.app[OPERATOR].build_ledger_snapshot(None if text is None else int(text))
    first = next(pieces)
    response = web.StreamResponse(headers={"Content-Type": OCTETS, "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(first)
    try:
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
    except ViewError as error:
        logger.warning("a snapshot broke off: %s", error)
    await response.write_eof()
    return response


async def post_join_ceremony(request: web.Request) -> web.Response:
    ceremony = parse_hash(request.match_info["ceremony"], "ceremony")
    state = get_view(request).get_state()
    record = state.get_ceremony(ceremony)
    if record is None:
        remedy = "Wait until its transaction is in a block (GET /v1/transactions/{id})"
        raise build_not_found("ceremony", f"ceremony {ceremony.hex()}", remedy)
    request.app[OPERATOR].join_ceremony(ceremony)
    return answer(build_ceremony(state, ceremony, record))


OPERATOR_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/operator/ceremonies/{ceremony}/join",
        "joinCeremony",
        post_join_ceremony,
        "Take part in a key ceremony from now on; the node's account is a member of it",
        Ceremony,
        errors=(400, 401, 404, 409, 413, 415, 422, 503),
    ),
    Route(
        "POST",
        "/v1/operator/transactions",
        "signTransaction",
        post_transaction,
        "Sign a payload with the node's key and submit it",
        SubmittedModel,
        status=202,
        body=SignModel,
        errors=(401, 409, 413, 415, 422, 503),
    ),
    Route(
        "PUT",
        "/v1/operator/blobs",
        "putBlob",
        put_blob,
        "Store a blob and serve it to peers",
        BlobRefModel,
        status=201,
        body_media=(OCTETS,),
        errors=(401, 409, 413, 415, 422),
    ),
    Route(
        "GET",
        "/v1/operator/blobs/{root}",
        "getBlob",
        get_blob,
        "A blob's bytes",
        media=OCTETS,
        cached=True,
        query=("length",),
        errors=(400, 401, 404, 409),
    ),
    Route(
        "GET",
        "/v1/operator/blobs/{root}/info",
        "getBlobInfo",
        get_blob_info,
        "How much of a blob is on this node",
        StoredBlobModel,
        errors=(400, 401, 404),
    ),
    Route(
        "GET",
        "/v1/operator/ledger/snapshot",
        "getLedgerSnapshot",
        get_ledger_snapshot,
        "The state of a final block, with its proof, as one file",
        media=OCTETS,
        query=("height",),
        errors=(400, 401, 409),
    ),
)
