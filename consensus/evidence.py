"""Evidence and what it costs: jail and stake for double votes, task and bond for double openings, the right
to mine for wrong bundles. What is forfeited goes to the treasury, not to whoever reports it (DESIGN 5, 6).
"""

from dataclasses import replace

from consensus.claims import verify_claim
from consensus.codec import encode
from consensus.committee import get_committees, is_cosigned
from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.finality import is_quorum
from consensus.identifiers import compute_opening_hash, get_content
from consensus.openings import get_task_parts
from consensus.payload import Accuse, ReportOpenings, ReportVotes, SignedOpening, WrongBundle, WrongLoss
from consensus.publication import get_step_batches
from consensus.records import AccusationRecord
from consensus.settlement import LIVING, close_task
from consensus.state import State
from consensus.transaction import SignedTransaction, verify_transaction
from consensus.types import Address, Amount, Hash32, Signature
from consensus.vote import Vote, is_slashable, verify_vote


def _require(condition: bool, reason: Reason, detail: str = "") -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


# --- votes ------------------------------------------------------------------------------------


def get_stake_at_risk(state: State, validator: Address) -> int:
    """All that evidence can take: stake in the active set, deposits for the next one, a leaver's locks."""
    if validator in state.get_jailed():
        return 0
    pending = state.get_pending_set()
    deposits = pending.deposits if pending else ()
    members = (*state.get_validators(), *deposits)
    locks = sum(lock.amount for lock in state.get_locks() if lock.owner == validator and lock.task is None)
    return sum(member.stake for member in members if member.address == validator) + locks


def _jail(state: State, validator: Address) -> State:
    state = state.with_forfeit(get_stake_at_risk(state, validator))
    locks = tuple(lock for lock in state.get_locks() if lock.owner != validator or lock.task is not None)
    pending = state.get_pending_set()
    if pending is not None:
        deposits = tuple(member for member in pending.deposits if member.address != validator)
        state = state.with_pending_set(replace(pending, deposits=deposits))
    return state.with_locks(locks).with_jailed((*state.get_jailed(), validator))


def check_vote_pair(first: Vote, second: Vote, chain_id: Hash32) -> None:
    """Raises: InvalidTransaction unless one validator signed both and no honest one would have."""
    _require(is_slashable(first, second), Reason.EVIDENCE_HARMLESS, first.validator.hex())
    for vote in (first, second):
        _require(verify_vote(chain_id, vote), Reason.EVIDENCE_SIGNATURE, vote.validator.hex())


def apply_report_votes(state: State, payload: ReportVotes, ctx: BlockContext) -> State:
    """Jails the validator and takes its stake, while any of it is within reach."""
    validator = payload.first.validator
    _require(validator not in state.get_jailed(), Reason.EVIDENCE_KNOWN, validator.hex())
    _require(get_stake_at_risk(state, validator) > 0, Reason.EVIDENCE_LATE, validator.hex())
    check_vote_pair(payload.first, payload.second, ctx.chain_id)
    return _jail(state, validator)


# --- openings ---------------------------------------------------------------------------------


def _check_opening(state: State, signed: SignedOpening, ctx: BlockContext) -> None:
    """By the custody as its transaction, or by enough members of a committee in the opening itself."""
    task_state, _, draft = get_task_parts(state, signed.opening.task)
    committees = get_committees(state, draft)
    if committees:
        _require(
            is_cosigned(signed.opening, committees, ctx.chain_id),
            Reason.EVIDENCE_SIGNATURE,
            "by no committee of the task",
        )
        return
    custody = task_state.custody
    transaction = SignedTransaction(ctx.chain_id, custody, 0, signed.opening, signed.signature)
    _require(verify_transaction(transaction), Reason.EVIDENCE_SIGNATURE, custody.hex())


def is_equivocal(first: SignedOpening, second: SignedOpening) -> bool:
    """Two different contents of one kind for one step; whether they are signed is not looked at."""
    a, b = first.opening, second.opening
    is_one_step = type(a) is type(b) and (a.task, a.step) == (b.task, b.step)
    return is_one_step and compute_opening_hash(a) != compute_opening_hash(b)


