"""The ledger over every store: indices, reorganisation, records, refusals, and nothing torn."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgpack
import pytest

from consensus.block import Block, Body, Header
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.identifiers import (
    compute_block_hash,
    compute_transactions_root,
    compute_votes_root,
    compute_work_root,
)
from consensus.payload import Payload
from consensus.task import Available, Contribute, ExpireTask, Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Address, Amount, Hash32, Height, Millis, Signature
from node.ledger import schema
from node.ledger.chainstore import HeadChange, Ledger, LedgerDamaged, LedgerError, SchemaError
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.ledger.store import KeyValueStore, MemoryStore, StoreError

CHAIN = Hash32(b"\x11" * 32)
TASK = Hash32(b"\x22" * 32)
DRAFT = Hash32(b"\x33" * 32)
ALICE = Address(b"\x44" * 32)


def build_transaction(payload: Payload, nonce: int = 0) -> SignedTransaction:
    return SignedTransaction(CHAIN, ALICE, nonce, payload, Signature(bytes(64)))


def build_transfer(nonce: int) -> SignedTransaction:
    return build_transaction(Transfer(ALICE, Amount(1)), nonce)


def build_node(value: str) -> tuple[Hash32, bytes]:
    """A leaf of a state tree, by its hash."""
    leaf = b"\x00" + bytes(32) + value.encode()
    return hash_domain("tree", leaf), leaf


def build_block(
    parent: Hash32, height: int, transactions: Sequence[SignedTransaction] = (), time: int = 0
) -> tuple[Block, Hash32, dict[Hash32, bytes]]:
    """A block with a state of its own, its hash and its state nodes."""
    left, right = build_node(f"all of {height}"), build_node(f"state of {parent.hex()} {height} {time}")
    nodes = dict([left, right])
    branch = b"\x01\x00" + left[0] + right[0]
    root = hash_domain("tree", branch)
    header = Header(
        version=1,
        chain_id=CHAIN,
        height=Height(height),
        parent=parent,
        time=Millis(time),
        proposer=ALICE,
        transactions_root=compute_transactions_root(transactions),
        work_root=compute_work_root(None),
        votes_root=compute_votes_root(()),
        state_root=root,
    )
    block = Block(header, Signature(bytes(64)), Body(tuple(transactions), None, ()))
    return block, compute_block_hash(header), nodes | {root: branch}


def extend(ledger: Ledger, transactions: Sequence[SignedTransaction] = ()) -> Hash32:
    block, block_hash, nodes = build_block(ledger.head, ledger.height + 1, transactions)
    assert ledger.put_block(block, nodes, head=HeadChange((block_hash,))) == block_hash
    return block_hash


@pytest.fixture(params=["memory", "level"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValueStore]:
    opened: KeyValueStore = MemoryStore() if request.param == "memory" else LevelStore(tmp_path / "db")
    yield opened
    opened.close()


@pytest.fixture
def ledger(store: KeyValueStore) -> Ledger:
    return Ledger.open(store, CHAIN, dict([build_node("genesis")]))


def test_a_new_ledger_stands_at_genesis(ledger: Ledger) -> None:
    assert (ledger.head, ledger.height) == (CHAIN, 0)
    assert ledger.get_hash_by_height(0) == CHAIN
    node, encoded = build_node("genesis")
    assert ledger.get_node(node) == encoded
    assert ledger.has_block(CHAIN)
    assert list(ledger.iterate_headers()) == []
    assert check_ledger(ledger) == []


def test_a_block_with_its_head_is_found_everywhere(ledger: Ledger, store: KeyValueStore) -> None:
    transactions = [build_transfer(0), build_transaction(Available(TASK))]
    block_hash = extend(ledger, transactions)
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert (opened.head, opened.height) == (block_hash, 1)
        assert opened.get_hashes(0, 10) == [CHAIN, block_hash]
        encoded = opened.get_block(block_hash)
        header = opened.get_header(block_hash)
        assert header is not None
        assert encoded == encode(Block(header, Signature(bytes(64)), Body(tuple(transactions), None, ())))
        location = opened.find_transaction(compute_transaction_id(transactions[1]))
        assert location == schema.Location(block_hash, 1, 1)
        assert list(opened.iterate_subject(TASK)) == [schema.Location(block_hash, 1, 1)]
        assert check_ledger(opened) == []


def test_subjects_are_in_chain_order(ledger: Ledger) -> None:
    contribution = build_transaction(Contribute(DRAFT, (), (), ()), 0)
    first = extend(ledger, [build_transfer(1), build_transaction(Available(TASK)), contribution])
    second = extend(ledger, [build_transaction(ExpireTask(TASK))])
    assert list(ledger.iterate_subject(TASK)) == [
        schema.Location(first, 1, 1),
        schema.Location(second, 2, 0),
    ]
    assert list(ledger.iterate_subject(DRAFT)) == [schema.Location(first, 1, 2)]


def test_headers_iterate_parents_first(ledger: Ledger) -> None:
    hashes = [extend(ledger) for _ in range(300)]
    assert [block for block, _ in ledger.iterate_headers()] == hashes


def test_a_reorganisation_moves_every_index(ledger: Ledger, store: KeyValueStore) -> None:
    shared = extend(ledger)
    both, only_old, only_new = build_transfer(0), build_transfer(1), build_transaction(Available(TASK))
    old, old_hash, old_nodes = build_block(shared, 2, [both, only_old], time=1)
    ledger.put_block(old, old_nodes, head=HeadChange((old_hash,)))
    new, new_hash, new_nodes = build_block(shared, 2, [only_new], time=2)
    ledger.put_block(new, new_nodes)
    newer, newer_hash, newer_nodes = build_block(new_hash, 3, [both], time=3)
    ledger.put_block(newer, newer_nodes)
    assert ledger.head == old_hash

    ledger.set_head(HeadChange(disconnected=[old_hash], connected=[new_hash, newer_hash]))
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert opened.get_hashes(0, 9) == [CHAIN, shared, new_hash, newer_hash]
        assert opened.find_transaction(compute_transaction_id(only_old)) is None
        assert opened.find_transaction(compute_transaction_id(both)) == schema.Location(newer_hash, 3, 0)
        assert list(opened.iterate_subject(TASK)) == [schema.Location(new_hash, 2, 0)]
        assert check_ledger(opened) == []

    ledger.set_head(HeadChange(disconnected=[newer_hash, new_hash], connected=[old_hash]))
    assert ledger.get_hashes(0, 9) == [CHAIN, shared, old_hash]
    assert list(ledger.iterate_subject(TASK)) == []
    assert check_ledger(ledger) == []


@pytest.mark.parametrize("change", ["gap", "not-head", "unknown"])
def test_a_head_change_that_does_not_fit_changes_nothing(ledger: Ledger, change: str) -> None:
    first, second = extend(ledger), extend(ledger)
    changes = {
        "gap": HeadChange((second,), (second, first)),
        "not-head": HeadChange((), (first,)),
        "unknown": HeadChange((Hash32(b"\x99" * 32),)),
    }
    with pytest.raises(LedgerError):
        ledger.set_head(changes[change])
    assert ledger.get_hashes(0, 9) == [CHAIN, first, second]
    assert check_ledger(ledger) == []


def test_a_block_without_its_parent_is_refused(ledger: Ledger) -> None:
    block, block_hash, nodes = build_block(Hash32(b"\x99" * 32), 5)
    with pytest.raises(LedgerError, match="parent"):
        ledger.put_block(block, nodes)
    assert not ledger.has_block(block_hash)


def test_records(ledger: Ledger, store: KeyValueStore) -> None:
    ledger.put_record(b"custody/a", b"1")
    ledger.put_records({b"custody/b": b"2", b"miner/a": b"3"})
    ledger.put_records({}, [b"custody/a"])
    ledger.delete_record(b"miner/a")
    reopened = Ledger.open(store, CHAIN)
    assert reopened.get_record(b"custody/a") is None
    assert list(reopened.iterate_records(b"custody/")) == [(b"custody/b", b"2")]
    assert list(reopened.iterate_records(b"miner/")) == []


def test_another_version_is_refused_with_what_to_do(store: KeyValueStore) -> None:
    Ledger.open(store, CHAIN)
    store.write_batch([(schema.VERSION_KEY, schema.encode_version(99))])
    with pytest.raises(SchemaError, match=r"Expected .* version 2\. Got 99: .*`bmif ledger rebuild`"):
        Ledger.open(store, CHAIN)


def test_another_chain_is_refused(store: KeyValueStore) -> None:
    Ledger.open(store, CHAIN)
    with pytest.raises(LedgerError, match="Got a ledger of chain 1111"):
        Ledger.open(store, Hash32(b"\x12" * 32))


def test_foreign_data_is_refused(store: KeyValueStore) -> None:
    store.write_batch([(b"x", b"y")])
    with pytest.raises(SchemaError, match="not a ledger"):
        Ledger.open(store, CHAIN)


def test_a_missing_head_block_is_named(store: KeyValueStore) -> None:
    block_hash = extend(Ledger.open(store, CHAIN))
    store.write_batch([], [schema.block_key(block_hash)])
    with pytest.raises(LedgerDamaged, match=f"block {block_hash.hex()} at height 1 is missing"):
        Ledger.open(store, CHAIN)


def test_old_bodies_go_and_the_check_knows(store: KeyValueStore) -> None:
    ledger = Ledger.open(store, CHAIN)
    hashes = [extend(ledger, [build_transfer(height)]) for height in range(600)]
    beside, beside_hash, nodes = build_block(hashes[9], 11, time=5)
    ledger.put_block(beside, nodes)
    assert ledger.delete_bodies_below(501) == 501
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert opened.base == 501
        assert opened.get_block(hashes[499]) is None
        assert opened.get_block(beside_hash) is None
        assert opened.get_block(hashes[500]) is not None
        assert opened.has_block(hashes[0])
        assert opened.find_transaction(compute_transaction_id(build_transfer(499))) is None
        assert opened.find_transaction(compute_transaction_id(build_transfer(500))) is not None
        assert opened.get_header(hashes[0]) is not None
        assert opened.get_hash_by_height(1) == hashes[0]
        assert check_ledger(opened, deep=True) == []
    assert ledger.delete_bodies_below(400) == 0
    with pytest.raises(LedgerError, match="while the head is at"):
        ledger.delete_bodies_below(601)
    with pytest.raises(LedgerError, match="below the base"):
        ledger.set_head(HeadChange((), hashes[:498:-1]))
    store.write_batch([], [schema.block_key(hashes[500])])
    assert [damage.height for damage in check_ledger(ledger)] == [501]


@pytest.mark.parametrize(
    "meta", [b"", b"\xc1", msgpack.packb((CHAIN, CHAIN)), msgpack.packb((CHAIN, b"x", 0)),
             msgpack.packb((CHAIN, CHAIN, 1, 2)), msgpack.packb((CHAIN, CHAIN, 1, 0, 0))]
)  # fmt: skip
def test_a_damaged_head_record_is_refused(store: KeyValueStore, meta: bytes) -> None:
    Ledger.open(store, CHAIN)
    store.write_batch([(schema.META_KEY, meta)])
    with pytest.raises(LedgerDamaged, match="head record"):
        Ledger.open(store, CHAIN)


class FailingStore:
    """Passes everything on until its time has come; then every write fails."""

    def __init__(self, inner: KeyValueStore) -> None:
        self._inner = inner
        self.fails = False

    def get(self, key: bytes) -> bytes | None:
        return self._inner.get(key)

    def write_batch(
        self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes] = (), sync: bool = True
    ) -> None:
        if self.fails:
            raise StoreError("no space left")
        self._inner.write_batch(puts, deletes, sync)

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._inner.iterate(prefix)

    def close(self) -> None:
        self._inner.close()


def test_a_failed_write_changes_nothing(store: KeyValueStore) -> None:
    failing = FailingStore(store)
    ledger = Ledger.open(failing, CHAIN)
    first = extend(ledger, [build_transfer(0)])
    failing.fails = True
    block, block_hash, nodes = build_block(first, 2, [build_transfer(1)])
    with pytest.raises(StoreError, match="no space"):
        ledger.put_block(block, nodes, head=HeadChange((block_hash,)))
    with pytest.raises(StoreError, match="no space"):
        ledger.set_head(HeadChange((), (first,)))
    for opened in (ledger, Ledger.open(store, CHAIN)):
        assert opened.head == first
        assert not opened.has_block(block_hash)
        assert check_ledger(opened) == []
    failing.fails = False
    ledger.put_block(block, nodes, head=HeadChange((block_hash,)))
    assert ledger.head == block_hash
