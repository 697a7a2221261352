"""The commit mark: how many batches a database has synced, kept beside it so that a lost tail shows.

A log that lost its end, or a manifest that names an older one, opens as an older database without an error.
The number of the last commit is in the database too; it may be ahead of the mark (the process died in
between), never behind it: the mark is written after the batch is synced.
"""

import os
from hashlib import sha256
from pathlib import Path

from node.crashpoints import CrashPoint, reach
from node.ledger.store import StoreDamaged

MARK_NAME = "COMMITS"
_LENGTH = 16


def encode_mark(commits: int) -> bytes:
    number = commits.to_bytes(8, "big")
    return number + sha256(b"commits" + number).digest()[: _LENGTH - 8]


def load_mark(directory: Path) -> int | None:
    """The number of commits; None if there is no mark. Raises `StoreDamaged` if it can't be read."""
    path = directory / MARK_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None  # the process died while it made it
    commits = int.from_bytes(data[:8], "big")
    if data != encode_mark(commits):
        raise StoreDamaged(f"the commit mark {path} is damaged")
    return commits


class CommitMark:
    """The open file; one writer."""

    def __init__(self, directory: Path, commits: int) -> None:
        """Open it, or create it durably."""
        path = directory / MARK_NAME
        is_new = not path.exists() or not path.stat().st_size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            self.write(commits)
            os.fsync(self._descriptor)
            sync_directory(directory)
            reach(CrashPoint.MARK_CREATED)

    def write(self, commits: int) -> None:
        # Not synced: what a power failure takes away makes the mark lower, which is never wrong.
        os.pwrite(self._descriptor, encode_mark(commits), 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sync_directory(path: Path) -> None:
    """Make renames and new names in a folder durable, or the content of a file that is closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(directory: Path) -> None:
    """Make a folder of closed files durable: their content and their names."""
    for entry in directory.iterdir():
        sync_directory(entry)
    sync_directory(directory)
