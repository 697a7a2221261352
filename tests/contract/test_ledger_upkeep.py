"""What operators do to a ledger, over every store: pruning, going back, migrating; each step whole."""

from collections.abc import Callable, Sequence

import msgpack
import pytest

from consensus.task import Available
from consensus.transaction import compute_transaction_id
from consensus.types import Hash32, Height
from consensus.vote import Checkpoint
from node.ledger import chainstore, migration, rollback, schema
from node.ledger.chainstore import HeadChange, Ledger, LedgerDamaged, LedgerError, SchemaError
from node.ledger.check import check_ledger
from node.ledger.migration import Changes, Migration, migrate_store
from node.ledger.prune import Pruned, is_swept, prune_steps
from node.ledger.rollback import roll_back
from node.ledger.store import KeyValueStore, MemoryStore, StoreError
from tests.contract.test_ledger import (
    CHAIN,
    TASK,
    build_block,
    build_node,
    build_transaction,
    build_transfer,
    extend,
    store,
)

__all__ = ["store"]

NOTHING_FINAL = Checkpoint(Height(0), CHAIN)


def prune(ledger: Ledger, height: int) -> Pruned:
    steps = list(prune_steps(ledger, height))
    assert check_ledger(ledger) == []
    return steps[-1]


def build_ledger(store: KeyValueStore, blocks: int) -> tuple[Ledger, list[Hash32]]:
    ledger = Ledger.open(store, CHAIN, dict([build_node("genesis")]))
    return ledger, [
        extend(ledger, [build_transfer(at), build_transaction(Available(TASK), at)]) for at in range(blocks)
    ]


def count(store: KeyValueStore, prefix: bytes) -> int:
    return sum(1 for _ in store.iterate(prefix))


# --- pruning ----------------------------------------------------------------------------------


def test_only_what_kept_blocks_reach_is_left(store: KeyValueStore) -> None:
    ledger, hashes = build_ledger(store, 200)
    beside, beside_hash, nodes = build_block(hashes[189], 191, time=5)
    ledger.put_block(beside, nodes)
    dead, dead_hash, nodes = build_block(hashes[9], 11, time=5)
    ledger.put_block(dead, nodes)
    assert prune(ledger, 181) == Pruned(181, 181, 1 + 3 * 180 + 2, 3 * 20 + 2)
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert (opened.base, is_swept(opened)) == (181, True)
        assert check_ledger(opened, deep=True) == []
        assert [location.height for location in opened.iterate_subject(TASK)] == list(range(181, 201))
        assert opened.find_transaction(compute_transaction_id(build_transfer(179))) is None
        # Headers and their places are what light clients and other nodes need of the rest.
        assert {block for block, _ in opened.iterate_headers()} == {*hashes, beside_hash, dead_hash}
        assert opened.get_hashes(0, 300) == [CHAIN, *hashes]
        assert opened.get_header(hashes[0]) is not None
        assert opened.get_block(beside_hash) is not None
        assert opened.get_transaction_ids(hashes[0]) == ()
    assert count(store, schema.TRANSACTION_PREFIX) == 40
    assert count(store, schema.BLOCK_PREFIX) == 21
    # It goes on from there, and again.
    extend(ledger)
    assert prune(ledger, 195).bodies == 15
    assert check_ledger(ledger, deep=True) == []


def test_a_transaction_on_both_branches_is_not_lost(store: KeyValueStore) -> None:
    ledger, hashes = build_ledger(store, 3)
    both = build_transfer(77)
    beside, _, nodes = build_block(hashes[0], 2, [both], time=9)
    ledger.put_block(beside, nodes)
    block, block_hash, nodes = build_block(hashes[2], 4, [both])
    ledger.put_block(block, nodes, head=HeadChange((block_hash,)))
    prune(ledger, 4)
    assert ledger.find_transaction(compute_transaction_id(both)) == schema.Location(block_hash, 4, 0)


