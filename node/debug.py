"""What a running node tells its operator of its inside: where its tasks and threads stand, its settings
without what is private, the versions of what it runs on, its last records. No values of variables, no keys.
"""

import asyncio
import os
import platform
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType

from pydantic import BaseModel, JsonValue, SecretBytes, SecretStr

from node.config import NodeConfig

REDACTED = "(redacted)"
_SECRET_NAME = re.compile(r"passphrase|password|secret|token|pairs|data$")
"""Settings of such names are left out whatever their section, besides those that are marked private."""
MAX_FRAMES = 40
MAX_STACKS = 500


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a task or thread is: innermost call last."""

    name: str
    frames: tuple[str, ...]


def list_tasks() -> tuple[Stack, ...]:
    """All tasks of the running event loop. Call it on the loop's thread."""
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())[:MAX_STACKS]
    return tuple(
        Stack(
            f"{task.get_name()}: {getattr(task.get_coro(), '__qualname__', 'unknown')}",
            tuple(_walk(task.get_coro())),
        )
        for task in tasks
    )


def _walk(awaited: object) -> Iterator[str]:
    """From a task's coroutine down to what it waits for; `Task.get_stack` ends at the first."""
    for _ in range(MAX_FRAMES):
        match awaited:
            case CoroutineType():
                frame, awaited = awaited.cr_frame, awaited.cr_await
            case GeneratorType():
                frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
            case AsyncGeneratorType():
                frame, awaited = awaited.ag_frame, awaited.ag_await
            case _:
                return
        if frame is not None:
            yield _describe_frame(frame, frame.f_lineno)


def list_threads() -> tuple[Stack, ...]:
    """All threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = []
    for identifier, frame in list(sys._current_frames().items())[:MAX_STACKS]:
        calls = tuple(_describe_frame(f, line) for f, line in traceback.walk_stack(frame))[:MAX_FRAMES]
        stacks.append(Stack(names.get(identifier, str(identifier)), calls[::-1]))
    return tuple(stacks)


def _describe_frame(frame: FrameType, line: int) -> str:
    """Module, line and function: neither values nor paths of this machine."""
    return f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_qualname}"


def redact(config: NodeConfig) -> dict[str, JsonValue]:
    """The settings in force without what is private: fields hidden in `repr`, secrets, paths."""
    return _redact_model(config)


def _redact_model(model: BaseModel) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found[name] = _redact_model(value)
        elif value in (None, ""):
            found[name] = None
        elif not field.repr or isinstance(value, Path | SecretStr | SecretBytes) or _is_secret(name, value):
            found[name] = REDACTED
        else:
            found[name] = plain[name]
    return found


def _is_secret(name: str, value: object) -> bool:
    return _SECRET_NAME.search(name) is not None and not isinstance(value, bool | int | float)


def list_packages() -> dict[str, JsonValue]:
    """Installed packages and their versions."""
    found = {item.metadata["Name"]: item.version for item in distributions()}
    return dict(sorted(found.items(), key=lambda entry: entry[0].lower()))


def describe_system() -> dict[str, JsonValue]:
    """The machine, without its name."""
    memory: dict[str, JsonValue] = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[:3]:
            name, _, size = line.partition(":")
            memory[name] = size.strip()
    except OSError:
        memory["unknown"] = True
    load: list[JsonValue] = [round(value, 2) for value in os.getloadavg()]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": load,
        "memory": memory,
    }


def measure_directories(data_dir: Path) -> dict[str, JsonValue]:
    """Files and bytes below each entry of the data directory; names of what lies deeper are not told."""
    found: dict[str, JsonValue] = {}
    for entry in sorted(data_dir.iterdir()):
        files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
        found[entry.name] = {"files": len(files), "bytes": sum(map(_get_size, files))}
    return found


def _get_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
