"""Recomputes opened losses: no loss and no block is believed for its sender's sake (W4)."""

import asyncio
import logging

from consensus.block import Block
from consensus.types import Hash32
from consensus.work import LossCheck
from node.blobs import BlobError
from node.chain import HeadChange
from node.core import Core
from node.work import MissingBlob
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

RETRY_S = 10.0
"""After which a loss is tried again whose blobs no peer could give."""


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
