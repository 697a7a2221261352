"""Pending transactions: which are kept, in which order they are offered, when they leave.

Pure admission policy; the daemon asks `admit` for every transaction that arrives and `on_head` for
every new head. Openings of one task may run several steps ahead of the chain, so the pool keeps
what is premature and forgets only what is included, invalid for ever, or too old.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from consensus.ceremonies import CommitRound, ConfirmCeremony, EndCeremony, RevealRound
from consensus.codec import encode
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.jobs import CloseCommits, CommitResult, ExpireJob, RevealResult
from consensus.task import Available, OpenGradient, OpenLoss, PublishTask
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Address, Hash32

MAX_TRANSACTIONS = 10_000
MAX_PER_SENDER = 2_000
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PooledTransaction:
    """A pending transaction with what admission already computed."""

    id: Hash32
    transaction: SignedTransaction
    size: int


class Mempool:
    """Bounded pool of pending transactions, first in first offered."""

    def __init__(
        self,
        max_transactions: int = MAX_TRANSACTIONS,
        max_per_sender: int = MAX_PER_SENDER,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._pool: OrderedDict[Hash32, PooledTransaction] = OrderedDict()
        self._by_sender: dict[Address, int] = {}
        self._places: dict[tuple[Hash32, bytes], Hash32] = {}
        self._early: set[Hash32] = set()
        self._bytes = 0
        self._max_transactions = max_transactions
        self._max_per_sender = max_per_sender
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._pool)

    def __contains__(self, transaction_id: Hash32) -> bool:
        return transaction_id in self._pool

    @property
    def size(self) -> int:
        """Encoded bytes held."""
        return self._bytes

    def get(self, transaction_id: Hash32) -> SignedTransaction | None:
        pooled = self._pool.get(transaction_id)
        return None if pooled is None else pooled.transaction

    def get_all(self) -> list[PooledTransaction]:
        """Every pending transaction, oldest first."""
        return list(self._pool.values())

    def get_opening(self, task: Hash32, previous: Hash32) -> SignedTransaction | None:
        """The pending opening of `task` that follows the opening `previous`, if there is one."""
        found = self._places.get((task, previous))
        return None if found is None else self.get(found)

    def get_refusal(self, transaction: SignedTransaction) -> str | None:
        """Why the pool has no room for a (valid) transaction, or None."""
        size = len(encode(transaction))
        if len(self._pool) >= self._max_transactions or self._bytes + size > self._max_bytes:
            return "the pool is full; try again after the next block"
        if self._by_sender.get(transaction.sender, 0) >= self._max_per_sender:
            return "the sender has too many pending transactions; wait until some are included"
        return None

    def add(self, transaction: SignedTransaction, *, early: bool = False) -> bool:
        """Keep a transaction whose signature the caller has checked; False if known or refused.

        An `early` one keeps no other out of its place, since nobody can tell yet whether its sender may have
        it, until `claim_place`.
        """
        transaction_id = compute_transaction_id(transaction)
        if transaction_id in self._pool or self.get_refusal(transaction) is not None:
            return False
        key = None if early else _get_place(transaction)
        if key is not None and key in self._places:
            return False  # first seen wins here; two signed openings of a step are evidence elsewhere
        size = len(encode(transaction))
        self._pool[transaction_id] = PooledTransaction(transaction_id, transaction, size)
        self._by_sender[transaction.sender] = self._by_sender.get(transaction.sender, 0) + 1
        self._bytes += size
        if key is not None:
            self._places[key] = transaction_id
        if early:
            self._early.add(transaction_id)
        return True

    def get_early(self) -> list[PooledTransaction]:
        """Those that have no place yet, oldest first."""
        return [pooled for pooled in self._pool.values() if pooled.id in self._early]

    def claim_place(self, transaction_id: Hash32) -> bool:
        """Of an early one that would apply now; False, and it is forgotten, if another has the place."""
        self._early.discard(transaction_id)
        key = _get_place(self._pool[transaction_id].transaction)
        if key is None or self._places.setdefault(key, transaction_id) == transaction_id:
            return True
        self.remove([transaction_id])
        return False

    def remove(self, transaction_ids: Iterable[Hash32]) -> None:
        """Forget transactions (included, or invalid for ever); unknown ids are ignored."""
        for transaction_id in transaction_ids:
            pooled = self._pool.pop(transaction_id, None)
            if pooled is None:
                continue
            sender = pooled.transaction.sender
            left = self._by_sender[sender] - 1
            if left:
                self._by_sender[sender] = left
            else:
                del self._by_sender[sender]
            self._bytes -= pooled.size
            self._early.discard(transaction_id)
            key = _get_place(pooled.transaction)
            if key is not None and self._places.get(key) == transaction_id:
                del self._places[key]

    def get_candidates(self) -> list[SignedTransaction]:
        """All pending transactions in the order a proposer should try them.

        By sender's nonce, openings by step, commitments before results, what a round consists of in its
        order, so that a chain of dependent transactions goes into one block; otherwise in order of arrival.
        """
        return [p.transaction for p in sorted(self._pool.values(), key=_get_rank)]


def _get_place(transaction: SignedTransaction) -> tuple[Hash32, bytes] | None:
    """What one pending transaction alone may be: a task's next opening, a sender's part in a job or round."""
    payload = transaction.payload
    if isinstance(payload, OpenGradient | OpenLoss):
        return payload.task, payload.previous
    if isinstance(payload, CommitResult):
        return payload.job, transaction.sender
    if isinstance(payload, CommitRound):
        return payload.ceremony, transaction.sender + bytes([payload.round % 256])
    return None


def _get_rank(pooled: PooledTransaction) -> tuple[int, int]:
    payload = pooled.transaction.payload
    match payload:
        case OpenLoss():
            return 3, 2 * payload.step
        case OpenGradient():
            return 3, 2 * payload.step + 1
        case CommitResult():
            return 2, 0
        case CloseCommits():
            return 2, 1
        case RevealResult() | ExpireJob():
            return 2, 2
        case Available() | SubmitUpdate() | CommitRound():
            return 2, 0
        case AttestUpdates() | RevealRound():
            return 2, 1
        case CloseRound() | ConfirmSum() | ConfirmCeremony():
            return 2, 2
        case OpenSum() | JudgeRound():
            return 2, 3
        case SettleRound() | EndFederation() | EndCeremony():
            return 2, 4
        case PublishTask():
            return 1, pooled.transaction.nonce
        case _:
            return 0, pooled.transaction.nonce
