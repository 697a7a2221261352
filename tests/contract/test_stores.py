"""What every key-value store must do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import plyvel
import pytest

from node.ledger.level import LevelStore
from node.ledger.mark import MARK_NAME, encode_mark, load_mark
from node.ledger.store import KeyValueStore, MemoryStore, StoreDamaged, StoreError

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


def _write(path: Path, count: int) -> None:
    store = LevelStore(path)
    for number in range(count):
        store.write_batch([(b"key%d" % number, bytes(100))])
    store.close()


def test_level_hides_its_number_of_commits(tmp_path: Path) -> None:
    _write(tmp_path / "db", 3)
    store = LevelStore(tmp_path / "db")
    for prefix in (b"", b"\xff", b"\xffcommits"):
        assert all(key.startswith(b"key") for key, _ in store.iterate(prefix))
    assert load_mark(tmp_path / "db") == 3
    store.close()


@pytest.mark.parametrize("lost", [1, 150])
def test_level_misses_commits_at_the_end(tmp_path: Path, lost: int) -> None:
    _write(tmp_path / "db", 3)
    log = max((tmp_path / "db").glob("*.log"))
    log.write_bytes(log.read_bytes()[:-lost])
    with pytest.raises(StoreDamaged, match=f"lost its last {1 if lost == 1 else 2} commits"):
        LevelStore(tmp_path / "db")


def test_level_that_died_before_the_mark_is_whole(tmp_path: Path) -> None:
    _write(tmp_path / "db", 3)
    (tmp_path / "db" / MARK_NAME).write_bytes(encode_mark(2))
    _write(tmp_path / "db", 1)
    assert load_mark(tmp_path / "db") == 4


@pytest.mark.parametrize("content", [None, b"x", b"", bytes(16), encode_mark(9)[:-1] + b"?", encode_mark(9)])
def test_level_trusts_no_other_mark(tmp_path: Path, content: bytes | None) -> None:
    _write(tmp_path / "db", 3)
    mark = tmp_path / "db" / MARK_NAME
    mark.unlink() if content is None else mark.write_bytes(content)
    with pytest.raises(StoreDamaged):
        LevelStore(tmp_path / "db")


@pytest.mark.parametrize(
    "content", [None, b"", b"MANIFEST-00000\n", b"MANIFEST-000099\n", b"../MANIFEST-000002\n"]
)
def test_level_founds_nothing_over_what_is_there(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "db"
    _write(path, 3)
    current = path / "CURRENT"
    current.unlink() if content is None else current.write_bytes(content)
    before = sorted(entry.name for entry in path.iterdir())
    with pytest.raises(StoreDamaged):
        LevelStore(path)
    assert sorted(entry.name for entry in path.iterdir()) == before


def test_level_of_before_the_mark_is_taken_over(tmp_path: Path) -> None:
    database = plyvel.DB(str(tmp_path / "db"), create_if_missing=True)
    database.put(b"a", b"1")
    database.close()
    store = LevelStore(tmp_path / "db")
    assert store.get(b"a") == b"1"
    store.write_batch([(b"b", b"2")])
    store.close()
    assert load_mark(tmp_path / "db") == 1
