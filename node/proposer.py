"""Proposes blocks when the rules entitle this node: work blocks by rank, carrier blocks by turn (B7)."""

import logging

from consensus.block import Work
from consensus.codec import encode
from consensus.errors import InvalidBlock
from consensus.finality import is_finality_wanted
from consensus.proposal import Proposal, build_proposal, build_work, is_worth_making
from consensus.state import State, TaskState
from consensus.transaction import compute_transaction_id
from consensus.turns import get_carrier_proposer
from consensus.types import Hash32, Millis
from consensus.vote import Checkpoint
from consensus.work import LossCheck
from node.chain import ImportStatus
from node.core import Core

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""Turns and ranks come with time alone, so the loop looks this often even when nothing happens."""
RETRY_S = 0.1
"""After which a block is tried again that was not worth making: whoever sends what can't be included yet
makes nobody build blocks all the time. News of the head or of votes come first."""


class Proposer:
    """Watches the head and proposes at the first moment the rules allow."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._vain: tuple[Hash32, int] | None = None
        """Head and version of the votes at the last try in vain..."""
        self._vain_at = 0.0
        """...and its time."""

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            seen = await self._core.pulse.wait(seen, POLL_S)
            self._core.chain.on_tick()
            while self.propose():
                pass

    def propose(self) -> bool:
        """Make one block if this node is entitled to one now; True if the head moved."""
        core = self._core
        chain = core.chain
        now = core.clock.now_ms()
        if core.is_behind() or now < chain.head.time + chain.params.min_block_ms:
            return False
        state = chain.head_state
        for task_id in self._core.get_open_tasks():
            task = state.get_task(task_id)
            if task is not None and task.qualified and self._propose_work(state, task_id, task, now):
                return True
        return self._propose_carrier(state, now)

    def _propose_work(self, state: State, task_id: Hash32, task: TaskState, now: Millis) -> bool:
        core = self._core
        first = task.qualified[0]
        weights = core.history.get(task_id, first.weights_digest)
        if weights is None:
            return False
        if core.work.verdicts.get_verdict(LossCheck(task_id, first.step, weights)) is None:
            return False  # its own recomputation is still running
        work = build_work(state, task_id, weights)
        proposal = self._build(work, now)
        if proposal is None:
            return False
        rungs = f"{work.first_rung + 1}-{work.last_rung + 1}"
        return self._submit(proposal, f"milestones {rungs} at loss {work.loss}")

    def _propose_carrier(self, state: State, now: Millis) -> bool:
        core = self._core
        chain = core.chain
        if get_carrier_proposer(state, chain.params, chain.head, now) != core.address:
            return False
        if not len(core.mempool) and not is_finality_wanted(state):
            return False
        attempt = chain.head_hash, core.votes.version
        monotonic = core.clock.monotonic()
        if attempt == self._vain and monotonic < self._vain_at + RETRY_S:
            return False
        proposal = self._build(None, now)
        if proposal is None or not is_worth_making(chain.head, state, proposal, now, chain.params):
            self._vain, self._vain_at = attempt, monotonic
            return False
        body = proposal.block.body
        return self._submit(proposal, f"{len(body.transactions)} transactions, {len(body.votes)} votes")

    def _build(self, work: Work | None, now: Millis) -> Proposal | None:
        """A block on the head, or None if this node may not propose it now."""
        core = self._core
        chain = core.chain
        state = chain.head_state
        try:
            proposal = build_proposal(
                chain.head,
                state,
                core.mempool.get_candidates(),
                work,
                now,
                core.key,
                chain.params,
                chain.chain_id,
                core.votes.get_includable(state, Checkpoint(chain.head.height, chain.head_hash)),
                chain.known_version,
            )
        except InvalidBlock:
            return None
        core.mempool.remove(compute_transaction_id(r.transaction) for r in proposal.refused)
        return proposal

    def _submit(self, proposal: Proposal, what: str) -> bool:
        outcome = self._core.take_block(encode(proposal.block))
        if outcome.status is ImportStatus.ACCEPTED and outcome.hash is not None:
            logger.info("proposed block %s: %s", outcome.hash.hex()[:12], what)
            return True
        logger.warning("own block was not accepted: %s %s", outcome.reason or outcome.status, outcome.detail)
        return False
