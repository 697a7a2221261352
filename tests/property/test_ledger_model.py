"""The ledger against a model of dictionaries, over random trees of blocks and moves of the head."""

from hypothesis import given
from hypothesis import strategies as st

from consensus.transaction import compute_transaction_id
from consensus.types import Hash32
from node.ledger.chainstore import HeadChange, Ledger
from node.ledger.check import check_ledger
from node.ledger.schema import Location
from node.ledger.store import MemoryStore
from tests.contract.test_ledger import CHAIN, build_block, build_transfer


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.lists(st.integers(0, 5), max_size=3, unique=True)), max_size=20
    ),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_indices_are_those_of_the_head_chain(tree: list[tuple[int, list[int]]], moves: list[int]) -> None:
    store = MemoryStore()
    ledger = Ledger.open(store, CHAIN)
    path: dict[Hash32, list[Hash32]] = {CHAIN: [CHAIN]}
    carried: dict[Hash32, list[int]] = {CHAIN: []}
    for number, (choice, nonces) in enumerate(tree):
        parent = list(path)[choice % len(path)]
        # A chain holds a transaction once.
        before = {nonce for block in path[parent] for nonce in carried[block]}
        fresh = [nonce for nonce in nonces if nonce not in before]
        block, block_hash, nodes = build_block(
            parent, len(path[parent]), [build_transfer(nonce) for nonce in fresh], time=number + 1
        )
        ledger.put_block(block, nodes)
        path[block_hash] = [*path[parent], block_hash]
        carried[block_hash] = fresh

    for choice in moves:
        old, new = path[ledger.head], list(path.values())[choice % len(path)]
        common = sum(a == b for a, b in zip(old, new, strict=False))
        ledger.set_head(HeadChange(new[common:], old[common:][::-1]))
        assert (ledger.head, ledger.height) == (new[-1], len(new) - 1)

    for opened in (ledger, Ledger.open(store, CHAIN)):
        chain = path[opened.head]
        assert opened.get_hashes(0, 100) == chain
        assert {block for block, _ in opened.iterate_headers()} == set(path) - {CHAIN}
        places = {
            nonce: Location(block, height, at)
            for height, block in enumerate(chain)
            for at, nonce in enumerate(carried[block])
        }
        for nonce in range(6):
            found = opened.find_transaction(compute_transaction_id(build_transfer(nonce)))
            assert found == places.get(nonce)
        assert list(check_ledger(opened)) == []
