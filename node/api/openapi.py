"""The OpenAPI 3.1 document, made from the route tables and the pydantic models of the answers."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from node.api.errors import PROBLEM_TYPE, ProblemModel
from node.api.requests import JSON, MAX_LIMIT, Route
from node.events import EventKind

REF_TEMPLATE = "#/components/schemas/{model}"
Document = dict[str, JsonValue]
Key = tuple[type[BaseModel], JsonSchemaMode]

_PATH_PARAMETERS: Mapping[str, Document] = {
    "block": {
        "description": "Hash (64 hexadecimal digits), height, or `head`",
        "schema": {"type": "string", "pattern": "^([0-9a-f]{64}|0|[1-9][0-9]{0,15}|head)$"},
    },
    "height": {
        "description": "Number of blocks above genesis",
        "schema": {"type": "integer", "minimum": 0, "maximum": 2**53},
    },
}
_HASH_PARAMETER: Document = {
    "description": "64 lower-case hexadecimal digits",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
_QUERY_PARAMETERS: Mapping[str, Document] = {
    "limit": {
        "description": "Most items of the page",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 30},
    },
    "cursor": {"description": "`next` of the page before", "schema": {"type": "string"}},
    "kinds": {
        "description": f"Kinds of events, separated by commas: {', '.join(EventKind)}",
        "schema": {"type": "string"},
    },
    "after": {
        "description": "Replay events after this id; the header Last-Event-ID goes before it",
        "schema": {"type": "integer", "minimum": 0, "maximum": 2**53},
    },
    "length": {
        "description": "Bytes of the blob, to fetch it from peers",
        "schema": {"type": "integer", "minimum": 1},
    },
    "set": {
        "description": "Number of the validator set that the client knows",
        "schema": {"type": "integer", "minimum": 0, "default": 0},
    },
    "from": {
        "description": "Lowest height",
        "schema": {"type": "integer", "minimum": 0, "default": 1},
    },
    "task": {
        "required": True,
        "description": "Task whose settled model is asked for, 64 lower-case hexadecimal digits",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
    "weights": {
        "required": True,
        "description": "`weights_digest` of the model that the request was encrypted for",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
    "tile": {
        "required": True,
        "description": "Side of a tile's result, pixels",
        "schema": {"type": "integer", "minimum": 1, "maximum": 8},
    },
    "count": {
        "description": "Most items of the answer",
        "schema": {"type": "integer", "minimum": 1, "maximum": 512, "default": 512},
    },
}


def _get_models(routes: Sequence[Route]) -> list[Key]:
    models: dict[Key, None] = {(ProblemModel, "serialization"): None}
    for route in routes:
        if isinstance(route.answer, type) and issubclass(route.answer, BaseModel):
            models[(route.answer, "serialization")] = None
        if route.body is not None:
            models[(route.body, "validation")] = None
    return list(models)


def _build_parameters(route: Route) -> list[JsonValue]:
    parameters: list[JsonValue] = [
        {"name": name, "in": "path", "required": True, **_PATH_PARAMETERS.get(name, _HASH_PARAMETER)}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [{"name": name, "in": "query", **_QUERY_PARAMETERS[name]} for name in route.query]
    return parameters


def _build_operation(
    route: Route, refs: Mapping[tuple[type[BaseModel], JsonSchemaMode], JsonValue]
) -> Document:
    good: Document = {"description": HTTPStatus(route.status).phrase}
    if isinstance(route.answer, type) and issubclass(route.answer, BaseModel):
        good["content"] = {route.media: {"schema": refs[(route.answer, "serialization")]}}
    elif route.media:
        good["content"] = {route.media: {"schema": {"type": "object" if route.media == JSON else "string"}}}
    if route.cached:
        good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    responses: Document = {str(route.status): good}
    if route.cached:
        responses["304"] = {"description": "Not Modified"}
    problem = refs[(ProblemModel, "serialization")]
    for status in sorted({*route.errors, 400, 500}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": problem}},
        }
    operation: Document = {"operationId": route.name, "summary": route.summary, "responses": responses}
    parameters = _build_parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None or route.body_media:
        content: Document = {}
        for media in route.body_media or (JSON,):
            if media == JSON and route.body is not None:
                content[media] = {"schema": refs[(route.body, "validation")]}
            else:
                content[media] = {"schema": {"type": "string", "contentEncoding": "binary"}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def build_document(routes: Sequence[Route], *, title: str, version: str, bearer: bool = False) -> Document:
    """The document for these routes; `bearer` says that every route needs the operator's token."""
    models = _get_models(routes)
    found, definitions = models_json_schema(models, ref_template=REF_TEMPLATE)
    refs: dict[Key, JsonValue] = {key: found[key] for key in models}
    paths: dict[str, JsonValue] = {}
    for route in routes:
        item = paths.setdefault(route.path, {})
        if isinstance(item, dict):
            item[route.method.lower()] = _build_operation(route, refs)
    components: Document = {"schemas": definitions.get("$defs", {})}
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": "Errors are RFC 9457 problem documents that name the field and the remedy. "
            "Bytes are lower-case hexadecimal, amounts integers in smallest units, times milliseconds.",
            "license": {"name": "See the repository"},
        },
        "paths": paths,
        "components": components,
    }
    if bearer:
        components["securitySchemes"] = {"operator": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"operator": []}]
    return document
