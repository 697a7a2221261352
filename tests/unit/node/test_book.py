"""The address book: bounds by source and organisation, what pushes out what, and what survives a restart."""

import logging
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.types import Millis
from node.gossip.book import AddressBook, BookLimits, Entry
from node.gossip.bookfile import (
    VERSION,
    FilePeerStore,
    StoredBan,
    StoredPeers,
    build_book,
    decode_peers,
    encode_peers,
)

SECRET = b"s" * 32
NOW = Millis(1_700_000_000_000)
LIMITS = BookLimits()


def after(seconds: float) -> Millis:
    return Millis(NOW + round(1000 * seconds))


def get_address(number: int) -> str:
    """Each of its own group."""
    return f"{1 + number // 200}.{number % 200}.7.7:8102"


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(SECRET)


def want_any(entry: Entry) -> bool:
    return True


def test_one_source_can_not_fill_the_table(book: AddressBook) -> None:
    for number in range(5_000):
        book.add(get_address(number), "mallory-org")
    assert len(book) <= LIMITS.max_per_source
    assert len({place[0] for place in book._new}) <= LIMITS.buckets_per_source
    before = len(book)
    taken = sum(book.add(f"node{number}.honest{number}.org:8102", "honest") for number in range(40))
    assert taken >= 30  # a few places collide
    assert len(book) == before + taken


def test_all_sources_together_are_bounded(book: AddressBook) -> None:
    for number in range(10_000):
        book.add(get_address(number % 40_000), f"org{number % 97}")
    assert len(book) <= LIMITS.new_buckets * LIMITS.new_bucket_size


def test_one_organisation_holds_few_tried_buckets(book: AddressBook) -> None:
    for number in range(2_000):
        book.on_good(get_address(number), f"m{number}", "mallory-org", NOW)
    assert book.tried_count <= LIMITS.buckets_per_organisation * LIMITS.tried_bucket_size
    for number in range(20):
        book.on_good(f"node{number}.honest{number}.org:1", f"h{number}", f"honest{number}", NOW)
    honest = [entry for entry in book if entry.is_tried and entry.organisation.startswith("honest")]
    assert len(honest) >= 15


def test_places_depend_on_the_secret() -> None:
    books = [AddressBook(bytes([n]) * 32) for n in range(2)]
    for book in books:
        for number in range(300):
            book.add(get_address(number), f"org{number % 10}")
    assert books[0]._new != books[1]._new


def test_an_address_that_may_be_good_is_not_pushed_out() -> None:
    book = AddressBook(SECRET, BookLimits(new_buckets=1, new_bucket_size=1, buckets_per_source=1))
    assert book.add("a:1", "x")
    assert not book.add("b:1", "y")
    book.on_attempt("a:1", NOW)
    assert not book.add("b:1", "y")
    book.on_attempt("a:1", after(60))
    assert book.add("b:1", "y")
    assert "a:1" not in book


def test_a_tried_address_keeps_its_place_until_it_fails() -> None:
    limits = BookLimits(tried_buckets=1, tried_bucket_size=1)
    book = AddressBook(SECRET, limits)
    book.on_good("a:1", "a", "x", NOW)
    book.add("b:1", "y")
    book.on_good("b:1", "b", "y", NOW)
    assert [entry.address for entry in book if entry.is_tried] == ["a:1"]
    # The one whose place is wanted is tested next.
    assert book.get_contested() == ("a:1",)
    found = book.select_new(random.Random(0), NOW, want_any)
    assert found is not None
    assert found.address == "a:1"
    for number in range(limits.max_failures):
        book.on_attempt("a:1", after(number))
    book.on_good("b:1", "b", "y", after(99))
    assert [entry.address for entry in book if entry.is_tried] == ["b:1"]


def test_a_stale_tried_address_gives_way() -> None:
    book = AddressBook(SECRET, BookLimits(tried_buckets=1, tried_bucket_size=1))
    book.on_good("a:1", "a", "x", NOW)
    book.on_good("b:1", "b", "y", after(LIMITS.stale_ms / 1000))
    assert [entry.address for entry in book if entry.is_tried] == ["b:1"]


def test_a_node_has_one_tried_address_and_an_address_one_node(book: AddressBook) -> None:
    book.on_good("a:1", "node", "org", NOW)
    book.on_good("b:1", "node", "org", NOW)
    assert [entry.address for entry in book if entry.is_tried] == ["b:1"]
    book.on_good("b:1", "other", "org2", NOW)
    assert [(e.address, e.node_id) for e in book if e.is_tried] == [("b:1", "other")]
    book.on_good("c:1", "node", "org", NOW)
    assert {e.node_id for e in book if e.is_tried} == {"other", "node"}


