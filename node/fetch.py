"""Fetching blobs: chunk by chunk from several peers at once, verified as they come, resumed after a crash."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from consensus.task import BlobRef
from consensus.types import Hash32
from node.blobs import BlobError, BlobStore, CorruptBlob, Manifest, PartialBlob, QuotaExceeded
from node.clock import Clock

logger = logging.getLogger(__name__)


class SourceError(Exception):
    """A peer did not answer, or is too busy to."""


class SourceBusy(SourceError):
    """A peer asks for patience: it is asked again after a pause, and nothing is held against it."""


class FetchError(BlobError):
    """The blob can't be had, now or as asked; what came is kept for the next attempt."""


class BlobUnavailable(FetchError):
    """No peer at hand could give all of the blob: worth another attempt later."""


class BlobSource(Protocol):
    """A peer, as the fetcher sees it. Requests raise `SourceError` when they fail."""

    @property
    def node_id(self) -> str: ...

    async def get_manifest(self, root: Hash32) -> bytes | None:
        """The encoded manifest; None if the peer does not have the blob."""
        ...

    async def get_chunk(self, root: Hash32, index: int) -> bytes | None:
        """One chunk, unverified; None if the peer does not have it."""
        ...

    def report_corrupt(self, detail: str) -> None:
        """The peer answered with bytes that do not match their hash."""
        ...


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How hard to fetch."""

    chunks_per_source: int = 2
    """Requests open at one peer, for one blob."""
    chunks_total: int = 16
    """Requests open at all peers for all blobs; bounds memory to that many chunks."""
    failures_per_source: int = 3
    """A peer that failed so often is left out until the next attempt."""
    busy_pause_s: float = 0.25
    """Before a busy peer is asked again..."""
    busy_per_source: int = 40
    """...and how often it may be busy in one attempt."""
    first_pause_s: float = 0.25
    last_pause_s: float = 5.0


class BlobFetcher:
    """Fetches each blob once, however many ask for it; uses every peer that has it."""

    def __init__(
        self,
        store: BlobStore,
        get_sources: Callable[[], Sequence[BlobSource]],
        clock: Clock,
        limits: FetchLimits | None = None,
    ) -> None:
        self._store = store
        self._get_sources = get_sources
        self._clock = clock
        self._limits = limits or FetchLimits()
        self._chunks = asyncio.Semaphore(self._limits.chunks_total)
        self._running: dict[Hash32, _Running] = {}
        self.results: Counter[str] = Counter()
        """Fetches that ended, by how: complete, failed, cancelled."""
        self.fetched_bytes = 0
        """Of blobs that came complete."""

    async def fetch(self, ref: BlobRef, *, patience_s: float = 30.0) -> Path:
        """The complete blob's file, from disk or from peers.

        Tries peers again, those that connect meanwhile included, until `patience_s` have passed
        without a single new chunk. A cancelled caller stops the fetch only if nobody else waits for it.

        Raises:
            FetchError: no peer has it all, it does not fit, or its length is not `ref`'s.
        """
        if (present := self._store.get_ref(ref.root)) is not None:
            _check_length(ref, present)
        path = self._store.get_path(ref.root)
        if path is not None:
            return path
        running = self._running.get(ref.root)
        if running is None:
            running = _Running(
                asyncio.create_task(self._fetch(ref, patience_s), name=f"fetch {ref.root.hex()[:12]}")
            )
            self._running[ref.root] = running
            running.task.add_done_callback(lambda _: self._forget(ref.root, running))
            running.task.add_done_callback(lambda task: self._count(ref, task))
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting and not running.task.done():
                running.task.cancel()
                self._forget(ref.root, running)

    def _forget(self, root: Hash32, running: "_Running") -> None:
        if self._running.get(root) is running:
            del self._running[root]

    def _count(self, ref: BlobRef, task: asyncio.Task[Path]) -> None:
        if task.cancelled():
            self.results["cancelled"] += 1
        elif task.exception() is not None:
            self.results["failed"] += 1
        else:
            self.results["complete"] += 1
            self.fetched_bytes += ref.length

    @property
    def running(self) -> tuple[Hash32, ...]:
        """Roots being fetched."""
        return tuple(self._running)

    async def close(self) -> None:
        """Stop all fetches; what came is kept on disk."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, ref: BlobRef, patience_s: float) -> Path:
        pause, held = self._limits.first_pause_s, -1
        give_up = self._clock.monotonic() + patience_s
        while True:
            attempt = _Attempt(self._store, ref, self._get_sources(), self._limits, self._chunks, self._clock)
            try:
                return await attempt.run()
            except BlobUnavailable:
                if attempt.held > held:
                    held, pause = attempt.held, self._limits.first_pause_s
                    give_up = self._clock.monotonic() + patience_s
                if self._clock.monotonic() + pause > give_up:
                    raise
            await self._clock.sleep(pause)
            pause = min(2 * pause, self._limits.last_pause_s)


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[Path]
    waiting: int = 0


