"""What a node makes of protocol upgrades: says what comes, and stops before rules that it does not know."""

import logging
from dataclasses import dataclass

from consensus.records import Upgrade
from consensus.upgrade import get_next_upgrade, get_version_at
from consensus.vote import Checkpoint
from node.chain import Chain, HeadChange
from node.core import Core
from node.protocol import UpgradeRequired

logger = logging.getLogger(__name__)

REMIND_BLOCKS = 100
"""A coming upgrade that is not known here is named again this often."""


@dataclass(frozen=True, slots=True)
class ProtocolStatus:
    """Which rules are in force for the next block, and what comes after them."""

    version: int
    known: int
    coming: Upgrade | None
    blocks_left: int
    """Blocks still made by the rules in force; 0 if nothing is coming."""

    @property
    def is_known(self) -> bool:
        """Whether this software can follow what comes."""
        return self.version <= self.known and (self.coming is None or self.coming.version <= self.known)

    def describe(self) -> str:
        """In words, for logs and readiness."""
        text = f"protocol version {self.version}"
        if self.coming is None:
            return text
        text += (
            f"; version {self.coming.version} from height {self.coming.height}, in {self.blocks_left} blocks"
        )
        if self.is_known:
            return text
        return f"{text}, UNKNOWN to this software, which knows up to {self.known}: replace it before then"


def get_protocol_status(chain: Chain) -> ProtocolStatus:
    """By the head's state."""
    state, height = chain.head_state, chain.head.height
    version = get_version_at(state, height + 1)
    upgrades = state.get_upgrades()
    begun = next((item for item in upgrades if item.version == version), None)
    # The rules of the next block are coming as long as they are not known here.
    coming = begun if version > chain.known_version else get_next_upgrade(state, height + 1)
    left = 0 if coming is None else max(0, coming.height - height - 1)
    return ProtocolStatus(version, chain.known_version, coming, left)


class UpgradeWatch:
    """Names the coming upgrade in the log and ends the node at the last block that it can judge."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._told: tuple[Upgrade | None, int] | None = None
        self._version = get_protocol_status(core.chain).version
        core.chain.on_head_change(self._on_head)
        core.chain.on_finalized(self._on_final)

    def check(self) -> None:
        """Raises: UpgradeRequired if the next block of the final chain obeys rules not known here."""
        error = self._find_end()
        if error is not None:
            raise error
        self._tell()

    def _on_head(self, _: HeadChange) -> None:
        self._tell()
        self._stop_if_due()

    def _on_final(self, _: Checkpoint) -> None:
        self._stop_if_due()

    def _stop_if_due(self) -> None:
        error = self._find_end()
        if error is not None:
            self._core.fail(error)

    def _find_end(self) -> UpgradeRequired | None:
        chain = self._core.chain
        status = get_protocol_status(chain)
        if status.version <= chain.known_version:
            return None
        # On a branch that may still lose, another upgrade or none may be scheduled in the one that wins.
        final = chain.get_state(chain.finalized.hash)
        if get_version_at(final, chain.head.height + 1) != status.version:
            return None
        return UpgradeRequired(status.version, chain.known_version, chain.head.height + 1)

    def _tell(self) -> None:
        status = get_protocol_status(self._core.chain)
        if self._version < status.version <= status.known:
            self._version = status.version
            height = self._core.chain.head.height + 1
            logger.info("protocol version %d is in force from height %d on", status.version, height)
        told = (status.coming, 0 if status.is_known else status.blocks_left // REMIND_BLOCKS)
        if told == self._told or (self._told is None and status.coming is None):
            return
        self._told = told
        if status.coming is None:
            return
        log = logger.info if status.is_known else logger.warning
        log("upgrade: %s", status.describe())
