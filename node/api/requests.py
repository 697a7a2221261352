"""What every route shares: its description, reading requests strictly, writing answers."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from consensus.types import Hash32
from node.api.errors import Problem, build_body_problem, build_parameter_problem
from node.api.view import NodeView

OCTETS = "application/octet-stream"

VIEW = web.AppKey("view", NodeView)
DEFAULT_LIMIT = 30
MAX_LIMIT = 100
MSGPACK = "application/msgpack"
JSON = "application/json"
IMMUTABLE = "public, max-age=31536000, immutable"
FRESH = "no-cache"
"""May be kept, but is to be asked for again with its ETag."""
FILE_TAG = web.ResponseKey("file_tag", str)
"""Where a file's answer carries its ETag until its headers are sent."""

RouteHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Item = TypeVar("Item")
HEX_32 = re.compile(r"[0-9a-f]{64}")
HEIGHT = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class Route:
    """A route with everything that its documentation says."""

    method: str
    path: str
    name: str
    handler: RouteHandler
    summary: str
    answer: object = None
    """Pydantic model of the 2xx body; None for a body that is not JSON."""
    status: int = 200
    media: str = JSON
    query: tuple[str, ...] = ()
    """Names that the query may have; `node.api.parameters` says what they mean."""
    headers: tuple[str, ...] = ()
    """Headers that the route reads besides those of HTTP itself."""
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    body_media: tuple[str, ...] = ()
    cached: bool = False
    """Answers with an ETag though it is not JSON, which always does."""


# --- reading requests -------------------------------------------------------------------------


def check_query(request: web.Request, known: Iterable[str]) -> None:
    """Refuse query parameters that the route does not know, and repeated ones."""
    known = tuple(known)
    for name in request.query:
        if name not in known:
            remedy = f"Use {', '.join(known)}" if known else "Leave the query out"
            raise build_parameter_problem(name, "Unknown query parameter", remedy)
        if len(request.query.getall(name)) > 1:
            raise build_parameter_problem(name, "Given more than once", "Give it once")


def parse_hash(text: str, field: str) -> Hash32:
    """32 bytes from lower-case hexadecimal."""
    if not HEX_32.fullmatch(text):
        raise build_parameter_problem(
            field, "Expected 64 lower-case hexadecimal digits", "Copy the whole identifier, without 0x"
        )
    return Hash32(bytes.fromhex(text))


def get_limit(request: web.Request) -> int:
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text) or int(text) > MAX_LIMIT:
        raise build_parameter_problem(
            "limit", f"Expected a number from 1 to {MAX_LIMIT}", f"Leave it out for {DEFAULT_LIMIT}"
        )
    return int(text)


def encode_cursor(list_name: str, position: int) -> str:
    return base64.urlsafe_b64encode(f"{list_name}:{position}".encode()).decode().rstrip("=")


def get_cursor(request: web.Request, list_name: str) -> int | None:
    """The position that a cursor of this list names; None for the first page."""
    text = request.query.get("cursor")
    if text is None:
        return None
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        plain = ""
    name, _, position = plain.partition(":")
    if name != list_name or not HEIGHT.fullmatch(position) or encode_cursor(name, int(position)) != text:
        raise build_parameter_problem(
            "cursor",
            "Not a cursor of this list",
            "Pass `next` of the page before, unchanged, or leave it out",
        )
    return int(position)


# --- writing answers --------------------------------------------------------------------------


def answer(model: BaseModel, status: int = 200) -> web.Response:
    return web.Response(status=status, text=model.model_dump_json(), content_type=JSON)


def is_known(request: web.Request, tag: str) -> bool:
    """Whether the client says that it has the answer of this ETag (weak comparison, RFC 9110)."""
    known = request.headers.get("If-None-Match", "").strip()
    if not known:
        return False
    plain = tag.removeprefix("W/")
    return known == "*" or any(part.strip().removeprefix("W/") == plain for part in known.split(","))


def answer_cached(request: web.Request, model: BaseModel, tag: str, control: str) -> web.Response:
    """With an ETag that is known before the body is; 304 without a body if the client has it already."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": control}
    if is_known(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    return web.Response(text=model.model_dump_json(), content_type=JSON, headers=headers)


def answer_file(request: web.Request, path: Path, root: Hash32, control: str) -> web.StreamResponse:
    """A blob's bytes, streamed from its file; its ETag is its root."""
    headers = {"ETag": f'"{root.hex()}"', "Cache-Control": control}
    if is_known(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    response = web.FileResponse(path, headers={"Content-Type": OCTETS, "Cache-Control": control})
    response[FILE_TAG] = headers["ETag"]
    return response


def tag_answer(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """A JSON answer that has no ETag yet with a weak one of its bytes; 304 if the client has them already."""
    if request.method not in ("GET", "HEAD") or response.status != 200:
        return response
    if "ETag" in response.headers or "Cache-Control" in response.headers:
        return response
    if not isinstance(response, web.Response) or response.content_type != JSON:
        return response
    body = response.body
    if not isinstance(body, bytes):
        return response
    headers = {"ETag": f'W/"{blake2b(body, digest_size=12).hexdigest()}"', "Cache-Control": FRESH}
    if is_known(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    response.headers.update(headers)
    return response


def take_page(
    request: web.Request, list_name: str, items: Sequence[Item], limit: int
) -> tuple[Sequence[Item], str | None]:
    """One page of a list that only grows at its end, oldest first."""
    start = get_cursor(request, list_name) or 0
    stop = start + limit
    return items[start:stop], encode_cursor(list_name, stop) if stop < len(items) else None


def get_view(request: web.Request) -> NodeView:
    return request.app[VIEW]


Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: web.Request, model: type[Body]) -> Body:
    """The JSON body as its model.

    Raises: Problem 415 for another content type, 422 naming the field that does not fit.
    """
    if request.content_type != JSON:
        raise Problem(
            415,
            "unsupported-media-type",
            f"Cannot read {request.content_type}",
            field="Content-Type",
            remedy=f"Send {JSON}",
        )
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        raise build_body_problem(error) from error


def check_octets(request: web.Request) -> None:
    """Raises: Problem unless the body is declared as raw bytes."""
    if request.content_type != OCTETS:
        raise Problem(
            415,
            "unsupported-media-type",
            f"Cannot read {request.content_type}",
            field="Content-Type",
            remedy=f"Send {OCTETS}",
        )
