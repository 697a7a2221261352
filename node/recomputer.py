"""Recomputes opened losses: no loss and no block is believed for its sender's sake (W4)."""

import asyncio
import logging
from collections import Counter

from consensus.block import Block
from consensus.payload import SignedOpening, WrongLoss
from consensus.settlement import LIVING
from consensus.task import OpenLoss
from consensus.types import Hash32
from consensus.work import LossCheck
from node.accuser import accuse
from node.blobs import BlobError
from node.chain import HeadChange
from node.core import Core
from node.work import MissingBlob
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 10.0
"""After which a loss is tried again whose blobs no peer could give."""
TRIES = 3
"""After so many failures with a task's blobs, finality is believed where there is any."""


class Recomputer:
    """Recomputes each loss ciphertext that is opened on the chain, and those that held blocks wait for.

    Every node runs one: a block is never believed for its proposer's sake. A validator that finds a custody
    lying says so on the chain; two thirds of stake that say the same close the task.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue: asyncio.Queue[LossCheck] = asyncio.Queue()
        self._queued: dict[LossCheck, list[SignedOpening]] = {}
        self._failures: Counter[Hash32] = Counter()
        """How often a task's blobs were not to be had."""
        core.chain.on_head_change(self._on_head)

    async def run(self) -> None:
        """Until cancelled."""
        self._catch_up()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_held())
            while True:
                check = await self._queue.get()
                try:
                    await self._recompute(check)
                except (BlobError, MissingBlob) as error:
                    self._failures[check.task] += 1
                    if self._failures[check.task] >= TRIES and self._give_up(check):
                        continue
                    logger.warning("loss at step %d can't be recomputed yet: %s", check.step, error)
                    group.create_task(self._put_back(check))
                except WorkloadError as error:
                    # Stays queued: the same bytes would be refused again.
                    logger.error("loss at step %d can't be recomputed: %s", check.step, error)

    def _give_up(self, check: LossCheck) -> bool:
        """Go on without the recomputation where nobody has the blobs: the block that waits for it is proved
        final, or none waits and the task has ended."""
        core = self._core
        if core.chain.retry_on_finality(check):
            logger.warning("loss at step %d is believed unseen: its block is proved final", check.step)
            core.request_sync()
            core.pulse.beat()
        else:
            task = core.chain.head_state.get_task(check.task)
            is_ended = task is not None and task.status not in LIVING
            if not is_ended or check in core.chain.get_waiting_checks():
                return False
        del self._queued[check]
        return True

    async def _put_back(self, check: LossCheck) -> None:
        await self._core.clock.sleep(RETRY_S)
        self._queue.put_nowait(check)

    async def _watch_held(self) -> None:
        """Blocks may be kept aside long after they came: when their parent does, or their time."""
        seen = -1
        while True:
            for check in self._core.chain.get_waiting_checks():
                self.request(check)
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _catch_up(self) -> None:
        """What a crash may have left undone between storing a block and following it.

        An ended task's losses too, as long as its blobs are kept: until then they are evidence.
        """
        core = self._core
        state = core.chain.head_state
        for task_id in state.get_tasks():
            task, definition = state.get_task(task_id), core.get_definition(task_id)
            if task is None or definition is None:
                continue
            if task.status in LIVING or all(core.blobs.has(b.blob.root) for b in definition.validation):
                for check, signed in core.history.on_start(core.chain, task_id):
                    self.request(check, signed)

    def request(self, check: LossCheck, signed: SignedOpening | None = None) -> None:
        """Queue a recomputation once; `signed` is the opening that says what it must come to."""
        known = self._core.work.verdicts.get_verdict(check)
        if known is None and check not in self._queued:
            self._queued[check] = []
            self._queue.put_nowait(check)
        if signed is None:
            return
        if known is not None:
            self._compare(known.ciphertext, signed)
        elif signed not in self._queued[check]:
            self._queued[check].append(signed)

    async def _recompute(self, check: LossCheck) -> None:
        core = self._core
        definition = core.get_definition(check.task)
        if definition is None:
            del self._queued[check]  # of a fork that was left
            return
        await core.hold_validation(definition)
        begun = core.clock.monotonic()
        verdict = await core.work.compute_verdict(definition, check)
        seconds = core.clock.monotonic() - begun
        logger.info("recomputed the loss at step %d in %.2f s", check.step, seconds)
        for signed in self._queued.pop(check):
            self._compare(verdict.ciphertext, signed)
        if core.chain.retry(check):
            core.request_sync()
        core.pulse.beat()

    def _compare(self, ciphertext: Hash32, signed: SignedOpening) -> None:
        opening = signed.opening
        if not isinstance(opening, OpenLoss) or opening.ciphertext == ciphertext:
            return
        logger.error("the loss opened at step %d does not recompute: the custody lied", opening.step)
        accuse(self._core, WrongLoss(opening, signed.signature, ciphertext))

    def _on_head(self, change: HeadChange) -> None:
        for block in change.connected:
            self._follow(block)

    def _follow(self, block: Block) -> None:
        core = self._core
        parent_state = core.chain.get_state(block.header.parent)
        for check, signed in core.history.on_block(parent_state, block):
            self.request(check, signed)