def apply_report_openings(state: State, payload: ReportOpenings, ctx: BlockContext) -> State:
    """Closes the task; the custody loses its bond, or the bond's lock if the task has ended."""
    first, second = payload.first, payload.second
    _require(is_equivocal(first, second), Reason.EVIDENCE_HARMLESS, first.opening.task.hex())
    for signed in (first, second):
        _check_opening(state, signed, ctx)
    return _forfeit_bond(state, first.opening.task, ctx)


def _forfeit_bond(state: State, task: Hash32, ctx: BlockContext) -> State:
    task_state, _, _ = get_task_parts(state, task)
    if task_state.status in LIVING:
        bond = task_state.bond
        state = state.with_task(task, replace(task_state, bond=Amount(0)))
        return close_task(state, task, ctx).with_forfeit(bond)
    lock = next((lock for lock in state.get_locks() if lock.task == task), None)
    if lock is None:
        raise InvalidTransaction(
            Reason.EVIDENCE_LATE, f"task {task.hex()} has ended, its bond is out of reach"
        )
    state = state.with_locks(tuple(other for other in state.get_locks() if other != lock))
    return state.with_forfeit(lock.amount)


# --- recomputations ---------------------------------------------------------------------------


def compute_accusation_id(accusation: WrongBundle | WrongLoss) -> Hash32:
    """What the accusations of several validators are counted under.

    Not by whom a loss was signed: there may be as many signatures of one content as sets of members.
    """
    if isinstance(accusation, WrongLoss):
        accusation = replace(accusation, opening=get_content(accusation.opening), signature=Signature(b""))
    return hash_domain("accusation", encode(accusation))


def _check_wrong_bundle(state: State, accusation: WrongBundle, ctx: BlockContext) -> None:
    claim = accusation.claim
    _, publication, _ = get_task_parts(state, claim.task)
    _require(accusation.canonical != claim.bundle.root, Reason.EVIDENCE_HARMLESS, "the canonical bundle")
    is_batch = claim.step >= 0 and claim.batch in get_step_batches(publication, claim.step)
    _require(is_batch, Reason.EVIDENCE_HARMLESS, f"batch {claim.batch} is not of step {claim.step}")
    _require(verify_claim(ctx.chain_id, claim), Reason.EVIDENCE_SIGNATURE, claim.miner.hex())


def _check_wrong_loss(state: State, accusation: WrongLoss, ctx: BlockContext) -> None:
    opening = accusation.opening
    get_task_parts(state, opening.task)
    _require(accusation.canonical != opening.ciphertext, Reason.EVIDENCE_HARMLESS, "the canonical loss")
    _check_opening(state, SignedOpening(opening, accusation.signature), ctx)


def apply_accuse(state: State, sender: Address, payload: Accuse, ctx: BlockContext) -> State:
    """Counts the validator's stake; at two thirds of all stake the accusation takes effect."""
    accusation = payload.accusation
    stake = state.get_stake(sender)
    _require(stake > 0, Reason.ACCUSE_VALIDATOR, sender.hex())
    if isinstance(accusation, WrongBundle):
        _check_wrong_bundle(state, accusation, ctx)
    else:
        _check_wrong_loss(state, accusation, ctx)
    identifier = compute_accusation_id(accusation)
    record = state.get_accusation(identifier) or AccusationRecord((), 0, took_effect=False)
    _require(sender not in record.signers, Reason.ACCUSE_DOUBLED, sender.hex())
    record = replace(record, signers=(*record.signers, sender), stake=record.stake + stake)
    if not record.took_effect and is_quorum(record.stake, state.get_total_stake()):
        record = replace(record, took_effect=True)
        if isinstance(accusation, WrongBundle):
            state = _suspend(state, accusation.claim.miner)
        else:
            state = _forfeit_bond(state, accusation.opening.task, ctx)
    return state.with_accusation(identifier, record)


def _suspend(state: State, miner: Address) -> State:
    """The miner's organisation may claim no batches until governance reinstates it."""
    organisation = state.get_account(miner).organisation
    if not organisation or organisation in state.get_suspended():
        return state
    return state.with_suspended((*state.get_suspended(), organisation))
