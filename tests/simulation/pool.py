"""What waits for a block: transactions in the order a proposer tries them, and votes by target."""

from collections.abc import Iterable, Sequence

from consensus.payload import ReportOpenings, ReportVotes
from consensus.task import Available, OpenGradient, OpenLoss, PublishTask
from consensus.types import Hash32
from tests.simulation.archive import Archive, BlockItem, TransactionItem, VoteItem

LIMIT = 2_000


def _get_rank(item: TransactionItem) -> tuple[int, int]:
    payload = item.transaction.payload
    match payload:
        case OpenLoss():
            return 3, 2 * payload.step
        case OpenGradient():
            return 3, 2 * payload.step + 1
        case Available():
            return 2, 0
        case PublishTask():
            return 1, item.transaction.nonce
        case ReportVotes() | ReportOpenings():
            return -1, 0
        case _:
            return 0, item.transaction.nonce


class Pool:
    """Follows the head: what its chain includes leaves, what a reorganisation undoes comes back."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._transactions: dict[TransactionItem, None] = {}
        self._included: set[TransactionItem] = set()
        self._votes: dict[Hash32, dict[VoteItem, None]] = {}

    @property
    def has_transactions(self) -> bool:
        return bool(self._transactions)

    def add(self, item: TransactionItem) -> None:
        if item not in self._included and len(self._transactions) < LIMIT:
            self._transactions[item] = None

    def remove(self, item: TransactionItem) -> None:
        self._transactions.pop(item, None)

    def add_vote(self, item: VoteItem) -> None:
        self._votes.setdefault(item.vote.target.hash, {})[item] = None

    def get_votes(self, target: Hash32) -> Iterable[VoteItem]:
        return self._votes.get(target, ())

    def get_candidates(self) -> list[TransactionItem]:
        return sorted(self._transactions, key=_get_rank)

    def get_all(self) -> list[object]:
        votes = [item for target in self._votes.values() for item in target]
        return [*votes, *self._transactions]

    def on_reorg(self, undone: Sequence[BlockItem], applied: Sequence[BlockItem]) -> None:
        for block in undone:
            self._included.difference_update(block.transactions)
            self._transactions.update(dict.fromkeys(block.transactions))
        for block in applied:
            self._included.update(block.transactions)
            for item in block.transactions:
                self._transactions.pop(item, None)

    def on_final(self, height: int) -> None:
        """Votes for what is final count nowhere any more."""
        for target, items in list(self._votes.items()):
            if next(iter(items)).vote.target.height <= height:
                del self._votes[target]
