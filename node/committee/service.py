"""The service of a committee's members: opens steps of tasks whose key this node has a share of (ADR 24)."""

import asyncio
import logging
from collections import defaultdict
from pathlib import Path

from consensus.ceremonies import CeremonyRecord
from consensus.records import TaskStatus
from consensus.types import ZERO_HASH, Hash32
from node.blobs import BlobError
from node.committee.choice import Suspects
from node.committee.member import FULL_RATE, forget_task
from node.committee.records import RecordDamaged
from node.committee.share import HeldShare, load_share
from node.committee.step import MemberSettings, StepMember
from node.committee.terms import Waits
from node.core import Core
from node.custody_keys import CustodyKeys
from node.living import LivingTasks
from node.settings import CustodySettings
from node.tasks import TaskDefinition, TaskTip
from node.work import WorkerPool
from workloads.base import WorkloadError
from workloads.fusion import WORKLOAD, FusionTraining

logger = logging.getLogger(__name__)

POLL_S = 1.0
TICK_S = 0.05
"""While an opening is under way; a fraction of what members wait for each other."""
RETRY_S = 10.0


def build_member_settings(settings: CustodySettings, *, keep_bundles: bool) -> MemberSettings:
    waits = Waits(lead=settings.lead_ms, settle=settings.settle_ms, retry=settings.retry_ms)
    return MemberSettings(round(settings.recompute * FULL_RATE), waits, keep_bundles)


class CommitteeCustody:
    """Serves every open task of this node's committees."""

    def __init__(
        self,
        core: Core,
        keys_dir: Path,
        scratch: Path,
        keys: CustodyKeys,
        settings: MemberSettings,
        workload: FusionTraining = WORKLOAD,
    ) -> None:
        """`keys_dir` holds the committees' folders; `keys` opens those that are sealed."""
        self._core = core
        self._keys_dir = keys_dir
        self._scratch = scratch
        self._keys = keys
        self._settings = settings
        self._workload = workload
        self._pool = WorkerPool(1, "committee", core.work.observer)
        self._steps: dict[Hash32, StepMember] = {}
        self._shares: dict[Hash32, HeldShare] = {}
        self._suspects: defaultdict[Hash32, Suspects] = defaultdict(Suspects)
        """By ceremony."""
        self._not_before: dict[Hash32, float] = {}
        self._forgotten: set[Hash32] = set()
        self._tasks = LivingTasks(core)
        core.drain.watch("openings", lambda: sum(step.is_busy for step in self._steps.values()))

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        try:
            while True:
                for task, _ in self._tasks.get(TaskStatus.OPEN):
                    definition = self._core.get_definition(task)
                    if definition is not None and definition.draft.ceremony != ZERO_HASH:
                        await self._serve(definition)
                await self._forget_ended()
                seen = await self._core.pulse.wait(seen, TICK_S if self._steps else POLL_S)
        finally:
            for step in self._steps.values():
                await step.close()
            self._pool.close()

    async def _serve(self, definition: TaskDefinition) -> None:
        core, task = self._core, definition.id
        if self._not_before.get(task, 0.0) > core.clock.monotonic():
            return
        tip = core.get_tip(task)
        is_over = core.clock.now_ms() > definition.publication.deadline
        if tip is None or tip.is_finished or is_over:
            await self._close(task)
            return
        try:
            step = await self._get_step(definition, tip)
            if step is not None:
                step.advance(tip)
        except (BlobError, WorkloadError, OSError, RecordDamaged) as error:
            self._not_before[task] = core.clock.monotonic() + RETRY_S
            logger.error("task %s can't be opened here: %s", task.hex()[:12], error)
            await self._close(task)

    async def _get_step(self, definition: TaskDefinition, tip: TaskTip) -> StepMember | None:
        """None where this node holds no share. Raises: WorkloadError, OSError."""
        task, draft = definition.id, definition.draft
        ceremony, record = tip.chain_state.get_ceremonies(draft.ceremony)[-1]
        step = self._steps.get(task)
        if step is not None and step.is_of(tip) and step.ceremony == ceremony:
            return step
        await self._close(task)
        await self._drop_renewed(ceremony, record)
        share = await self._get_share(ceremony, record)
        if share is None:
            self._not_before[task] = self._core.clock.monotonic() + RETRY_S
            return None
        self._steps[task] = StepMember(
            self._core,
            share,
            definition,
            tip,
            self._pool,
            self._scratch,
            self._settings,
            self._suspects[ceremony],
        )
        return self._steps[task]

    async def _drop_renewed(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        """What this process, and its worker, know of the share before."""
        self._suspects.pop(record.create.renews, None)
        if self._shares.pop(record.create.renews, None) is None:
            return
        for task in [task for task, step in self._steps.items() if step.ceremony == record.create.renews]:
            await self._close(task)
        self._pool.close()
        self._pool = WorkerPool(1, "committee", self._core.work.observer)

    async def _get_share(self, ceremony: Hash32, record: CeremonyRecord) -> HeldShare | None:
        core = self._core
        if ceremony not in self._shares:
            found = await asyncio.to_thread(
                load_share, self._keys, self._keys_dir, ceremony, record, core.address, self._workload
            )
            if found is not None:
                self._shares[ceremony] = found
        return self._shares.get(ceremony)

    async def _close(self, task: Hash32) -> None:
        step = self._steps.pop(task, None)
        if step is not None:
            await step.close()

    async def _forget_ended(self) -> None:
        """What was said and answered of a task's openings goes with the task."""
        for task in self._tasks.get_ended() - self._forgotten:
            self._forgotten.add(task)
            await self._close(task)
            forget_task(self._core.chain.ledger, task)
