"""Fork choice: most blocks in the subtree, ties by lowest hash; a failed call changes nothing."""

import json
from pathlib import Path

import pytest

from consensus.errors import ConsensusError, Held, InvalidBlock, Reason, UnknownParent
from consensus.fork_choice import Store
from consensus.types import Hash32, Height, Millis
from consensus.vote import Checkpoint

STEPS = Path(__file__).parents[2] / "vectors" / "fork_choice.json"


def name(text: str) -> Hash32:
    return Hash32(text.encode().ljust(32, b"\x00"))


@pytest.mark.parametrize("case", json.loads(STEPS.read_text()), ids=lambda case: case["name"])
def test_steps(case: dict[str, list[dict[str, object]]]) -> None:
    """Step files: blocks in order of arrival, some not valid, with the head after each."""
    store = Store(name("root"), Millis(0))
    for step in case["steps"]:
        arguments = (
            name(str(step["block"])),
            name(str(step["parent"])),
            Height(step["height"]),
            Millis(step["time"]),
            Millis(step.get("now", 10**6)),
        )
        before = len(store)
        if step.get("valid", True):
            store.on_block(*arguments)
        else:
            with pytest.raises(ConsensusError):
                store.on_block(*arguments)
            assert len(store) == before
        assert store.get_head() == name(str(step["head"])), step


def build_line(store: Store, parent: str, names: str, height: int) -> None:
    for offset, text in enumerate(names):
        store.on_block(name(text), name(parent), Height(height + offset), Millis(height + offset))
        parent = text


@pytest.fixture
def store() -> Store:
    """root-a-b-c-d-e with f-g from b and h from d."""
    store = Store(name("root"), Millis(0))
    build_line(store, "root", "abcde", 1)
    build_line(store, "b", "fg", 3)
    build_line(store, "d", "h", 5)
    return store


def test_reading(store: Store) -> None:
    assert store.get_head() == name("e")
    counts = {text: store.get_subtree_count(name(text)) for text in "abcdefgh"}
    assert counts == {"a": 8, "b": 7, "c": 4, "d": 3, "e": 1, "f": 2, "g": 1, "h": 1}
    assert store.get_subtree_count(name("root")) == len(store) == 9
    assert store.is_ancestor(name("b"), name("g"))
    assert store.is_ancestor(name("g"), name("g"))
    assert not store.is_ancestor(name("c"), name("g"))
    assert not store.is_ancestor(name("g"), name("b"))
    assert store.get_ancestor(name("h"), Height(2)) == name("b")
    assert store.get_common_ancestor(name("g"), name("h")) == name("b")
    assert store.get_path(name("g"), name("h")) == (
        (name("g"), name("f")),
        (name("c"), name("d"), name("h")),
    )
    assert store.get_path(name("b"), name("d")) == ((), (name("c"), name("d")))
    assert store.get_height(name("h")) == 5
    assert name("h") in store
    assert name("x") not in store
    with pytest.raises(KeyError):
        store.get_ancestor(name("b"), Height(3))


def test_a_root_above_genesis_works_alike() -> None:
    store = Store(name("root"), Millis(100), Height(70))
    previous = "root"
    for height in range(71, 120):
        store.on_block(name(str(height)), name(previous), Height(height), Millis(height + 100))
        previous = str(height)
    assert store.get_ancestor(name("119"), Height(93)) == name("93")
    assert store.get_ancestor(name("119"), Height(70)) == name("root")


def test_failed_calls_change_nothing(store: Store) -> None:
    head, count = store.get_head(), len(store)
    with pytest.raises(UnknownParent):
        store.on_block(name("x"), name("nowhere"), Height(6), Millis(6))
    with pytest.raises(InvalidBlock) as caught:
        store.on_block(name("x"), name("b"), Height(4), Millis(9))
    assert caught.value.reason == Reason.B2_HEIGHT
    with pytest.raises(InvalidBlock) as caught:
        store.on_block(name("x"), name("b"), Height(3), Millis(2))
    assert caught.value.reason == Reason.B3_EARLY
    with pytest.raises(Held) as held:
        store.on_block(name("x"), name("b"), Height(3), Millis(50), now=Millis(49))
    assert held.value.until == 50
    store.on_block(name("e"), name("d"), Height(5), Millis(5))
    assert (store.get_head(), len(store)) == (head, count)
    assert store.get_subtree_count(name("b")) == 7


