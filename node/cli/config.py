"""`bmif config`: whether a node's settings are right, and what is in force."""

import json as json_text
from collections.abc import Mapping

import typer
import yaml
from pydantic import JsonValue

from node.cli.common import (
    ConfigOption,
    FlagsOption,
    JsonOption,
    find_config,
    load_config,
    out,
    print_json,
    print_table,
)
from node.config import ConfigError, find_origins

app = typer.Typer(no_args_is_help=True, help="Settings of a node.")


@app.callback()
def group() -> None:
    """Settings of a node."""


@app.command()
def check(config: ConfigOption = None, flags: FlagsOption = None, json: JsonOption = False) -> None:
    """Check a node's settings and the files they name; exit 1 if anything is wrong."""
    settings = load_config(config, flags)
    problems = settings.check_files()
    path = find_config(config)
    if problems and path is not None:
        raise ConfigError(path, problems)
    if json:
        print_json(settings)
    else:
        out.print(f"{path}: {settings.name} ({', '.join(sorted(settings.roles)) or 'observer'}) is in order")


@app.command()
def show(config: ConfigOption = None, flags: FlagsOption = None, json: JsonOption = False) -> None:
    """Every setting that is in force, and whether the file, the environment, a flag or a default gave it.

    Paths are shown as the node sees them. No setting holds a secret: keys and tokens have their own files.
    """
    settings = load_config(config, flags)
    path = find_config(config)
    origins = {} if path is None else find_origins(path, flags or ())
    rows = [
        (name, value, next((origins[part] for part in _get_parts(name) if part in origins), "default"))
        for name, value in _flatten(settings.model_dump(mode="json"))
    ]
    if json:
        print_json({name: {"value": value, "origin": origin} for name, value, origin in rows})
        return
    print_table(
        None, ("setting", "value", "from"), ((name, _write(value), origin) for name, value, origin in rows)
    )


def _get_parts(name: str) -> list[str]:
    """The setting itself, then the sections that it lies in."""
    words = name.split(".")
    return [".".join(words[:length]) for length in range(len(words), 0, -1)]


def _flatten(document: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, JsonValue]]:
    rows: list[tuple[str, JsonValue]] = []
    for name, value in document.items():
        rows += _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _write(value: JsonValue) -> str:
    """As one would write it in the file, on one line."""
    if isinstance(value, str):
        return value if yaml.safe_load(value or "''") == value else json_text.dumps(value)
    return json_text.dumps(value)
