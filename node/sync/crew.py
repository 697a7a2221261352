"""Jobs spread over several peers: whoever is slow, fails, lacks or lies is worked around.

A job is given to the peer with the fewest jobs. One that fails is given to another peer; one that takes much
longer than usual is given to a second one as well, and the first answer counts. So no single peer can stall
what others can give.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from node.clock import Clock
from node.gossip.links import wait_for
from node.gossip.transport import TransportError
from node.sync.ports import Lacking, Poisoned, SyncStopped

logger = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class CrewLimits:
    per_peer: int = 2
    """Jobs at one peer at once."""
    failures: int = 3
    """After so many in a row a peer rests..."""
    rest_s: float = 5.0
    hedge_s: float = 1.0
    """A job is given to a second peer after so long at least, and..."""
    hedge_factor: float = 4.0
    """...so many times the usual time."""
    again_s: float = 1.0
    """Before everyone is asked again for what nobody could give."""
    patience_s: float = 30.0
    """Without a single result; then the crew gives up."""


@dataclass(eq=False)
class _Job(Generic[J]):
    payload: J
    refused: set[str] = field(default_factory=set)
    """Peers that can't do it."""
    not_before: float = 0.0
    running: dict[str, float] = field(default_factory=dict)
    """Since when, by peer."""
    is_done: bool = False


class Crew(Generic[J, R]):
    """Use as a context: whatever is under way ends with it."""

    def __init__(
        self,
        clock: Clock,
        get_peers: Callable[[], Collection[str]],
        fetch: Callable[[str, J], Awaitable[R]],
        limits: CrewLimits | None = None,
    ) -> None:
        """`get_peers`: whom to ask, looked at again and again. `fetch(peer, job)` raises `TransportError`,
        `Lacking` or `Poisoned`."""
        self.clock = clock
        self.get_peers = get_peers
        self._fetch = fetch
        self.limits = limits or CrewLimits()
        self._pending: deque[_Job[J]] = deque()
        self._running: set[_Job[J]] = set()
        self._results: deque[tuple[J, str, R]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._load: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._resting: dict[str, float] = {}
        self._excluded: set[str] = set()
        self._usual_s = 0.0
        self._changed = asyncio.Event()
        self._last_result = clock.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open_jobs(self) -> int:
        """Submitted, and their results not taken yet."""
        return len(self._pending) + len(self._running) + len(self._results)

    @property
    def busy(self) -> tuple[str, ...]:
        """Peers at work."""
        return tuple(peer for peer, load in self._load.items() if load)

    def submit(self, payload: J, *, first: bool = False, refused: Collection[str] = ()) -> None:
        """Do this too, before all others if `first`; not by those that are `refused`."""
        job = _Job(payload, set(refused))
        if first:
            self._pending.appendleft(job)
        else:
            self._pending.append(job)
        self._dispatch()

    def exclude(self, peer: str) -> None:
        """Ask this peer no more."""
        self._excluded.add(peer)

    async def get_result(self) -> tuple[J, str, R]:
        """The next finished job and who did it, in no order.

        Raises: SyncStopped when nobody did any job for long.
        """
        if not self._results:
            self._last_result = self.clock.monotonic()
        while not self._results:
            self._changed.clear()
            self._dispatch()
            if self.clock.monotonic() - self._last_result > self.limits.patience_s:
                raise SyncStopped(f"no peer gave anything for {self.limits.patience_s:.0f} s")
            await wait_for(self.clock, self._changed, TICK_S)
        return self._results.popleft()

    def _dispatch(self) -> None:
        """Give pending jobs to idle peers, and late ones to a second peer."""
        now = self.clock.monotonic()
        peers = [
            peer
            for peer in self.get_peers()
            if peer not in self._excluded and self._resting.get(peer, 0.0) <= now
        ]
        waiting: deque[_Job[J]] = deque()
        while self._pending:
            job = self._pending.popleft()
            if peers and job.refused.issuperset(peers):
                # Everyone was asked. After a while they may have it, or answer again.
                job.refused.clear()
                job.not_before = now + self.limits.again_s
            if job.not_before > now or not self._give(job, peers, now):
                waiting.append(job)
                if all(self._load[peer] >= self.limits.per_peer for peer in peers):
                    break
        self._pending.extendleft(reversed(waiting))
        if not self._pending:
            self._hedge(peers, now)

    def _give(self, job: _Job[J], peers: Collection[str], now: float) -> bool:
        able = [
            peer
            for peer in peers
            if self._load[peer] < self.limits.per_peer and peer not in job.refused and peer not in job.running
        ]
        if not able:
            return False
        peer = min(able, key=lambda each: self._load[each])
        self._load[peer] += 1
        job.running[peer] = now
        self._running.add(job)
        task = asyncio.create_task(self._work(peer, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _hedge(self, peers: Collection[str], now: float) -> None:
        late = max(self.limits.hedge_s, self.limits.hedge_factor * self._usual_s)
        for job in tuple(self._running):
            if len(job.running) == 1 and now - min(job.running.values()) > late:
                idle = [peer for peer in peers if not self._load[peer]]
                self._give(job, idle, now)

    async def _work(self, peer: str, job: _Job[J]) -> None:
        try:
            result = await self._fetch(peer, job.payload)
        except TransportError as error:
            logger.debug("%s: %s", peer, error)
            self._failures[peer] += 1
            if self._failures[peer] >= self.limits.failures:
                self._failures[peer] = 0
                self._resting[peer] = self.clock.monotonic() + self.limits.rest_s
            job.refused.add(peer)
        except Lacking:
            job.refused.add(peer)
        except Poisoned as error:
            logger.warning("%s gave something else than it was asked for: %s", peer, error)
            job.refused.add(peer)
            self._excluded.add(peer)
        else:
            self._finish(peer, job, result)
        finally:
            self._load[peer] -= 1
            begun = job.running.pop(peer)
            if job.is_done:
                elapsed = self.clock.monotonic() - begun
                self._usual_s = elapsed if not self._usual_s else 0.8 * self._usual_s + 0.2 * elapsed
            elif not job.running:
                self._running.discard(job)
                self._pending.appendleft(job)
            self._changed.set()

    def _finish(self, peer: str, job: _Job[J], result: R) -> None:
        self._failures[peer] = 0
        if not job.is_done:
            job.is_done = True
            self._running.discard(job)
            self._results.append((job.payload, peer, result))
            self._last_result = self.clock.monotonic()
