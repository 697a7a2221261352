"""The state tree behaves as a dictionary; its root depends on contents alone; no proof shows a lie."""

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.tree import Proof, ProofLeaf, ProofStep, Tree, verify_proof
from consensus.types import ZERO_HASH, Hash32

keys = st.integers(0, 30).map(lambda i: b"key %d" % i)
values = st.binary(max_size=3)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, values),
        st.tuples(st.just("delete"), keys, st.just(b"")),
        st.tuples(st.sampled_from(["persist", "reopen", "root"]), st.just(b""), st.just(b"")),
    ),
    max_size=60,
)


class DictSource(dict[bytes, bytes]):
    def get_node(self, node_hash: Hash32) -> bytes | None:
        return self.get(node_hash)


def persist(tree: Tree, source: DictSource) -> None:
    source.update(tree.new_nodes())
    tree.mark_stored()


@settings(deadline=None)
@given(operations)
def test_tree_behaves_as_a_dictionary(steps: list[tuple[str, bytes, bytes]]) -> None:
    source, model = DictSource(), dict[bytes, bytes]()
    tree = Tree(ZERO_HASH, source)
    for kind, key, value in steps:
        match kind:
            case "set":
                tree, model[key] = tree.set(key, value), value
            case "delete":
                tree = tree.delete(key)
                model.pop(key, None)
            case "persist":
                persist(tree, source)
            case "reopen":
                persist(tree, source)
                tree = Tree(tree.root, source)
            case "root":
                assert len(tree.root) == 32
    for i in range(31):
        key = b"key %d" % i
        assert tree.get(key) == model.get(key)
        assert verify_proof(tree.root, key, model.get(key), tree.get_proof(key))
    fresh = Tree()
    for key in sorted(model, reverse=True):
        fresh = fresh.set(key, model[key])
    assert fresh.root == tree.root
    persist(tree, source)
    assert Tree(tree.root, source).root == fresh.root


@settings(deadline=None)
@given(st.dictionaries(keys, values, max_size=20), keys, st.one_of(st.none(), values), st.data())
def test_no_proof_shows_a_lie(
    model: dict[bytes, bytes], key: bytes, claimed: bytes | None, data: st.DataObject
) -> None:
    tree = Tree()
    for each, value in model.items():
        tree = tree.set(each, value)
    # A proof for any key, changed or not, never shows another value for this key.
    proof = tree.get_proof(data.draw(keys))
    steps = list(proof.steps)
    if steps and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(steps) - 1))
        kind = data.draw(st.sampled_from(["bit", "sibling", "drop", "swap"]))
        if kind == "bit":
            steps[at] = ProofStep(data.draw(st.integers(-1, 256)), steps[at].sibling)
        elif kind == "sibling":
            steps[at] = ProofStep(steps[at].bit, Hash32(data.draw(st.binary(min_size=31, max_size=33))))
        elif kind == "drop":
            del steps[at]
        else:
            steps.reverse()
    leaf = proof.leaf
    if leaf is not None and data.draw(st.booleans()):
        leaf = data.draw(st.sampled_from([None, ProofLeaf(leaf.path, claimed or b"")]))
    if verify_proof(tree.root, key, claimed, Proof(tuple(steps), leaf)):
        assert model.get(key) == claimed