class _Taken(Enum):
    STORED = auto()
    TRY_AGAIN = auto()
    GIVE_UP = auto()


@dataclass(slots=True)
class _Attempt:
    """One round over the peers known at its start."""

    store: BlobStore
    ref: BlobRef
    sources: Sequence[BlobSource]
    limits: FetchLimits
    chunks: asyncio.Semaphore
    clock: Clock
    held: int = -1
    pending: deque[int] = field(default_factory=deque)
    in_flight: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    excluded: set[str] = field(default_factory=set)
    liars: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)

    async def run(self) -> Path:
        manifest = self.store.get_manifest(self.ref.root) or await self._get_manifest()
        _check_length(self.ref, manifest.ref)
        try:
            partial = await asyncio.to_thread(self.store.open_partial, manifest)
        except (QuotaExceeded, OSError) as error:
            raise FetchError(str(error)) from error
        try:
            self.pending.extend(partial.missing)
            try:
                await self._gather(partial)
            finally:
                self.held = len(manifest.chunks) - len(partial.missing)
            if partial.missing:
                raise BlobUnavailable(
                    f"{len(partial.missing)} of {len(manifest.chunks)} chunks of blob {self.ref.root.hex()} "
                    f"could not be had from {len(self.sources)} peers"
                )
            try:
                return await asyncio.to_thread(partial.finish)
            except (BlobError, OSError) as error:
                raise FetchError(f"blob {self.ref.root.hex()} can't be stored: {error}") from error
        finally:
            partial.close()

    async def _get_manifest(self) -> Manifest:
        for source in self.sources:
            try:
                encoded = await source.get_manifest(self.ref.root)
                if encoded is not None:
                    return Manifest.decode(self.ref.root, encoded)
                self.excluded.add(source.node_id)
            except SourceError as error:
                logger.debug("no manifest from %s: %s", source.node_id, error)
            except CorruptBlob as error:
                self._exclude_liar(source, str(error))
        raise BlobUnavailable(f"none of {len(self.sources)} peers has blob {self.ref.root.hex()}")

    async def _gather(self, partial: PartialBlob) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.limits.chunks_per_source):
                    for source in self.sources:
                        if source.node_id not in self.excluded:
                            group.create_task(self._work(source, partial))
        except* BlobError as errors:
            failure = errors
        else:
            return
        raise FetchError(str(failure.exceptions[0])) from failure

    async def _work(self, source: BlobSource, partial: PartialBlob) -> None:
        """Take chunks until none is left, or this source is no longer of use."""
        while source.node_id not in self.excluded:
            async with self.changed:
                # A chunk in flight elsewhere may come back to be tried here.
                await self.changed.wait_for(lambda: self.pending or not self.in_flight)
                if not self.pending or source.node_id in self.excluded:
                    return
                index = self.pending.popleft()
                self.in_flight += 1
            taken, busy = _Taken.TRY_AGAIN, self.busy[source.node_id]
            try:
                async with self.chunks:
                    taken = await self._take(source, partial, index)
            finally:
                self.in_flight -= 1
                if taken is not _Taken.STORED:
                    self.pending.append(index)
                if taken is _Taken.GIVE_UP:
                    self.excluded.add(source.node_id)
                async with self.changed:
                    self.changed.notify_all()
            if self.busy[source.node_id] > busy:
                await self.clock.sleep(self.limits.busy_pause_s)

    async def _take(self, source: BlobSource, partial: PartialBlob, index: int) -> _Taken:
        try:
            data = await source.get_chunk(self.ref.root, index)
        except SourceBusy:
            self.busy[source.node_id] += 1
            is_over = self.busy[source.node_id] >= self.limits.busy_per_source
            return _Taken.GIVE_UP if is_over else _Taken.TRY_AGAIN
        except SourceError as error:
            logger.debug(
                "chunk %d of %s not had from %s: %s", index, self.ref.root.hex(), source.node_id, error
            )
            self.failures[source.node_id] += 1
            is_over = self.failures[source.node_id] >= self.limits.failures_per_source
            return _Taken.GIVE_UP if is_over else _Taken.TRY_AGAIN
        if data is None:
            return _Taken.GIVE_UP
        try:
            await asyncio.to_thread(partial.write_chunk, index, data)
        except CorruptBlob as error:
            self._exclude_liar(source, str(error))
            return _Taken.GIVE_UP
        except OSError as error:
            raise FetchError(f"blob {self.ref.root.hex()} can't be written: {error}") from error
        return _Taken.STORED

    def _exclude_liar(self, source: BlobSource, detail: str) -> None:
        self.excluded.add(source.node_id)
        if source.node_id not in self.liars:  # once, however many of its chunks were on their way
            self.liars.add(source.node_id)
            logger.warning("peer %s gave a corrupt blob: %s", source.node_id, detail)
            source.report_corrupt(detail)


def _check_length(ref: BlobRef, found: BlobRef) -> None:
    if found.length != ref.length:
        raise FetchError(f"Expected blob {ref.root.hex()} to have {ref.length} bytes. Got {found.length}.")