def test_an_address_that_never_answers_is_forgotten_and_waits_longer_each_time(book: AddressBook) -> None:
    rng = random.Random(1)
    book.add("a:1", "x")
    waits = []
    clock = 0.0
    while "a:1" in book and len(waits) < 20:
        start = clock
        while not book.select(rng, after(clock), want_any):
            clock += 10
        waits.append(clock - start)
        book.on_attempt("a:1", after(clock))
    assert waits == [0, 60, 120, 240, 480]


def test_only_what_answered_lately_is_told(book: AddressBook) -> None:
    for number in range(60):
        book.add(get_address(number), "x")
    assert book.sample(random.Random(0), NOW, 32) == ()
    for number in range(60, 64):
        book.on_good(get_address(number), f"n{number}", f"o{number}", NOW)
    book.on_good(get_address(64), "old", "old", Millis(NOW - LIMITS.stale_ms))
    told = book.sample(random.Random(0), NOW, 32)
    assert set(told) == {get_address(number) for number in range(60, 64)}
    for number in range(100, 300):
        book.on_good(get_address(number), f"n{number}", f"o{number}", NOW)
    assert len(book.sample(random.Random(0), NOW, 32)) == 32
    assert len(book.sample(random.Random(0), NOW, 1_000)) <= book.tried_count // 4


def test_half_of_the_choices_are_tried_ones_however_many_new_there_are(book: AddressBook) -> None:
    book.on_good("good:1", "good", "org", NOW)
    for number in range(1_000):
        book.add(get_address(number), f"org{number % 30}")
    rng = random.Random(5)
    drawn = book.select(rng, NOW, want_any, count=2_000)
    share = sum(entry.is_tried for entry in drawn) / len(drawn)
    assert 0.45 < share < 0.55


# --- on disk ----------------------------------------------------------------------------------


def build_stored(book: AddressBook) -> StoredPeers:
    return StoredPeers(VERSION, book.secret, tuple(book), ("good:1",), (StoredBan("m", NOW + 5),))


def fill(book: AddressBook) -> None:
    for number in range(200):
        book.add(get_address(number), f"org{number % 7}")
    for number in range(20):
        book.on_good(get_address(number), f"n{number}", f"o{number}", NOW)


def test_a_book_survives(book: AddressBook, tmp_path: Path) -> None:
    fill(book)
    store = FilePeerStore(tmp_path / "peers.bin")
    assert decode_peers(store.load()) is None
    store.save(encode_peers(build_stored(book)))
    stored = decode_peers(store.load())
    assert stored is not None
    assert stored.anchors == ("good:1",)
    assert set(build_book(stored)) == set(book)
    assert [path.name for path in tmp_path.iterdir()] == ["peers.bin"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "zeros", "version"])
def test_a_damaged_book_is_an_empty_one_with_a_warning(
    book: AddressBook, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(book)
    good = encode_peers(build_stored(book))
    bad = {
        "flip": good[:500] + bytes([good[500] ^ 1]) + good[501:],
        "cut": good[:-7],
        "empty": b"",
        "text": b"# peers\n" * 20,
        "zeros": bytes(len(good)),
        "version": encode_peers(StoredPeers(VERSION + 1, book.secret, (), (), ())),
    }[damage]
    path = tmp_path / "peers.bin"
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert decode_peers(FilePeerStore(path).load()) is None
    assert "damaged" in caplog.text


def test_a_place_that_can_not_be_written_or_read_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FilePeerStore(tmp_path / "nowhere" / "peers.bin")
    store.save(b"x")
    assert "can't be written" in caplog.text
    assert FilePeerStore(tmp_path).load() is None
    assert "can't be read" in caplog.text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("add", "attempt", "good", "forget")),
            st.integers(0, 30),
            st.integers(0, 5),
            st.integers(0, 4),
            st.integers(0, 10**9),
        ),
        max_size=80,
    )
)
def test_the_tables_stay_consistent_whatever_happens(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    limits = BookLimits(4, 4, 3, 2, 2, 2, max_per_source=6)
    book = AddressBook(SECRET, limits)
    for action, number, node, org, time in steps:
        address = get_address(number)
        if action == "add":
            book.add(address, f"s{org}")
        elif action == "attempt":
            book.on_attempt(address, Millis(time))
        elif action == "good":
            book.on_good(address, f"n{node}", f"o{org}", Millis(time))
        else:
            book.forget(address)
        entries = {entry.address: entry for entry in book}
        assert set(book._new.values()) | set(book._tried.values()) == set(entries)
        assert len(book._new) + len(book._tried) == len(entries)
        assert set(book._tried.values()) == {a for a, e in entries.items() if e.is_tried}
        assert book._by_node == {e.node_id: a for a, e in entries.items() if e.is_tried}
        assert set(book._contested) <= set(book._tried.values())
        for source in {e.source for e in entries.values()}:
            count = sum(not e.is_tried and e.source == source for e in entries.values())
            assert book._by_source[source] == count <= limits.max_per_source
    stored = decode_peers(encode_peers(build_stored(book)))
    assert stored is not None
    assert set(build_book(stored, limits)) == set(book)
