"""How long a federation's blobs are kept: a round's for `evidence_ms` after its end, the federation's keys
and first model for `evidence_ms` after *its* end, the model that stands with its network always.

Only what this node fetched or made for them is dropped, or uploaded for its own: a round may name any blob,
and must not make others lose it. An end is dated by the first head on which this node saw it, so blobs may be
kept longer, never shorter.
"""

import logging
from collections.abc import Callable

from consensus.federations import FederationRecord, FederationStatus, RoundRecord
from consensus.types import Address, Hash32
from node.core import Core
from node.federations import compute_round_owner, iterate_federation_roots, iterate_round_roots
from node.jobs import HELD_PREFIX, split_roots
from node.retention import prune_at_heads
from node.settings import RetentionSettings

logger = logging.getLogger(__name__)

ENDED_PREFIX = b"ended-federation/"
"""Of the dates of federations and rounds that have ended, by owner of the blobs."""


class FederationPruner:
    """Drops the blobs of what ended more than `evidence_ms` ago; an archive's does nothing."""

    def __init__(self, core: Core, settings: RetentionSettings) -> None:
        self._core = core
        self._settings = settings
        self._get_others: Callable[[], set[Hash32]] = set
        self._needed: set[Hash32] | None = None

    def spare(self, get_others: Callable[[], set[Hash32]]) -> None:
        """Never drop what these roots name: something else needs them."""
        self._get_others = get_others

    async def run(self) -> None:
        """Until cancelled."""
        await prune_at_heads(self._core, self._settings, self.prune)

    def get_needed(self) -> set[Hash32]:
        """Roots that federations need, at the last look; there has been one."""
        if self._needed is None:
            self.prune()
        return self._needed or set()

    def prune(self) -> None:
        """Date what has ended, and drop what is out of date by the chain's time."""
        state = self._core.chain.head_state
        needed: set[Hash32] = set()
        due: list[tuple[Hash32, set[Hash32]]] = []
        for number in range(state.get_federation_count()):
            federation = state.get_federation_id(number)
            record = None if federation is None else state.get_federation(federation)
            if federation is not None and record is not None:
                self._look(federation, record, needed, due)
        self._needed = needed
        if due:
            needed = needed | self._get_others()
        for owner, roots in due:
            self._drop(owner, roots - needed)

    def _look(
        self,
        federation: Hash32,
        record: FederationRecord,
        needed: set[Hash32],
        due: list[tuple[Hash32, set[Hash32]]],
    ) -> None:
        """Sort what the federation and its rounds name into what is needed and what is not any more."""
        state, own = self._core.chain.head_state, self._core.address
        is_running = record.status is FederationStatus.RUNNING
        common = set(iterate_federation_roots(record))
        mine = set(common) if record.custody == own else set()
        for number in range(record.round.number + 1):
            ended = state.get_ended_round(federation, number)
            current = record.round if ended is None else ended.round
            roots = set(iterate_round_roots(current))
            if ended is None and is_running:
                needed |= roots
                continue
            owner = compute_round_owner(federation, number)
            held = self._get_held(owner) | _get_own(record, current, own)
            self._sort(owner, roots, held, needed, due)
        # What it was all for is kept.
        needed |= {record.model.root, record.create.network.root}
        if is_running:
            needed |= common
        else:
            self._sort(federation, common, self._get_held(federation) | mine, needed, due)

    def _sort(
        self,
        owner: Hash32,
        roots: set[Hash32],
        held: set[Hash32],
        needed: set[Hash32],
        due: list[tuple[Hash32, set[Hash32]]],
    ) -> None:
        now = self._core.chain.head.time
        date = self._date(owner, held, now)
        if now < date + self._core.chain.params.evidence_ms:
            needed |= roots
        elif any(map(self._core.blobs.has, held)):
            due.append((owner, held))

    def _get_held(self, owner: Hash32) -> set[Hash32]:
        return split_roots(self._core.chain.ledger.get_record(HELD_PREFIX + owner) or b"")

    def _date(self, owner: Hash32, held: set[Hash32], now: int) -> int:
        """When it ended; written once, and only where there is something to drop."""
        ledger = self._core.chain.ledger
        found = ledger.get_record(ENDED_PREFIX + owner)
        if found is not None:
            return int.from_bytes(found, "big")
        if any(map(self._core.blobs.has, held)):
            ledger.put_record(ENDED_PREFIX + owner, now.to_bytes(8, "big"))
        return now

    def _drop(self, owner: Hash32, roots: set[Hash32]) -> None:
        """What something living needs is not due; it is tried again later."""
        dropped = sum(self._core.blobs.remove(root) for root in roots)
        if dropped:
            logger.info("dropped %d blobs of a federation: they are no evidence any more", dropped)


def _get_own(record: FederationRecord, current: RoundRecord, own: Address) -> set[Hash32]:
    """What this node uploaded for the round: its update; as the custody, what it opened."""
    roots = {item.update.root for item in current.submissions if item.participant == own}
    if record.custody == own:
        roots |= {ref.root for ref in (current.opened, current.model) if ref is not None}
    return roots
