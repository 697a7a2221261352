"""The check and the start over every store: what is damaged is named, and nothing else is."""

from collections.abc import Callable

import pytest

from consensus.codec import encode
from consensus.task import Available
from consensus.transaction import compute_transaction_id
from consensus.types import Hash32
from node.ledger import schema
from node.ledger.chainstore import Ledger, LedgerDamaged
from node.ledger.check import check_ledger
from node.ledger.indexing import compute_index
from node.ledger.store import KeyValueStore
from tests.contract.test_ledger import (
    CHAIN,
    DRAFT,
    TASK,
    build_block,
    build_node,
    build_transaction,
    build_transfer,
    extend,
    store,
)

__all__ = ["store"]


def _get_root(ledger: Ledger) -> Hash32:
    header = ledger.get_header(ledger.head)
    assert header is not None
    return header.state_root


def _write_over(key: bytes) -> Callable[[KeyValueStore], None]:
    return lambda store: store.write_batch([(key, b"\xc1 of another hand")])


def _delete(key: bytes) -> Callable[[KeyValueStore], None]:
    return lambda store: store.write_batch([], [key])


def _build_damages(ledger: Ledger) -> dict[str, tuple[Callable[[KeyValueStore], None], str]]:
    """What is done to a ledger of two blocks, and what the check must say."""
    other, other_hash, _ = build_block(CHAIN, 1, time=77)
    at_1, in_state = "at height 1", "of the state after"
    first, head = ledger.get_hashes(1, 2)
    root = _get_root(ledger)
    leaf = build_node("all of 2")[0]
    transaction = compute_transaction_id(build_transfer(0))
    header_key = schema.header_key(1, first)
    return {
        "body deleted": (
            _delete(schema.block_key(first)),
            f"blocks: block {first.hex()} {at_1} is missing",
        ),
        "body torn": (
            _write_over(schema.block_key(first)),
            f"blocks: block {first.hex()} {at_1} is damaged",
        ),
        "body of another": (
            lambda store: store.write_batch([(schema.block_key(head), encode(other))]),
            f"blocks: block {head.hex()} at height 2 is not what its header says",
        ),
        "body too many": (
            lambda store: store.write_batch([(schema.block_key(other_hash), encode(other))]),
            f"blocks: block {other_hash.hex()} has no header",
        ),
        "header deleted": (_delete(header_key), f"headers: the parent {first.hex()} of block {head.hex()}"),
        "header torn": (_write_over(header_key), f"headers: the header of block {first.hex()} at height 1"),
        "index deleted": (_delete(schema.index_key(first)), f"index: the index of block {first.hex()}"),
        "index torn": (_write_over(schema.index_key(first)), f"index: the index of block {first.hex()}"),
        "height deleted": (_delete(schema.height_key(1)), "heights: the height index at 1 is missing"),
        "height torn": (_write_over(schema.height_key(1)), "heights: the height index at 1 is not"),
        "height too many": (_write_over(schema.height_key(3)), "heights: the height index goes on above"),
        "transaction deleted": (
            _delete(schema.transaction_key(transaction)),
            f"transactions: {transaction.hex()} of block {first.hex()} is not indexed",
        ),
        "transaction torn": (
            _write_over(schema.transaction_key(transaction)),
            f"transactions: {transaction.hex()} is not indexed where it stands",
        ),
        "transaction too many": (
            _write_over(schema.transaction_key(root)),
            "transactions: the head chain",
        ),
        "subject deleted": (_delete(schema.subject_key(TASK, 1, 1)), f"subjects: {TASK.hex()}"),
        "subject too many": (_write_over(schema.subject_key(DRAFT, 1, 1)), "subjects: the head chain holds"),
        "state root deleted": (
            _delete(schema.node_key(root)),
            f"state: node {root.hex()} {in_state}",
        ),
        "state leaf deleted": (
            _delete(schema.node_key(leaf)),
            f"state: node {leaf.hex()} {in_state}",
        ),
        "state leaf torn": (_write_over(schema.node_key(leaf)), f"state: node {leaf.hex()} has another hash"),
        "row of nobody": (_write_over(b"zzz"), "database: a row of no known table"),
        "key too long": (_write_over(schema.block_key(head) + b"x"), "blocks: a key of 34 bytes"),
    }


