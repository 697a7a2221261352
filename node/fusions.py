"""Encrypted fusion for others: uploads on disk, a bounded queue, one worker process, results that expire.

The desk sees ciphertexts and public keys alone. Everything about it is bounded: how many requests it holds,
how many of one client, how long each is in coming and how long it is kept; the length of an upload is
known to the byte before the first of them is read. Nothing survives a restart.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from consensus.types import Hash32
from node.clock import Clock
from node.pulse import Pulse
from node.settings import FusionRequestSettings
from node.work import JobObserver, WorkerPool
from workloads.base import WorkloadError
from workloads.encrypted_fusion import ENCRYPTED_FUSION, EncryptedFusion, FuseJob, FusionSizes, read_progress

logger = logging.getLogger(__name__)

SWEEP_S = 5.0
BUFFER_BYTES = 1024 * 1024


class FusionState(StrEnum):
    """Where a request stands."""

    ARRIVING = "arriving"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Refusal(StrEnum):
    """Why the desk does not take a request."""

    OFF = "off"
    FULL = "full"
    CLIENT = "client"
    """The client has as many as it may."""
    MODEL = "model"
    SIZE = "size"
    LENGTH = "length"
    LATE = "late"


class FusionRefused(Exception):
    """A request that is not taken; `remedy` tells the client what it can do."""

    def __init__(self, refusal: Refusal, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.refusal = refusal
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class FusionOrder:
    """What a client asks for: a task's settled model on tiles of a size."""

    task: Hash32
    kind: str
    model: bytes
    weights: tuple[int, ...]
    digest: Hash32
    """Of the weights."""
    tile: int


@dataclass(slots=True)
class FusionRecord:
    """One request. Its id is random and unguessable: who knows it may read and drop it."""

    id: Hash32
    client: str
    order: FusionOrder
    sizes: FusionSizes
    folder: Path
    state: FusionState = FusionState.ARRIVING
    detail: str = ""
    """Why it failed."""
    seconds: float | None = None
    """How long the evaluation took."""
    expires: float | None = None
    """On the clock's monotonic time, once it is done or failed."""
    is_dropped: bool = False
    """Forget it as soon as its evaluation ends."""

    @property
    def request(self) -> Path:
        return self.folder / "request"

    @property
    def result(self) -> Path:
        return self.folder / "result"

    @property
    def progress_file(self) -> Path:
        return self.folder / "progress"

    @property
    def progress(self) -> float:
        """Part of the evaluation that is done, 0 to 1."""
        if self.state is FusionState.RUNNING:
            return read_progress(self.progress_file)
        return 1.0 if self.state is FusionState.DONE else 0.0


