"""The operator's look inside a running node, for `bmif debug dump`."""

from aiohttp import web
from pydantic import Field, JsonValue

from node.api.fields import Model
from node.api.requests import Route, answer
from node.config import NodeConfig
from node.debug import Stack, list_packages, list_tasks, list_threads, redact
from node.logs import get_recent_lines

SETTINGS = web.AppKey("settings", NodeConfig)


class StackModel(Model):
    name: str = Field(description="Of the task or thread")
    frames: tuple[str, ...] = Field(description="Module, line and function; the innermost call last")


class DebugModel(Model):
    """Where a node stands inside; without values of variables, keys, tokens and private paths."""

    tasks: tuple[StackModel, ...]
    threads: tuple[StackModel, ...]
    settings: dict[str, JsonValue] = Field(description="Those in force; private ones say `(redacted)`")
    packages: dict[str, JsonValue] = Field(description="Installed packages and their versions")
    log: tuple[str, ...] = Field(description="The last records, oldest first")


def _build(stacks: tuple[Stack, ...]) -> tuple[StackModel, ...]:
    return tuple(StackModel(name=stack.name, frames=stack.frames) for stack in stacks)


async def get_debug(request: web.Request) -> web.Response:
    return answer(
        DebugModel(
            tasks=_build(list_tasks()),
            threads=_build(list_threads()),
            settings=redact(request.app[SETTINGS]),
            packages=list_packages(),
            log=get_recent_lines(),
        )
    )


DEBUG_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/operator/debug",
        "getDebug",
        get_debug,
        "Stacks of tasks and threads, settings in force, versions, the last records of the log",
        DebugModel,
        errors=(401,),
    ),
)
