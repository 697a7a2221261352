#!/usr/bin/env python3
"""Writes docs/reference/: every command, every setting and every route, from the program itself.

`--check` compares instead, and exits with 1 if a page is not what the program says.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from node.api.app import build_operator_document, build_public_document
from node.config import ENV_DELIMITER, ENV_PREFIX, NodeConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
GENERATED = "*Made from the program by `make reference`; a test holds them together.*"
Document = Mapping[str, Any]  # parsed JSON


def build_commands() -> str:
    """Typer's own documentation of the command tree."""
    command = [sys.executable, "-m", "typer", "node.cli.main", "utils", "docs", "--name", "bmif"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    title, _, rest = done.stdout.partition("\n")
    lines = [line.rstrip() for line in rest.splitlines()]
    return "\n".join([f"{title} commands", "", GENERATED, *lines]).rstrip() + "\n"


def build_settings() -> str:
    """A table for each section of the settings, from the fields of `NodeConfig`."""
    parts = [
        "# Settings",
        "",
        GENERATED,
        "",
        "A YAML file ([configs/node.yaml](../../configs/node.yaml) shows it whole); a variable of the",
        "environment goes before the file, `--set section.field=value` of `bmif run` before both.",
        "`bmif config check` names what is wrong, `bmif config show` what is in force and from where.",
        "Relative paths are relative to the file.",
    ]
    tops = [(name, field) for name, field in NodeConfig.model_fields.items() if _get_section(field) is None]
    parts += ["", "## The node", "", *_build_table("", tops)]
    for name, field in NodeConfig.model_fields.items():
        section = _get_section(field)
        if section is not None:
            text = " ".join((section.__doc__ or "").split())
            parts += [
                "",
                f"## `{name}`",
                "",
                text,
                "",
                *_build_table(f"{name}.", list(section.model_fields.items())),
            ]
    return "\n".join(parts) + "\n"


def _get_section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _build_table(prefix: str, fields: list[tuple[str, FieldInfo]]) -> list[str]:
    rows = ["| Setting | Default | Values | Meaning | Variable |", "|---|---|---|---|---|"]
    schema = NodeConfig.model_json_schema()
    for name, field in fields:
        if not field.description:
            raise SystemExit(f"{prefix}{name} has no docstring: say in node/settings.py what it means")
        place = _find_schema(schema, prefix + name)
        variable = ENV_PREFIX + (prefix + name).replace(".", ENV_DELIMITER).upper()
        default = "required" if field.is_required() else f"`{_write(field.get_default())}`"
        meaning = _escape(" ".join(field.description.split()))
        rows.append(
            f"| `{prefix}{name}` | {default} | {_describe(place, schema)} | {meaning} | `{variable}` |"
        )
    return rows


def _write(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, frozenset | tuple):
        return json.dumps(sorted(value))
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _find_schema(schema: Document, name: str) -> Document:
    place: Document = schema
    for part in name.split("."):
        place = _resolve(cast(Document, place["properties"][part]), schema)
    return place


def _resolve(place: Document, schema: Document) -> Document:
    if "$ref" in place:
        return cast(Document, schema["$defs"][str(place["$ref"]).rpartition("/")[2]])
    return place


def _describe(place: Document, schema: Document) -> str:
    """The kind of value and its bounds, in words."""
    place = _resolve(place, schema)
    if "anyOf" in place:
        return " or ".join(_describe(item, schema) for item in place["anyOf"] if item.get("type") != "null")
    if "enum" in place:
        return ", ".join(f"`{item}`" for item in place["enum"])
    kind = str(place.get("type", "any"))
    if kind == "array":
        return f"list of {_describe(place['items'], schema)}"
    if place.get("format") == "path":
        return "path"
    low = place.get("minimum", place.get("exclusiveMinimum"))
    high = place.get("maximum", place.get("exclusiveMaximum"))
    if low is not None and high is not None:
        above = "above " if "exclusiveMinimum" in place else ""
        return f"{kind}, {above}{low} to {high}"
    if low is not None:
        return f"{kind}, {'above' if 'exclusiveMinimum' in place else 'at least'} {low}"
    return {"pattern": "text of a pattern"}.get("pattern" if "pattern" in place else "", kind)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def build_routes() -> str:
    """Every route of both listeners, then the fields of every answer."""
    parts = [
        "# REST API",
        "",
        GENERATED,
        "",
        "JSON, in UTF-8. A node serves this as OpenAPI 3.1 at `/openapi.json` and as a page at `/docs`.",
        "Errors are RFC 9457 problems with `field` and `remedy`. Lists have pages of 30, at most 100: pass",
        "`next` as `cursor`. Amounts are integers in smallest units, hashes and addresses 64 hexadecimal",
        "digits, times milliseconds since 1970.",
    ]
    for title, source in (
        ("Public listener", build_public_document("")),
        ("Operator's listener (bearer token)", build_operator_document("")),
    ):
        parts += ["", f"## {title}"]
        document = cast(Document, json.loads(source))
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                parts += ["", *_build_route(method.upper(), path, operation)]
        schemas = document["components"]["schemas"]
        used = {name: schema for name, schema in schemas.items() if "properties" in schema}
        parts += ["", f"### Fields ({title.split(' (')[0].lower()})"]
        for name, schema in sorted(used.items()):
            parts += ["", f"#### {name}", "", *_build_fields(schema)]
    text = "\n".join(parts) + "\n"
    there = {line.removeprefix("#### ") for line in text.splitlines() if line.startswith("#### ")}
    # What has no fields, such as any JSON, has no heading either.
    return re.sub(r"\[(\w+)\]\(#\w+\)", lambda match: match[0] if match[1] in there else match[1], text)


def _build_route(method: str, path: str, operation: Document) -> Iterator[str]:
    yield f"### `{method} {path}`"
    yield ""
    yield (
        f"{operation['summary']}."
        if not str(operation["summary"]).endswith(".")
        else str(operation["summary"])
    )
    for parameter in operation.get("parameters", ()):
        needed = "" if parameter.get("required") else ", optional"
        yield f"- `{parameter['name']}` ({parameter['in']}{needed}): {parameter.get('description', '')}"
    body = operation.get("requestBody", {}).get("content", {})
    for media, content in body.items():
        yield f"- body, {media}: {_name(content.get('schema', {}))}"
    for status, answer in operation["responses"].items():
        kinds = [
            f"{media} {_name(content.get('schema', {}))}".strip()
            for media, content in answer.get("content", {}).items()
        ]
        if status.startswith("2"):
            yield f"- {status}: {'; '.join(kinds) or answer['description']}"
    errors = [status for status in operation["responses"] if status[0] in "45"]
    if errors:
        yield f"- errors: {', '.join(errors)}"


def _name(schema: Document) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "items" in schema:
        return f"list of {_name(schema['items'])}"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(_name(item) for item in schema[word])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{item}`" for item in schema["enum"])
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return f"map of {_name(schema['additionalProperties'])}"
    return str(schema.get("type", ""))


def _build_fields(schema: Document) -> Iterator[str]:
    text = " ".join(str(schema.get("description", "")).split())
    if text:
        yield from (text, "")
    yield "| Field | Type | Meaning |"
    yield "|---|---|---|"
    for name, field in schema["properties"].items():
        meaning = _escape(" ".join(str(field.get("description", "")).split()))
        yield f"| `{name}` | {_escape(_name(field))} | {meaning} |"


BUILDERS: Mapping[str, Callable[[], str]] = {
    "CLI.md": build_commands,
    "SETTINGS.md": build_settings,
    "API.md": build_routes,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    PAGES.mkdir(exist_ok=True)
    stale = []
    for name, build in BUILDERS.items():
        path, text = PAGES / name, build()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"not what the program says: {', '.join(stale)}; run `make reference`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
