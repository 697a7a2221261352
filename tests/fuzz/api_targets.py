"""Targets: what comes to the REST API as query, path and JSON, and what its client reads from a node."""

import json
from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from typing import TypeVar

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import BaseModel, ValidationError
from yarl import URL

from consensus.codec import CodecError, decode, encode
from consensus.transaction import SignedTransaction
from consensus.types import Hash32, Signature
from node.api.app import ALL_OPERATOR_ROUTES, PUBLIC_ROUTES
from node.api.client import ApiError, _parse_event
from node.api.errors import Problem
from node.api.payloads import decode_payload, encode_payload, payload_adapter
from node.api.requests import JSON, check_query, encode_cursor, get_cursor, get_limit, parse_hash, read_json
from tests.fuzz.examples import build_examples
from tests.fuzz.target import Form, Target, require

T = TypeVar("T")
LISTS = ("blocks", "tasks")


def complete(routine: Coroutine[object, object, T]) -> T:
    """The result of a coroutine that never has to wait."""
    try:
        routine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    routine.close()
    raise RuntimeError("it waits for something")


@cache
def get_request() -> web.Request:
    return make_mocked_request("POST", "/", headers={"Content-Type": JSON})


def build_request(path: str, body: bytes = b"") -> web.Request:
    """A request whose body has arrived."""
    request = get_request().clone(rel_url=URL(path, encoded=True))
    request._read_bytes = body
    return request


def check_problem(problem: Problem) -> None:
    """Every refusal is a document with the fields of RFC 9457."""
    document = json.loads(problem.build_response("/").text or "")
    require(400 <= document["status"] < 500, f"blames the node with {document['status']}")
    require(bool(document["detail"]) and bool(document["remedy"]), "says neither what nor what to do")


# --- query and path ---------------------------------------------------------------------------


def run_query(data: bytes) -> None:
    """Reading a query raises Problem alone; an accepted cursor is exactly what the API gave."""
    text = data.decode("latin-1")
    try:
        request = build_request("/v1/blocks?" + text.replace("#", ""))
    except ValueError as error:  # as the server does for a target that is no URL
        raise Problem(400, "bad-request", str(error) or "no URL", remedy="Send a URL") from error
    try:
        check_query(request, ("limit", "cursor", "hash"))
        require(1 <= get_limit(request) <= 100, "a limit out of range")
        for name in LISTS:
            position = get_cursor(request, name)
            if position is not None:
                require(encode_cursor(name, position) == request.query["cursor"], "two forms of a cursor")
        text = request.query.get("hash", "")
        require(parse_hash(text, "hash").hex() == text, "two forms of a hash")
    except Problem as problem:
        check_problem(problem)
        raise


def build_queries() -> Iterable[bytes]:
    wanted = "0" * 62 + "af"
    for cursor in (encode_cursor("blocks", 0), encode_cursor("blocks", 9999), "x"):
        yield f"limit=100&cursor={cursor}&hash={wanted}".encode()
    yield f"hash={wanted}".encode()
    yield b"limit=30&limit=31"
    yield b"%6cimit=1&hash=%00&cursor=%ff+a"


# --- bodies -----------------------------------------------------------------------------------


def get_body_models() -> list[type[BaseModel]]:
    """The model of every JSON body that some route reads."""
    models = {route.body for route in (*PUBLIC_ROUTES, *ALL_OPERATOR_ROUTES) if route.body is not None}
    return sorted(models, key=lambda model: model.__name__)


def build_body_run(model: type[BaseModel]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """`read_json`: Problem alone leaves it; what it accepts says the same when it is written again."""
        try:
            found = complete(read_json(build_request("/", data), model))
        except Problem as problem:
            check_problem(problem)
            raise
        require(model.model_validate_json(found.model_dump_json()) == found, "does not return from JSON")
        payload = getattr(found, "payload", None)
        if payload is not None:
            check_payload(payload)

    return run


def check_payload(model: BaseModel) -> None:
    """A payload's model is a payload of consensus, to the byte and back."""
    payload = decode_payload(model)  # type: ignore[arg-type]
    require(encode_payload(payload) == model, "encode_payload is another model")
    carrier = SignedTransaction(Hash32(bytes(32)), bytes(32), 0, payload, Signature(b""))  # type: ignore[arg-type]
    try:
        data = encode(carrier)
    except CodecError as error:
        raise AssertionError(f"a payload that has no encoding: {error}") from error
    require(decode(SignedTransaction, data) == carrier, "another transaction after the wire")


def run_payload(data: bytes) -> None:
    """Any payload in JSON: ValidationError, or a payload that consensus can encode."""
    check_payload(payload_adapter.validate_json(data))


@cache
def get_payload_documents() -> tuple[bytes, ...]:
    """Each payload kind in JSON. A made-up payload may be refused: it still shows the fields."""
    documents = []
    for value in build_examples(SignedTransaction):
        assert isinstance(value, SignedTransaction)
        try:
            documents.append(encode_payload(value.payload).model_dump_json().encode())
        except (ValidationError, KeyError):
            continue
    return tuple(documents)


def build_bodies(model: type[BaseModel]) -> Callable[[], Iterable[bytes]]:
    def build() -> Iterable[bytes]:
        if "payload" in model.model_fields:
            yield from (b'{"payload":' + document + b"}" for document in get_payload_documents())
        yield json.dumps(dict.fromkeys(model.model_fields, "00")).encode()
        yield b"{}"

    return build


# --- the client -------------------------------------------------------------------------------


def run_event(data: bytes) -> None:
    """The fields of one event of a stream: ApiError, or an event."""
    fields: dict[str, str] = {}
    for line in data.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    event = _parse_event(fields)
    require(event.id is None or isinstance(event.id, int), "an id that is no number")


def build_events() -> Iterable[bytes]:
    yield b'event: head\nid: 17\ndata: {"time": 1, "data": {"height": 3}}'
    yield b'event: gap\ndata: {"missed": 4}'
    yield b"data: []"


def build_targets() -> list[Target]:
    models = get_body_models()
    return [
        Target("api.query", run_query, (Problem,), build_queries, Form.TEXT, 512, 400, frames=200),
        *(
            Target(
                f"api.{model.__name__}",
                build_body_run(model),
                (Problem,),
                build_bodies(model),
                Form.JSON,
                4096,
                1000,
                frames=200,
                effort=2,
            )
            for model in models
        ),
        Target(
            "api.payload",
            run_payload,
            (ValidationError,),
            get_payload_documents,
            Form.JSON,
            4096,
            1000,
            frames=200,
            effort=2,
        ),
        Target("client.event", run_event, (ApiError,), build_events, Form.TEXT, 1024, frames=200),
    ]
