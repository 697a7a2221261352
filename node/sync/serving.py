"""What a node serves to those that synchronise: headers, finality proofs made from its blocks, state
nodes."""

from collections.abc import Callable, Iterator, Sequence

from consensus.block import Header
from consensus.codec import decode_stored, encode
from consensus.identifiers import compute_block_hash
from consensus.light import (
    FinalityProof,
    SetChange,
    build_set_proof,
    compute_checkpoint,
    has_quorum,
    pick_votes,
)
from consensus.state import State
from consensus.tree import Tree, get_children
from consensus.types import Hash32, Signature
from consensus.vote import Checkpoint, Vote
from node.chain import Chain
from node.gossip.messages import (
    MAX_NODES,
    MAX_NODES_BYTES,
    MAX_SET_CHANGES,
    FinalityReply,
    SignedHeader,
)

LOOK_BACK = 64
"""How far below the last final block a provable one is looked for, and..."""
LOOK_AHEAD = 64
"""...how many blocks above a block are searched for votes for it."""
MAX_CACHED_BLOCKS = 256

PROOF_RECORD = b"finality/proof"
_CHANGE_PREFIX = b"finality/change/"


def get_change_record(number: int) -> bytes:
    """The record that holds what leads from the set of this number to the next one."""
    return _CHANGE_PREFIX + number.to_bytes(8, "big")


class FinalityProver:
    """Makes proofs from the votes in the head chain's bodies.

    What a node without old bodies was given when it took over a snapshot lies in the ledger's records, and
    so does every change of set once it was asked for.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._votes: dict[Hash32, tuple[Vote, ...]] = {}
        self._proof: FinalityProof | None = None
        self._proved_at: tuple[Checkpoint, Hash32] | None = None

    def get_proof(self) -> FinalityProof | None:
        """Of the highest block that the head chain's votes prove final; None before there is one."""
        chain = self._chain
        at = (chain.finalized, chain.head_hash)
        if self._proved_at == at:
            return self._proof
        found = self._find_proof()
        if found is None and self._proof is None:
            record = chain.ledger.get_record(PROOF_RECORD)
            found = None if record is None else decode_stored(FinalityProof, record)
        if found is not None:
            self._proof = found
        self._proved_at = at
        return self._proof

    def _find_proof(self) -> FinalityProof | None:
        chain = self._chain
        top = chain.finalized.height
        known = 0 if self._proof is None else self._proof.source.height
        for height in range(top, max(known, chain.ledger.base, top - LOOK_BACK, 1) - 1, -1):
            source, target = self._get_header(height), self._get_header(height + 1)
            if source is None or target is None:
                continue
            proof = self._build_proof(source, target)
            if proof is not None:
                return proof
        return None

    def find_proof(self, top: int) -> FinalityProof | None:
        """Of the highest block up to `top`, or a few below, whose child's votes are in kept bodies."""
        top = min(top, self._chain.finalized.height)
        for height in range(top, max(self._chain.ledger.base, top - LOOK_BACK, 1) - 1, -1):
            source, target = self._get_header(height), self._get_header(height + 1)
            proof = None if source is None or target is None else self._build_proof(source, target)
            if proof is not None:
                return proof
        return None

    def _build_proof(self, source: Header, target: Header) -> FinalityProof | None:
        link = (compute_checkpoint(source), compute_checkpoint(target))
        if link[1] != Checkpoint(target.height, compute_block_hash(target)) or target.parent != link[0].hash:
            return None
        first, second = (build_set_proof(self._get_state(header)) for header in (source, target))
        for votes in self._gather(target.height):
            picked = pick_votes(votes, *link)
            if all(has_quorum(each.validators.validators, picked) for each in (first, second)):
                return FinalityProof(source, first, target, second, picked)
        return None

    def get_change(self, number: int) -> SetChange | None:
        """What leads from the set of this number to the next; None if there is no next, or nobody told."""
        record = self._chain.ledger.get_record(get_change_record(number))
        if record is not None:
            return decode_stored(SetChange, record)
        change = self._find_change(number)
        if change is not None and change.target.height <= self._chain.finalized.height:
            self._chain.ledger.put_record(get_change_record(number), encode(change))
        return change

    def _find_change(self, number: int) -> SetChange | None:
        """From the first block with the next set, look for the first that was justified."""
        chain = self._chain
        low, high = max(1, chain.ledger.base), int(chain.finalized.height)
        if high < low or self._get_number(high) <= number or self._get_number(low) > number:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._get_number(middle) <= number else (low, middle)
        for height in range(low, min(low + LOOK_AHEAD, chain.head.height)):
            header = self._get_header(height)
            change = None if header is None else self._build_change(header, number)
            if change is not None:
                return change
        return None

    def _build_change(self, target: Header, number: int) -> SetChange | None:
        state = self._get_state(target)
        before, after = state.find_validator_set(number), build_set_proof(state)
        if before is None or after.validators.number != number + 1:
            return None
        name = compute_checkpoint(target)
        for votes in self._gather(target.height):
            for source in {vote.source for vote in votes if vote.target == name}:
                picked = pick_votes(votes, source, name)
                sets = (before.validators, after.validators.validators)
                if all(has_quorum(each, picked) for each in sets):
                    return SetChange(target, after, source, picked)
        return None

    def _gather(self, height: int) -> Iterator[list[Vote]]:
        """The votes in the blocks above a height, more and more of them."""
        votes: list[Vote] = []
        for above in range(height + 1, min(height + LOOK_AHEAD, self._chain.head.height) + 1):
            found = self._get_votes(above)
            if found:
                votes += found
                yield votes

    def _get_votes(self, height: int) -> tuple[Vote, ...]:
        block_hash = self._chain.get_hash_by_height(height)
        if block_hash is None:
            return ()
        if block_hash not in self._votes:
            block = self._chain.get_block(block_hash)
            while len(self._votes) >= MAX_CACHED_BLOCKS:
                del self._votes[next(iter(self._votes))]
            self._votes[block_hash] = () if block is None else block.body.votes
        return self._votes[block_hash]

    def _get_header(self, height: int) -> Header | None:
        block_hash = self._chain.get_hash_by_height(height)
        return None if block_hash is None else self._chain.get_header(block_hash)

    def _get_state(self, header: Header) -> State:
        # Not `Chain.get_state`: a search must not push the recent states out of its cache.
        return State(Tree(header.state_root, self._chain.ledger))

    def _get_number(self, height: int) -> int:
        header = self._get_header(height)
        return 0 if header is None else self._get_state(header).get_validator_set().number


