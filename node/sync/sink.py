"""Where synchronised blocks go: the node's own judgement, and what a block that waits needs."""

from consensus.tree import TreeError
from node.chain import Imported, ImportStatus
from node.core import Core
from node.ledger.schema import LedgerError
from node.ledger.store import StoreError
from node.recomputer import Recomputer
from node.sync.ports import SyncStopped


class CoreSink:
    """The `BlockSink` of a running node."""

    def __init__(self, core: Core, recomputer: Recomputer) -> None:
        self._core = core
        self._recomputer = recomputer

    def take_block(self, data: bytes) -> Imported:
        """Judge a block, and ask for the recomputation that it waits for.

        Raises: SyncStopped, once the node was told that it can't go on without its ledger.
        """
        try:
            outcome = self._core.take_block(data)
        except (StoreError, LedgerError, TreeError) as error:
            self._core.fail(error)
            raise SyncStopped(str(error)) from error
        if outcome.status is ImportStatus.WAITING and outcome.check is not None:
            self._recomputer.request(outcome.check)
        return outcome
