"""How long blobs are kept (DESIGN 3.2): what a living task needs stays; an ended task's blobs stay for the
time in which they may be evidence, as every `Available` promised; then they go, unless this is an archive.

A task's end is dated by the first head on which this node saw it ended, so one that was away keeps the blobs
for longer, never for less.
"""

import logging
from collections.abc import Callable, Iterator

from consensus.settlement import LIVING
from consensus.types import Hash32
from node.core import Core
from node.settings import RetentionSettings
from node.tasks import TaskDefinition

logger = logging.getLogger(__name__)

PRUNE_S = 5.0
ENDED_PREFIX = b"ended/"


def iterate_roots(definition: TaskDefinition) -> Iterator[Hash32]:
    """Every blob that a task's definition names."""
    yield definition.draft.public_key.root
    yield definition.draft.relin_keys.root
    for batch in (*definition.training, *definition.validation):
        yield batch.blob.root


async def prune_at_heads(core: Core, settings: RetentionSettings, prune: Callable[[], None]) -> None:
    """Call `prune` for ever, every few seconds if the head has moved; of an archive never."""
    if settings.policy == "archive":
        return
    looked_at: Hash32 | None = None
    while True:
        if looked_at != core.chain.head_hash:
            looked_at = core.chain.head_hash
            prune()
        await core.clock.sleep(PRUNE_S)


class Pruner:
    """Drops the blobs of tasks that ended more than `evidence_ms` ago; an archive's does nothing."""

    def __init__(self, core: Core, settings: RetentionSettings) -> None:
        self._core = core
        self._settings = settings

    async def run(self) -> None:
        """Until cancelled."""
        await prune_at_heads(self._core, self._settings, self.prune)

    def prune(self) -> None:
        """Date the tasks that have ended, and drop what is out of date by the chain's time."""
        core = self._core
        state, now = core.chain.head_state, core.chain.head.time
        needed: set[Hash32] = set()
        due: list[tuple[Hash32, TaskDefinition]] = []
        for task_id in state.get_tasks():
            task, definition = state.get_task(task_id), core.get_definition(task_id)
            if task is None or definition is None:
                continue
            if task.status in LIVING:
                needed.update(iterate_roots(definition))
                self._forget_end(task_id)
                continue
            if now < self._date(task_id, now) + core.chain.params.evidence_ms:
                needed.update(iterate_roots(definition))
            else:
                due.append((task_id, definition))
        for task_id, definition in due:
            self._drop(task_id, definition, needed)

    def _drop(self, task_id: Hash32, definition: TaskDefinition, needed: set[Hash32]) -> None:
        roots = [root for root in iterate_roots(definition) if root not in needed]
        dropped = sum(self._core.blobs.remove(root) for root in roots)
        if dropped:
            logger.info("dropped %d blobs of task %s, which ended long ago", dropped, task_id.hex()[:12])

    def _date(self, task_id: Hash32, now: int) -> int:
        ledger = self._core.chain.ledger
        record = ledger.get_record(ENDED_PREFIX + task_id)
        if record is not None:
            return int.from_bytes(record, "big")
        ledger.put_record(ENDED_PREFIX + task_id, now.to_bytes(8, "big"))
        return now

    def _forget_end(self, task_id: Hash32) -> None:
        """Its end was undone by a reorganisation."""
        if self._core.chain.ledger.get_record(ENDED_PREFIX + task_id) is not None:
            self._core.chain.ledger.delete_record(ENDED_PREFIX + task_id)
