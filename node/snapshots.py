"""Making a snapshot file from a chain, running or stopped."""

from collections.abc import Iterator

from consensus.block import Header
from consensus.light import FinalityProof, SetChange
from node.chain import Chain
from node.ledger.portable import SnapshotError, SnapshotHead, encode_snapshot
from node.sync.serving import FinalityProver


def build_snapshot(
    chain: Chain, prover: FinalityProver, height: int | None = None
) -> tuple[FinalityProof, Iterator[bytes]]:
    """The proof of the highest block that votes prove final (up to `height`), and the file piece by piece.

    The chain may go on between the pieces; a prune of that state in between makes the next piece raise.

    Raises: SnapshotError if no such block is known, or its body or what leads to its validators is missing.
    """
    proof = prover.get_proof() if height is None else prover.find_proof(height)
    if proof is None:
        what = (
            "no block is proved final yet"
            if height is None
            else f"no block near height {height} is proved final"
        )
        raise SnapshotError(f"{what} by the votes in blocks from height {chain.ledger.base} on")
    checkpoint = proof.checkpoint
    block = chain.ledger.get_block(checkpoint.hash)
    if block is None or not chain.has_state(checkpoint.hash):
        raise SnapshotError(f"the block at height {checkpoint.height} is not held whole any more")
    head = SnapshotHead(chain.chain_id, tuple(_get_changes(prover, proof)), proof)
    headers = _iterate_headers(chain, checkpoint.height)
    return proof, encode_snapshot(head, headers, block, chain.ledger.get_node)


def _get_changes(prover: FinalityProver, proof: FinalityProof) -> Iterator[SetChange]:
    for number in range(proof.source_set.validators.number):
        change = prover.get_change(number)
        if change is None:
            raise SnapshotError(f"nothing here proves what followed validator set {number}")
        yield change


def _iterate_headers(chain: Chain, top: int) -> Iterator[Header]:
    """From height 1 up to below `top`; final blocks stay what they are while the chain goes on."""
    for height in range(1, top):
        block_hash = chain.get_hash_by_height(height)
        header = None if block_hash is None else chain.get_header(block_hash)
        if header is None:
            raise SnapshotError(f"the header at height {height} is missing")
        yield header
