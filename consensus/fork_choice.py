"""Which branch is the head: from the highest justified checkpoint, which never leaves the last finalised one,
at every fork the child with more blocks in its subtree, ties by lowest hash (DESIGN 5).

Time is an argument, a failed call changes nothing, and the head depends on the set of blocks alone and not
on their order of arrival. Only where two conflicting checkpoints could be final, which takes a third of all
stake to break its word, does the first one known stay. Blocks between two forks form one segment, so a block
costs as many steps as there are forks below it and not as many as there are blocks.
"""

from dataclasses import dataclass, field

from consensus.errors import Held, InvalidBlock, Reason, UnknownParent
from consensus.types import Hash32, Height, Millis
from consensus.vote import Checkpoint

GENESIS_HEIGHT = Height(0)


@dataclass(slots=True, eq=False)
class _Segment:
    """A run of blocks without a fork between them."""

    first: Hash32
    last: Hash32
    parent: "_Segment | None"
    length: int
    weight: int
    """Blocks in the subtree of `first`."""
    children: list["_Segment"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Entry:
    parent: Hash32
    height: Height
    time: Millis
    skip: Hash32
    """An ancestor far below, so that looking one up takes logarithmic time."""
    segment: _Segment
    justified: Checkpoint
    finalized: Checkpoint
    """Both in the block's post-state."""


def _compute_skip_height(height: int) -> int:
    """Which ancestor a block of this height points to, relative to the root."""
    if height < 2:
        return 0

    def clear_lowest(value: int) -> int:
        return value & (value - 1)

    return clear_lowest(clear_lowest(height - 1)) + 1 if height & 1 else clear_lowest(height)


class Store:
    """All known blocks above a root that is final."""

    def __init__(self, root: Hash32, time: Millis, height: Height = GENESIS_HEIGHT) -> None:
        self._start(root, time, height)
        self.justified = self.finalized = Checkpoint(height, root)
        """The highest checkpoints that any known block's state justifies and finalises."""

    def _start(self, root: Hash32, time: Millis, height: Height) -> None:
        self._root = root
        self._root_height = height
        top = self._top = _Segment(root, root, None, 1, 1)
        checkpoint = Checkpoint(height, root)
        self._entries = {root: _Entry(root, height, time, root, top, checkpoint, checkpoint)}
        self._head: Hash32 | None = root

    def __contains__(self, block_hash: Hash32) -> bool:
        return block_hash in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def on_block(
        self,
        block_hash: Hash32,
        parent: Hash32,
        height: Height,
        time: Millis,
        now: Millis | None = None,
        justified: Checkpoint | None = None,
        finalized: Checkpoint | None = None,
    ) -> None:
        """Adds a valid block with the checkpoints of its post-state (its parent's if not given); a known one
        changes nothing.

        Raises: UnknownParent; Held with `now` before the block's time; InvalidBlock for a wrong height, a
        time that is not after the parent's, or a block that leaves the last finalised one.
        """
        if block_hash in self._entries:
            return
        below = self._entries.get(parent)
        if below is None:
            raise UnknownParent(parent.hex())
        if height != below.height + 1:
            raise InvalidBlock(Reason.B2_HEIGHT, f"expected {below.height + 1}, got {height}")
        if time <= below.time:
            raise InvalidBlock(Reason.B3_EARLY, f"{time} not after {below.time}")
        if now is not None and time > now:
            raise Held(time)
        if not self.is_extendable(parent):
            raise InvalidBlock(Reason.FORK_FINAL, f"height {height}", peer_at_fault=False)
        relative = height - self._root_height
        skip = self.get_ancestor(parent, Height(self._root_height + _compute_skip_height(relative)))
        segment = self._get_segment_above(parent, below.segment, block_hash)
        justified, finalized = justified or below.justified, finalized or below.finalized
        self._entries[block_hash] = _Entry(parent, height, time, skip, segment, justified, finalized)
        lighter: _Segment | None = segment
        while lighter is not None:
            lighter.weight += 1
            lighter = lighter.parent
        # A block on the head only adds to the branches that were chosen already.
        self._head = block_hash if self._head == parent else None
        self._note_checkpoints(justified, finalized)

    def _note_checkpoints(self, justified: Checkpoint, finalized: Checkpoint) -> None:
        # The new block descends from the final one, so what its state finalises lies on the same line.
        if finalized.height > self.finalized.height:
            self.finalized = finalized
        is_higher = justified.height > self.justified.height
        is_lower_hash = justified.height == self.justified.height and justified.hash < self.justified.hash
        if (is_higher or is_lower_hash) and self.is_viable(justified.hash):
            self.justified = justified
            self._head = None
        if not self.is_viable(self.justified.hash):
            self.justified = self.finalized
            self._head = None

    def is_extendable(self, block_hash: Hash32) -> bool:
        """Whether the block is known and is the last finalised one or descends from it."""
        return block_hash in self._entries and self.is_ancestor(self.finalized.hash, block_hash)

    def is_viable(self, block_hash: Hash32) -> bool:
        """Whether the block is known and descends from the last finalised one, or lies on the way to it."""
        if block_hash not in self._entries:
            return False
        if self._entries[block_hash].height <= self.finalized.height:
            return self.is_ancestor(block_hash, self.finalized.hash)
        return self.is_ancestor(self.finalized.hash, block_hash)

    def _get_segment_above(self, parent: Hash32, segment: _Segment, block_hash: Hash32) -> _Segment:
        """The segment that the new child of `parent` belongs to, not yet weighing it."""
        if segment.last == parent and not segment.children:
            segment.last = block_hash
            segment.length += 1
            return segment
        if segment.last != parent:
            self._split(segment, parent)
        branch = _Segment(block_hash, block_hash, segment, 1, 0)
        segment.children.append(branch)
        return branch

    def _split(self, segment: _Segment, at: Hash32) -> None:
        """Ends a segment at one of its blocks; the rest becomes its only child."""
        upper = _Segment(segment.last, segment.last, segment, 0, 0, segment.children)
        for child in upper.children:
            child.parent = upper
        block_hash = segment.last
        while block_hash != at:
            entry = self._entries[block_hash]
            entry.segment = upper
            upper.first = block_hash
            upper.length += 1
            block_hash = entry.parent
        segment.length -= upper.length
        segment.last = at
        segment.children = [upper]
        upper.weight = segment.weight - segment.length

    def get_head(self) -> Hash32:
        if self._head is None:
            segment = self._entries[self.justified.hash].segment
            while segment.children:
                segment = min(segment.children, key=lambda child: (-child.weight, child.first))
            self._head = segment.last
        return self._head

    def prune(self) -> list[Hash32]:
        """Forgets what does not descend from the last finalised block, which becomes the root.

        Returns the forgotten blocks that are on no way to it: they can never be part of the chain again.
        """
        kept: list[tuple[Height, Hash32, _Entry]] = []
        dead: list[Hash32] = []
        final = self.finalized
        for block_hash, entry in self._entries.items():
            if entry.height > final.height and self.is_ancestor(final.hash, block_hash):
                kept.append((entry.height, block_hash, entry))
            elif entry.height > final.height or not self.is_ancestor(block_hash, final.hash):
                dead.append(block_hash)
        self._start(final.hash, self._entries[final.hash].time, final.height)
        for height, block_hash, entry in sorted(kept, key=lambda item: item[:2]):
            self.on_block(
                block_hash,
                entry.parent,
                height,
                entry.time,
                justified=entry.justified,
                finalized=entry.finalized,
            )
        self._head = None
        return dead

    # --- reading ------------------------------------------------------------------------------

    @property
    def root(self) -> Checkpoint:
        """The lowest known block."""
        return Checkpoint(self._root_height, self._root)

    def get_height(self, block_hash: Hash32) -> Height:
        """Raises: KeyError if the block is unknown, like every reading method."""
        return self._entries[block_hash].height

    def get_subtree_count(self, block_hash: Hash32) -> int:
        """Number of blocks in the subtree of a block, itself included."""
        entry = self._entries[block_hash]
        first = self._entries[entry.segment.first]
        return entry.segment.weight - (entry.height - first.height)

    def get_ancestor(self, block_hash: Hash32, height: Height) -> Hash32:
        """The block's ancestor (or itself) at this height, which must not be below the root."""
        entry = self._entries[block_hash]
        if not self._root_height <= height <= entry.height:
            raise KeyError(f"no ancestor of {block_hash.hex()} at height {height}")
        while entry.height > height:
            skipped = self._entries[entry.skip]
            block_hash = entry.skip if skipped.height >= height else entry.parent
            entry = self._entries[block_hash]
        return block_hash

    def is_ancestor(self, ancestor: Hash32, block_hash: Hash32) -> bool:
        """True if `ancestor` is the block or lies below it."""
        height = self._entries[ancestor].height
        if height > self._entries[block_hash].height:
            return False
        return self.get_ancestor(block_hash, height) == ancestor

    def get_common_ancestor(self, a: Hash32, b: Hash32) -> Hash32:
        """The highest block that both descend from."""
        low, high = self._root_height, min(self._entries[a].height, self._entries[b].height)
        while low < high:
            middle = Height((low + high + 1) // 2)
            if self.get_ancestor(a, middle) == self.get_ancestor(b, middle):
                low = middle
            else:
                high = Height(middle - 1)
        return self.get_ancestor(a, low)

    def get_path(self, old: Hash32, new: Hash32) -> tuple[tuple[Hash32, ...], tuple[Hash32, ...]]:
        """(blocks to undo from `old` downwards, blocks to apply upwards to `new`)."""
        common = self.get_common_ancestor(old, new)
        undone, applied = self._get_down_to(old, common), self._get_down_to(new, common)
        return tuple(undone), tuple(reversed(applied))

    def _get_down_to(self, block_hash: Hash32, common: Hash32) -> list[Hash32]:
        path = []
        while block_hash != common:
            path.append(block_hash)
            block_hash = self._entries[block_hash].parent
        return path
