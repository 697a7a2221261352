"""The durable store: LevelDB with checksums verified and synced atomic batches."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import plyvel

from node.ledger.store import StoreError


class _Batch(Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write(self) -> None: ...


class _Database(Protocol):
    closed: bool

    def get(self, key: bytes, *, verify_checksums: bool) -> bytes | None: ...
    def write_batch(self, *, sync: bool) -> _Batch: ...
    def iterator(self, *, prefix: bytes, verify_checksums: bool) -> Iterator[tuple[bytes, bytes]]: ...
    def close(self) -> None: ...


_ERRORS = (plyvel.Error, OSError, RuntimeError)


class LevelStore:
    """A `KeyValueStore` in one folder that only one process may hold open."""

    def __init__(self, path: Path, *, cache_bytes: int = 32 * 1024 * 1024) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._database = cast(
                _Database,
                plyvel.DB(
                    str(path),
                    create_if_missing=True,
                    paranoid_checks=True,
                    lru_cache_size=cache_bytes,
                    bloom_filter_bits=10,
                ),
            )
        except plyvel.CorruptionError as error:
            raise StoreError(f"the database at {path} is damaged: {error}") from error
        except _ERRORS as error:
            if "lock" in str(error).lower():
                raise StoreError(f"the database at {path} is in use by another process") from error
            raise StoreError(f"the database at {path} can't be opened: {error}") from error

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._database.get(key, verify_checksums=True)
        except _ERRORS as error:
            raise StoreError(f"reading {self._path} failed: {error}") from error

    def write_batch(
        self,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
        sync: bool = True,
    ) -> None:
        try:
            batch = self._database.write_batch(sync=sync)
            for key in deletes:
                batch.delete(key)
            for key, value in puts:
                batch.put(key, value)
            batch.write()
        except _ERRORS as error:
            raise StoreError(f"writing {self._path} failed: {error}") from error

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            # The iterator is made here, not at the first `next`: its snapshot is of the call.
            return self._guard(self._database.iterator(prefix=prefix, verify_checksums=True))
        except _ERRORS as error:
            raise StoreError(f"reading {self._path} failed: {error}") from error

    def _guard(self, items: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from items
        except _ERRORS as error:
            raise StoreError(f"reading {self._path} failed: {error}") from error

    def close(self) -> None:
        with contextlib.suppress(plyvel.Error):
            self._database.close()
