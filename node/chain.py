"""The single writer: rules first, then the ledger, then the head.

Every block enters through `Chain.submit`. A block that passes the rules is stored with its new
state nodes in one atomic write before anything else learns of it; a block that cannot be judged yet
(parent unknown, ahead of the clock, loss ciphertext not recomputed) is kept aside, bounded, and
tried again when what it lacks arrives. Nothing that leaves the last finalised block is accepted.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from consensus.block import Block, Body, Header
from consensus.errors import Held, InvalidBlock, NeedsWork, Reason
from consensus.fork_choice import Store
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.params import Genesis
from consensus.state import State
from consensus.tree import Tree
from consensus.types import Hash32, Height, Millis, Signature
from consensus.validation import check_block, decode_block, validate_block
from consensus.versions import get_highest_version
from consensus.vote import Checkpoint
from consensus.work import LossCheck, NoProofVerifier, WorkVerifier
from node.clock import Clock
from node.crashpoints import CrashPoint, reach
from node.ledger.chainstore import HeadChange as HeadMove
from node.ledger.chainstore import Ledger
from node.ledger.store import KeyValueStore
from node.waiting import WaitingBlock, WaitingRoom

logger = logging.getLogger(__name__)

STATE_CACHE = 64
PRUNED_AT_ONCE = 128
"""The fork choice forgets what is below the final block when it is at least so many heights, and half of
all that it knows: forgetting then costs each block a few steps."""


class ImportStatus(StrEnum):
    ACCEPTED = "accepted"
    KNOWN = "known"
    ORPHAN = "orphan"
    HELD = "held"
    WAITING = "waiting"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a submitted block."""

    status: ImportStatus
    hash: Hash32 | None = None
    reason: Reason | None = None
    detail: str = ""
    peer_at_fault: bool = False
    check: LossCheck | None = None
    """The recomputation a WAITING block needs."""
    missing: Hash32 | None = None
    """The parent an ORPHAN needs."""
    until: Millis | None = None
    """When a HELD block may be tried again."""


@dataclass(frozen=True, slots=True)
class HeadChange:
    """The head moved: blocks undone (newest first) and blocks added (oldest first)."""

    old: Hash32
    new: Hash32
    disconnected: tuple[Block, ...]
    connected: tuple[Block, ...]


