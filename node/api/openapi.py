"""The OpenAPI 3.1 document, made from the route tables and the pydantic models of the answers."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from node.api.errors import PROBLEM_TYPE, ProblemModel
from node.api.parameters import HEADER, PATH, QUERY, TAGS, find_tag
from node.api.requests import JSON, OCTETS, Route

REF_TEMPLATE = "#/components/schemas/{model}"
Document = dict[str, JsonValue]
Key = tuple[type[BaseModel], JsonSchemaMode]

DESCRIPTION = (
    "Errors are RFC 9457 problem documents that name the field and the remedy. Bytes are lower-case "
    "hexadecimal, amounts integers in smallest units, times milliseconds since 1970. Lists come in pages: "
    "pass `next` as `cursor` until it is null. Every `GET` also answers `HEAD`, and, where it gives an ETag, "
    "304 to its `If-None-Match`; what says `immutable` never changes. Other query parameters than those "
    "listed are refused."
)

_MEANINGS: Mapping[int, str] = {
    400: "A parameter is unknown, malformed or given twice; `field` names it",
    401: "The bearer token is missing or wrong",
    404: "There is nothing of that name here; `remedy` says where to look",
    408: "The upload took too long",
    409: "Well formed, but not possible now",
    413: "The body is larger than the limit",
    415: "The body's media type can't be read",
    421: "Addressed by a name that is not the listener's (DNS rebinding)",
    422: "The body does not fit, or the rules refuse the transaction; `field` or `reason` says why",
    429: "Too many requests of this address; wait as Retry-After says",
    500: "The node failed to answer; its log says why",
    503: "Not now: full, starting or too far behind; wait as Retry-After says",
}
_WAITS = (429, 503)


def _get_models(routes: Sequence[Route]) -> list[Key]:
    models: dict[Key, None] = {(ProblemModel, "serialization"): None}
    for route in routes:
        if isinstance(route.answer, type) and issubclass(route.answer, BaseModel):
            models[(route.answer, "serialization")] = None
        if route.body is not None:
            models[(route.body, "validation")] = None
    return list(models)


def _get_names(route: Route) -> list[str]:
    """Of the parameters in the path."""
    return re.findall(r"\{(\w+)\}", route.path)


def _build_parameters(route: Route) -> list[JsonValue]:
    return [
        *({"name": name, "in": "path", "required": True, **PATH[name]} for name in _get_names(route)),
        *({"name": name, "in": "query", **QUERY[name]} for name in route.query),
        *({"name": name, "in": "header", **HEADER[name]} for name in route.headers),
    ]


def _is_tagged(route: Route) -> bool:
    """Whether its answer has an ETag."""
    return route.cached or (route.method == "GET" and route.media == JSON)


def _list_errors(route: Route, bearer: bool) -> list[int]:
    """What every route may answer, and what this one may besides."""
    found = {*route.errors, 400, 500}
    found |= {404} if _get_names(route) else set()
    found |= {401, 421} if bearer else set()
    found |= {429} if route.method == "POST" and not bearer else set()
    return sorted(found)


def _build_shared(problem: JsonValue, statuses: Sequence[int]) -> Document:
    """One response a status, which all routes refer to."""
    responses: Document = {}
    for status in statuses:
        response: Document = {
            "description": _MEANINGS[status],
            "content": {PROBLEM_TYPE: {"schema": problem}},
        }
        if status in _WAITS:
            wait: Document = {"description": "Seconds to wait", "schema": {"type": "string"}}
            response["headers"] = {"Retry-After": wait}
        responses[f"Problem{status}"] = response
    return responses


def _build_good(route: Route, refs: Mapping[Key, JsonValue]) -> Document:
    good: Document = {"description": HTTPStatus(route.status).phrase}
    headers: Document = {}
    if isinstance(route.answer, type) and issubclass(route.answer, BaseModel):
        good["content"] = {route.media: {"schema": refs[(route.answer, "serialization")]}}
    elif route.media == OCTETS:
        good["content"] = {route.media: {"schema": {"type": "string", "format": "binary"}}}
    elif route.media:
        good["content"] = {route.media: {"schema": {"type": "object" if route.media == JSON else "string"}}}
    if _is_tagged(route):
        headers["ETag"] = {"description": "Of these bytes; for If-None-Match", "schema": {"type": "string"}}
    if route.status == HTTPStatus.ACCEPTED:
        headers["Location"] = {"description": "Where to watch it", "schema": {"type": "string"}}
    if headers:
        good["headers"] = headers
    return good


def _build_operation(route: Route, refs: Mapping[Key, JsonValue], bearer: bool) -> Document:
    responses: Document = {str(route.status): _build_good(route, refs)}
    if _is_tagged(route):
        responses["304"] = {"description": "The client has it already"}
    for status in _list_errors(route, bearer):
        responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    operation: Document = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [find_tag(route.path)],
        "responses": responses,
    }
    parameters = _build_parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None or route.body_media:
        content: Document = {}
        for media in route.body_media or (JSON,):
            if media == JSON and route.body is not None:
                content[media] = {"schema": refs[(route.body, "validation")]}
            else:
                content[media] = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
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
            item[route.method.lower()] = _build_operation(route, refs, bearer)
    statuses = sorted({status for route in routes for status in _list_errors(route, bearer)})
    problem = refs[(ProblemModel, "serialization")]
    used = {find_tag(route.path) for route in routes}
    components: Document = {
        "schemas": definitions.get("$defs", {}),
        "responses": _build_shared(problem, statuses),
    }
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "See the repository"},
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in used],
        "paths": paths,
        "components": components,
    }
    if bearer:
        components["securitySchemes"] = {"operator": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"operator": []}]
    return document
