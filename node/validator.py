"""A validator's duties besides voting and judging: hold what a task promises, settle and end tasks."""

import logging
from dataclasses import replace

from consensus.payload import SettleTask
from consensus.records import TaskState, TaskStatus, Unsettled
from consensus.settlement import is_expirable, is_verdict_over
from consensus.task import Available, ExpireTask
from consensus.types import Hash32, Millis
from node.blobs import BlobError
from node.core import Core
from node.living import LivingTasks
from node.tasks import get_next_context
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 2.0
EXPIRE_GRACE_MS = 30_000


class Availability:
    """Fetches and checks the keys and validation blobs of every published task, then posts `Available`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tasks = LivingTasks(core)

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            for task_id, task in self._tasks.get(TaskStatus.PENDING):
                if self._core.address not in task.available:
                    await self._promise(task_id)
            seen = await self._core.pulse.wait(seen, POLL_S)

    async def _promise(self, task_id: Hash32) -> None:
        core = self._core
        transaction = core.sign(Available(task_id))
        if core.is_pending(transaction):
            return
        definition = core.get_definition(task_id)
        if definition is None:
            return
        try:
            await core.hold_validation(definition)
        except (BlobError, WorkloadError) as error:
            logger.warning("task %s can't be promised: %s", task_id.hex()[:12], error)
            return
        admission = core.admit(transaction)
        if not admission.accepted:
            logger.warning("promise for task %s refused: %s", task_id.hex()[:12], admission.detail)


class Expirer:
    """Ends tasks that can't go on, so that credited miners get their fees and the rest is refunded.

    Anyone may; the custody does so at once, others when it has not after a while.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tasks = LivingTasks(core)

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            for task_id, task in self._tasks.get():
                self._consider(task_id, task)
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _consider(self, task_id: Hash32, task: TaskState) -> None:
        core = self._core
        definition = core.get_definition(task_id)
        if definition is None:
            return
        context = get_next_context(core.chain, core.clock.now_ms())
        grace = 0 if definition.custody == core.address else EXPIRE_GRACE_MS
        late = replace(context, time=Millis(max(0, context.time - grace)))
        if not is_expirable(task, definition.publication, definition.draft, late):
            return
        transaction = core.sign(ExpireTask(task_id))
        if not core.is_pending(transaction) and core.admit(transaction).accepted:
            logger.info("task %s can't go on: asked for its end", task_id.hex()[:12])


class Settler:
    """Asks for the settlement of milestones that have stood `verdict_ms` by chain time.

    Anyone may; two thirds of stake that accept settle one without it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tasks = LivingTasks(core)

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            for task_id, task in self._tasks.get(TaskStatus.OPEN, TaskStatus.CLOSING):
                if task.unsettled:
                    self._consider(task_id, task.unsettled[0])
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _consider(self, task_id: Hash32, first: Unsettled) -> None:
        core = self._core
        if not is_verdict_over(first, get_next_context(core.chain, core.clock.now_ms())):
            return
        transaction = core.sign(SettleTask(task_id, first.milestone.loss_opening))
        if not core.is_pending(transaction) and core.admit(transaction).accepted:
            logger.info("task %s: a milestone has stood its time", task_id.hex()[:12])
