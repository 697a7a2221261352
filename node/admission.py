"""Transactions on their way into a block: what the pool takes, and what a new head makes of it."""

from collections.abc import Callable
from dataclasses import dataclass

from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction, Reason
from consensus.payload import Payload
from consensus.task import OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction, uses_nonce
from consensus.transition import apply_checked_transaction, check_transaction
from consensus.types import Hash32
from node.chain import Chain, HeadChange
from node.clock import Clock
from node.mempool import Mempool
from node.tasks import TaskTip, get_next_context


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a submitted transaction."""

    id: Hash32
    accepted: bool
    known: bool = False
    reason: str = ""
    detail: str = ""
    is_forged: bool = False
    """Malformed, of another chain or wrongly signed: whoever relayed it is at fault."""


class Admissions:
    """Judges transactions against the head, and openings against their task's tip."""

    def __init__(
        self, chain: Chain, mempool: Mempool, clock: Clock, get_tip: Callable[[Hash32], TaskTip | None]
    ) -> None:
        self._chain = chain
        self._mempool = mempool
        self._clock = clock
        self._get_tip = get_tip
        self._transaction_listeners: list[Callable[[SignedTransaction], None]] = []
        self._admission_listeners: list[Callable[[Admission], None]] = []

    def on_transaction(self, listener: Callable[[SignedTransaction], None]) -> None:
        """Call `listener` with every new transaction that its sender signed, admitted or not."""
        self._transaction_listeners.append(listener)

    def on_admission(self, listener: Callable[[Admission], None]) -> None:
        """Call `listener` with what became of every transaction that was submitted."""
        self._admission_listeners.append(listener)

    def admit(self, transaction: SignedTransaction) -> Admission:
        """Check a transaction and keep it in the pool."""
        admission = self._admit(transaction)
        for listener in self._admission_listeners:
            listener(admission)
        return admission

    def sign(self, key: SigningKey, payload: Payload) -> SignedTransaction:
        """Sign a payload at the key's next free nonce."""
        return sign_transaction(key, self._chain.chain_id, self._get_next_nonce(key, payload), payload)

    def follow(self, change: HeadChange) -> None:
        """Forget what the new blocks include; what undone blocks held may be included again."""
        for block in change.disconnected:
            for transaction in block.body.transactions:
                self._mempool.add(transaction)
        for block in change.connected:
            self._mempool.remove(map(compute_transaction_id, block.body.transactions))
        self._drop_dead()
        self._place_early()

    def _admit(self, transaction: SignedTransaction) -> Admission:
        transaction_id = compute_transaction_id(transaction)
        if transaction_id in self._mempool:
            return Admission(transaction_id, True, known=True)
        if self._chain.ledger.find_transaction(transaction_id) is not None:
            return Admission(transaction_id, False, known=True, reason="KNOWN", detail="already on the chain")
        try:
            check_transaction(transaction, self._chain.chain_id)
        except InvalidTransaction as forged:
            return Admission(
                transaction_id, False, reason=str(forged.reason), detail=forged.detail, is_forged=True
            )
        for listener in self._transaction_listeners:
            listener(transaction)
        error = self._get_error(transaction, transaction_id)
        if error is not None and not error.is_premature:
            return Admission(transaction_id, False, reason=str(error.reason), detail=error.detail)
        refusal = self._mempool.get_refusal(transaction)
        if refusal is not None:
            return Admission(transaction_id, False, reason="MEMPOOL_FULL", detail=refusal)
        early = error is not None and error.reason is Reason.TASK_UNKNOWN
        if not self._mempool.add(transaction, early=early):
            detail = "another opening of this step, or commitment for this job or round, is pending"
            return Admission(transaction_id, False, reason="MEMPOOL_CONFLICT", detail=detail)
        return Admission(transaction_id, True)

    def _get_error(self, transaction: SignedTransaction, transaction_id: Hash32) -> InvalidTransaction | None:
        """Why the transaction does not apply to the head, or None.

        Openings are judged against the task's tip: they run ahead of the chain.
        """
        payload = transaction.payload
        context = get_next_context(self._chain, self._clock.now_ms())
        try:
            apply_checked_transaction(self._chain.head_state, transaction, transaction_id, context)
        except InvalidTransaction as error:
            if error.is_premature or not isinstance(payload, OpenGradient | OpenLoss):
                return error
            tip = self._get_tip(payload.task)
            if tip is None or not tip.pending:
                return error
            try:
                apply_checked_transaction(tip.chain_state, transaction, transaction_id, context)
            except InvalidTransaction as late:
                return late
        return None

    def _get_next_nonce(self, key: SigningKey, payload: Payload) -> int:
        if not uses_nonce(payload):
            return 0
        nonce = self._chain.head_state.get_account(key.address).nonce
        pending = {
            p.transaction.nonce
            for p in self._mempool.get_all()
            if p.transaction.sender == key.address and uses_nonce(p.transaction.payload)
        }
        while nonce in pending:
            nonce += 1
        return nonce

    def _place_early(self) -> None:
        """Once the task of an opening is known, so is whether its custody has signed it."""
        for pooled in self._mempool.get_early():
            error = self._get_error(pooled.transaction, pooled.id)
            if error is None or (error.is_premature and error.reason is not Reason.TASK_UNKNOWN):
                self._mempool.claim_place(pooled.id)
            elif not error.is_premature:
                self._mempool.remove([pooled.id])

    def _drop_dead(self) -> None:
        """Forget what the new head's state refuses for ever."""
        state = self._chain.head_state
        context = get_next_context(self._chain, self._clock.now_ms())
        dead = []
        for pooled in self._mempool.get_all():
            transaction = pooled.transaction
            if isinstance(transaction.payload, OpenGradient | OpenLoss):
                task = state.get_task(transaction.payload.task)
                if task is None or task.step <= transaction.payload.step:
                    continue  # ahead of the chain, judged when its turn comes
            try:
                apply_checked_transaction(state, transaction, pooled.id, context)
            except InvalidTransaction as error:
                if not error.is_premature:
                    dead.append(pooled.id)
        self._mempool.remove(dead)
