"""An honest node: fork choice, pools, votes, proposals, duties, evidence; all by the pure rules.

It remembers after a crash what a real one stores: its blocks in order of acceptance and how far it has
signed. It differs from a real node in that other nodes share its judgements (see `archive`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import consensus.finality
from consensus.block import Block, Header, Work
from consensus.errors import InvalidBlock, Reason, UnknownParent
from consensus.finality import is_finality_wanted
from consensus.fork_choice import Store
from consensus.proposal import (
    Proposal,
    build_proposal,
    build_work,
    get_carrier_entitled_time,
    get_work_entitled_time,
    is_worth_making,
)
from consensus.state import State, TaskStatus
from consensus.turns import get_carrier_proposer
from consensus.types import Hash32, Millis
from consensus.vote import NOTHING_SIGNED, Checkpoint, SignState, sign_vote
from tests.simulation.archive import Archive, BlockItem, TransactionItem, Violation, VoteItem
from tests.simulation.duties import Duties
from tests.simulation.engine import FAR, Engine, Network
from tests.simulation.pool import Pool
from tests.simulation.tasks import TaskBook
from tests.simulation.truth import compute_loss_ciphertext, get_key

POLL_MS = 250
ASK_BATCH = 64


class FinalListener(Protocol):
    """Told whenever a node's last finalised block changes."""

    def on_final(self, node: "Node", before: Checkpoint, after: Checkpoint) -> None: ...


@dataclass(slots=True)
class Run:
    """What all parts of one run share."""

    engine: Engine
    network: Network
    archive: Archive
    random: Random
    book: TaskBook
    is_verbose: bool = False
    nodes: list["Node"] = field(default_factory=list)
    finalisations: list[FinalListener] = field(default_factory=list)
    heads: dict[int, Hash32] = field(default_factory=dict)
    """The head over each set of blocks that any node ever held."""

    def trace(self, who: str, text: str) -> None:
        if self.is_verbose:
            print(f"{(self.engine.now - self.engine.start) / 1000:9.3f}  {who:<8} {text}")


