"""Room on the disk: how much is left, what says that it is full, and who is told before it is."""

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from node.clock import Clock

logger = logging.getLogger(__name__)

POLL_S = 10.0
REMEDY = (
    "make room: `bmif ledger prune` (stopped node) or retention.blocks, a smaller limits.blob_quota_bytes, "
    "or a larger disk; then start the node again"
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = tuple(os.strerror(number) for number in _FULL)


def get_free_bytes(path: Path) -> int:
    """Free for this process on the disk that holds `path`. Raises: OSError."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def is_full(error: BaseException) -> bool:
    """Whether an error of the system or of LevelDB says that there is no room."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def describe_full(path: Path) -> str:
    """What to tell the operator of a full disk."""
    return f"the disk that holds {path} is full: {_describe_free(path)}. Nothing is damaged; {REMEDY}"


def _describe_free(path: Path) -> str:
    try:
        return f"{get_free_bytes(path)} bytes are free"
    except OSError as error:
        return f"how much is free can't be told ({error})"


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """What is left, against `limits.min_free_bytes`."""

    free: int
    least: int

    @property
    def is_enough(self) -> bool:
        return self.free >= self.least

    def describe(self) -> str:
        return f"{self.free} bytes of disk are free (limits.min_free_bytes: {self.least})"


def measure_room(path: Path, least: int) -> DiskRoom:
    """For readiness and metrics. Raises: OSError."""
    return DiskRoom(get_free_bytes(path), least)


class DiskWatch:
    """Warns once when room runs short, and says when there is enough again."""

    def __init__(self, path: Path, least: int, clock: Clock) -> None:
        self._path = path
        self._least = least
        self._clock = clock
        self._was_enough = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(POLL_S)

    def look(self) -> None:
        """Say what changed since the last time."""
        room = measure_room(self._path, self._least)
        if room.is_enough == self._was_enough:
            return
        self._was_enough = room.is_enough
        if room.is_enough:
            logger.info("blobs are taken again: %s", room.describe())
        else:
            logger.warning("no more blobs are taken: %s at %s; %s", room.describe(), self._path, REMEDY)
