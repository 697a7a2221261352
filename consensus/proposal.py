"""Building blocks: the best valid body from what waits, signed; and the work for a pending milestone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from consensus.block import Block, Body, Header, Work
from consensus.codec import encode
from consensus.context import BlockContext
from consensus.crypto import SigningKey
from consensus.errors import InvalidBlock, InvalidTransaction, InvalidVote, Reason
from consensus.finality import activate_set, apply_vote, get_stall_delay, is_finality_wanted
from consensus.identifiers import (
    compute_block_hash,
    compute_transactions_root,
    compute_votes_root,
    compute_weights_digest,
    compute_work_root,
)
from consensus.params import ChainParams
from consensus.settlement import apply_work
from consensus.state import State
from consensus.transaction import SignedTransaction
from consensus.transition import apply_checked_transaction, begin_block, check_transaction, end_block
from consensus.turns import (
    get_carrier_entitled_time,
    get_carrier_proposer,
    get_work_entitled_time,
    get_work_rank,
)
from consensus.types import MAX_TIME_MS, ZERO_HASH, Hash32, Height, Millis
from consensus.upgrade import build_context
from consensus.validation import check_carrier_turn, check_work
from consensus.vote import Checkpoint, Vote

__all__ = [
    "Proposal",
    "Refusal",
    "build_block",
    "build_proposal",
    "build_work",
    "get_carrier_entitled_time",
    "get_carrier_proposer",
    "get_work_entitled_time",
    "get_work_rank",
    "is_worth_making",
]

MAX_PASSES = 8
"""How often what was premature is tried again behind what it may have waited for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    transaction: SignedTransaction
    reason: Reason


@dataclass(frozen=True, slots=True)
class Proposal:
    """A signed block with its post-state, and what became of the transactions that are not in it."""

    block: Block
    state: State
    refused: tuple[Refusal, ...]
    """Invalid, and no later block can cure them."""
    premature: tuple[Refusal, ...]
    """Not valid yet: a later nonce or step, a task still unknown, and the like."""
    left_out: tuple[SignedTransaction, ...]
    """Not tried or valid, but without room in this block."""


class _Selection:
    """Takes valid transactions in the given order while there is room."""

    def __init__(self, state: State, ctx: BlockContext, room: int) -> None:
        self.state = state
        self.taken: list[SignedTransaction] = []
        self.refused: list[Refusal] = []
        self.premature: list[tuple[SignedTransaction, Hash32, Reason]] = []
        self.left_out: list[SignedTransaction] = []
        self._ctx = ctx
        self._room = room

    def offer(self, transaction: SignedTransaction) -> None:
        if len(self.taken) >= self._ctx.params.max_transactions:
            self.left_out.append(transaction)
            return
        try:
            identifier = check_transaction(transaction, self._ctx.chain_id)
        except InvalidTransaction as error:
            self.refused.append(Refusal(transaction, error.reason))
            return
        self._try(transaction, identifier)

    def retry_premature(self) -> bool:
        """Offer again what was premature; True if any of it was taken."""
        waiting, self.premature = self.premature, []
        before = len(self.taken)
        for transaction, identifier, _ in waiting:
            self._try(transaction, identifier)
        return len(self.taken) > before

    def _try(self, transaction: SignedTransaction, identifier: Hash32) -> None:
        size = len(encode(transaction))
        if size > self._room or len(self.taken) >= self._ctx.params.max_transactions:
            self.left_out.append(transaction)
            return
        try:
            self.state = apply_checked_transaction(self.state, transaction, identifier, self._ctx)
        except InvalidTransaction as error:
            if error.is_premature:
                self.premature.append((transaction, identifier, error.reason))
            else:
                self.refused.append(Refusal(transaction, error.reason))
            return
        self.taken.append(transaction)
        self._room -= size


def _select_votes(
    state: State, votes: Sequence[Vote], room: int, ctx: BlockContext
) -> tuple[State, tuple[Vote, ...]]:
    """The votes that count, in the given order while there is room."""
    taken: list[Vote] = []
    for vote in votes:
        size = len(encode(vote))
        if size > room:
            break
        try:
            state = apply_vote(state, vote, ctx.chain_id)
        except InvalidVote:
            continue
        taken.append(vote)
        room -= size
    return state, tuple(taken)


