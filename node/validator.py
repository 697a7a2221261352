"""A validator's duties besides voting: hold what a task promises, recompute every opened loss."""

import asyncio
import logging
from dataclasses import replace

from consensus.block import Block
from consensus.settlement import is_expirable
from consensus.state import TaskStatus
from consensus.task import Available, ExpireTask
from consensus.types import Hash32, Millis
from consensus.work import LossCheck
from node.blobs import BlobError
from node.chain import HeadChange
from node.core import Core
from node.tasks import get_next_context
from node.work import MissingBlob
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 10.0
"""After which a loss is tried again whose blobs no peer could give."""
EXPIRE_GRACE_MS = 30_000


class Availability:
    """Fetches and checks the keys and validation blobs of every published task, then posts `Available`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            state = self._core.chain.head_state
            for task_id in self._core.get_tasks(TaskStatus.PENDING):
                task = state.get_task(task_id)
                if task is not None and self._core.address not in task.available:
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

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            for status in (TaskStatus.PENDING, TaskStatus.OPEN):
                for task_id in self._core.get_tasks(status):
                    self._consider(task_id)
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _consider(self, task_id: Hash32) -> None:
        core = self._core
        definition, task = core.get_definition(task_id), core.chain.head_state.get_task(task_id)
        if definition is None or task is None:
            return
        context = get_next_context(core.chain, core.clock.now_ms())
        grace = 0 if definition.custody == core.address else EXPIRE_GRACE_MS
        late = replace(context, time=Millis(max(0, context.time - grace)))
        most = definition.draft.max_gradient_openings
        if not is_expirable(task, definition.publication, most, late):
            return
        transaction = core.sign(ExpireTask(task_id))
        if not core.is_pending(transaction) and core.admit(transaction).accepted:
            logger.info("task %s can't go on: asked for its end", task_id.hex()[:12])


class Recomputer:
    """Recomputes each loss ciphertext that is opened on the chain, and those that held blocks wait for.

    Every node runs one: a block is never believed for its proposer's sake.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue: asyncio.Queue[tuple[LossCheck, Hash32 | None]] = asyncio.Queue()
        self._queued: set[LossCheck] = set()
        core.chain.on_head_change(self._on_head)

    async def run(self) -> None:
        """Until cancelled."""
        self._catch_up()
        async with asyncio.TaskGroup() as retries:
            while True:
                check, opened = await self._queue.get()
                try:
                    await self._recompute(check, opened)
                except (BlobError, MissingBlob) as error:
                    logger.warning("loss at step %d can't be recomputed yet: %s", check.step, error)
                    retries.create_task(self._request_later(check, opened))
                except WorkloadError as error:
                    logger.error("loss at step %d can't be recomputed: %s", check.step, error)
                finally:
                    self._queued.discard(check)

    async def _request_later(self, check: LossCheck, opened: Hash32 | None) -> None:
        await self._core.clock.sleep(RETRY_S)
        self.request(check, opened)

    def _catch_up(self) -> None:
        """What a crash may have left undone between storing a block and following it."""
        core = self._core
        state = core.chain.head_state
        for task_id in core.get_open_tasks():
            openings = core.get_openings(task_id)
            for check, opening in core.history.on_start(state, task_id, openings):
                self.request(check, opening.ciphertext)

    def request(self, check: LossCheck, opened: Hash32 | None = None) -> None:
        """Queue a recomputation once; `opened` is the hash that the custody signed."""
        if check not in self._queued and self._core.work.verdicts.get_verdict(check) is None:
            self._queued.add(check)
            self._queue.put_nowait((check, opened))

    async def _recompute(self, check: LossCheck, opened: Hash32 | None) -> None:
        core = self._core
        definition = core.get_definition(check.task)
        if definition is None:
            return
        await core.hold_validation(definition)
        begun = core.clock.monotonic()
        verdict = await core.work.compute_verdict(definition, check)
        if opened is not None and opened != verdict.ciphertext:
            logger.error("the loss opened at step %d does not recompute: the custody lied", check.step)
        else:
            seconds = core.clock.monotonic() - begun
            logger.info("recomputed the loss at step %d in %.2f s", check.step, seconds)
        if core.chain.retry(check):
            core.request_sync()
        core.pulse.beat()

    def _on_head(self, change: HeadChange) -> None:
        for block in change.connected:
            self._follow(block)

    def _follow(self, block: Block) -> None:
        core = self._core
        parent_state = core.chain.get_state(block.header.parent)
        for check, opening in core.history.on_block(parent_state, block):
            self.request(check, opening.ciphertext)