class Node:
    """One node; Byzantine ones override what they do differently."""

    is_honest = True

    def __init__(self, run: Run, index: int, name: str, offset: int = 0, prunes: bool = False) -> None:
        self.run = run
        self.index = index
        self.name = name
        self.key = get_key(name)
        self.address = self.key.address
        self.offset = offset
        self.prunes = prunes
        self.is_up = True
        self.signed: SignState = NOTHING_SIGNED
        genesis = run.archive.genesis_item
        self.blocks: dict[Hash32, BlockItem] = {genesis.hash: genesis}
        """Stored: every block it accepted, in order."""
        self.fingerprint = 0
        """Of the set of its blocks."""
        self.blobs: set[Hash32] = set()
        """Stored: tasks whose validation blobs it holds."""
        self._start()
        run.nodes.append(self)
        run.network.nodes.append(self)

    def _start(self) -> None:
        genesis = self.run.archive.genesis_item
        self.store = Store(genesis.hash, genesis.header.time)
        self.head = genesis
        self.seen: set[object] = set()
        self.pool = Pool(self.run.archive)
        self.orphans: dict[Hash32, list[BlockItem]] = {}
        self.waiting: list[BlockItem] = []
        """Valid but for the blobs that W4 needs."""
        self.duties = Duties(self)
        self.finalized = self.store.finalized
        self.entitled = FAR
        self._wake = FAR
        self._is_dirty = False
        self.life = self.run.random.random()
        """Actions planned before a crash are not of this life."""

    @property
    def now(self) -> Millis:
        """By its own clock."""
        return Millis(self.run.engine.now + self.offset)

    @property
    def state(self) -> State:
        return self.head.get_state()

    def trace(self, text: str) -> None:
        self.run.trace(self.name, text)

    # --- crash and restart --------------------------------------------------------------------

    def crash(self) -> None:
        self.trace("crashes")
        self.is_up = False

    def restart(self) -> None:
        """From what is stored: the same blocks give the same head."""
        before = self.head
        self._start()
        self.is_up = True
        for item in self.blocks.values():
            if item.header.height == 0 or item.parent not in self.store:
                continue
            self._enter(item)
        self.head = self.blocks[self.store.get_head()]
        self.finalized = self.store.finalized
        if self.head is not before:
            raise Violation(f"{self.name} restarts at another head than it crashed at")
        self.trace(f"restarts at height {self.head.header.height}")
        self.on_head()

    def _enter(self, item: BlockItem) -> bool:
        """Tells the fork choice; False if the block leaves the last finalised one."""
        finality, header = item.get_state().get_finality(), item.header
        try:
            self.store.on_block(
                item.hash,
                item.parent,
                header.height,
                header.time,
                justified=finality.justified,
                finalized=finality.finalized,
            )
        except InvalidBlock as error:
            if error.reason is not Reason.FORK_FINAL:
                raise Violation(f"the fork choice refuses a valid block: {error}") from error
            return False
        except UnknownParent as error:
            raise Violation("the fork choice forgot a parent") from error
        return True

    # --- messages -----------------------------------------------------------------------------

    def receive(self, item: object, sender: int) -> None:
        if not self.is_up or item in self.seen:
            return
        self.seen.add(item)
        if isinstance(item, VoteItem):
            self._receive_vote(item)
        elif isinstance(item, TransactionItem):
            self._receive_transaction(item)
        elif isinstance(item, BlockItem):
            self.receive_block(item, sender)

    def _receive_vote(self, item: VoteItem) -> None:
        if not item.is_valid:
            return
        self.duties.watch_vote(item)
        if item.vote.target.height > self.store.finalized.height:
            self.pool.add_vote(item)
            self._poke()

    def _receive_transaction(self, item: TransactionItem) -> None:
        if item.problem is None:
            self.duties.watch_opening(item)
            self.pool.add(item)
            self._poke()

    def receive_block(self, item: BlockItem, sender: int) -> None:
        if not self.is_up or item.hash in self.blocks:
            return
        try:
            accepted = self._judge(item, sender)
        except InvalidBlock as error:
            self.trace(f"refuses block {item.hash.hex()[:8]} at {item.header.height}: {error}")
            return
        if accepted:
            self._accept(item, sender)

    def _judge(self, item: BlockItem, sender: int) -> bool:
        """True if the block is valid and this node has all that it takes to know.

        Raises: InvalidBlock.
        """
        archive = self.run.archive
        archive.check(item)
        if item.parent not in self.blocks:
            if item.header.height <= self.store.finalized.height:
                raise InvalidBlock(Reason.FORK_FINAL, "not above the final block", peer_at_fault=False)
            self.orphans.setdefault(item.parent, []).append(item)
            self._ask(sender, item.parent)
            return False
        if not self.store.is_extendable(item.parent):
            raise InvalidBlock(Reason.FORK_FINAL, "leaves the final block", peer_at_fault=False)
        archive.judge(item)
        if item.header.time > self.now:
            self.run.engine.at(item.header.time - self.offset, self.receive_block, item, sender)
            return False
        work = item.block.body.work
        if work is not None and work.task not in self.blobs:
            self.waiting.append(item)
            self.run.book.want_blobs(self, work.task)
            return False
        return True

    def _ask(self, peer: int, block_hash: Hash32) -> None:
        if peer != self.index:
            other = self.run.nodes[peer]
            self.run.network.call(self.index, peer, other.on_ask, self, block_hash)

    def on_ask(self, asker: "Node", block_hash: Hash32) -> None:
        item = self.blocks.get(block_hash)
        if self.is_up and item is not None and item.header.height:
            self.run.network.send(self.index, asker.index, item)

    def sync(self, peer: "Node") -> None:
        """Asks a peer for what this node has not seen."""
        if self.is_up:
            self.run.network.call(self.index, peer.index, peer.on_sync, self)

    def on_sync(self, asker: "Node") -> None:
        """Stands for an exchange of digests: sends what the asker lacks."""
        if not self.is_up:
            return
        missing: list[object] = [
            item for key, item in self.blocks.items() if key not in asker.blocks and item not in asker.seen
        ]
        missing += [item for item in self.pool.get_all() if item not in asker.seen]
        for item in missing[:ASK_BATCH]:
            self.run.network.send(self.index, asker.index, item)

    def broadcast(self, item: BlockItem | VoteItem | TransactionItem) -> None:
        self.run.network.broadcast(self.index, item, item.size)

    def submit(self, item: TransactionItem) -> None:
        """A transaction of its own, or of a client."""
        if self.is_up and item not in self.seen:
            self.receive(item, self.index)
            self.broadcast(item)

    # --- the chain ----------------------------------------------------------------------------

    def _accept(self, item: BlockItem, sender: int) -> None:
        if not self._enter(item):
            return
        self.blocks[item.hash] = item
        self.fingerprint ^= int.from_bytes(item.hash)
        for vote in item.votes:
            # Whatever branch this block is on: its votes may be wanting on the one that wins.
            if vote.vote.target.height > self.store.finalized.height:
                self.pool.add_vote(vote)
            if vote not in self.seen:
                self.seen.add(vote)
                self.duties.watch_vote(vote)
        for transaction in item.transactions:
            if transaction not in self.seen:
                self.seen.add(transaction)
                self.duties.watch_opening(transaction)
        self._relay(item, sender)
        self._update_head()
        self.on_accepted(item)
        for orphan in self.orphans.pop(item.hash, ()):
            self.receive_block(orphan, sender)

    def _relay(self, item: BlockItem, sender: int) -> None:
        """To a few, so that what was sent to some reaches all."""
        if sender == self.index:
            return
        count = min(3, len(self.run.nodes))
        targets = sorted(self.run.network.random.sample(range(len(self.run.nodes)), count))
        self.run.network.broadcast(self.index, item, item.size, [t for t in targets if t != sender])

    def on_accepted(self, item: BlockItem) -> None:
        """For those who do more with it."""

    def _update_head(self) -> None:
        new = self.store.get_head()
        if self.run.heads.setdefault(self.fingerprint, new) != new:
            raise Violation(f"{self.name}: the head depends on the order of arrival")
        if new != self.head.hash:
            undone, applied = self.store.get_path(self.head.hash, new)
            self.pool.on_reorg([self.blocks[h] for h in undone], [self.blocks[h] for h in applied])
            self.head = self.blocks[new]
            header = self.head.header
            if undone:
                self.trace(f"reorganises: {len(undone)} undone, {len(applied)} added")
            self.trace(f"head {new.hex()[:8]} at {header.height}")
            moved = True
        else:
            moved = False
        if self.store.finalized != self.finalized:
            before, self.finalized = self.finalized, self.store.finalized
            self.trace(f"final {self.finalized.hash.hex()[:8]} at {self.finalized.height}")
            for listener in self.run.finalisations:
                listener.on_final(self, before, self.finalized)
            self.pool.on_final(self.finalized.height)
            if self.prunes:
                self.store.prune()
        if moved:
            self.on_head()

    def on_head(self) -> None:
        self.vote()
        self.duties.on_head()
        self._plan()

    # --- votes --------------------------------------------------------------------------------

    def vote(self) -> None:
        head = Checkpoint(self.head.header.height, self.head.hash)
        # By module, so that a test can break the rule.
        link = consensus.finality.choose_vote(self.state, head, self.address, self.signed)
        if link is not None:
            self.cast(*link)

    def cast(self, source: Checkpoint, target: Checkpoint) -> None:
        """The sign-state is stored before the vote leaves."""
        vote = sign_vote(self.key, self.run.archive.chain_id, source, target)
        self.signed = self.signed.after(vote)
        item = self.run.archive.add_vote(vote)
        self.receive(item, self.index)
        self.broadcast(item)

    # --- proposals ----------------------------------------------------------------------------

    def wake(self, time: int) -> None:
        """Looks whether to propose at this time at the latest."""
        if time < self._wake:
            self._wake = max(time, self.run.engine.now)
            self.run.engine.at(self._wake, self._on_wake, self._wake, self.life)

    def _on_wake(self, time: int, life: float) -> None:
        if not self.is_up or life != self.life or time != self._wake:
            return
        self._wake = FAR
        if not self.propose():
            self._plan_again()

    def _poke(self) -> None:
        if not self._is_dirty and self.entitled < FAR:
            self._is_dirty = True
            self.wake(max(self.run.engine.now + POLL_MS, self.entitled))

    def _get_entitled(self, not_before: Millis) -> int:
        """When it may propose a carrier or a work block on the head, in the engine's time."""
        params, state, header = self.run.archive.params, self.state, self.head.header
        times = []
        if self.pool.has_transactions or is_finality_wanted(state):
            times.append(get_carrier_entitled_time(state, params, header, self.address, not_before))
        for task, record in self.run.archive.get_tasks(self.head):
            if record.qualified and self.can_prove(
                record.qualified[0].ciphertext, task, record.qualified[0].step
            ):
                times.append(get_work_entitled_time(state, task, self.address, header, params, not_before))
        return min((max(time, not_before) - self.offset for time in times if time is not None), default=FAR)

    def can_prove(self, ciphertext: Hash32, task: Hash32, step: int) -> bool:
        """Whether its own recomputation of the loss is done and gives what was opened."""
        weights = self.run.book.get_weights(task, step)
        if task not in self.blobs or weights is None:
            return False
        return compute_loss_ciphertext(task, step, weights) == ciphertext

    def _plan(self) -> None:
        header = self.head.header
        params = self.run.archive.params
        self._is_dirty = False
        self.entitled = FAR
        earliest = Millis(max(self.now, header.time + params.min_block_ms))
        carrier = get_carrier_entitled_time(self.state, params, header, self.address, earliest)
        if carrier is not None:
            self.entitled = carrier - self.offset
        self.wake(self._get_entitled(earliest))

    def _plan_again(self) -> None:
        """After an attempt that made nothing: at the next turn, or in this one when a stall is over."""
        params, state, header = self.run.archive.params, self.state, self.head.header
        now = self.now
        later = Millis(now + POLL_MS)
        if not self._is_dirty and get_carrier_proposer(state, params, header, now) == self.address:
            below = Checkpoint(header.height, self.head.hash)
            stall = header.time + consensus.finality.get_stall_delay(state, below, params)
            slots = (now - header.time - params.idle_ms) // params.slot_ms + 1
            turn_over = header.time + params.idle_ms + slots * params.slot_ms
            later = Millis(max(later, min(turn_over, stall) if stall > now else turn_over))
        self._is_dirty = False
        self.wake(self._get_entitled(later))

    def propose(self) -> bool:
        """Makes one block if it is entitled to one now; True if the head moved."""
        archive, state, header, now = self.run.archive, self.state, self.head.header, self.now
        if now < header.time + archive.params.min_block_ms:
            return False
        for task, record in archive.get_tasks(self.head):
            if record.status != TaskStatus.OPEN or not record.qualified:
                continue
            milestone = record.qualified[0]
            weights = self.run.book.get_weights(task, milestone.step)
            if weights is None or not self.can_prove(milestone.ciphertext, task, milestone.step):
                continue
            proposal = self.build(build_work(state, task, weights), now)
            if proposal is not None:
                return self.publish(proposal)
        if get_carrier_proposer(state, archive.params, header, now) != self.address:
            return False
        if not self.pool.has_transactions and not is_finality_wanted(state):
            return False
        proposal = self.build(None, now)
        if proposal is None or not is_worth_making(header, state, proposal, now, archive.params):
            return False
        return self.publish(proposal)

    def get_candidate_votes(self, head: BlockItem) -> list[VoteItem]:
        """Votes for the head and what is below it down to the last final block, highest first."""
        found: list[VoteItem] = []
        state = head.get_state()
        final = state.get_finality().finalized.height
        item = head
        while item.header.height > final:
            record = state.get_checkpoint(item.header.height)
            if record is None or not record.is_justified:
                voters = set(record.voters if record else ())
                votes = self.pool.get_votes(item.hash)
                found += [vote for vote in votes if vote.vote.validator not in voters]
            item = self.run.archive.valid[item.parent]
        return found

    def build(
        self,
        work: Work | None,
        now: Millis,
        on: BlockItem | None = None,
        transactions: Iterable[TransactionItem] | None = None,
        votes: Iterable[VoteItem] | None = None,
    ) -> Proposal | None:
        archive, parent = self.run.archive, on or self.head
        candidates = list(self.pool.get_candidates() if transactions is None else transactions)
        try:
            proposal = build_proposal(
                parent.header,
                parent.get_state(),
                [item.transaction for item in candidates],
                work,
                now,
                self.key,
                archive.params,
                archive.chain_id,
                [item.vote for item in (self.get_candidate_votes(parent) if votes is None else votes)],
            )
        except InvalidBlock as error:
            archive.count_reason(error.reason)
            return None
        for refusal in proposal.refused:
            archive.count_reason(refusal.reason)
            if parent is self.head:
                self.pool.remove(archive.add_transaction(refusal.transaction))
        return proposal

    def publish(self, proposal: Proposal) -> bool:
        """Enters its own block by the rules, like any other, and sends it."""
        item = self.run.archive.add_block(proposal.block)
        self._trace_block(proposal.block)
        self.seen.add(item)
        self.receive_block(item, self.index)
        if item.problem is not None:
            raise Violation(f"{self.name} built a block that the rules refuse: {item.problem}")
        self.broadcast(item)
        return self.head is item

    def _trace_block(self, block: Block) -> None:
        header: Header = block.header
        body = block.body
        kinds = [type(transaction.payload).__name__ for transaction in body.transactions]
        work = f", work {body.work.first_rung}-{body.work.last_rung}" if body.work else ""
        self.trace(f"proposes {header.height}: {len(body.votes)} votes{work}, {kinds}")

    # --- blobs --------------------------------------------------------------------------------

    def on_blobs(self, task: Hash32) -> None:
        """Its blobs have arrived."""
        if not self.is_up or task in self.blobs:
            return
        self.blobs.add(task)
        waiting, self.waiting = self.waiting, []
        for item in waiting:
            self.receive_block(item, self.index)
        self.duties.on_head()
        self._plan()