def test_ten_thousand_blocks_with_a_head_after_each() -> None:
    """A long chain with a stale sibling every hundred blocks."""
    store = Store(Hash32(bytes(32)), Millis(0))
    parent = Hash32(bytes(32))
    for height in range(1, 10_001):
        block = Hash32(height.to_bytes(32, "big"))
        store.on_block(block, parent, Height(height), Millis(height))
        if height % 100 == 50:
            stale = Hash32((height + 2**32).to_bytes(32, "big"))
            store.on_block(stale, parent, Height(height), Millis(height))
        parent = block
        assert store.get_head() == block
    assert store.get_subtree_count(Hash32(bytes(32))) == len(store) == 10_101
    assert store.is_ancestor(Hash32((1).to_bytes(32, "big")), parent)


# --- checkpoints ------------------------------------------------------------------------------


def build_forked() -> Store:
    """root - a1 - a2 - a3 - a4 and root - b1 - b2; nothing is justified."""
    store = Store(name("root"), Millis(0))
    for branch, length in (("a", 4), ("b", 2)):
        parent = name("root")
        for height in range(1, length + 1):
            block = name(f"{branch}{height}")
            store.on_block(block, parent, Height(height), Millis(height * 1_000))
            parent = block
    return store


def get_checkpoint(text: str) -> Checkpoint:
    return Checkpoint(Height(int(text[1:])), name(text))


def test_the_head_descends_from_the_highest_justified_checkpoint_whatever_the_weight() -> None:
    store = build_forked()
    assert store.get_head() == name("a4")
    store.on_block(name("b3"), name("b2"), Height(3), Millis(3_000), justified=get_checkpoint("b2"))
    assert store.get_head() == name("b3")
    assert store.justified == get_checkpoint("b2")
    # A higher one on the other branch takes over.
    store.on_block(name("a5"), name("a4"), Height(5), Millis(5_000), justified=get_checkpoint("a4"))
    assert store.get_head() == name("a5")


def test_the_final_block_is_never_left() -> None:
    store = build_forked()
    store.on_block(
        name("b3"),
        name("b2"),
        Height(3),
        Millis(3_000),
        justified=get_checkpoint("b2"),
        finalized=get_checkpoint("b1"),
    )
    assert store.finalized == get_checkpoint("b1")
    for parent, height in (("a4", 5), ("root", 1)):
        with pytest.raises(InvalidBlock) as caught:
            store.on_block(name("late"), name(parent), Height(height), Millis(9_000))
        assert caught.value.reason == Reason.FORK_FINAL
        assert not caught.value.peer_at_fault
    assert store.get_head() == name("b3")
    assert not store.is_extendable(name("a4"))


def test_pruning_forgets_dead_branches_and_keeps_the_head() -> None:
    store = build_forked()
    store.on_block(
        name("b3"),
        name("b2"),
        Height(3),
        Millis(3_000),
        justified=get_checkpoint("b2"),
        finalized=get_checkpoint("b1"),
    )
    dead = store.prune()
    assert sorted(dead) == sorted(name(text) for text in ("a1", "a2", "a3", "a4"))
    assert len(store) == 3
    assert store.root == store.finalized == get_checkpoint("b1")
    assert store.justified == get_checkpoint("b2")
    assert store.get_head() == name("b3")
    store.on_block(name("b4"), name("b3"), Height(4), Millis(4_000))
    assert store.get_head() == name("b4")
    assert store.get_ancestor(name("b4"), Height(1)) == name("b1")
    with pytest.raises(UnknownParent):
        store.on_block(name("a5"), name("a4"), Height(5), Millis(5_000))


def test_what_was_justified_off_the_final_branch_no_longer_counts() -> None:
    store = build_forked()
    store.on_block(name("a5"), name("a4"), Height(5), Millis(5_000), justified=get_checkpoint("a3"))
    assert store.get_head() == name("a5")
    store.on_block(name("b3"), name("b2"), Height(3), Millis(3_000), finalized=get_checkpoint("b1"))
    assert store.justified == store.finalized == get_checkpoint("b1")
    assert store.get_head() == name("b3")
