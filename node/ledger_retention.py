"""How much of the chain's past a node keeps: what is far enough below the last final block is pruned.

Headers stay, and so does everything that proves finality to others: from a pruned node light clients and new
nodes get all that they get from one that began with a snapshot. Kept, too, are the bodies of living tasks,
from which their history is read.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from consensus.settlement import LIVING
from node.chain import Chain
from node.core import Core
from node.ledger.level import LevelStore
from node.ledger.prune import Pruned, is_swept, prune_steps
from node.ledger.schema import LedgerError
from node.ledger.store import StoreError
from node.settings import RetentionSettings
from node.sync.serving import FinalityProver

logger = logging.getLogger(__name__)

POLL_S = 5.0
PAUSE_S = 0.02
"""After each step of some milliseconds: a prune takes a small part of the node's time."""
LEAST_STRIDE = 16
"""Blocks, or a quarter of `retention.blocks`, that have to be due before a prune is worth the sweep."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Up to which height the past may go."""

    height: int
    """Bodies from here on stay."""
    why: str = ""
    """What holds it back; empty if nothing does."""


def find_bound(chain: Chain, prover: FinalityProver, wanted: int) -> Bound:
    """The height nearest to the wanted one below which a node can do without bodies and states."""
    bound = Bound(wanted)
    proof = prover.get_proof()
    proved = 0 if proof is None else int(proof.source.height)
    if bound.height > proved:
        bound = Bound(proved, f"the highest block that votes prove final is at height {proved}")
    state = chain.head_state
    for task_id in state.get_tasks():
        task = state.get_task(task_id)
        if task is not None and task.status in LIVING and task.published_height < bound.height:
            bound = Bound(
                task.published_height,
                f"task {task_id.hex()} lives, and was published at height {task.published_height}",
            )
    return bound


def keep_proofs(chain: Chain, prover: FinalityProver) -> None:
    """Store what leads from each set of validators to the next: it can't be made without old bodies."""
    for number in range(chain.head_state.get_validator_set().number):
        prover.get_change(number)


def measure_bytes(directory: Path) -> int:
    """Of a ledger's files."""
    return sum(entry.stat().st_size for entry in directory.iterdir() if entry.is_file())


class LedgerPruner:
    """Prunes a running node's ledger to `retention.blocks` below the last final block; 0 keeps everything."""

    def __init__(
        self, core: Core, store: LevelStore, prover: FinalityProver, settings: RetentionSettings
    ) -> None:
        self._core = core
        self._store = store
        self._prover = prover
        self._blocks = settings.blocks

    async def run(self) -> None:
        """Until cancelled."""
        if not self._blocks:
            return
        looked_at = 0
        while True:
            final = self._core.chain.finalized.height
            if final != looked_at:
                looked_at = final
                await self.prune()
            await self._core.clock.sleep(POLL_S)

    async def prune(self) -> Pruned | None:
        """Prune if enough is due; None if not."""
        chain = self._core.chain
        height = find_bound(chain, self._prover, chain.finalized.height - self._blocks).height
        is_due = height - chain.ledger.base >= max(LEAST_STRIDE, self._blocks // 4)
        if not is_due and is_swept(chain.ledger):
            return None
        done: Pruned | None = None
        try:
            keep_proofs(chain, self._prover)
            for done in prune_steps(chain.ledger, max(height, chain.ledger.base), [chain.genesis_root]):
                chain.forget_states_below(done.base)
                await self._core.clock.sleep(PAUSE_S)
            for part in self._store.get_parts():
                await asyncio.to_thread(self._store.compact_part, *part)
        except (LedgerError, StoreError) as error:
            self._core.fail(error)
            return None
        if done is not None:
            logger.info(
                "pruned the ledger: bodies begin at height %d, %d bodies and %d of %d state nodes dropped",
                done.base,
                done.bodies,
                done.nodes,
                done.nodes + done.kept_nodes,
            )
        return done
