"""Pruned, rolled back and migrated ledgers under a whole chain: what the node then still can, and can't."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.voted_chain import VotedChain
from consensus.light import update_at_any_age
from consensus.task import Transfer
from consensus.transaction import compute_transaction_id
from consensus.types import Amount
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.ledger.prune import prune_steps
from node.ledger.rollback import find_final, roll_back
from node.ledger.schema import LedgerError
from node.ledger_retention import find_bound, keep_proofs, measure_bytes
from node.lightview import LightView
from node.sync.serving import ChainService
from node.sync.trust import Trust
from tests.integration.syncing import PAYERS, ChainNode, build_chain

LENGTH = 60


@pytest.fixture(scope="module")
def source() -> VotedChain:
    chain = build_chain()
    for height in range(LENGTH):
        payers = PAYERS[2 * height : 2 * height + 2]
        chain.add([chain.sign(payer, Transfer(payers[0].address, Amount(7 + height))) for payer in payers])
    return chain


@pytest.fixture
def node(source: VotedChain, tmp_path: Path) -> Iterator[ChainNode]:
    store = LevelStore(tmp_path / "ledger")
    node = ChainNode("node", source.genesis, store)
    node.fill(source.encoded[:50])
    yield node
    store.close()


def prune(node: ChainNode, height: int) -> None:
    keep_proofs(node.chain, node.service.prover)
    for done in prune_steps(node.chain.ledger, height, [node.chain.genesis_root]):
        node.chain.forget_states_below(done.base)


def test_a_pruned_node_goes_on_and_starts_again(node: ChainNode, source: VotedChain) -> None:
    bound = find_bound(node.chain, node.service.prover, 45)
    assert (bound.height, bound.why) == (45, "")
    prune(node, 45)
    node.fill(source.encoded[50:])
    again = ChainNode("again", source.genesis, node.store)
    for each in (node, again):
        assert each.chain.head_hash == source.head.hash
        assert each.chain.head_state.root == source.state.root
        assert each.chain.finalized.height >= LENGTH - 3
        assert check_ledger(each.chain.ledger, deep=True) == []
        assert not each.chain.has_state(source.get_checkpoint(44).hash)
        assert each.chain.has_state(source.get_checkpoint(45).hash)


def test_what_light_clients_need_stays(node: ChainNode, source: VotedChain) -> None:
    before = LightView(node.chain, node.service).get_finality(0)
    prune(node, 45)
    again = ChainNode("again", source.genesis, node.store)
    view = LightView(again.chain, ChainService(again.chain))
    after = view.get_finality(0)
    assert after.changes == before.changes
    assert after.proof is not None
    assert before.proof is not None
    assert after.proof.checkpoint == before.proof.checkpoint
    own = Trust(ChainNode("new", source.genesis).chain, None, again.clock).get_own()  # type: ignore[arg-type]
    assert update_at_any_age(own, after.changes, after.proof).checkpoint == before.proof.checkpoint
    assert [header.height for header in view.get_headers(1, 44)] == list(range(1, 45))
    old = compute_transaction_id(source.blocks[10].body.transactions[0])
    assert view.prove_transaction(old) is None
    new = source.blocks[45].body.transactions[0]
    proved = view.prove_transaction(compute_transaction_id(new))
    assert proved is not None
    assert proved.transaction == new
    assert view.is_pruned(source.get_checkpoint(44).hash)
    assert not view.is_pruned(source.get_checkpoint(45).hash)


def test_nothing_goes_that_is_not_proved_final(node: ChainNode) -> None:
    bound = find_bound(node.chain, node.service.prover, 50)
    proof = node.service.prover.get_proof()
    assert proof is not None
    assert bound.height == proof.source.height < 50
    assert "votes prove final" in bound.why


def test_disk_space_comes_back(source: VotedChain, tmp_path: Path) -> None:
    store = LevelStore(tmp_path / "ledger")
    node = ChainNode("node", source.genesis, store)
    node.fill(source.encoded)
    store.compact()
    before = measure_bytes(tmp_path / "ledger")
    prune(node, LENGTH - 4)
    store.compact()
    after = measure_bytes(tmp_path / "ledger")
    print(f"{before} bytes before, {after} after")
    assert after < before / 2
    store.close()
    assert (
        ChainNode("again", source.genesis, LevelStore(tmp_path / "ledger")).chain.head_hash
        == source.head.hash
    )


def test_a_node_that_went_back_comes_to_the_same_head(node: ChainNode, source: VotedChain) -> None:
    ledger = node.chain.ledger
    final = find_final(ledger)
    assert final == node.chain.finalized
    with pytest.raises(LedgerError, match="below the final block"):
        roll_back(ledger, 20, final)
    done = roll_back(ledger, 20, final, below_final=True)
    assert (done.head, done.forgotten, done.final) == (source.get_checkpoint(20), 30, final)
    assert check_ledger(ledger, deep=True) == []
    again = ChainNode("again", source.genesis, node.store)
    assert again.chain.head_hash == source.get_checkpoint(20).hash
    assert again.chain.head_state.root == source.states[20].root
    again.fill(source.encoded[20:])
    assert again.chain.head_hash == source.head.hash
    assert check_ledger(again.chain.ledger, deep=True) == []
