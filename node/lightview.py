"""What a node shows to light clients, each time with what it takes not to believe the node."""

from dataclasses import dataclass

from consensus.block import Header
from consensus.codec import encode
from consensus.light import SetProof, build_set_proof
from consensus.proofs import ListProof, build_list_proof
from consensus.state import State
from consensus.transaction import SignedTransaction
from consensus.tree import Proof, Tree
from consensus.types import Hash32
from node.chain import Chain
from node.gossip.messages import FinalityReply
from node.sync.serving import ChainService


@dataclass(frozen=True, slots=True)
class ProvedValue:
    """A value of the state tree, or its absence, under a final header."""

    header: Header
    value: bytes | None
    proof: Proof


@dataclass(frozen=True, slots=True)
class ProvedTransaction:
    """A transaction under its block's header."""

    header: Header
    transaction: SignedTransaction
    proof: ListProof


class Pruned(Exception):
    """It is on the chain, but its body is not held here: archive nodes have it."""


class LightView:
    """Reads of the chain; values are proved under the highest header that votes prove final."""

    def __init__(self, chain: Chain, service: ChainService) -> None:
        self._chain = chain
        self._service = service

    def get_finality(self, set_number: int) -> FinalityReply:
        return self._service.get_finality(set_number)

    def get_headers(self, from_height: int, count: int) -> list[Header]:
        """Of the head chain, ascending; genesis has none."""
        return [item.header for item in self._service.get_headers(from_height, count, signed=False)]

    def get_set(self, height: int) -> tuple[Header, SetProof] | None:
        """The head chain's header at a height and the validator set in its state, where that is held."""
        block_hash = self._chain.get_hash_by_height(height)
        header = None if block_hash is None else self._chain.get_header(block_hash)
        if header is None or block_hash is None or not height or not self._chain.has_state(block_hash):
            return None
        return header, build_set_proof(State(Tree(header.state_root, self._chain.ledger)))

    def prove_value(self, key: bytes) -> ProvedValue | None:
        """None before any block is proved final."""
        proof = self._service.prover.get_proof()
        if proof is None:
            return None
        tree = Tree(proof.source.state_root, self._chain.ledger)
        return ProvedValue(proof.source, tree.get(key), tree.get_proof(key))

    def prove_transaction(self, transaction: Hash32) -> ProvedTransaction | None:
        """None for one that is not on the head chain. Raises: Pruned."""
        location = self._chain.ledger.find_transaction(transaction)
        if location is None:
            return None
        block = self._chain.get_block(location.block)
        if block is None:
            raise Pruned(f"the block at height {location.height}")
        leaves = [encode(each) for each in block.body.transactions]
        proof = build_list_proof("transactions", leaves, location.position)
        return ProvedTransaction(block.header, block.body.transactions[location.position], proof)

    def is_pruned(self, block: Hash32) -> bool:
        """Whether a block is known here without its body."""
        return self._chain.get_header(block) is not None and self._chain.get_block(block) is None

    @property
    def base(self) -> int:
        """Lowest height whose bodies are held."""
        return self._chain.ledger.base
