"""The node's own transactions outlive it: those not in a block yet are pending again after a restart."""

import logging

from consensus.codec import CodecError, decode, encode
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from node.admission import Admission
from node.core import Core
from node.gossip.messages import Kind

logger = logging.getLogger(__name__)

PREFIX = b"pending/"
ANNOUNCE_S = 10.0
"""Peers that were away, or are linked since, hear of them again."""


class OwnTransactions:
    """Keeps what this node signed on its own disk until it is in a block or can never be."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._kept: set[Hash32] = set()
        core.admissions.on_admission(self._on_admission)

    def _on_admission(self, admission: Admission) -> None:
        transaction = self._core.mempool.get(admission.id)
        if transaction is None or admission.id in self._kept or transaction.sender != self._core.address:
            return
        self._core.chain.ledger.put_record(PREFIX + admission.id, encode(transaction))
        self._kept.add(admission.id)

    def load(self) -> None:
        """Take up again what was pending when the node ended."""
        ledger = self._core.chain.ledger
        for name, data in list(ledger.iterate_records(PREFIX)):
            try:
                transaction = decode(SignedTransaction, data)
            except CodecError as error:
                logger.warning("a kept transaction can't be read and is dropped: %s", error)
                ledger.delete_record(name)
                continue
            self._kept.add(Hash32(name[len(PREFIX) :]))
            admission = self._core.admit(transaction)
            if admission.accepted:
                logger.info("transaction %s is pending again", admission.id.hex()[:12])
        self._drop_ended()

    async def run(self) -> None:
        """Until cancelled."""
        self.load()
        while True:
            await self._core.clock.sleep(ANNOUNCE_S)
            self._drop_ended()
            for name in sorted(self._kept):
                transaction = self._core.mempool.get(name)
                if transaction is not None:
                    self._core.announce(Kind.TRANSACTION, name, encode(transaction))

    def _drop_ended(self) -> None:
        """Forget what has left the pool: it is in a block, or can never be in one.

        What an undone block held is in the pool again, and is kept again once it is admitted anew.
        """
        ended = {name for name in self._kept if name not in self._core.mempool}
        if ended:
            self._core.chain.ledger.put_records({}, [PREFIX + name for name in ended])
            self._kept -= ended
