"""What every route shares: its description, reading requests strictly, writing answers."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
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
    """Names of `PARAMETERS` that the query may have."""
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    body_media: tuple[str, ...] = ()
    cached: bool = False
    """Answers with an ETag and understands If-None-Match."""


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


def answer_cached(request: web.Request, model: BaseModel, tag: str, control: str) -> web.Response:
    """With an ETag; 304 without a body if the client has it already."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": control}
    known = request.headers.get("If-None-Match", "")
    if known.strip() == "*" or f'"{tag}"' in [part.strip().removeprefix("W/") for part in known.split(",")]:
        return web.Response(status=304, headers=headers)
    return web.Response(text=model.model_dump_json(), content_type=JSON, headers=headers)


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
