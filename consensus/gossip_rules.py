"""What a node does with an announced object: accept and relay it, ignore it, or reject it and its sender.

Pure functions of the object, the state at the head and the time. Rejected is only what no honest node can
have relayed: bytes, chain or signature are wrong whatever the state. What another state might make valid is
ignored, so that honest relays are never blamed.
"""

from dataclasses import dataclass
from enum import StrEnum

from consensus.claims import Presence, verify_claim, verify_presence, verify_sealed_claim
from consensus.codec import CodecError, decode
from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.publication import get_step_batches
from consensus.state import State, TaskState, TaskStatus
from consensus.task import Claim, PublishTask, SealedClaim
from consensus.transaction import MAX_TRANSACTION_BYTES, SignedTransaction
from consensus.transition import apply_checked_transaction, check_transaction
from consensus.types import ZERO_HASH, Address, Hash32, Height, Millis
from consensus.vote import Vote, verify_vote

MAX_CLAIM_BYTES = 512
MAX_PRESENCE_BYTES = 256
MAX_VOTE_BYTES = 256
VOTE_HORIZON = 1_024
"""How far above the head a vote's target may lie."""
PRESENCE_SKEW_MS = 60_000
"""How far a presence's time may be from the clock."""


class Outcome(StrEnum):
    ACCEPT = "accept"
    """Keep and relay."""
    IGNORE = "ignore"
    """Drop without blame."""
    REJECT = "reject"
    """Drop, and score the sender down."""


@dataclass(frozen=True, slots=True)
class Judgement:
    outcome: Outcome
    detail: str = ""
    reason: Reason | None = None
    transaction: SignedTransaction | None = None
    claim: Claim | None = None
    sealed: SealedClaim | None = None
    presence: Presence | None = None
    vote: Vote | None = None
    """Whatever the outcome, one that its validator signed."""


def judge_transaction(data: bytes, state: State, ctx: BlockContext) -> Judgement:
    """A transaction's bytes against the head; premature ones are accepted, to wait."""
    if len(data) > MAX_TRANSACTION_BYTES:
        return Judgement(Outcome.REJECT, f"{len(data)} bytes", Reason.TX_OVERSIZE)
    try:
        transaction = decode(SignedTransaction, data)
    except CodecError as error:
        return Judgement(Outcome.REJECT, str(error), Reason.TX_MALFORMED)
    try:
        identifier = check_transaction(transaction, ctx.chain_id)
    except InvalidTransaction as error:
        return Judgement(Outcome.REJECT, error.detail, error.reason)
    try:
        apply_checked_transaction(state, transaction, identifier, ctx)
    except InvalidTransaction as error:
        outcome = Outcome.ACCEPT if error.is_premature else Outcome.IGNORE
        return Judgement(outcome, error.detail, error.reason, transaction)
    return Judgement(Outcome.ACCEPT, transaction=transaction)


def judge_claim(data: bytes, state: State, chain_id: Hash32) -> Judgement:
    """A miner's claim for the current step of an open task, or for the next one."""
    if len(data) > MAX_CLAIM_BYTES:
        return Judgement(Outcome.REJECT, f"{len(data)} bytes")
    try:
        claim = decode(Claim, data)
    except CodecError as error:
        return Judgement(Outcome.REJECT, str(error))
    task_state, publication = state.get_task(claim.task), state.get_publication(claim.task)
    if task_state is None or publication is None:
        return Judgement(Outcome.IGNORE, "unknown task", claim=claim)
    if claim.step < 0 or claim.bundle.length <= 0:
        return Judgement(Outcome.REJECT, "step or length out of range", claim=claim)
    if claim.batch not in get_step_batches(publication, claim.step):
        return Judgement(Outcome.REJECT, "no batch of this step", claim=claim)
    if not verify_claim(chain_id, claim):
        return Judgement(Outcome.REJECT, "signature", claim=claim)
    if _is_of_committee(state, publication):
        # Whoever reads it could claim the batch without having computed it.
        return Judgement(Outcome.IGNORE, "a committee's claims are sealed", claim=claim)
    late = _find_late(state, task_state, claim)
    return Judgement(Outcome.ACCEPT if late is None else Outcome.IGNORE, late or "", claim=claim)