def is_worth_making(
    parent: Header, parent_state: State, proposal: Proposal, time: Millis, params: ChainParams
) -> bool:
    """Whether a carrier block serves anything: it carries transactions, or it brings finality nearer.

    The votes for its parent should come with it, or finality falls behind by a block for good; so one with
    transactions alone waits for them, as long as the chain has stood twice `min_block_ms` at most. One that
    only moves the chain on, so that votes can meet at a fresh height, is worth making after ever longer
    pauses. No rule: whoever makes more of them than this breaks none.
    """
    before, after = parent_state.get_finality(), proposal.state.get_finality()
    if proposal.block.body.transactions:
        return after.justified.height == parent.height or time >= parent.time + 2 * params.min_block_ms
    if not is_finality_wanted(parent_state):
        return False
    if (after.justified.height, after.finalized.height) > (before.justified.height, before.finalized.height):
        return True
    below = Checkpoint(parent.height, proposal.block.header.parent)
    return time >= parent.time + get_stall_delay(parent_state, below, params)


def build_proposal(
    parent: Header,
    parent_state: State,
    transactions: Sequence[SignedTransaction],
    work: Work | None,
    time: Millis,
    key: SigningKey,
    params: ChainParams,
    chain_id: Hash32,
    votes: Sequence[Vote] = (),
    known: int | None = None,
) -> Proposal:
    """A block that every node accepts (but for W4, which is the caller's to know beforehand).

    Raises: InvalidBlock if the key is not entitled to propose this at this time, UnknownVersion if the rules
    of its height are of a version above `known`.
    """
    ctx = build_context(parent_state, Height(parent.height + 1), time, params, chain_id, known)
    draft = Header(
        version=ctx.rules.number,
        chain_id=chain_id,
        height=ctx.height,
        parent=compute_block_hash(parent),
        time=time,
        proposer=key.address,
        transactions_root=ZERO_HASH,
        work_root=compute_work_root(work),
        votes_root=ZERO_HASH,
        state_root=ZERO_HASH,
    )
    if time < parent.time + params.min_block_ms:
        raise InvalidBlock(Reason.B3_EARLY, str(time))
    if time > MAX_TIME_MS:
        raise InvalidBlock(Reason.B3_RANGE, str(time))
    if work is None:
        check_carrier_turn(parent_state, draft, parent, params)
    else:
        check_work(parent_state, work, draft, parent, params)
    state = begin_block(parent_state, draft.parent, (), ctx)
    # Arrays of many entries have longer heads than empty ones: 4 bytes more at most, each.
    room = params.max_body_bytes - len(encode(Body((), work, ()))) - 8
    state, taken = _select_votes(state, votes, room, ctx)
    state = activate_set(state, time, params)
    room -= sum(len(encode(vote)) for vote in taken)
    if work is not None:
        state = apply_work(state, work, ctx)
    selection = _Selection(state, ctx, room)
    for transaction in transactions:
        selection.offer(transaction)
    for _ in range(MAX_PASSES):
        if not selection.premature or not selection.retry_premature():
            break

    body = Body(tuple(selection.taken), work, taken)
    state = end_block(selection.state, bool(work or body.transactions), ctx)
    header = replace(
        draft,
        transactions_root=compute_transactions_root(body.transactions),
        votes_root=compute_votes_root(body.votes),
        state_root=state.root,
    )
    signature = key.sign("block", compute_block_hash(header))
    premature = tuple(Refusal(transaction, reason) for transaction, _, reason in selection.premature)
    return Proposal(
        Block(header, signature, body),
        state,
        tuple(selection.refused),
        premature,
        tuple(selection.left_out),
    )


def build_block(
    parent: Header,
    parent_state: State,
    transactions: Sequence[SignedTransaction],
    work: Work | None,
    time: Millis,
    key: SigningKey,
    params: ChainParams,
    chain_id: Hash32,
    votes: Sequence[Vote] = (),
) -> tuple[Block, State, list[SignedTransaction]]:
    """The block, its post-state, and the transactions that are invalid for good.

    Raises: InvalidBlock as `build_proposal`.
    """
    proposal = build_proposal(parent, parent_state, transactions, work, time, key, params, chain_id, votes)
    return proposal.block, proposal.state, [refusal.transaction for refusal in proposal.refused]


def build_work(state: State, task: Hash32, weights: Sequence[int]) -> Work:
    """The work that takes the task's first pending milestone, met by these weights.

    Raises: ValueError if no milestone is pending or the weights are not those it was opened for.
    """
    task_state = state.get_task(task)
    if task_state is None or not task_state.qualified:
        raise ValueError(f"Expected a pending milestone of task {task.hex()}. Got none.")
    milestone = task_state.qualified[0]
    digest = compute_weights_digest(tuple(weights))
    if digest != milestone.weights_digest:
        raise ValueError(f"Expected weights {milestone.weights_digest.hex()}. Got {digest.hex()}.")
    return Work(
        task=task,
        first_rung=milestone.first_rung,
        last_rung=milestone.last_rung,
        step=milestone.step,
        loss_opening=milestone.loss_opening,
        loss=milestone.loss,
        openings=milestone.openings,
        weights=tuple(weights),
        credits=milestone.credits,
    )
