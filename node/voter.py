"""A validator's finality votes: for every new head that something waits on to be final."""

import logging

from consensus.finality import choose_vote
from consensus.vote import Checkpoint, Vote, sign_vote
from node.core import Core
from node.signstate import SignStateStore

logger = logging.getLogger(__name__)

POLL_S = 1.0


class Voter:
    """Signs for the head when it moves, and once after the start; never two votes that convict."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._store = SignStateStore(core.chain.ledger, core.address)

    async def run(self) -> None:
        """Until cancelled."""
        if self._store.last is not None:
            self._core.add_vote(self._store.last)  # a crash may have come before it left
        seen = -1
        while True:
            self.vote()
            seen = await self._core.pulse.wait(seen, POLL_S)

    def vote(self) -> Vote | None:
        """Sign for the head if that is due."""
        core = self._core
        chain = core.chain
        head = Checkpoint(chain.head.height, chain.head_hash)
        link = choose_vote(chain.head_state, head, core.address, self._store.signed)
        if link is None:
            return None
        vote = sign_vote(core.key, chain.chain_id, *link)
        self._store.record(vote)
        core.add_vote(vote)
        logger.debug("voted from height %d to %d", vote.source.height, vote.target.height)
        return vote