def judge_sealed_claim(data: bytes, state: State, chain_id: Hash32) -> Judgement:
    """A miner's seal of a bundle, for the current step of a committee's open task, or for the next one."""
    if len(data) > MAX_CLAIM_BYTES:
        return Judgement(Outcome.REJECT, f"{len(data)} bytes")
    try:
        sealed = decode(SealedClaim, data)
    except CodecError as error:
        return Judgement(Outcome.REJECT, str(error))
    task_state, publication = state.get_task(sealed.task), state.get_publication(sealed.task)
    if task_state is None or publication is None:
        return Judgement(Outcome.IGNORE, "unknown task", sealed=sealed)
    if sealed.step < 0 or sealed.batch not in get_step_batches(publication, sealed.step):
        return Judgement(Outcome.REJECT, "no batch of this step", sealed=sealed)
    if not verify_sealed_claim(chain_id, sealed):
        return Judgement(Outcome.REJECT, "signature", sealed=sealed)
    if not _is_of_committee(state, publication):
        return Judgement(Outcome.IGNORE, "a single custodian's claims are open", sealed=sealed)
    late = _find_late(state, task_state, sealed)
    return Judgement(Outcome.ACCEPT if late is None else Outcome.IGNORE, late or "", sealed=sealed)


def _is_of_committee(state: State, publication: PublishTask) -> bool:
    record = state.get_draft(publication.draft)
    return record is not None and record.draft.ceremony != ZERO_HASH


def _find_late(state: State, task_state: TaskState, claim: Claim | SealedClaim) -> str | None:
    """Why another state might take it and this one does not."""
    if task_state.status not in (TaskStatus.PENDING, TaskStatus.OPEN):
        return "the task has ended"
    # The head may be one opening behind: miners go on as soon as an opening is signed.
    if not task_state.step <= claim.step <= task_state.step + 1:
        return f"the task is at step {task_state.step}"
    return None if state.may_account_mine(claim.miner) else "may not mine"


def judge_presence(
    data: bytes, state: State, chain_id: Hash32, now: Millis, known: Millis | None = None
) -> Judgement:
    """A miner's presence, newer than the `known` one of the same miner and task."""
    if len(data) > MAX_PRESENCE_BYTES:
        return Judgement(Outcome.REJECT, f"{len(data)} bytes")
    try:
        presence = decode(Presence, data)
    except CodecError as error:
        return Judgement(Outcome.REJECT, str(error))
    if known is not None and presence.time <= known:
        return Judgement(Outcome.IGNORE, "not newer", presence=presence)
    if not verify_presence(chain_id, presence):
        return Judgement(Outcome.REJECT, "signature", presence=presence)
    if abs(presence.time - now) > PRESENCE_SKEW_MS:
        return Judgement(Outcome.IGNORE, "far from the clock", presence=presence)
    if not state.may_account_mine(presence.miner):
        return Judgement(Outcome.IGNORE, "may not mine", presence=presence)
    return Judgement(Outcome.ACCEPT, presence=presence)


def get_voters(state: State) -> frozenset[Address]:
    """Whose votes may count on this state or on one near it: members of the last, active and next sets."""
    active, pending = state.get_validator_set(), state.get_pending_set()
    previous = state.find_validator_set(active.number - 1)
    members = (*active.validators, *(previous.validators if previous else ()))
    members += pending.validators if pending else ()
    return frozenset(member.address for member in members).difference(state.get_jailed())


def judge_vote(data: bytes, state: State, head: Height, chain_id: Hash32) -> Judgement:
    """A vote against the head's post-state; whether its target is known is not asked."""
    if len(data) > MAX_VOTE_BYTES:
        return Judgement(Outcome.REJECT, f"{len(data)} bytes")
    try:
        vote = decode(Vote, data)
    except CodecError as error:
        return Judgement(Outcome.REJECT, str(error))
    if not 0 <= vote.source.height < vote.target.height:
        return Judgement(Outcome.REJECT, f"from height {vote.source.height} to {vote.target.height}")
    if vote.validator not in get_voters(state):
        return Judgement(Outcome.IGNORE, "no validator", Reason.VOTE_VALIDATOR)
    if not verify_vote(chain_id, vote):
        return Judgement(Outcome.REJECT, "signature", Reason.VOTE_SIGNATURE)
    final = state.get_finality().finalized.height
    if vote.target.height <= final:
        return Judgement(Outcome.IGNORE, f"final up to height {final}", Reason.VOTE_FINAL, vote=vote)
    if vote.target.height > head + VOTE_HORIZON:
        return Judgement(Outcome.IGNORE, f"the head is at height {head}", Reason.VOTE_TARGET, vote=vote)
    return Judgement(Outcome.ACCEPT, vote=vote)
