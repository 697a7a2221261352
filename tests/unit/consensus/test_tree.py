"""The state tree: reads through a source, persists only what is new, and notices damage."""

import pytest

from consensus.tree import Proof, Tree, TreeError, verify_proof
from consensus.types import ZERO_HASH, Hash32


class DictSource(dict[bytes, bytes]):
    reads = 0

    def get_node(self, node_hash: Hash32) -> bytes | None:
        self.reads += 1
        return self.get(node_hash)


def persist(tree: Tree, source: DictSource) -> int:
    nodes = tree.new_nodes()
    source.update(nodes)
    tree.mark_stored()
    return len(nodes)


def build(count: int, source: DictSource | None = None) -> Tree:
    tree = Tree(ZERO_HASH, source)
    for i in range(count):
        tree = tree.set(b"key %d" % i, b"value %d" % i)
    return tree


def test_an_empty_tree() -> None:
    tree = Tree()
    assert tree.root == ZERO_HASH
    assert tree.get(b"x") is None
    assert tree.delete(b"x") is tree
    assert tree.new_nodes() == []
    assert verify_proof(ZERO_HASH, b"x", None, tree.get_proof(b"x"))
    assert not verify_proof(ZERO_HASH, b"x", b"y", Proof((), None))


def test_old_trees_keep_their_contents() -> None:
    first = build(50)
    root = first.root
    second = first.set(b"key 7", b"other").delete(b"key 9").set(b"new", b"")
    assert (first.get(b"key 7"), first.get(b"key 9"), first.get(b"new")) == (b"value 7", b"value 9", None)
    assert (second.get(b"key 7"), second.get(b"key 9"), second.get(b"new")) == (b"other", None, b"")
    assert first.root == root != second.root
    assert second.set(b"key 7", b"value 7").set(b"key 9", b"value 9").delete(b"new").root == root


def test_setting_the_same_value_changes_nothing() -> None:
    tree = build(10)
    assert tree.set(b"key 3", b"value 3") is tree


def test_only_new_nodes_are_persisted() -> None:
    source = DictSource()
    tree = build(200, source)
    assert persist(tree, source) == 2 * 200 - 1
    assert tree.new_nodes() == []
    changed = tree.set(b"key 5", b"other")
    assert 1 < len(changed.new_nodes()) < 30
    persist(changed, source)
    assert changed.new_nodes() == []
    reopened = Tree(changed.root, source)
    assert reopened.get(b"key 5") == b"other"
    assert all(reopened.get(b"key %d" % i) == b"value %d" % i for i in range(200) if i != 5)
    assert reopened.new_nodes() == []
    assert Tree(tree.root, source).get(b"key 5") == b"value 5"


def test_a_read_loads_one_path_once() -> None:
    source = DictSource()
    tree = build(1_000, source)
    persist(tree, source)
    reopened = Tree(tree.root, source)
    source.reads = 0
    reopened.get(b"key 77")
    assert 0 < source.reads < 30
    source.reads = 0
    reopened.get(b"key 77")
    assert source.reads == 0


def test_deleting_works_on_a_reopened_tree() -> None:
    source = DictSource()
    tree = build(20, source)
    persist(tree, source)
    reopened = Tree(tree.root, source)
    for i in range(20):
        reopened = reopened.delete(b"key %d" % i)
    assert reopened.root == ZERO_HASH


def test_missing_and_damaged_nodes_are_named() -> None:
    source = DictSource()
    tree = build(20, source)
    persist(tree, source)
    damaged = DictSource(source)
    damaged[tree.root] = source[tree.root][:-1] + b"\x00"
    with pytest.raises(TreeError, match="damaged"):
        Tree(tree.root, damaged).get(b"key 1")
    with pytest.raises(TreeError, match="missing"):
        Tree(tree.root, DictSource()).get(b"key 1")