class FusionDesk:
    """Takes, evaluates and hands out encrypted fusions."""

    def __init__(
        self,
        settings: FusionRequestSettings,
        directory: Path,
        clock: Clock,
        fusion: EncryptedFusion = ENCRYPTED_FUSION,
        observer: JobObserver | None = None,
    ) -> None:
        self.settings = settings
        self._directory = directory
        self._clock = clock
        self._fusion = fusion
        # Its own process: neither mining nor verifying waits behind a stranger's request.
        self._pool = WorkerPool(1, "fusion", observer)
        self._records: OrderedDict[Hash32, FusionRecord] = OrderedDict()
        """In order of arrival."""
        self._pulse = Pulse()
        # What a process that died left behind: nobody knows its ids any more.
        shutil.rmtree(directory, ignore_errors=True)

    async def run(self) -> None:
        """Serve until cancelled; returns at once where the desk is off."""
        if not self.settings.waiting:
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work())
                group.create_task(self._sweep())
        finally:
            self._pool.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    # --- clients ------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises: FusionRefused where the node takes no requests at all."""
        if not self.settings.waiting:
            raise FusionRefused(
                Refusal.OFF,
                "This node takes no encrypted fusions",
                "Ask another peer, or set fusion_requests.waiting in this node's settings",
            )

    def open(self, client: str, order: FusionOrder, length: int | None = None) -> FusionRecord:
        """A place for a request of `length` bytes (None: not announced) that are to come; `receive` must
        follow.

        Raises: FusionRefused.
        """
        self.check_open()
        settings = self.settings
        try:
            sizes = self._fusion.get_sizes(order.kind, order.model, order.weights, order.tile)
        except WorkloadError as error:
            raise FusionRefused(Refusal.MODEL, str(error), "Choose another task or tile") from error
        if sizes.request > settings.max_upload_bytes:
            raise FusionRefused(
                Refusal.SIZE,
                f"A request for this model on tiles of {order.tile} has {sizes.request} bytes, the limit is"
                f" {settings.max_upload_bytes}",
                "Choose smaller tiles, or raise fusion_requests.max_upload_bytes",
            )
        if length is not None and length != sizes.request:
            raise _build_length_refusal(str(length), sizes.request)
        if sum(record.client == client for record in self._records.values()) >= settings.per_client:
            raise FusionRefused(
                Refusal.CLIENT,
                f"{settings.per_client} requests of this client are held here already",
                "Fetch and delete their results (DELETE /v1/fusions/{fusion}), or wait until they expire",
            )
        if len(self._records) >= settings.waiting:
            raise FusionRefused(
                Refusal.FULL, f"{settings.waiting} requests are held here already", "Try again later"
            )
        identifier = Hash32(secrets.token_bytes(32))
        folder = self._directory / identifier.hex()
        record = FusionRecord(identifier, client, order, sizes, folder)
        self._records[identifier] = record
        return record

    async def receive(self, record: FusionRecord, pieces: AsyncIterator[bytes]) -> None:
        """Store the upload; it then waits for its turn. On any failure the place is given back.

        Raises: FusionRefused when it has another length than the model asks for, or takes too long.
        """
        writing = asyncio.create_task(self._write(record, pieces))
        deadline = asyncio.create_task(self._clock.sleep(self.settings.upload_s))
        try:
            await asyncio.wait({writing, deadline}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise FusionRefused(
                    Refusal.LATE,
                    f"The upload took longer than {self.settings.upload_s:.0f} s",
                    "Send it over a faster connection, or raise fusion_requests.upload_s",
                )
            await writing
        except BaseException:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._forget(record)
            raise
        finally:
            deadline.cancel()
        record.state = FusionState.WAITING
        self._pulse.beat()

    async def _write(self, record: FusionRecord, pieces: AsyncIterator[bytes]) -> None:
        expected, length, buffer = record.sizes.request, 0, bytearray()
        record.folder.mkdir(parents=True, mode=0o700)
        with record.request.open("xb") as file:
            async for piece in pieces:
                length += len(piece)
                if length > expected:
                    raise _build_length_refusal(f"more than {expected}", expected)
                buffer += piece
                if len(buffer) >= BUFFER_BYTES:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.write, bytes(buffer))
        if length != expected:
            raise _build_length_refusal(str(length), expected)

    def get(self, identifier: Hash32) -> FusionRecord | None:
        record = self._records.get(identifier)
        return None if record is None or record.is_dropped else record

    def count_ahead(self, record: FusionRecord) -> int:
        """How many requests are evaluated before this one."""
        ahead = 0
        for other in self._records.values():
            if other is record:
                break
            ahead += other.state in (FusionState.WAITING, FusionState.RUNNING)
        return ahead if record.state is FusionState.WAITING else 0

    def drop(self, record: FusionRecord) -> None:
        """Forget a request and its files; one that is being evaluated keeps its place until that ends."""
        if record.state in (FusionState.ARRIVING, FusionState.RUNNING):
            record.is_dropped = True
        else:
            self._forget(record)

    # --- the desk's own work ------------------------------------------------------------------

    async def _work(self) -> None:
        seen = -1
        while True:
            record = next((r for r in self._records.values() if r.state is FusionState.WAITING), None)
            if record is None:
                seen = await self._pulse.wait(seen, SWEEP_S)
            elif record.is_dropped:
                self._forget(record)
            else:
                await self._evaluate(record)

    async def _evaluate(self, record: FusionRecord) -> None:
        order, begun = record.order, self._clock.monotonic()
        record.state = FusionState.RUNNING
        job = FuseJob(
            order.model, order.weights, order.tile, record.request, record.result, record.progress_file
        )
        try:
            await self._pool.run(self._fusion.run, job)
        except WorkloadError as error:
            record.state, record.detail = FusionState.FAILED, str(error)
        except BrokenProcessPool:
            # Twice in a row, with a pool built anew: the desk goes on with the next one.
            record.state, record.detail = FusionState.FAILED, "the evaluation ended without a result"
            logger.exception("encrypted fusion %s", record.id.hex()[:12])
        else:
            record.state = FusionState.DONE
        record.seconds = self._clock.monotonic() - begun
        record.expires = self._clock.monotonic() + self.settings.keep_s
        record.request.unlink(missing_ok=True)
        logger.info(
            "encrypted fusion %s for task %s: %s after %.1f s",
            record.id.hex()[:12],
            order.task.hex()[:12],
            record.state.value,
            record.seconds,
        )
        if record.is_dropped:
            self._forget(record)

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_S)
            now = self._clock.monotonic()
            for record in list(self._records.values()):
                if record.expires is not None and record.expires <= now:
                    self._forget(record)

    def _forget(self, record: FusionRecord) -> None:
        with contextlib.suppress(KeyError):
            del self._records[record.id]
        shutil.rmtree(record.folder, ignore_errors=True)


def _build_length_refusal(got: str, expected: int) -> FusionRefused:
    return FusionRefused(
        Refusal.LENGTH,
        f"The request has {got} bytes, this model takes exactly {expected}",
        "Encrypt for the settled model of this task, its weights and this tile",
    )