def test_blocks_that_come_meanwhile_keep_all_their_nodes(
    store: KeyValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even nodes that an old block had, that were to go, and that a new block brings again."""
    monkeypatch.setattr("node.ledger.prune.NODES_AT_ONCE", 16)
    ledger, _ = build_ledger(store, 60)
    old = dict([build_node("all of 5")])
    steps = 0
    for _ in prune_steps(ledger, ledger.height - 2):
        steps += 1
        block, block_hash, nodes = build_block(ledger.head, ledger.height + 1)
        ledger.put_block(block, nodes | old, head=HeadChange((block_hash,)))
    assert steps > 8
    assert check_ledger(ledger, deep=True) == []
    assert ledger.get_node(next(iter(old))) is not None


class DyingStore(MemoryStore):
    """Refuses every write after so many."""

    left = 10**9

    def write_batch(self, puts, deletes=(), sync=True) -> None:  # type: ignore[no-untyped-def]
        if not self.left:
            raise StoreError("killed")
        self.left -= 1
        super().write_batch(puts, deletes, sync)


def dies_everywhere(build: Callable[[DyingStore], Ledger], do: Callable[[Ledger], object]) -> int:
    """Stop `do` at every write; the ledger is whole, and done again it is as if nothing had happened."""
    store = DyingStore()
    ledger = build(store)
    sound = list(store.iterate(b""))
    do(ledger)
    end, batches = list(store.iterate(b"")), 0
    while True:
        store = DyingStore()
        store.write_batch(sound)
        store.left = batches
        try:
            do(Ledger.open(store, CHAIN))
        except StoreError:
            store.left = 10**9
            assert check_ledger(Ledger.open(store, CHAIN), deep=True) == []
            do(Ledger.open(store, CHAIN))
            assert list(store.iterate(b"")) == end
            batches += 1
        else:
            return batches


def test_a_prune_may_stop_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chainstore, "DELETED_AT_ONCE", 16)
    monkeypatch.setattr("node.ledger.prune.NODES_AT_ONCE", 16)

    def build(store: DyingStore) -> Ledger:
        ledger, hashes = build_ledger(store, 40)
        beside, _, nodes = build_block(hashes[9], 11, time=5)
        ledger.put_block(beside, nodes)
        return ledger

    def do(ledger: Ledger) -> None:
        for _ in prune_steps(ledger, 30):
            pass

    assert dies_everywhere(build, do) >= 6


def test_a_state_that_is_not_whole_stops_the_sweep(store: KeyValueStore) -> None:
    ledger, _ = build_ledger(store, 20)
    store.write_batch([], [schema.node_key(build_node("all of 15")[0])])
    before = count(store, schema.NODE_PREFIX)
    with pytest.raises(LedgerDamaged, match="missing: nothing was swept"):
        prune(ledger, 10)
    assert count(store, schema.NODE_PREFIX) == before
    assert not is_swept(ledger)


def test_nothing_above_the_head_is_pruned(store: KeyValueStore) -> None:
    ledger, _ = build_ledger(store, 3)
    with pytest.raises(LedgerError, match="while the head is at height 3"):
        prune(ledger, 4)
    assert ledger.base == 0


# --- going back -------------------------------------------------------------------------------


def test_the_head_goes_back_and_what_was_above_is_gone(store: KeyValueStore) -> None:
    ledger, hashes = build_ledger(store, 600)
    ledger.put_record(b"opening/me", b"stays")
    beside, beside_hash, nodes = build_block(hashes[99], 101, time=5)
    ledger.put_block(beside, nodes)
    done = roll_back(ledger, 100, NOTHING_FINAL)
    assert (done.old_height, done.head.height, done.head.hash, done.forgotten) == (600, 100, hashes[99], 501)
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert (opened.head, opened.height) == (hashes[99], 100)
        assert not opened.has_block(hashes[100])
        assert not opened.has_block(beside_hash)
        assert opened.find_transaction(compute_transaction_id(build_transfer(100))) is None
        assert len(list(opened.iterate_subject(TASK))) == 100
        assert opened.get_record(b"opening/me") == b"stays"
        assert check_ledger(opened, deep=True) == []
    extend(ledger)
    roll_back(ledger, 0, NOTHING_FINAL)
    assert (ledger.head, ledger.height) == (CHAIN, 0)
    assert check_ledger(ledger, deep=True) == []


def test_below_the_final_block_only_when_told_so(store: KeyValueStore) -> None:
    ledger, hashes = build_ledger(store, 20)
    final = Checkpoint(Height(15), hashes[14])
    with pytest.raises(LedgerError, match="height 14 is below the final block at 15"):
        roll_back(ledger, 14, final)
    assert ledger.height == 20
    assert roll_back(ledger, 15, final).head == final
    assert roll_back(ledger, 14, final, below_final=True).final == final


def test_no_head_above_itself_or_below_the_base(store: KeyValueStore) -> None:
    ledger, hashes = build_ledger(store, 20)
    ledger.delete_bodies_below(10)
    for height, text in ((21, "nothing to undo"), (-1, "nothing to undo"), (9, "begin at height 10")):
        with pytest.raises(LedgerError, match=text):
            roll_back(ledger, height, NOTHING_FINAL)
    assert ledger.head == hashes[-1]
    assert roll_back(ledger, 10, NOTHING_FINAL).head.hash == hashes[9]


def test_going_back_may_stop_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chainstore, "DELETED_AT_ONCE", 16)
    monkeypatch.setattr(rollback, "UNDONE_AT_ONCE", 16)

    def build(store: DyingStore) -> Ledger:
        return build_ledger(store, 40)[0]

    assert dies_everywhere(build, lambda ledger: roll_back(ledger, 7, NOTHING_FINAL)) >= 4


# --- migrating --------------------------------------------------------------------------------


def make_version_1(store: KeyValueStore) -> Ledger:
    """A ledger as version 1 of the schema had it."""
    ledger, _ = build_ledger(store, 3)
    old = bytes(msgpack.packb((CHAIN, ledger.head, 3)))
    store.write_batch([(schema.VERSION_KEY, schema.encode_version(1)), (schema.META_KEY, old)])
    return ledger


def test_an_older_ledger_is_not_opened_but_migrated(store: KeyValueStore) -> None:
    head = make_version_1(store).head
    with pytest.raises(SchemaError, match=r"version 2\. Got 1: run `bmif ledger migrate`"):
        Ledger.open(store, CHAIN)
    for rows in (1, 0):
        assert migrate_store(store, CHAIN) == rows
        ledger = Ledger.open(store, CHAIN)
        assert (ledger.head, ledger.height, ledger.base) == (head, 3, 0)
        assert check_ledger(ledger, deep=True) == []
    assert store.get(schema.VERSION_KEY) == schema.encode_version(2)


def test_a_migration_is_refused_where_it_does_not_fit(store: KeyValueStore) -> None:
    with pytest.raises(SchemaError, match="not a ledger"):
        migrate_store(store, CHAIN)
    make_version_1(store)
    with pytest.raises(LedgerError, match="of chain 1111"):
        migrate_store(store, Hash32(b"\x12" * 32))
    store.write_batch([(schema.VERSION_KEY, schema.encode_version(3))])
    for do in (lambda: migrate_store(store, CHAIN), lambda: Ledger.open(store, CHAIN)):
        with pytest.raises(SchemaError, match="Got 3: run the version of bmif that wrote it"):
            do()


def _double(rows: Sequence[tuple[bytes, bytes]]) -> Changes:
    """Changes that show when they are made twice, in another table."""
    puts = tuple((schema.record_key(b"copy/" + key), value + value) for key, value in rows)
    return Changes(puts)


SIZES = (*[7] * 8, 5, *[7] * 8, 4)
"""Of the batches over 61 heights and 60 bodies."""


def test_a_long_migration_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "ROWS_AT_ONCE", 7)
    plan = Migration("a test", (schema.HEIGHT_PREFIX, schema.BLOCK_PREFIX), _double)
    monkeypatch.setitem(migration.MIGRATIONS, 1, plan)
    store = DyingStore()
    build_ledger(store, 60)
    store.write_batch([(schema.VERSION_KEY, schema.encode_version(1))])
    sound = list(store.iterate(b""))
    assert migrate_store(store, CHAIN) == 61 + 60
    end, batches = list(store.iterate(b"")), 0
    while True:
        store = DyingStore()
        store.write_batch(sound)
        store.left = batches
        try:
            migrate_store(store, CHAIN)
        except StoreError:
            with pytest.raises(SchemaError, match="bmif ledger migrate"):
                Ledger.open(store, CHAIN)
            store.left = 10**9
            # What was converted is not converted again.
            assert migrate_store(store, CHAIN) == sum(SIZES[batches:])
            assert list(store.iterate(b"")) == end
            batches += 1
        else:
            break
    assert batches == len(SIZES) + 1


def test_a_damaged_note_is_refused(store: KeyValueStore) -> None:
    make_version_1(store)
    for note in (b"", bytes(7)):
        store.write_batch([(migration.PROGRESS_RECORD, note)])
        with pytest.raises(LedgerDamaged, match="how far the migration came"):
            migrate_store(store, CHAIN)
