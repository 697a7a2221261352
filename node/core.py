"""What every service of a node shares: the chain, the mempool, claims, blobs, and one way in for each
kind of object. Services never talk to each other; they change the core and wait for its pulse.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from consensus.block import Block
from consensus.claims import Presence
from consensus.codec import CodecError, decode, encode
from consensus.crypto import SigningKey
from consensus.gossip_rules import Outcome, get_voters, judge_claim, judge_presence, judge_vote
from consensus.payload import Payload
from consensus.state import State, TaskStatus
from consensus.task import Batch, Claim, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Address, Hash32
from consensus.vote import Checkpoint, Vote, verify_vote
from node.admission import Admission, Admissions
from node.blobs import BlobStore
from node.chain import Chain, HeadChange, Imported
from node.claims import ClaimPool, compute_claim_id
from node.clock import Clock
from node.committee.exchange import CommitteeExchange
from node.committee.view import TipView
from node.draining import Drain
from node.events import EventBus
from node.fetch import BlobFetcher
from node.gossip.messages import Kind
from node.gossip.transport import Announcer
from node.history import WeightHistory
from node.ledger.schema import WORK_POSITION
from node.mempool import Mempool
from node.presence import PresenceTable, compute_presence_id
from node.pulse import Pulse
from node.skew import SkewWatch
from node.tasks import (
    TaskDefinition,
    TaskTip,
    check_definition,
    compute_tip,
    load_definition,
)
from node.votes import VotePool, compute_vote_id
from node.voting import VotingState, VotingStatus
from node.witness import VoteMemory
from node.work import WorkService

logger = logging.getLogger(__name__)

MAX_VOTES_TRIED = 256
"""Signatures checked in a block that is not valid here: whoever makes such blocks is not to keep us busy."""


class Core:
    """The shared heart of a node. Not thread-safe: everything runs on one event loop."""

    def __init__(
        self,
        chain: Chain,
        mempool: Mempool,
        blobs: BlobStore,
        work: WorkService,
        history: WeightHistory,
        events: EventBus,
        clock: Clock,
        key: SigningKey,
    ) -> None:
        self.chain = chain
        self.mempool = mempool
        self.blobs = blobs
        self.work = work
        self.history = history
        self.events = events
        self.clock = clock
        self.key = key
        self.claims = ClaimPool()
        self.presence = PresenceTable()
        self.votes = VotePool()
        self.vote_memory = VoteMemory(chain.ledger)
        self.voting = VotingStatus(VotingState.NONE)
        """Whether this node votes, as its voter says."""
        self.pulse = Pulse()
        self.admissions = Admissions(chain, mempool, clock, self.get_tip)
        self.committees = CommitteeExchange(chain, self.pulse, self.announce, self._look_at)
        """What is said of committees' openings."""
        self.drain = Drain(clock, self.pulse)
        """Whether this node still takes new work."""
        self.skew: SkewWatch | None = None
        """How far the clock is from the peers', once there is a network to ask."""
        self._announcer: Announcer | None = None
        self._fetcher: BlobFetcher | None = None
        self._definitions: dict[Hash32, TaskDefinition] = {}
        self._checks: dict[Hash32, asyncio.Lock] = {}
        self._sync_listeners: list[Callable[[], None]] = []
        self.takes_blocks = True
        """False while a snapshot is taken over: until then the ledger has to stay empty."""
        self.is_behind: Callable[[], bool] = lambda: False
        """Whether blocks that peers hold are on their way: what is made on an old head serves nobody."""
        self._vote_listeners: list[Callable[[Vote], None]] = []
        self._failure: Exception | None = None
        self._failed = asyncio.Event()
        self.votes.drop_final(chain.finalized.height)
        chain.on_block(self._on_block)
        chain.on_finalized(self._on_finalized)

    def fail(self, error: Exception) -> None:
        """End the node: it can't go on without what failed."""
        self._failure = self._failure or error
        self._failed.set()

    async def wait_failed(self) -> None:
        """Raise what ended the node, once something does."""
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    def on_sync_wanted(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a block came whose ancestors are missing, or one kept aside was stored."""
        self._sync_listeners.append(listener)

    def request_sync(self) -> None:
        for listener in self._sync_listeners:
            listener()

    def attach_network(self, announcer: Announcer, fetcher: BlobFetcher) -> None:
        """Give the core its way out; before this it is silent."""
        self._announcer = announcer
        self._fetcher = fetcher

    @property
    def fetcher(self) -> BlobFetcher:
        if self._fetcher is None:
            raise RuntimeError("the network is not attached yet")
        return self._fetcher

    @property
    def address(self) -> Address:
        return self.key.address

    # --- tasks --------------------------------------------------------------------------------

    def get_definition(self, task: Hash32) -> TaskDefinition | None:
        """A published task's definition on the head chain; it never changes, so it is kept."""
        known = self._definitions.get(task)
        if known is None:
            known = load_definition(self.chain.head_state, task)
            if known is not None:
                self._definitions[task] = known
        return known

    def get_tip(self, task: Hash32) -> TaskTip | None:
        return compute_tip(self.chain, self.mempool, task, self.clock.now_ms())

    def _look_at(self, task: Hash32) -> TipView:
        return TipView(self.get_definition(task), self.get_tip(task))

    def get_tasks(self, status: TaskStatus) -> list[Hash32]:
        """Tasks of the head's state that have this status, oldest first."""
        state = self.chain.head_state
        return [
            task_id
            for task_id in state.get_tasks()
            if (task := state.get_task(task_id)) is not None and task.status is status
        ]

    def get_open_tasks(self) -> list[Hash32]:
        return self.get_tasks(TaskStatus.OPEN)

    def get_openings(self, task: Hash32) -> list[OpenGradient | OpenLoss]:
        """All openings of a task on the head chain, in order."""
        openings = []
        for location in self.chain.ledger.iterate_subject(task):
            if location.position != WORK_POSITION:
                block = self.chain.get_block(location.block)
                payload = None if block is None else block.body.transactions[location.position].payload
                if isinstance(payload, OpenGradient | OpenLoss):
                    openings.append(payload)
        return openings

    async def hold_validation(self, definition: TaskDefinition) -> None:
        """Have the task's keys and validation batches here, each fetched and checked once.

        Raises: BlobError, WorkloadError.
        """
        await self._hold_keys(definition)
        for batch in definition.validation:
            await self._hold_batch(definition, batch, validation=True)

    async def hold_training(self, definition: TaskDefinition, batch: int) -> None:
        """Have the task's keys and one training batch here. Raises: BlobError, WorkloadError."""
        await self._hold_keys(definition)
        await self._hold_batch(definition, definition.training[batch], validation=False)

    async def _hold_keys(self, definition: TaskDefinition) -> None:
        draft = definition.draft
        check_definition(definition)
        for ref in (draft.public_key, draft.relin_keys):
            await self.fetcher.fetch(ref)
        await self._check_once(draft.relin_keys.root, lambda: self.work.check_keys(definition))

    async def _hold_batch(self, definition: TaskDefinition, batch: Batch, validation: bool) -> None:
        await self.fetcher.fetch(batch.blob)
        await self._check_once(
            batch.blob.root, lambda: self.work.check_batch(definition, batch, validation=validation)
        )

    async def _check_once(self, root: Hash32, check: Callable[[], Awaitable[None]]) -> None:
        """Run the gate over a blob the first time it is needed; later only its hash protects it."""
        lock = self._checks.setdefault(root, asyncio.Lock())
        async with lock:
            key = b"checked/" + root
            if self.chain.ledger.get_record(key) is None:
                await check()
                self.chain.ledger.put_record(key, b"1")

    # --- transactions -------------------------------------------------------------------------

    def admit(self, transaction: SignedTransaction) -> Admission:
        """Check a transaction and keep it; announce it to peers if it is new."""
        admission = self.admissions.admit(transaction)
        if admission.accepted and not admission.known:
            self.announce(Kind.TRANSACTION, admission.id, encode(transaction))
            self.pulse.beat()
        return admission

    def sign(self, payload: Payload) -> SignedTransaction:
        """Sign a payload with this node's key at its next free nonce."""
        return self.admissions.sign(self.key, payload)

    def is_pending(self, transaction: SignedTransaction) -> bool:
        return compute_transaction_id(transaction) in self.mempool

    # --- objects from peers -------------------------------------------------------------------

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        if self._announcer is not None:
            self._announcer.announce(kind, object_id, data)

    def take_block(self, data: bytes) -> Imported:
        """Submit a block. The daemon arranges what it waits for."""
        outcome = self.chain.submit(data)
        self.pulse.beat()
        return outcome

    def take_transaction(self, data: bytes, announced: Hash32) -> Outcome:
        try:
            transaction = decode(SignedTransaction, data)
        except CodecError:
            return Outcome.REJECT
        if compute_transaction_id(transaction) != announced:
            return Outcome.REJECT
        admission = self.admit(transaction)
        if admission.is_forged:
            return Outcome.REJECT
        return Outcome.ACCEPT if admission.accepted and not admission.known else Outcome.IGNORE

    def take_claim(self, data: bytes) -> Outcome:
        """Judge a claim against the task's tip: miners run ahead of the chain."""
        judgement = judge_claim(data, self._get_tip_state(data), self.chain.chain_id)
        if judgement.outcome is not Outcome.ACCEPT or judgement.claim is None:
            return judgement.outcome
        return Outcome.ACCEPT if self.add_claim(judgement.claim) else Outcome.IGNORE

    def _get_tip_state(self, data: bytes) -> State:
        try:
            claim = decode(Claim, data)
        except CodecError:
            return self.chain.head_state
        tip = self.get_tip(claim.task)
        return self.chain.head_state if tip is None else tip.chain_state

    def add_claim(self, claim: Claim) -> bool:
        """Keep a checked claim; True if it is new."""
        if not self.claims.add(compute_claim_id(claim), claim):
            return False
        self.announce_claim(claim)
        self.pulse.beat()
        return True

    def announce_claim(self, claim: Claim) -> None:
        self.announce(Kind.CLAIM, compute_claim_id(claim), encode(claim))

    def take_presence(self, data: bytes) -> Outcome:
        now = self.clock.now_ms()
        judgement = judge_presence(data, self.chain.head_state, self.chain.chain_id, now)
        presence = judgement.presence
        if judgement.outcome is not Outcome.ACCEPT or presence is None:
            return judgement.outcome
        return Outcome.ACCEPT if self.add_presence(presence) else Outcome.IGNORE

    def add_presence(self, presence: Presence) -> bool:
        """Keep and announce a checked notice; True if it is news."""
        if not self.presence.add(presence, self.clock.now_ms()):
            return False
        self.announce(Kind.PRESENCE, compute_presence_id(presence), encode(presence))
        self.pulse.beat()
        return True

    # --- votes --------------------------------------------------------------------------------

    def on_vote(self, listener: Callable[[Vote], None]) -> None:
        """Call `listener` with every vote that its validator signed, whether or not it can still count."""
        self._vote_listeners.append(listener)

    def take_vote(self, data: bytes) -> Outcome:
        chain = self.chain
        judgement = judge_vote(data, chain.head_state, chain.head.height, chain.chain_id)
        if judgement.vote is None:
            return judgement.outcome
        if judgement.outcome is not Outcome.ACCEPT:
            self.note_vote(judgement.vote)
            return judgement.outcome
        return Outcome.ACCEPT if self.add_vote(judgement.vote) else Outcome.IGNORE

    def add_vote(self, vote: Vote) -> bool:
        """Keep and announce a checked vote; True if it is news."""
        self.note_vote(vote)
        if not self.votes.add(vote):
            return False
        self.announce(Kind.VOTE, compute_vote_id(vote), encode(vote))
        self.pulse.beat()
        return True

    def note_vote(self, vote: Vote) -> None:
        """A vote was seen that its validator signed, whether or not it can still count."""
        self.vote_memory.add(vote)
        for listener in self._vote_listeners:
            listener(vote)

    def _on_block(self, block: Block, is_valid: bool) -> None:
        """Votes in blocks are votes: their blocks may be undone, and others may want them again."""
        votes = block.body.votes if is_valid else self._check_votes(block.body.votes)
        for vote in votes:
            self.note_vote(vote)
            self.votes.add(vote, in_block=is_valid)

    def _check_votes(self, votes: Sequence[Vote]) -> list[Vote]:
        """Those of a block that is not valid here which their validators signed; not too many are tried."""
        voters = get_voters(self.chain.head_state)
        news = (vote for vote in votes if compute_vote_id(vote) not in self.votes)
        tried = [vote for vote in news if vote.validator in voters]
        return [vote for vote in tried[:MAX_VOTES_TRIED] if verify_vote(self.chain.chain_id, vote)]

    def _on_finalized(self, final: Checkpoint) -> None:
        self.votes.drop_final(final.height)

    # --- objects for peers --------------------------------------------------------------------

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        match kind:
            case Kind.BLOCK:
                return self.chain.has_block(object_id) or self.chain.is_waiting(object_id)
            case Kind.TRANSACTION:
                known = self.chain.ledger.find_transaction(object_id) is not None
                return known or object_id in self.mempool
            case Kind.CLAIM:
                return self.claims.get(object_id) is not None
            case Kind.PRESENCE:
                return self.presence.get(object_id) is not None
            case Kind.VOTE:
                return object_id in self.votes
            case Kind.SEAL:
                return self.committees.seals.get(object_id) is not None
            case Kind.COMMITTEE:
                return object_id in self.committees.messages

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        """The canonical bytes of an object that this node holds."""
        found: object | None
        match kind:
            case Kind.BLOCK:
                return self.chain.ledger.get_block(object_id)  # not what is kept aside: `Handlers`
            case Kind.TRANSACTION:
                found = self.mempool.get(object_id)
            case Kind.CLAIM:
                found = self.claims.get(object_id)
            case Kind.PRESENCE:
                found = self.presence.get(object_id)
            case Kind.VOTE:
                found = self.votes.get(object_id)
            case Kind.SEAL:
                found = self.committees.seals.get(object_id)
            case Kind.COMMITTEE:
                return self.committees.messages.get(object_id)
        return None if found is None else encode(found)

    # --- the head -----------------------------------------------------------------------------

    def on_head_change(self, change: HeadChange) -> None:
        """Forget what the new blocks include; what undone blocks held may be included again."""
        for block in change.disconnected:
            for vote in block.body.votes:
                self.votes.add(vote)
        self.admissions.follow(change)
        self.committees.forget_opened()
        self.pulse.beat()
