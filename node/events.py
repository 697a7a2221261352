"""A bounded event bus: increasing ids, replay after an id, slow readers are told what they missed."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from consensus.types import Millis


class EventKind(StrEnum):
    """What can happen to a chain, as an observer sees it."""

    HEAD = "head"
    BLOCK = "block"
    STEP = "step"
    OPENING = "opening"
    MILESTONE = "milestone"
    VERDICT = "verdict"
    FINALIZED = "finalized"
    CONFLICT = "conflict"
    """Blocks that exclude each other have the votes of two thirds of stake each."""
    REORG = "reorg"
    TASK = "task"
    JOB = "job"
    """A job of encrypted inference was asked for, or got a commitment, a result, an end."""
    FEDERATION = "federation"
    """A federation was created, or its round got an update, a list, an opening, a judgement, an end."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `data` is ready for JSON and bounded in size by its publisher."""

    id: int
    kind: EventKind
    time: Millis
    data: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Gap:
    """Events in (`after`, `oldest`) were dropped before this subscriber could have them."""

    after: int
    oldest: int


class EventBus:
    """Hands every event to every subscriber, in order; publishing never blocks and never fails.

    Ids start at `start_ms` * 1000 and only grow, so an id from before a restart stays below every id after it
    and a client's `Last-Event-ID` keeps its meaning (it learns of the gap). Ids stay below 2^53.
    """

    def __init__(self, history: int, start_ms: Millis) -> None:
        if history < 1:
            raise ValueError(f"Expected history >= 1. Got {history}")
        self._history: deque[Event] = deque(maxlen=history)
        self._first = start_ms * 1000
        self._next = self._first
        self._changed: set[asyncio.Event] = set()

    @property
    def last_id(self) -> int:
        """Id of the newest event; one below the first possible id when there was none."""
        return self._next - 1

    def publish(self, kind: EventKind, time: Millis, data: Mapping[str, JsonValue]) -> Event:
        """Append an event and wake the subscribers. Call it on the event loop's thread."""
        event = Event(self._next, kind, time, data)
        self._next += 1
        self._history.append(event)
        for changed in self._changed:
            changed.set()
        return event

    def get_since(self, after: int, limit: int = 256) -> tuple[Gap | None, tuple[Event, ...]]:
        """Up to `limit` events with an id above `after`, and the gap before them if some are lost.

        An id that this bus has not given yet (a foreign or damaged one) is treated as the newest.
        """
        after = min(after, self.last_id)
        oldest = self._history[0].id if self._history else self._next
        gap = Gap(after, oldest) if after < oldest - 1 else None
        skip = max(0, after + 1 - oldest)
        return gap, tuple(self._history[i] for i in range(skip, min(len(self._history), skip + limit)))

    def subscribe(self, after: int | None = None) -> "Subscription":
        """A reader that begins after the event `after`; with None, after the newest."""
        return Subscription(self, self.last_id if after is None else after)

    def _watch(self, changed: asyncio.Event) -> None:
        self._changed.add(changed)

    def _unwatch(self, changed: asyncio.Event) -> None:
        self._changed.discard(changed)


class Subscription:
    """Reads the bus from its own position; holds no copy of events, so a slow reader costs nothing."""

    def __init__(self, bus: EventBus, after: int) -> None:
        self._bus = bus
        self._after = after
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self._bus._watch(self._changed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus._unwatch(self._changed)

    async def read(self) -> tuple[Gap | None, tuple[Event, ...]]:
        """Wait for news; returns what was missed, if anything, and at least one event or gap."""
        while True:
            self._changed.clear()
            gap, events = self._bus.get_since(self._after)
            if events:
                self._after = events[-1].id
            elif gap is not None:
                self._after = gap.oldest - 1
            if events or gap:
                return gap, events
            await self._changed.wait()
