"""`GET /docs`: the OpenAPI document as one page of plain HTML; no script, nothing from elsewhere.

Everything on it is text of our own document, escaped all the same. The style is in the page and named by
its hash in the page's security policy.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files

from pydantic import JsonValue

Document = Mapping[str, JsonValue]
METHODS = ("get", "post", "put", "delete")
REF = "#/components/schemas/"

STYLE = files("node.api").joinpath("reference.css").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _get_map(document: Document, name: str) -> Document:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _get_list(document: Document, name: str) -> list[Document]:
    found = document.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _get_text(document: Document, name: str) -> str:
    found = document.get(name)
    return found if isinstance(found, str) else ""


def _mark(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _describe_type(schema: Document) -> str:
    """A schema in a few words of HTML; names of models are links."""
    reference = _get_text(schema, "$ref")
    if reference:
        name = escape(reference.removeprefix(REF))
        return f'<a href="#model-{name}">{name}</a>'
    for union in ("anyOf", "oneOf", "allOf"):
        members = _get_list(schema, union)
        if members:
            return " or ".join(dict.fromkeys(_describe_type(member) for member in members))
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    values = schema.get("enum")
    if isinstance(values, list):
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = _get_text(schema, "type")
    if kind == "array":
        first = _get_list(schema, "prefixItems")
        inner = _get_map(schema, "items") or (first[0] if first else {})
        return f"list of {_describe_type(inner)}" if inner else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_describe_type(_get_map(schema, 'additionalProperties'))}"
    bounds = [
        f"{sign} {schema[name]}" for name, sign in (("minimum", "≥"), ("maximum", "≤")) if name in schema
    ]
    pattern = _get_text(schema, "pattern")
    more = [*bounds, *([f"<code>{escape(pattern)}</code>"] if pattern else [])]
    return " ".join([kind or "anything", *more])


def _build_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _build_content(content: Document) -> str:
    kinds = (
        f"<code>{escape(media)}</code> {_describe_type(_get_map(_get_map(content, media), 'schema'))}"
        for media in content
    )
    return "<br>".join(kinds)


def _build_operation(method: str, path: str, operation: Document, components: Document) -> str:
    name = escape(_get_text(operation, "operationId"))
    parts = [
        f'<details id="{name}"><summary><span class="method {method}">{method.upper()}</span> '
        f"<code>{escape(path)}</code> <span>{_mark(_get_text(operation, 'summary'))}</span></summary>"
    ]
    description = _get_text(operation, "description")
    if description:
        parts.append(f"<p>{_mark(description)}</p>")
    parameters = _get_list(operation, "parameters")
    if parameters:
        rows = (
            (
                f"<code>{escape(_get_text(item, 'name'))}</code>",
                escape(_get_text(item, "in")) + (", required" if item.get("required") else ""),
                _describe_type(_get_map(item, "schema")),
                _mark(_get_text(item, "description")),
            )
            for item in parameters
        )
        parts.append(_build_table(("Parameter", "Where", "Type", "Meaning"), rows))
    body = _get_map(operation, "requestBody")
    if body:
        parts.append(f"<p>Body: {_build_content(_get_map(body, 'content'))}</p>")
    rows_of_answers = []
    for status, found in _get_map(operation, "responses").items():
        response: Document = found if isinstance(found, dict) else {}
        shared = _get_text(response, "$ref").removeprefix("#/components/responses/")
        if shared:
            response = _get_map(_get_map(components, "responses"), shared)
        cells = escape(status), _mark(_get_text(response, "description"))
        rows_of_answers.append((*cells, _build_content(_get_map(response, "content"))))
    parts.append(_build_table(("Status", "Meaning", "Content"), rows_of_answers))
    return "".join(parts) + "</details>"


def _build_model(name: str, schema: Document) -> str:
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    rows = []
    for field, found in _get_map(schema, "properties").items():
        inner = found if isinstance(found, dict) else {}
        mark = "" if field in needed else " (may be absent)"
        rows.append(
            (
                f"<code>{escape(field)}</code>{mark}",
                _describe_type(inner),
                _mark(_get_text(inner, "description")),
            )
        )
    text = _mark(_get_text(schema, "description"))
    table = _build_table(("Field", "Type", "Meaning"), rows) if rows else f"<p>{_describe_type(schema)}</p>"
    title = f"<summary><code>{escape(name)}</code></summary>"
    return f'<details id="model-{escape(name)}">{title}<p>{text}</p>{table}</details>'


def _group(paths: Document) -> dict[str, list[tuple[str, str, Document]]]:
    """Operations by their first tag, in the document's order."""
    groups: dict[str, list[tuple[str, str, Document]]] = {}
    for path, found in paths.items():
        item = found if isinstance(found, dict) else {}
        for method in METHODS:
            operation = _get_map(item, method)
            if operation:
                tags = operation.get("tags")
                tag = str(tags[0]) if isinstance(tags, list) and tags else "other"
                groups.setdefault(tag, []).append((method, path, operation))
    return groups


def build_reference(document: Document) -> bytes:
    """The page, UTF-8."""
    info, components = _get_map(document, "info"), _get_map(document, "components")
    title = escape(f"{_get_text(info, 'title')} {_get_text(info, 'version')}")
    groups = _group(_get_map(document, "paths"))
    links = "".join(f'<li><a href="#tag-{escape(tag)}">{escape(tag)}</a></li>' for tag in groups)
    sections = "".join(
        f'<section><h2 id="tag-{escape(tag)}">{escape(tag)}</h2>'
        + "".join(_build_operation(method, path, found, components) for method, path, found in operations)
        + "</section>"
        for tag, operations in groups.items()
    )
    models = "".join(
        _build_model(name, schema)
        for name, schema in _get_map(components, "schemas").items()
        if isinstance(schema, dict)
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: API reference</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the routes</a>
<header><h1>{title}</h1><p>{_mark(_get_text(info, "description"))}</p>
<p><a href="/">Explorer</a> · <a href="/openapi.json">OpenAPI document</a></p></header>
<nav aria-label="Subjects"><ul>{links}<li><a href="#models">models</a></li></ul></nav>
<main id="content">{sections}
<section><h2 id="models">models</h2>{models}</section></main>
</body>
</html>
"""
    return page.encode("utf-8")
