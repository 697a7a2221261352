"""A Merkle tree over a dictionary of bytes: path copying, lazy hashing, proofs of presence and absence.

A key's path is the 256 bits of its SHA-256. A branch names the first bit in which its two sides differ, so
the tree's shape, and with it the root, depends on the contents alone and not on their history. Nodes are
hashed when a root is asked for, hence once for a whole block and not once for each change.

    leaf   = 0x00 ‖ path (32) ‖ value
    branch = 0x01 ‖ bit (1) ‖ left hash (32) ‖ right hash (32)
    hash   = hash_domain("tree", bytes); an empty tree's root is 32 zero bytes
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from consensus.crypto import hash_domain
from consensus.types import ZERO_HASH, Hash32


class NodeSource(Protocol):
    """Where persisted nodes are read from."""

    def get_node(self, node_hash: Hash32) -> bytes | None: ...


class EmptySource:
    """A source without nodes, for trees that live in memory."""

    def get_node(self, node_hash: Hash32) -> bytes | None:
        return None


class TreeError(RuntimeError):
    """A node that the tree refers to is missing from its source or damaged there."""


class _Leaf:
    __slots__ = ("hash", "path", "stored", "value")

    def __init__(self, path: int, value: bytes) -> None:
        self.path = path
        self.value = value
        self.hash: Hash32 | None = None
        self.stored = False

    def encode(self) -> bytes:
        return b"\x00" + self.path.to_bytes(32, "big") + self.value


class _Branch:
    __slots__ = ("bit", "hash", "left", "right", "stored")

    def __init__(self, bit: int, left: "_Child", right: "_Child") -> None:
        self.bit = bit
        self.left = left
        self.right = right
        self.hash: Hash32 | None = None
        self.stored = False

    def encode(self) -> bytes:
        return b"\x01" + bytes([self.bit]) + _compute_hash(self.left) + _compute_hash(self.right)


_Node = _Leaf | _Branch
_Child = _Leaf | _Branch | bytes
"""A node, or the hash of one that has not been read from the source yet."""


def _compute_hash(child: _Child) -> Hash32:
    if isinstance(child, bytes):
        return Hash32(child)
    if child.hash is None:
        child.hash = hash_domain("tree", child.encode())
    return child.hash


def _compute_path(key: bytes) -> int:
    return int.from_bytes(sha256(key).digest(), "big")


def _decode_node(node_hash: Hash32, data: bytes) -> _Node:
    if hash_domain("tree", data) != node_hash:
        raise TreeError(f"node {node_hash.hex()} is damaged")
    node: _Node
    if len(data) >= 33 and data[0] == 0:
        node = _Leaf(int.from_bytes(data[1:33], "big"), data[33:])
    elif len(data) == 66 and data[0] == 1:
        node = _Branch(data[1], data[2:34], data[34:66])
    else:
        raise TreeError(f"node {node_hash.hex()} is neither leaf nor branch")
    node.hash = node_hash
    node.stored = True
    return node


def get_children(data: bytes) -> tuple[Hash32, ...]:
    """The hashes that a node's bytes name: left and right of a branch, none of a leaf.

    Raises: TreeError for bytes that are no node.
    """
    if len(data) == 66 and data[0] == 1:
        return Hash32(data[2:34]), Hash32(data[34:66])
    if len(data) >= 33 and data[0] == 0:
        return ()
    raise TreeError("neither leaf nor branch")


@dataclass(frozen=True, slots=True)
class ProofStep:
    bit: int
    sibling: Hash32


@dataclass(frozen=True, slots=True)
class ProofLeaf:
    path: Hash32
    value: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """The way from the root to the one leaf where a key would be; no leaf in an empty tree."""

    steps: tuple[ProofStep, ...]
    """From the root downwards."""
    leaf: ProofLeaf | None


class Tree:
    """An immutable dictionary with a root; `set` and `delete` return new trees that share nodes."""

    __slots__ = ("_source", "_top")

    def __init__(self, root: Hash32 = ZERO_HASH, source: NodeSource | None = None) -> None:
        self._source: NodeSource = source or EmptySource()
        self._top: _Child | None = None if root == ZERO_HASH else root

    def _with_top(self, top: _Child | None) -> "Tree":
        tree = Tree(ZERO_HASH, self._source)
        tree._top = top
        return tree

    @property
    def root(self) -> Hash32:
        """Commits to every key and value."""
        return ZERO_HASH if self._top is None else _compute_hash(self._top)

    def _load(self, node_hash: bytes) -> _Node:
        data = self._source.get_node(Hash32(node_hash))
        if data is None:
            raise TreeError(f"node {node_hash.hex()} is missing")
        return _decode_node(Hash32(node_hash), data)

    def _get_top(self) -> _Node | None:
        if isinstance(self._top, bytes):
            self._top = self._load(self._top)
        return self._top

    def _get_side(self, branch: _Branch, path: int) -> _Node:
        """The child on the path's side, read from the source at first use."""
        if (path >> (255 - branch.bit)) & 1:
            if isinstance(branch.right, bytes):
                branch.right = self._load(branch.right)
            return branch.right
        if isinstance(branch.left, bytes):
            branch.left = self._load(branch.left)
        return branch.left

    def _walk(self, path: int) -> tuple[list[_Branch], _Leaf | None]:
        branches: list[_Branch] = []
        node = self._get_top()
        while type(node) is _Branch:
            branches.append(node)
            node = self._get_side(node, path)
        return branches, node if type(node) is _Leaf else None

    def get(self, key: bytes) -> bytes | None:
        path = _compute_path(key)
        node = self._get_top()
        while type(node) is _Branch:
            node = self._get_side(node, path)
        return node.value if type(node) is _Leaf and node.path == path else None

    def set(self, key: bytes, value: bytes) -> "Tree":
        path = _compute_path(key)
        branches, leaf = self._walk(path)
        if leaf is None:
            return self._with_top(_Leaf(path, value))
        if leaf.path == path:
            if leaf.value == value:
                return self
            return self._rebuild(branches, path, _Leaf(path, value))
        bit = 256 - (leaf.path ^ path).bit_length()
        depth = len(branches)
        while depth and branches[depth - 1].bit > bit:
            depth -= 1
        below: _Node = branches[depth] if depth < len(branches) else leaf
        new = _Leaf(path, value)
        joint = _Branch(bit, below, new) if (path >> (255 - bit)) & 1 else _Branch(bit, new, below)
        return self._rebuild(branches[:depth], path, joint)

    def delete(self, key: bytes) -> "Tree":
        """Without the key; the same tree if it is absent."""
        path = _compute_path(key)
        branches, leaf = self._walk(path)
        if leaf is None or leaf.path != path:
            return self
        if not branches:
            return self._with_top(None)
        last = branches[-1]
        sibling = last.left if (path >> (255 - last.bit)) & 1 else last.right
        return self._rebuild(branches[:-1], path, sibling)

    def _rebuild(self, branches: list[_Branch], path: int, node: _Child) -> "Tree":
        for branch in reversed(branches):
            if (path >> (255 - branch.bit)) & 1:
                node = _Branch(branch.bit, branch.left, node)
            else:
                node = _Branch(branch.bit, node, branch.right)
        return self._with_top(node)

    def get_proof(self, key: bytes) -> Proof:
        """Shows the key's value, or its absence, to whoever knows the root."""
        path = _compute_path(key)
        branches, leaf = self._walk(path)
        steps = []
        for branch in branches:
            is_right = (path >> (255 - branch.bit)) & 1
            steps.append(ProofStep(branch.bit, _compute_hash(branch.left if is_right else branch.right)))
        if leaf is None:
            return Proof((), None)
        return Proof(tuple(steps), ProofLeaf(Hash32(leaf.path.to_bytes(32, "big")), leaf.value))

    def new_nodes(self) -> list[tuple[Hash32, bytes]]:
        """(hash, bytes) of every node that is not known to be in the source, children first."""
        result: list[tuple[Hash32, bytes]] = []

        def visit(child: _Child | None) -> None:
            if child is None or isinstance(child, bytes) or child.stored:
                return
            if type(child) is _Branch:
                visit(child.left)
                visit(child.right)
            result.append((_compute_hash(child), child.encode()))

        visit(self._top)
        return result

    def mark_stored(self) -> None:
        """Call once `new_nodes` are safely in the source: no tree that shares them lists them again."""

        def visit(child: _Child | None) -> None:
            if child is None or isinstance(child, bytes) or child.stored:
                return
            if type(child) is _Branch:
                visit(child.left)
                visit(child.right)
            child.stored = True

        visit(self._top)


def verify_proof(root: Hash32, key: bytes, value: bytes | None, proof: Proof) -> bool:
    """True exactly if under this root the key has this value, or is absent where `value` is None."""
    path = _compute_path(key)
    if proof.leaf is None:
        return root == ZERO_HASH and value is None and not proof.steps
    if len(proof.leaf.path) != 32:
        return False
    leaf_path = int.from_bytes(proof.leaf.path, "big")
    if (proof.leaf.value if leaf_path == path else None) != value:
        return False
    previous = 256
    node = hash_domain("tree", b"\x00" + proof.leaf.path + proof.leaf.value)
    for step in reversed(proof.steps):
        if not 0 <= step.bit < previous or len(step.sibling) != 32:
            return False
        previous = step.bit
        is_right = (path >> (255 - step.bit)) & 1
        # The leaf shown must itself lie on the side that the key leads to.
        if (leaf_path >> (255 - step.bit)) & 1 != is_right:
            return False
        pair = step.sibling + node if is_right else node + step.sibling
        node = hash_domain("tree", b"\x01" + bytes([step.bit]) + pair)
    return node == root