DAMAGES = (
    "body deleted", "body torn", "body of another", "body too many", "header deleted", "header torn",
    "index deleted", "index torn", "height deleted", "height torn", "height too many", "transaction deleted",
    "transaction torn", "transaction too many", "subject deleted", "subject too many", "state root deleted",
    "state leaf deleted", "state leaf torn", "row of nobody", "key too long",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_check_names_damage(store: KeyValueStore, damage: str) -> None:
    ledger = Ledger.open(store, CHAIN)
    extend(ledger, [build_transfer(0), build_transaction(Available(TASK))])
    extend(ledger)
    damages = _build_damages(ledger)
    assert tuple(damages) == DAMAGES
    assert check_ledger(ledger, deep=True) == []
    do, expected = damages[damage]
    do(store)
    found = check_ledger(ledger)
    assert any(str(item).startswith(expected) for item in found), list(map(str, found))
    assert all(item.remedy for item in found)


def test_the_state_of_an_old_block_is_walked_by_a_deep_check_only(store: KeyValueStore) -> None:
    ledger = Ledger.open(store, CHAIN)
    first = extend(ledger)
    extend(ledger)
    leaf = build_node("all of 1")[0]
    store.write_batch([], [schema.node_key(leaf)])
    assert check_ledger(ledger) == []
    (damage,) = check_ledger(ledger, deep=True)
    assert (damage.table, damage.height, damage.block) == ("state", 1, first)


def test_a_snapshot_on_its_way_in_is_no_damage(store: KeyValueStore) -> None:
    """Killed between two batches: rows of headers high above a head that is still genesis."""
    ledger = Ledger.open(store, CHAIN)
    block, block_hash, _ = build_block(Hash32(b"\x99" * 32), 5)
    rows = [
        (schema.header_key(5, block_hash), encode(block.header)),
        (schema.index_key(block_hash), schema.encode_index(compute_index(block))),
        (schema.height_key(5), bytes(block_hash)),
    ]
    ledger.put_record(b"snapshot/headers/5", b"")
    store.write_batch(rows)
    assert check_ledger(Ledger.open(store, CHAIN), deep=True) == []
    ledger.delete_record(b"snapshot/headers/5")
    assert {damage.table for damage in check_ledger(ledger)} == {"blocks", "headers", "heights"}


@pytest.mark.parametrize(
    "damage",
    ["body deleted", "body of another", "header torn", "index torn", "height torn", "height too many",
     "state root deleted", "state leaf torn"],
)  # fmt: skip
def test_a_start_refuses_what_the_quick_check_sees(store: KeyValueStore, damage: str) -> None:
    ledger = Ledger.open(store, CHAIN)
    extend(ledger, [build_transfer(0), build_transaction(Available(TASK))])
    extend(ledger)
    _build_damages(ledger)[damage][0](store)
    with pytest.raises(LedgerDamaged):
        Ledger.open(store, CHAIN)


def test_a_start_misses_no_node_of_genesis(store: KeyValueStore) -> None:
    node, encoded = build_node("genesis")
    Ledger.open(store, CHAIN, {node: encoded})
    store.write_batch([], [schema.node_key(node)])
    with pytest.raises(LedgerDamaged, match=node.hex()):
        Ledger.open(store, CHAIN, {node: encoded})


def test_damage_found_by_a_read_is_told(store: KeyValueStore) -> None:
    ledger = Ledger.open(store, CHAIN)
    block_hash = extend(ledger)
    told: list[Exception] = []
    ledger.on_damage(told.append)
    root = _get_root(ledger)
    assert ledger.get_block(Hash32(b"\x99" * 32)) is None
    assert ledger.get_node(Hash32(b"\x99" * 32)) is None
    assert told == []
    store.write_batch([(schema.node_key(root), b"\x00")], [schema.block_key(block_hash)])
    for read in (lambda: ledger.get_node(root), lambda: ledger.get_block(block_hash)):
        with pytest.raises(LedgerDamaged):
            read()
    assert len(told) == 2
    store.write_batch([(schema.block_key(block_hash), b"\xc1")])
    with pytest.raises(LedgerDamaged, match=f"block {block_hash.hex()} is damaged"):
        ledger.load_block(block_hash)
    assert len(told) == 3
