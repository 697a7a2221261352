"""Bodies of known hashes, from several peers at once, handed over in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass

from consensus.types import Hash32
from node.clock import Clock
from node.gossip.messages import MAX_OBJECT_IDS, Kind
from node.sync.crew import Crew, CrewLimits
from node.sync.ports import Lacking, SyncNetwork


@dataclass(frozen=True, slots=True)
class Body:
    """A block's bytes as a peer gave them; whether they are that block is for the judge to say."""

    hash: Hash32
    data: bytes
    peer: str


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    hashes: tuple[Hash32, ...]


class BodyFetcher:
    """Fetches ranges ahead of whoever judges them, a bounded number of them."""

    def __init__(
        self,
        network: SyncNetwork,
        clock: Clock,
        get_peers: Callable[[], Collection[str]],
        *,
        batch: int = 64,
        ahead: int = 8,
        limits: CrewLimits | None = None,
    ) -> None:
        """`batch`: blocks of a range. `ahead`: ranges on their way or waiting to be judged."""
        self._network = network
        self._batch = min(batch, MAX_OBJECT_IDS)
        self._ahead = ahead
        self._crew: Crew[_Range, tuple[bytes, ...]] = Crew(clock, get_peers, self._fetch, limits)

    async def __aenter__(self) -> "BodyFetcher":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._crew.__aexit__(*error)

    @property
    def busy(self) -> tuple[str, ...]:
        return self._crew.busy

    def exclude(self, peer: str) -> None:
        """Ask this peer no more."""
        self._crew.exclude(peer)

    async def fetch_one(self, block: Hash32, refused: Collection[str]) -> Body:
        """One block again, from somebody else. Raises: SyncStopped."""
        async with Crew(self._crew.clock, self._crew.get_peers, self._fetch, self._crew.limits) as crew:
            crew.submit(_Range(0, (block,)), refused=refused)
            for peer in refused:
                crew.exclude(peer)
            _, peer, bodies = await crew.get_result()
            return Body(block, bodies[0], peer)

    async def fetch(self, hashes: Sequence[Hash32]) -> AsyncIterator[Body]:
        """All of them, in their order. Raises: SyncStopped."""
        starts = list(range(0, len(hashes), self._batch))
        ready: dict[int, tuple[str, tuple[bytes, ...]]] = {}
        submitted = taken = 0
        while taken < len(starts):
            while submitted < len(starts) and submitted < taken + self._ahead:
                start = starts[submitted]
                self._crew.submit(_Range(start, tuple(hashes[start : start + self._batch])))
                submitted += 1
            start = starts[taken]
            while start not in ready:
                job, peer, bodies = await self._crew.get_result()
                ready[job.start] = (peer, bodies)
            peer, bodies = ready.pop(start)
            taken += 1
            for at, data in enumerate(bodies):
                yield Body(hashes[start + at], data, peer)

    async def _fetch(self, peer: str, job: _Range) -> tuple[bytes, ...]:
        found: list[bytes] = []
        while len(found) < len(job.hashes):
            objects = await self._network.request_objects(peer, Kind.BLOCK, job.hashes[len(found) :])
            whole = [data for data in objects if data is not None]
            if not whole or len(whole) < len(objects):
                raise Lacking(f"{peer} lacks bodies")
            found += whole
            await asyncio.sleep(0)
        return tuple(found)
