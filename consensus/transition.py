"""From state to state: one transaction, one work, one block body. A refusal changes nothing."""

from collections.abc import Iterable
from dataclasses import replace

from consensus.block import Body, Work
from consensus.ceremonies import (
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.ceremony import (
    apply_commit_round,
    apply_confirm_ceremony,
    apply_create_ceremony,
    apply_end_ceremony,
    apply_reveal_round,
)
from consensus.codec import CodecError, encode
from consensus.context import BlockContext
from consensus.crypto import verify
from consensus.errors import InvalidBlock, InvalidTransaction, Reason
from consensus.evidence import apply_accuse, apply_report_openings, apply_report_votes
from consensus.federation import (
    apply_attest,
    apply_close_round,
    apply_confirm_sum,
    apply_create,
    apply_end_federation,
    apply_judge,
    apply_open_sum,
    apply_settle_round,
    apply_submit,
)
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.finality import apply_votes, process_content, process_parent, release_locks
from consensus.governance import apply_govern
from consensus.inference import (
    apply_close,
    apply_commit,
    apply_expire_job,
    apply_register,
    apply_request,
    apply_retire,
    apply_reveal,
)
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    ExpireJob,
    RegisterModel,
    RequestInference,
    RetireModel,
    RevealResult,
)
from consensus.openings import apply_open_gradient, apply_open_loss
from consensus.payload import Accuse, Govern, ReportOpenings, ReportVotes, SettleTask, Verdict
from consensus.publication import apply_contribute, apply_draft, apply_publish
from consensus.settlement import apply_available, apply_expire, apply_settle, apply_work
from consensus.state import Account, State
from consensus.task import (
    Available,
    Contribute,
    DraftTask,
    ExpireTask,
    OpenGradient,
    OpenLoss,
    PublishTask,
    Transfer,
)
from consensus.transaction import (
    MAX_TRANSACTION_BYTES,
    SignedTransaction,
    compute_transaction_id,
    uses_nonce,
)
from consensus.types import Amount, Hash32, Height
from consensus.verdicts import apply_verdict
from consensus.vote import Checkpoint, Vote

__all__ = [
    "BlockContext",
    "apply_block",
    "apply_transaction",
    "apply_transactions",
    "apply_work",
    "begin_block",
    "check_transaction",
    "end_block",
]


def check_transaction(transaction: SignedTransaction, chain_id: Hash32) -> Hash32:
    """The transaction's id, if it is well-formed, of this chain and signed by its sender; needs no state.

    Raises: InvalidTransaction.
    """
    try:
        encoded = encode(transaction)
    except CodecError as error:
        raise InvalidTransaction(Reason.TX_MALFORMED, str(error)) from error
    if len(encoded) > MAX_TRANSACTION_BYTES:
        raise InvalidTransaction(Reason.TX_OVERSIZE, f"{len(encoded)} bytes")
    if transaction.chain_id != chain_id:
        raise InvalidTransaction(Reason.TX_CHAIN, transaction.chain_id.hex())
    identifier = compute_transaction_id(transaction, encoded)
    if not verify(transaction.sender, "transaction", identifier, transaction.signature):
        raise InvalidTransaction(Reason.TX_SIGNATURE, identifier.hex())
    return identifier


def _check_nonce(account: Account, nonce: int) -> None:
    if nonce != account.nonce:
        is_future = nonce > account.nonce
        reason = Reason.TX_NONCE_FUTURE if is_future else Reason.TX_NONCE
        raise InvalidTransaction(reason, f"expected {account.nonce}, got {nonce}")


def _apply_transfer(state: State, transaction: SignedTransaction, payload: Transfer) -> State:
    """Nonce and payment in one change of the sender's account."""
    account = state.get_account(transaction.sender)
    _check_nonce(account, transaction.nonce)
    if payload.amount <= 0:
        raise InvalidTransaction(Reason.TX_AMOUNT, str(payload.amount))
    if account.balance < payload.amount:
        raise InvalidTransaction(Reason.TX_BALANCE, f"{account.balance} of {payload.amount}")
    balance = Amount(account.balance - payload.amount)
    changed = replace(account, balance=balance, nonce=account.nonce + 1)
    return state.with_account(transaction.sender, changed).with_credit(payload.to, payload.amount)


def _apply_nonce(state: State, transaction: SignedTransaction) -> State:
    if not uses_nonce(transaction.payload):
        if transaction.nonce:
            raise InvalidTransaction(Reason.TX_NONCE, "this kind carries nonce 0")
        return state
    account = state.get_account(transaction.sender)
    _check_nonce(account, transaction.nonce)
    return state.with_account(transaction.sender, replace(account, nonce=account.nonce + 1))


