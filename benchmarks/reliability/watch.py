"""The net as a client sees it: every node's standing looked at all the time, and never contradicted."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.reliability.backend import Backend

LOOK_S = 0.25
"""Between two looks at a node."""
ANSWER_S = 3.0
"""After which a node counts as silent."""


class CheckpointView(BaseModel):
    model_config = ConfigDict(frozen=True)

    height: int
    hash: str


class HeadView(CheckpointView):
    state_root: str


class StatusView(BaseModel):
    """What this runner reads of `GET /v1/status`."""

    model_config = ConfigDict(frozen=True)

    chain_id: str
    address: str
    ready: bool
    reasons: tuple[str, ...]
    mempool: int
    peers: int
    head: HeadView
    finalized: CheckpointView


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node's standing at a moment."""

    time: float
    name: str
    head: int
    finalized: int

    @property
    def lag(self) -> int:
        """Blocks from the finalised one to the head."""
        return self.head - self.finalized


@dataclass(slots=True)
class Watcher:
    """Looks at every node until it is left; `violations` grow when what was final is not."""

    backend: Backend
    latest: dict[str, StatusView | None] = field(default_factory=dict)
    history: list[Sighting] = field(default_factory=list)
    finalized: dict[int, str] = field(default_factory=dict)
    """Hash by height, as any node ever called it final."""
    violations: list[str] = field(default_factory=list)
    forgetful: set[str] = field(default_factory=set)
    """Nodes whose disk was wiped and that may begin again below."""
    _tops: dict[str, int] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._tasks = [asyncio.create_task(self._watch(name)) for name in self.backend.names]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def look(self, name: str) -> StatusView | None:
        """The node's standing now; None if it does not answer."""
        assert self._session is not None
        try:
            async with self._session.get(self.backend.get_url(name) + "/v1/status") as response:
                body = await response.read()
            view = StatusView.model_validate_json(body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            view = None
        except ValidationError as error:
            raise RuntimeError(f"{name}: /v1/status is not as documented: {error}") from error
        self.latest[name] = view
        if view is not None:
            self._remember(name, view)
        return view

    def _remember(self, name: str, view: StatusView) -> None:
        final = view.finalized
        known = self.finalized.setdefault(final.height, final.hash)
        if known != final.hash:
            self.violations.append(
                f"{name} finalised {final.hash[:12]} at height {final.height}, another node {known[:12]}"
            )
        top = self._tops.get(name, -1)
        if final.height < top and name not in self.forgetful:
            self.violations.append(f"{name} went back from finalised height {top} to {final.height}")
        self.forgetful.discard(name)
        self._tops[name] = final.height
        self.history.append(Sighting(time.monotonic(), name, view.head.height, final.height))

    async def _watch(self, name: str) -> None:
        while True:
            await self.look(name)
            await asyncio.sleep(LOOK_S)

    def get_answering(self) -> list[str]:
        return [name for name, view in self.latest.items() if view is not None]

    def get_heights(self, since: float, until: float, names: Sequence[str]) -> list[Sighting]:
        """What was seen of these nodes in a span of time."""
        return [s for s in self.history if since <= s.time <= until and s.name in names]

    def get_top(self) -> int:
        """The greatest finalised height that anyone ever reported."""
        return max(self.finalized, default=0)
