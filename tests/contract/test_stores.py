"""What every key-value store must do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.ledger.level import LevelStore
from node.ledger.store import KeyValueStore, MemoryStore, StoreError

Opener = Callable[[], KeyValueStore]


@pytest.fixture(params=["memory", "level"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValueStore]:
    opened: KeyValueStore = MemoryStore() if request.param == "memory" else LevelStore(tmp_path / "db")
    yield opened
    opened.close()


def test_absent_keys_read_as_none(store: KeyValueStore) -> None:
    assert store.get(b"absent") is None


def test_a_batch_puts_and_deletes(store: KeyValueStore) -> None:
    store.write_batch([(b"a", b"1"), (b"b", b"2")])
    store.write_batch([(b"c", b"3")], [b"a"])
    assert [store.get(key) for key in (b"a", b"b", b"c")] == [None, b"2", b"3"]


def test_a_key_deleted_and_put_in_one_batch_is_put(store: KeyValueStore) -> None:
    store.write_batch([(b"a", b"1")])
    store.write_batch([(b"a", b"2")], [b"a"])
    assert store.get(b"a") == b"2"


def test_empty_values_and_binary_keys(store: KeyValueStore) -> None:
    store.write_batch([(b"\x00\xff", b""), (b"\xff\x00", b"\x00")])
    assert store.get(b"\x00\xff") == b""
    assert store.get(b"\xff\x00") == b"\x00"


def test_iteration_is_by_prefix_and_ascending(store: KeyValueStore) -> None:
    store.write_batch([(b"p\x02", b"2"), (b"p\x01", b"1"), (b"q", b"3"), (b"o\xff", b"0"), (b"p", b"")])
    assert list(store.iterate(b"p")) == [(b"p", b""), (b"p\x01", b"1"), (b"p\x02", b"2")]
    assert [key for key, _ in store.iterate(b"")] == [b"o\xff", b"p", b"p\x01", b"p\x02", b"q"]


def test_iteration_sees_the_store_as_of_the_call(store: KeyValueStore) -> None:
    store.write_batch([(b"a", b"1"), (b"b", b"2")])
    items = store.iterate(b"")
    store.write_batch([(b"c", b"3")], [b"b"])
    assert list(items) == [(b"a", b"1"), (b"b", b"2")]


def test_a_batch_whose_items_raise_leaves_nothing(store: KeyValueStore) -> None:
    def items() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        store.write_batch(items())
    assert store.get(b"a") is None


def test_a_closed_store_raises(store: KeyValueStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.get(b"a")
    with pytest.raises(StoreError):
        store.write_batch([(b"a", b"1")])
    with pytest.raises(StoreError):
        list(store.iterate(b""))


def test_level_keeps_what_was_written(tmp_path: Path) -> None:
    first = LevelStore(tmp_path / "db")
    first.write_batch([(b"a", b"1")])
    first.close()
    second = LevelStore(tmp_path / "db")
    assert second.get(b"a") == b"1"
    second.close()


def test_level_is_held_by_one_process_and_says_so(tmp_path: Path) -> None:
    first = LevelStore(tmp_path / "db")
    with pytest.raises(StoreError, match="in use"):
        LevelStore(tmp_path / "db")
    first.close()


def test_level_names_damage(tmp_path: Path) -> None:
    first = LevelStore(tmp_path / "db")
    first.write_batch([(b"a", b"1")])
    first.close()
    next((tmp_path / "db").glob("MANIFEST-*")).write_bytes(b"damaged" * 100)
    with pytest.raises(StoreError, match=r"damaged|can't be opened"):
        LevelStore(tmp_path / "db")