class Chain:
    """All blocks this node accepts, and the head among them.

    Raises:
        LedgerError: the ledger belongs to another chain or is damaged.
    """

    def __init__(
        self,
        genesis: Genesis,
        store: KeyValueStore,
        clock: Clock,
        verifier: WorkVerifier,
        known_version: int | None = None,
    ) -> None:
        """`known_version`: the newest protocol version to follow, by default the newest that there is."""
        self.genesis = genesis
        self.known_version = known_version or get_highest_version()
        self.params = genesis.params
        self.chain_id = compute_chain_id(genesis)
        self._clock = clock
        self._verifier = verifier
        self._listeners: list[Callable[[HeadChange], None]] = []
        self._accept_listeners: list[Callable[[Hash32, bytes], None]] = []
        self._block_listeners: list[Callable[[Block, bool], None]] = []
        self._final_listeners: list[Callable[[Checkpoint], None]] = []
        self._import_listeners: list[Callable[[Imported], None]] = []
        self._proved: frozenset[Hash32] = frozenset()
        self._judged = WaitingRoom()
        self._orphans = WaitingRoom()
        self._states: OrderedDict[Hash32, State] = OrderedDict()
        state = build_genesis_state(genesis)
        self._genesis_header = build_genesis_header(genesis, state)
        self.genesis_hash = compute_block_hash(self._genesis_header)
        # The genesis block has no bytes to store: every node builds it from the document.
        self._ledger = Ledger.open(store, self.genesis_hash, dict(state.tree.new_nodes()))
        self._head_hash = self._ledger.head
        self._head = self._require_header(self._head_hash)
        self._store = self._restore()
        self._final = self._store.finalized
        self._align_and_prune()

    def _align_and_prune(self) -> None:
        # Which blocks are stored decides, not in which order they came.
        self._align_head()
        self._store.prune()
        self._align_head()

    def reload(self) -> None:
        """Take the head from a ledger that took over a snapshot; nobody is told of blocks between."""
        self._states.clear()
        self._head_hash = self._ledger.head
        self._head = self._require_header(self._head_hash)
        self._store = self._restore()
        self._final = self._store.finalized
        self._align_and_prune()

    def _restore(self) -> Store:
        """The fork choice over the stored blocks from the last one that the head's state calls final."""
        final = self.head_state.get_finality().finalized
        if final.height < self._ledger.base:
            # Of what lies below a snapshot there is no state; the snapshot itself was proved final.
            base = self._ledger.base
            final = Checkpoint(base, self._require_hash(base))
        store = Store(final.hash, self._require_header(final.hash).time, final.height)
        for block_hash, header in self._ledger.iterate_headers():
            if header.height <= final.height or header.parent not in store:
                continue
            finality = State(Tree(header.state_root, self._ledger)).get_finality()
            try:
                store.on_block(
                    block_hash,
                    header.parent,
                    header.height,
                    header.time,
                    justified=finality.justified,
                    finalized=finality.finalized,
                )
            except InvalidBlock as error:
                if error.reason is not Reason.FORK_FINAL:
                    raise
        return store

    # --- reading ------------------------------------------------------------------------------

    @property
    def finalized(self) -> Checkpoint:
        """The highest block that can never be undone."""
        return self._store.finalized

    @property
    def justified(self) -> Checkpoint:
        """Where the fork choice starts from."""
        return self._store.justified

    @property
    def fork_choice(self) -> Store:
        """All blocks that may still be part of the chain, to read."""
        return self._store

    @property
    def head(self) -> Header:
        return self._head

    @property
    def head_hash(self) -> Hash32:
        return self._head_hash

    @property
    def head_state(self) -> State:
        return self.get_state(self.head_hash)

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def has_block(self, block_hash: Hash32) -> bool:
        return self._ledger.has_block(block_hash)

    def get_block(self, block_hash: Hash32) -> Block | None:
        """A stored block; genesis with an empty body and a zero signature."""
        if block_hash == self.genesis_hash:
            return Block(self._genesis_header, Signature(bytes(64)), Body((), None, ()))
        return self._ledger.load_block(block_hash)

    def get_header(self, block_hash: Hash32) -> Header | None:
        """The header of a stored block, genesis included."""
        if block_hash == self.genesis_hash:
            return self._genesis_header
        return self._ledger.get_header(block_hash)

    def get_hash_by_height(self, height: int) -> Hash32 | None:
        """The head chain's block at this height."""
        return self._ledger.get_hash_by_height(height)

    def get_state(self, block_hash: Hash32) -> State:
        """The state after a stored block.

        Raises:
            KeyError: the block is not stored.
        """
        state = self._states.get(block_hash)
        if state is None:
            header = self._require_header(block_hash)
            state = State(Tree(header.state_root, self._ledger))
        self._remember(block_hash, state)
        return state

    def _remember(self, block_hash: Hash32, state: State) -> None:
        self._states[block_hash] = state
        self._states.move_to_end(block_hash)
        while len(self._states) > STATE_CACHE:
            self._states.popitem(last=False)

    def forget_states_below(self, height: int) -> None:
        """Drop states from memory whose nodes are about to leave the ledger."""
        for block_hash in list(self._states):
            header = self.get_header(block_hash)
            if header is None or header.height < height:
                del self._states[block_hash]

    @property
    def genesis_root(self) -> Hash32:
        """Of the genesis state, which stays in every ledger."""
        return self._genesis_header.state_root

    def _require_hash(self, height: int) -> Hash32:
        found = self.get_hash_by_height(height)
        if found is None:
            raise KeyError(f"the head chain has no block at height {height}")
        return found

    def has_state(self, block_hash: Hash32) -> bool:
        """Whether the state after a block is held: not of those below a snapshot."""
        header = self.get_header(block_hash)
        return header is not None and (
            header.state_root == self._genesis_header.state_root
            or self._ledger.get_node(header.state_root) is not None
        )

    def _require_header(self, block_hash: Hash32) -> Header:
        header = self.get_header(block_hash)
        if header is None:
            raise KeyError(f"block {block_hash.hex()} is not in the ledger")
        return header

    # --- writing ------------------------------------------------------------------------------

    def on_head_change(self, listener: Callable[[HeadChange], None]) -> None:
        """Call `listener` after every change of head, in order of registration."""
        self._listeners.append(listener)

    def on_accepted(self, listener: Callable[[Hash32, bytes], None]) -> None:
        """Call `listener` with every block that is stored, at once or after it was kept aside."""
        self._accept_listeners.append(listener)

    def on_block(self, listener: Callable[[Block, bool], None]) -> None:
        """Call `listener` with every block that its proposer signed, on whatever branch, and whether it was
        found valid: what it carries may be worth knowing even if it never counts."""
        self._block_listeners.append(listener)

    def on_finalized(self, listener: Callable[[Checkpoint], None]) -> None:
        """Call `listener` with every block that becomes final, after the head's listeners; those below it
        became final too."""
        self._final_listeners.append(listener)

    def on_imported(self, listener: Callable[[Imported], None]) -> None:
        """Call `listener` with what became of every block that was judged, once for each time."""
        self._import_listeners.append(listener)

    def submit(self, data: bytes) -> Imported:
        """Judge a block's bytes; store it and move the head if it is valid."""
        try:
            block = decode_block(data, self.params)
        except InvalidBlock as error:
            outcome = Imported(ImportStatus.INVALID, None, error.reason, error.detail, error.peer_at_fault)
            self._tell_imported(outcome)
            return outcome
        outcome = self._judge(block, data)
        if outcome.status is ImportStatus.ACCEPTED:
            self._retry_children(outcome.hash)
        return outcome

    def retry(self, check: LossCheck) -> list[Imported]:
        """Try again the blocks that waited for this recomputation."""
        return self._retry_where(lambda block: block.body.work is not None and _asks(block, check))

    def note_proved(self, hashes: Iterable[Hash32]) -> None:
        """These blocks, not stored yet, lead to one that is proved final; they replace those noted before."""
        self._proved = frozenset(hashes)

    def retry_on_finality(self, check: LossCheck) -> list[Imported]:
        """Take blocks that wait for a recomputation which no blobs allow any more, if they are proved final.

        Every other rule is checked as ever; that the loss recomputes (W4) is then believed for the sake of
        the validators who found it and voted (DESIGN 3.9).
        """
        outcomes: list[Imported] = []
        for waiting in self._judged.find(lambda block: _asks(block, check)):
            parent = waiting.block.header.parent
            if waiting.hash not in self._proved or not self.has_block(parent):
                continue
            task = self.get_state(parent).get_task(check.task)
            if task is None or not task.qualified:
                continue
            self._judged.remove(waiting.hash)
            verifier = NoProofVerifier(task.qualified[0].ciphertext)
            outcome = self._judge(waiting.block, waiting.data, verifier)
            outcomes.append(outcome)
            if outcome.status is ImportStatus.ACCEPTED:
                outcomes += self._retry_children(outcome.hash)
        return outcomes

    def on_tick(self) -> list[Imported]:
        """Try again the blocks that were ahead of the clock."""
        now = self._clock.now_ms()
        return self._retry_where(
            lambda block: block.header.time <= now and self.has_block(block.header.parent)
        )

    def is_waiting(self, block_hash: Hash32) -> bool:
        """Whether the block is kept aside until it can be judged."""
        return block_hash in self._judged or block_hash in self._orphans

    def get_waiting_checks(self) -> list[LossCheck]:
        """The recomputations that blocks kept aside are waiting for."""
        return [
            LossCheck(work.task, work.step, work.weights)
            for waiting in self._judged.find(lambda block: True)
            if (work := waiting.block.body.work) is not None
        ]

    def _judge(self, block: Block, data: bytes, verifier: WorkVerifier | None = None) -> Imported:
        outcome = self._decide(block, data, verifier)
        self._tell_imported(outcome)
        return outcome

    def _tell_imported(self, outcome: Imported) -> None:
        for listener in self._import_listeners:
            listener(outcome)

    def _decide(self, block: Block, data: bytes, verifier: WorkVerifier | None) -> Imported:
        header = block.header
        block_hash = compute_block_hash(header)
        if not header.height:
            # It would hash to the chain id whatever else it says; genesis has no bytes that anyone sends.
            return Imported(ImportStatus.INVALID, None, Reason.B2_HEIGHT, "height 0", peer_at_fault=True)
        if self.has_block(block_hash):
            return Imported(ImportStatus.KNOWN, block_hash)
        parent = self.get_header(header.parent)
        waiting = WaitingBlock(block_hash, block, data)
        try:
            if parent is None:
                check_block(block, self.params, self.chain_id)
                self._orphans.add(waiting)
                self._tell_block(block, is_valid=False)
                return Imported(ImportStatus.ORPHAN, block_hash, missing=header.parent)
            if not self._store.is_extendable(header.parent):
                check_block(block, self.params, self.chain_id)
                self._tell_block(block, is_valid=False)
                detail = f"height {header.height} leaves the final block at {self.finalized.height}"
                raise InvalidBlock(Reason.FORK_FINAL, detail, peer_at_fault=False)
            state = validate_block(
                parent,
                self.get_state(header.parent),
                block,
                self.params,
                self.chain_id,
                verifier or self._verifier,
                now=self._clock.now_ms(),
                known=self.known_version,
            )
        except InvalidBlock as error:
            logger.warning("block %s refused: %s", block_hash.hex()[:12], error)
            return Imported(ImportStatus.INVALID, block_hash, error.reason, error.detail, error.peer_at_fault)
        except NeedsWork as needs:
            self._judged.add(waiting)
            self._tell_block(block, is_valid=False)
            return Imported(ImportStatus.WAITING, block_hash, check=needs.check)
        except Held as held:
            self._judged.add(waiting)
            return Imported(ImportStatus.HELD, block_hash, until=held.until)
        self._store_block(WaitingBlock(block_hash, block, data), state)
        return Imported(ImportStatus.ACCEPTED, block_hash)

    def _store_block(self, accepted: WaitingBlock, state: State) -> None:
        """Fork choice, then the ledger, then everything that has to learn of a valid block."""
        header, finality, justified = accepted.block.header, state.get_finality(), self.justified
        self._store.on_block(
            accepted.hash,
            header.parent,
            header.height,
            header.time,
            justified=finality.justified,
            finalized=finality.finalized,
        )
        change = self._get_change(accepted)
        move = None if change is None else _build_move(change)
        self._ledger.put_block(accepted.block, dict(state.tree.new_nodes()), encoded=accepted.data, head=move)
        reach(CrashPoint.CHAIN_STORED)
        state.tree.mark_stored()
        self._remember(accepted.hash, state)
        self._tell_block(accepted.block, is_valid=True)
        if change is not None:
            self._set_head(change)
        self._follow_finality(justified)
        reach(CrashPoint.CHAIN_HEAD_TAKEN)
        for listener in self._accept_listeners:
            listener(accepted.hash, accepted.data)
        reach(CrashPoint.CHAIN_ANNOUNCED)

    def _tell_block(self, block: Block, *, is_valid: bool) -> None:
        for listener in self._block_listeners:
            listener(block, is_valid)

    def _follow_finality(self, justified: Checkpoint) -> None:
        """What follows from a new final block; `justified` was the highest checkpoint before."""
        final = self._store.finalized
        if final == self._final:
            return
        self._final = final
        self._drop_dead(final.height)
        forgettable = final.height - self._store.root.height
        if forgettable >= max(PRUNED_AT_ONCE, len(self._store) // 2):
            self._store.prune()
        elif not self._store.is_viable(justified.hash):
            # It died with its branch, and what was passed over for its sake counts again.
            self._store.prune()
            self._align_head()
        for listener in self._final_listeners:
            listener(final)

    def _drop_dead(self, final: Height) -> None:
        """Forget blocks kept aside that can never be part of the chain any more."""

        def is_dead(block: Block) -> bool:
            parent = block.header.parent
            if block.header.height <= final:
                return True
            return self.has_block(parent) and not self._store.is_extendable(parent)

        for room in (self._judged, self._orphans):
            for waiting in room.find(is_dead):
                room.remove(waiting.hash)

    def _align_head(self) -> None:
        """Move the head over stored blocks to where the fork choice has it."""
        change = self._get_change()
        if change is not None:
            self._ledger.set_head(_build_move(change))
            self._set_head(change)

    def _retry_where(self, wanted: Callable[[Block], bool]) -> list[Imported]:
        outcomes: list[Imported] = []
        for waiting in self._judged.find(wanted) + self._orphans.find(wanted):
            self._judged.remove(waiting.hash)
            self._orphans.remove(waiting.hash)
            outcome = self._judge(waiting.block, waiting.data)
            outcomes.append(outcome)
            if outcome.status is ImportStatus.ACCEPTED:
                outcomes += self._retry_children(outcome.hash)
        return outcomes

    def _retry_children(self, parent: Hash32 | None) -> list[Imported]:
        return self._retry_where(lambda block: block.header.parent == parent)

    def _get_change(self, added: WaitingBlock | None = None) -> HeadChange | None:
        """How the head moves now; the fork choice may know one more block, which is not stored yet."""
        new, old = self._store.get_head(), self._head_hash
        if new == old:
            return None
        disconnected, connected = self._store.get_path(old, new)

        def get(block_hash: Hash32) -> Block:
            is_added = added is not None and added.hash == block_hash
            return added.block if is_added and added is not None else self._require_block(block_hash)

        return HeadChange(old, new, tuple(map(get, disconnected)), tuple(map(get, connected)))

    def _set_head(self, change: HeadChange) -> None:
        self._head_hash = change.new
        self._head = self._require_header(change.new)
        if change.disconnected:
            logger.info(
                "reorganised: %d blocks undone, %d added, head %s at height %d",
                len(change.disconnected),
                len(change.connected),
                change.new.hex()[:12],
                self._head.height,
            )
        for listener in self._listeners:
            listener(change)

    def _require_block(self, block_hash: Hash32) -> Block:
        block = self.get_block(block_hash)
        if block is None:
            raise KeyError(f"block {block_hash.hex()} is not in the ledger")
        return block

    def get_height(self) -> Height:
        return self._head.height


def _build_move(change: HeadChange) -> HeadMove:
    return HeadMove(
        connected=tuple(compute_block_hash(block.header) for block in change.connected),
        disconnected=tuple(compute_block_hash(block.header) for block in change.disconnected),
    )


def _asks(block: Block, check: LossCheck) -> bool:
    work = block.body.work
    return work is not None and LossCheck(work.task, work.step, work.weights) == check
