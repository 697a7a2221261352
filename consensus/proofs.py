"""Proofs that one entry stands in a list whose Merkle root a header carries.

The tree is that of `crypto.compute_merkle_root`: pairs hashed level by level, an odd node promoted, the top
bound to the number of leaves. With index and number known, the shape of the path is known too, so a proof
has exactly one form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.crypto import hash_domain
from consensus.types import Hash32

MAX_LEAVES = 2**32
"""No list of a chain is longer; bounds the path that a proof may name."""


@dataclass(frozen=True, slots=True)
class ListProof:
    """Where a leaf stands among how many, and the siblings on its way to the top."""

    index: int
    count: int
    siblings: tuple[Hash32, ...]
    """From the leaf upwards; levels at which the node is promoted have none."""


def build_list_proof(tag: str, leaves: Sequence[bytes], index: int) -> ListProof:
    """The proof of `leaves[index]` under `compute_merkle_root(tag, leaves)`.

    Raises: IndexError if there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} among {len(leaves)}")
    level = [hash_domain(tag + "-leaf", leaf) for leaf in leaves]
    siblings: list[Hash32] = []
    at = index
    while len(level) > 1:
        if at ^ 1 < len(level):
            siblings.append(level[at ^ 1])
        pairs = [hash_domain(tag + "-node", level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            pairs.append(level[-1])
        level, at = pairs, at // 2
    return ListProof(index, len(leaves), tuple(siblings))


def verify_list_proof(root: Hash32, tag: str, leaf: bytes, proof: ListProof) -> bool:
    """True exactly if under this root the list has this leaf at this index, and is so long."""
    if not 0 <= proof.index < proof.count <= MAX_LEAVES:
        return False
    node = hash_domain(tag + "-leaf", leaf)
    at, width, used = proof.index, proof.count, 0
    while width > 1:
        if at ^ 1 < width:
            if used == len(proof.siblings) or len(proof.siblings[used]) != 32:
                return False
            sibling = proof.siblings[used]
            used += 1
            node = hash_domain(tag + "-node", sibling + node if at & 1 else node + sibling)
        at, width = at // 2, (width + 1) // 2
    if used != len(proof.siblings):
        return False
    return hash_domain(tag + "-root", proof.count.to_bytes(8, "big") + node) == root
