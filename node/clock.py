"""The only clock of the node: wall time for headers, monotonic time for rates, and sleeping."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol

from consensus.types import Millis


class Clock(Protocol):
    """Everything in `node/` takes its time from here, so that tests can drive it."""

    def now_ms(self) -> Millis:
        """Wall time in milliseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed on this clock; at least one turn of the event loop."""
        ...

    async def wait_until(self, time_ms: Millis) -> None:
        """Return once `now_ms() >= time_ms`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> Millis:
        return Millis(time.time_ns() // 1_000_000)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def wait_until(self, time_ms: Millis) -> None:
        # A loop, because wall time may be stepped while we sleep.
        while (remaining := time_ms - self.now_ms()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(remaining / 1000, 60.0))


class ManualClock:
    """A clock that moves only when told to; sleepers wake in the order of their due times."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = now_ms
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_ms(self) -> Millis:
        return Millis(self._start_ms + round(self._elapsed * 1000))

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._sleep_until(self._elapsed + seconds)

    async def wait_until(self, time_ms: Millis) -> None:
        if time_ms > self.now_ms():
            await self._sleep_until((time_ms - self._start_ms) / 1000)

    async def _sleep_until(self, due: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (due, next(self._order), future))
        await future

    @property
    def sleepers(self) -> int:
        """How many tasks sleep now; tests poll it before they advance."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move on and wake everybody who is due; they run at the caller's next await."""
        self._elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._elapsed + 1e-9:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def run_for(self, seconds: float, turns: int = 5) -> None:
        """Advance from one sleeper's due time to the next, giving tasks `turns` of the loop each time."""
        end = self._elapsed + seconds
        while True:
            for _ in range(turns):
                await asyncio.sleep(0)
            due = min((entry[0] for entry in self._sleepers if not entry[2].done()), default=end)
            if due >= end:
                break
            self.advance(max(0.0, due - self._elapsed))
        self.advance(max(0.0, end - self._elapsed))
        for _ in range(turns):
            await asyncio.sleep(0)
