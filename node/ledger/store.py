"""The port below the ledger: an ordered key-value store with atomic batches, and its memory twin."""

from collections.abc import Iterable, Iterator
from typing import Protocol


class StoreError(Exception):
    """The store can't be opened, read or written; nothing of a failed batch is visible."""


class StoreFull(StoreError):
    """There is no room on the disk; what was written before is safe."""


class StoreDamaged(StoreError):
    """What is on disk is not what was written: it has to be rebuilt."""


class KeyValueStore(Protocol):
    """Ordered by key bytes. A batch is visible and durable as a whole, or not at all."""

    def get(self, key: bytes) -> bytes | None: ...

    def write_batch(
        self,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
        sync: bool = True,
    ) -> None:
        """Apply all deletes, then all puts, atomically; a key in both ends up put.

        With `sync` the batch survives a power failure once this returns.
        Raises `StoreError` with nothing applied.
        """
        ...

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key starts with `prefix`, ascending, as of the call."""
        ...

    def close(self) -> None:
        """Release the store; later calls raise `StoreError`. Closing twice is harmless."""
        ...


class MemoryStore:
    """A `KeyValueStore` that forgets everything with the process."""

    def __init__(self) -> None:
        self._items: dict[bytes, bytes] = {}
        self._is_closed = False

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store is closed")

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._items.get(key)

    def write_batch(
        self,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
        sync: bool = True,
    ) -> None:
        self._check_open()
        # Both are drained first: an iterable that raises must leave nothing behind.
        put_items, delete_keys = list(puts), list(deletes)
        for key in delete_keys:
            self._items.pop(key, None)
        self._items.update(put_items)

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        return iter(sorted(item for item in self._items.items() if item[0].startswith(prefix)))

    def close(self) -> None:
        self._is_closed = True
