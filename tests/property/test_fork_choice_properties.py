"""Fork choice: the head depends on the set of blocks and not on their order of arrival."""

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import UnknownParent
from consensus.fork_choice import Store
from consensus.types import Hash32, Height, Millis

ROOT = Hash32(bytes(32))


@st.composite
def trees(draw: st.DrawFn) -> dict[Hash32, tuple[Hash32, int]]:
    """Blocks with parent and height; long runs and forks alike."""
    blocks: dict[Hash32, tuple[Hash32, int]] = {}
    names = [ROOT]
    heights = {ROOT: 0}
    for number in range(draw(st.integers(0, 25))):
        parent = names[-1] if draw(st.booleans()) else draw(st.sampled_from(names))
        name = Hash32(draw(st.binary(min_size=2, max_size=2)) + number.to_bytes(30, "big"))
        if name in heights:
            continue
        heights[name] = heights[parent] + 1
        blocks[name] = (parent, heights[name])
        names.append(name)
    return blocks


def add_all(blocks: dict[Hash32, tuple[Hash32, int]], order: list[Hash32]) -> Store:
    """Offers again what came before its parent, as a node does; asks for the head on the way."""
    store, waiting = Store(ROOT, Millis(0)), list(order)
    while waiting:
        rest = []
        for block in waiting:
            parent, height = blocks[block]
            try:
                store.on_block(block, parent, Height(height), Millis(height))
            except UnknownParent:
                rest.append(block)
            store.get_head()
        waiting = rest
    return store


def count_subtree(blocks: dict[Hash32, tuple[Hash32, int]], top: Hash32) -> int:
    return 1 + sum(count_subtree(blocks, block) for block, (parent, _) in blocks.items() if parent == top)


def find_head(blocks: dict[Hash32, tuple[Hash32, int]]) -> Hash32:
    head = ROOT
    while children := [block for block, (parent, _) in blocks.items() if parent == head]:
        head = min(children, key=lambda child: (-count_subtree(blocks, child), child))
    return head


@settings(deadline=None)
@given(trees(), st.data())
def test_order_of_arrival_does_not_matter(
    blocks: dict[Hash32, tuple[Hash32, int]], data: st.DataObject
) -> None:
    first, second = list(blocks), data.draw(st.permutations(list(blocks)))
    a, b = add_all(blocks, first), add_all(blocks, second)
    expected = find_head(blocks)
    assert a.get_head() == b.get_head() == expected
    for block in (ROOT, *blocks):
        assert a.get_subtree_count(block) == b.get_subtree_count(block) == count_subtree(blocks, block)


@settings(deadline=None)
@given(trees(), st.data())
def test_ancestors_and_paths(blocks: dict[Hash32, tuple[Hash32, int]], data: st.DataObject) -> None:
    store = add_all(blocks, list(blocks))

    def get_line(block: Hash32) -> list[Hash32]:
        line = [block]
        while line[-1] != ROOT:
            line.append(blocks[line[-1]][0])
        return line

    every = st.sampled_from([ROOT, *blocks])
    a, b = data.draw(every), data.draw(every)
    line_a, line_b = get_line(a), get_line(b)
    assert store.is_ancestor(a, b) == (a in line_b)
    common = next(block for block in line_a if block in line_b)
    assert store.get_common_ancestor(a, b) == common
    undone, applied = store.get_path(a, b)
    assert list(undone) == line_a[: line_a.index(common)]
    assert list(applied) == line_b[: line_b.index(common)][::-1]
