"""The durable store: LevelDB with checksums verified, synced atomic batches and a mark of their number."""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import plyvel

from node.crashpoints import CrashPoint, reach
from node.disk import describe_full, is_full
from node.ledger.files import check_files
from node.ledger.mark import CommitMark, load_mark
from node.ledger.store import StoreDamaged, StoreError, StoreFull

logger = logging.getLogger(__name__)

COMMITS_KEY = b"\xffcommits"
"""Holds the number of the last commit; hidden from iteration."""


class _Batch(Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write(self) -> None: ...


class _Database(Protocol):
    closed: bool

    def get(self, key: bytes, *, verify_checksums: bool) -> bytes | None: ...
    def write_batch(self, *, sync: bool) -> _Batch: ...
    def iterator(self, *, prefix: bytes, verify_checksums: bool) -> Iterator[tuple[bytes, bytes]]: ...
    def compact_range(self, *, start: bytes | None = None, stop: bytes | None = None) -> None: ...
    def close(self) -> None: ...


_DAMAGE_TEXTS = ("No such file", "Invalid argument", "Input/output error")
_ERRORS = (plyvel.Error, OSError, RuntimeError)


class LevelStore:
    """A `KeyValueStore` in one folder that only one process may hold open.

    What is not as it was written raises `StoreDamaged`, at the latest when it is read: missing files,
    checksums that fail, and an end that is lost (by the commit mark). After a write that failed all others
    fail too, until the store is opened again.
    """

    def __init__(
        self,
        path: Path,
        *,
        cache_bytes: int = 32 * 1024 * 1024,
        write_buffer_bytes: int | None = None,
        is_salvage: bool = False,
    ) -> None:
        """`is_salvage`: take what there is, although commits may be lost."""
        self._path = path
        is_there = check_files(path)
        path.mkdir(parents=True, exist_ok=True)
        marked = load_mark(path) if is_there and not is_salvage else None
        # A new database's mark comes first: a database without one has lost it.
        self._mark = None if is_there else self._open_mark(0)
        try:
            self._database = cast(
                _Database,
                plyvel.DB(
                    str(path),
                    create_if_missing=not is_there,
                    paranoid_checks=True,
                    lru_cache_size=cache_bytes,
                    bloom_filter_bits=10,
                    write_buffer_size=write_buffer_bytes,
                ),
            )
        except _ERRORS as error:
            self._close_mark()
            if "IO error: lock" in str(error):
                raise StoreError(f"the database at {path} is in use by another process") from error
            raise self._translate(error, "opening") from error
        self._lock = threading.Lock()
        self._failed: StoreError | None = None
        self._compacting = threading.Lock()
        try:
            self._commits = self._check_commits(marked) if is_there and not is_salvage else 0
            if not is_salvage:
                self._mark = self._mark or self._open_mark(self._commits)
        except StoreError:
            self.close()
            raise

    def _open_mark(self, commits: int) -> CommitMark:
        try:
            return CommitMark(self._path, commits)
        except OSError as error:
            raise StoreError(f"the database at {self._path} can't be written: {error}") from error

    def _check_commits(self, marked: int | None) -> int:
        stored = self.get(COMMITS_KEY)
        commits = 0 if stored is None else int.from_bytes(stored, "big")
        if marked is None and stored is not None:
            raise StoreDamaged(f"the database at {self._path} has lost its commit mark (the file COMMITS)")
        if commits < (marked or 0):
            raise StoreDamaged(
                f"the database at {self._path} has lost its last {(marked or 0) - commits} commits: "
                "a log (*.log) or MANIFEST is missing or ends early"
            )
        return commits

    def _translate(self, error: Exception, doing: str) -> StoreError:
        # A table that has vanished, is too short or lies on a bad sector is an I/O error to LevelDB.
        if is_full(error):
            return StoreFull(f"{doing} the database failed: {describe_full(self._path)}")
        said = str(error)
        if isinstance(error, plyvel.CorruptionError) or any(text in said for text in _DAMAGE_TEXTS):
            return StoreDamaged(f"the database at {self._path} is damaged: {error}")
        return StoreError(f"{doing} the database at {self._path} failed: {error}")

    @property
    def path(self) -> Path:
        return self._path

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._database.get(key, verify_checksums=True)
        except _ERRORS as error:
            raise self._translate(error, "reading") from error

    def write_batch(
        self,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
        sync: bool = True,
    ) -> None:
        with self._lock:
            if self._failed is not None:
                # LevelDB may have written a part: what came behind that in its log could not be read again.
                raise self._failed
            try:
                batch = self._database.write_batch(sync=sync)
                for key in deletes:
                    batch.delete(key)
                for key, value in puts:
                    batch.put(key, value)
                commits = self._commits + 1
                batch.put(COMMITS_KEY, commits.to_bytes(8, "big"))
                batch.write()
            except _ERRORS as error:
                self._failed = self._translate(error, "writing")
                raise self._failed from error
            self._commits = commits
            reach(CrashPoint.BATCH_SYNCED)
            if sync and self._mark is not None:
                try:
                    self._mark.write(commits)
                except OSError as error:
                    # The batch is safe, and a mark that stays behind is not wrong.
                    logger.warning("the commit mark of %s can't be written: %s", self._path, error)

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            # The iterator is made here, not at the first `next`: its snapshot is of the call.
            items = self._database.iterator(prefix=prefix, verify_checksums=True)
        except _ERRORS as error:
            raise self._translate(error, "reading") from error
        return self._guard(items, COMMITS_KEY.startswith(prefix))

    def _guard(
        self, items: Iterator[tuple[bytes, bytes]], is_commits_among: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """LevelDB passes over a block that it can't read and says so at the end only."""
        try:
            if not is_commits_among:
                yield from items
                return
            for item in items:
                if item[0] != COMMITS_KEY:
                    yield item
        except _ERRORS as error:
            raise self._translate(error, "reading") from error

    def compact(self) -> None:
        """Rewrite everything into as few tables as possible; takes a while."""
        for part in self.get_parts():
            self.compact_part(*part)

    def get_parts(self) -> list[tuple[bytes | None, bytes | None]]:
        """Ranges of keys, each compacted in a short time; together they are all keys."""
        tables = [
            table for table in map(bytes, zip(range(256))) if next(self.iterate(table), None) is not None
        ]
        edges = [table + bytes([part]) for table in tables for part in range(0, 256, 32)]
        return list(zip([None, *edges], [*edges, None], strict=True))

    def compact_part(self, start: bytes | None, stop: bytes | None) -> None:
        """Give back the disk space of what was deleted between two keys. From any thread; closing waits."""
        with self._compacting:
            if self._database.closed:
                return
            try:
                self._database.compact_range(start=start, stop=stop)
            except _ERRORS as error:
                raise self._translate(error, "compacting") from error

    def close(self) -> None:
        with self._compacting, contextlib.suppress(plyvel.Error):
            self._database.close()
        self._close_mark()

    def _close_mark(self) -> None:
        if self._mark is not None:
            self._mark.close()
            self._mark = None
