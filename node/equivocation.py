"""Notices a custody that signs two different openings of one step, and reports them (DESIGN 3.5).

Honest nodes relay only the first opening that they hear of. Where two met, both are at hand: one on the chain
or in the mempool, the other refused at the door or in a block beside the head chain.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator

from consensus.block import Block
from consensus.codec import decode_stored
from consensus.committee import get_committees, is_cosigned
from consensus.evidence import is_equivocal
from consensus.payload import ReportOpenings, SignedOpening
from consensus.state import State, TaskState
from consensus.task import OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from node.core import Core

logger = logging.getLogger(__name__)

MAX_SEEN = 4_096
Place = tuple[Hash32, type[OpenGradient] | type[OpenLoss], int]
"""(task, kind, step)."""


class OpeningWitness:
    """Compares every opening that its custody signed with the first one of its step."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._first: OrderedDict[Place, SignedOpening] = OrderedDict()
        core.admissions.on_transaction(self._see)
        core.chain.on_accepted(self._on_block)

    def _on_block(self, block_hash: Hash32, data: bytes) -> None:
        for transaction in decode_stored(Block, data).body.transactions:
            self._see(transaction)

    def _see(self, transaction: SignedTransaction) -> None:
        """`transaction` has a valid signature."""
        opening = transaction.payload
        if not isinstance(opening, OpenGradient | OpenLoss):
            return
        state = self._core.chain.head_state
        task = state.get_task(opening.task)
        if task is None or not self._is_signed(state, task, transaction, opening):
            return
        signed = SignedOpening(opening, transaction.signature)
        place: Place = (opening.task, type(opening), opening.step)
        first = self._first.get(place)
        if first is None:
            first = next(self._find_on_chain(place), None) if opening.step < task.step else None
        if first is not None and is_equivocal(first, signed):
            self._report(first, signed)
        self._first[place] = first or signed
        while len(self._first) > MAX_SEEN:
            self._first.popitem(last=False)

    def _is_signed(
        self, state: State, task: TaskState, transaction: SignedTransaction, opening: OpenGradient | OpenLoss
    ) -> bool:
        """By its custody; of a committee by enough members, whoever sends it."""
        publication = state.get_publication(opening.task)
        draft = state.get_draft(publication.draft) if publication else None
        if draft is None:
            return False
        committees = get_committees(state, draft.draft)
        if not committees:
            return task.custody == transaction.sender
        return is_cosigned(opening, committees, transaction.chain_id)

    def _find_on_chain(self, place: Place) -> Iterator[SignedOpening]:
        task, kind, step = place
        chain = self._core.chain
        for location in chain.ledger.iterate_subject(task):
            block = chain.get_block(location.block)
            if block is None or not 0 <= location.position < len(block.body.transactions):
                continue
            found = block.body.transactions[location.position]
            opening = found.payload
            if (
                isinstance(opening, OpenGradient | OpenLoss)
                and isinstance(opening, kind)
                and opening.step == step
            ):
                yield SignedOpening(opening, found.signature)

    def _report(self, first: SignedOpening, second: SignedOpening) -> None:
        core = self._core
        if core.admit(core.sign(ReportOpenings(first, second))).accepted:
            logger.error(
                "the custody of task %s signed two openings of step %d: reported",
                first.opening.task.hex()[:12],
                first.opening.step,
            )