class ChainService:
    """A `ChainServer` over the chain. State nodes are served of every state that the ledger holds: of all
    blocks from its base on."""

    def __init__(self, chain: Chain, prover: FinalityProver | None = None) -> None:
        self._chain = chain
        self.prover = prover or FinalityProver(chain)

    def get_headers(self, from_height: int, count: int, *, signed: bool) -> list[SignedHeader]:
        headers = []
        for block_hash in self._chain.ledger.get_hashes(max(1, from_height), count):
            header = self._chain.get_header(block_hash)
            if header is None:
                break
            signature = self._get_signature(block_hash, header) if signed else None
            headers.append(SignedHeader(header, signature))
        return headers

    def _get_signature(self, block_hash: Hash32, header: Header) -> Signature | None:
        """Out of the block's canonical bytes, without decoding its body."""
        data = self._chain.ledger.get_block(block_hash)
        if data is None:
            return None
        at = 1 + len(encode(header)) + 2
        return Signature(data[at : at + 64])

    def get_finality(self, set_number: int) -> FinalityReply:
        proof = self.prover.get_proof()
        if proof is None:
            return FinalityReply((), None)
        last = proof.source_set.validators.number
        changes: list[SetChange] = []
        for number in range(max(0, set_number), last):
            if len(changes) == MAX_SET_CHANGES:
                return FinalityReply(tuple(changes), None)
            change = self.prover.get_change(number)
            if change is None:
                return FinalityReply(tuple(changes), None)
            changes.append(change)
        return FinalityReply(tuple(changes), proof)

    def get_state_nodes(self, nodes: Sequence[Hash32]) -> list[bytes]:
        return collect_nodes(self._chain.ledger.get_node, nodes)


def collect_nodes(get_node: Callable[[Hash32], bytes | None], nodes: Sequence[Hash32]) -> list[bytes]:
    """Those nodes, then what is below them level by level, within the bounds of a reply."""
    found: list[bytes] = []
    size, level = 0, list(dict.fromkeys(nodes))
    while level:
        below: list[Hash32] = []
        for node in level:
            data = get_node(node)
            if data is None:
                continue
            size += len(data)
            if found and (len(found) >= MAX_NODES or size > MAX_NODES_BYTES):
                return found
            found.append(data)
            below += get_children(data)
        level = below
    return found