def apply_checked_transaction(
    state: State, transaction: SignedTransaction, identifier: Hash32, ctx: BlockContext
) -> State:
    """Like `apply_transaction` for a transaction that `check_transaction` has passed with this id."""
    sender = transaction.sender
    if isinstance(transaction.payload, Transfer):
        return _apply_transfer(state, transaction, transaction.payload)
    state = _apply_nonce(state, transaction)
    match transaction.payload:
        case DraftTask() as payload:
            return apply_draft(state, sender, payload, ctx)
        case Contribute() as payload:
            return apply_contribute(state, sender, payload, identifier)
        case PublishTask() as payload:
            return apply_publish(state, sender, payload, ctx)
        case Available() as payload:
            return apply_available(state, sender, payload, ctx)
        case OpenGradient() as payload:
            return apply_open_gradient(state, sender, payload, ctx)
        case OpenLoss() as payload:
            return apply_open_loss(state, sender, payload, ctx)
        case ExpireTask() as payload:
            return apply_expire(state, payload, ctx)
        case Verdict() as payload:
            return apply_verdict(state, sender, payload, ctx)
        case SettleTask() as payload:
            return apply_settle(state, payload, ctx)
        case ReportVotes() as payload:
            return apply_report_votes(state, payload, ctx)
        case ReportOpenings() as payload:
            return apply_report_openings(state, payload, ctx)
        case Accuse() as payload:
            return apply_accuse(state, sender, payload, ctx)
        case Govern() as payload:
            return apply_govern(state, payload, ctx)
        case RegisterModel() as payload:
            return apply_register(state, sender, payload, identifier, ctx)
        case RetireModel() as payload:
            return apply_retire(state, sender, payload)
        case RequestInference() as payload:
            return apply_request(state, sender, payload, identifier, ctx)
        case CommitResult() as payload:
            return apply_commit(state, sender, payload, ctx)
        case CloseCommits() as payload:
            return apply_close(state, payload, ctx)
        case RevealResult() as payload:
            return apply_reveal(state, sender, payload, ctx)
        case ExpireJob() as payload:
            return apply_expire_job(state, payload, ctx)
        case CreateFederation() as payload:
            return apply_create(state, sender, payload, identifier, ctx)
        case SubmitUpdate() as payload:
            return apply_submit(state, sender, payload, ctx)
        case AttestUpdates() as payload:
            return apply_attest(state, sender, payload)
        case CloseRound() as payload:
            return apply_close_round(state, payload, ctx)
        case ConfirmSum() as payload:
            return apply_confirm_sum(state, sender, payload)
        case OpenSum() as payload:
            return apply_open_sum(state, sender, payload, ctx)
        case JudgeRound() as payload:
            return apply_judge(state, sender, payload, ctx)
        case SettleRound() as payload:
            return apply_settle_round(state, payload, ctx)
        case EndFederation() as payload:
            return apply_end_federation(state, payload, ctx)
        case CreateCeremony() as payload:
            return apply_create_ceremony(state, sender, payload, identifier, ctx)
        case CommitRound() as payload:
            return apply_commit_round(state, sender, payload, ctx)
        case RevealRound() as payload:
            return apply_reveal_round(state, sender, payload, ctx)
        case ConfirmCeremony() as payload:
            return apply_confirm_ceremony(state, sender, payload, ctx)
        case EndCeremony() as payload:
            return apply_end_ceremony(state, sender, payload, ctx)


def apply_transaction(state: State, transaction: SignedTransaction, ctx: BlockContext) -> State:
    """The state after one transaction (B6).

    Raises: InvalidTransaction.
    """
    identifier = check_transaction(transaction, ctx.chain_id)
    return apply_checked_transaction(state, transaction, identifier, ctx)


def apply_transactions(state: State, transactions: Iterable[SignedTransaction], ctx: BlockContext) -> State:
    """The state after all of them in order.

    Raises: InvalidBlock(B6_TRANSACTION), its `cause` the reason of the first that is invalid.
    """
    for index, transaction in enumerate(transactions):
        try:
            state = apply_transaction(state, transaction, ctx)
        except InvalidTransaction as error:
            raise InvalidBlock(
                Reason.B6_TRANSACTION, f"transaction {index}: {error}", cause=error.reason
            ) from error
    return state


def begin_block(state: State, parent: Hash32, votes: Iterable[Vote], ctx: BlockContext) -> State:
    """The state after what comes first in every block: its parent as a checkpoint, locks that end, the votes.

    Raises: InvalidBlock(B8_VOTES).
    """
    state = process_parent(state, Checkpoint(Height(ctx.height - 1), parent))
    state = release_locks(state, ctx.time)
    return apply_votes(state, votes, ctx.chain_id, ctx.time, ctx.params)


def apply_block(state: State, body: Body, parent: Hash32, ctx: BlockContext) -> State:
    """The state after a body whose work has passed W1 to W7: votes, then the work, then the transactions.

    Raises: InvalidBlock(B6_TRANSACTION, B8_VOTES).
    """
    state = begin_block(state, parent, body.votes, ctx)
    work: Work | None = body.work
    if work is not None:
        state = apply_work(state, work, ctx)
    state = apply_transactions(state, body.transactions, ctx)
    return end_block(state, bool(work or body.transactions), ctx)


def end_block(state: State, has_content: bool, ctx: BlockContext) -> State:
    """The state after a whole body."""
    return process_content(state, ctx.height) if has_content else state
