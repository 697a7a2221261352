"""Mining: compute the gradient bundles of leased batches and claim them."""

import asyncio
import logging
from pathlib import Path

from consensus.claims import sign_claim, sign_presence
from consensus.codec import decode, encode
from consensus.leases import compute_leases
from consensus.task import Claim
from consensus.types import ZERO_HASH, Hash32
from node.blobs import BlobError
from node.committee.mining import CommitteeMining
from node.core import Core
from node.settings import RetentionSettings
from node.tasks import TaskDefinition, TaskTip
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

PRESENCE_S = 5.0
POLL_S = 1.0
HANDOVER_S = 5.0
"""Within which a custody that is up has fetched a claimed bundle, or gives the lease to another miner."""
Position = tuple[Hash32, int]
"""(task, step)."""


class Miner:
    """Takes leases of the current step's batches, one batch for each worker at a time, here and on a cluster.

    A bundle is written into the blob store and claimed; the custody fetches it from there. Claims are kept
    until their step is opened, so that a custody that was away finds them; bundles for some steps more.
    """

    def __init__(
        self,
        core: Core,
        workers: int,
        scratch: Path,
        retention: RetentionSettings = RetentionSettings(),  # noqa: B008  # it is immutable
    ) -> None:
        self._core = core
        self._workers = workers
        self._scratch = scratch
        self._retention = retention
        self._running: dict[tuple[Hash32, int, int], asyncio.Task[None]] = {}
        self._step_seen: dict[Position, float] = {}
        """Monotonic seconds: leases pass on by them, whatever becomes of the wall clock."""
        self._own: dict[tuple[Hash32, int, int], Claim] = {}
        self._announced_at: float | None = None
        self._claimed_at: dict[tuple[Hash32, int, int], float] = {}
        self._sealing = CommitteeMining(core)
        core.drain.watch("batches", self._count_under_way)

    async def run(self) -> None:
        """Until cancelled."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._load_claims()
        seen = -1
        try:
            while True:
                self._announce()
                for task_id in self._core.get_open_tasks():
                    self._consider(task_id)
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()

    def _announce(self) -> None:
        """Presence, and own claims again: a custody that restarted has forgotten them."""
        core = self._core
        now, monotonic = core.clock.now_ms(), core.clock.monotonic()
        if self._announced_at is not None and monotonic < self._announced_at + PRESENCE_S:
            return
        self._announced_at = monotonic
        open_tasks = core.get_open_tasks()
        self._forget_closed(open_tasks)
        # Who is about to stop is given no lease: its last notice counts for PRESENCE_MS at most.
        for task_id in () if core.drain.is_draining else open_tasks:
            presence = sign_presence(core.key, core.chain.chain_id, task_id, now)
            core.add_presence(presence)
        for claim in self._own.values():
            if self._is_sealed(claim):
                self._sealing.repeat(claim)
            else:
                core.announce_claim(claim)

    def _consider(self, task_id: Hash32) -> None:
        core = self._core
        definition, tip = core.get_definition(task_id), core.get_tip(task_id)
        if definition is None or tip is None or tip.is_finished:
            return
        step = tip.state.step
        if step >= definition.draft.max_gradient_openings:
            return
        now = core.clock.monotonic()
        if definition.draft.ceremony != ZERO_HASH:
            self._sealing.tell(definition, tip, self._own.values())
        if (task_id, step) not in self._step_seen:
            self._step_seen[task_id, step] = now
            self._forget_before(task_id, step)
        waited_ms = (now - self._step_seen[task_id, step]) * 1000
        workers = self._workers + core.work.cluster_threads
        free = 0 if core.drain.is_draining else workers - len(self._running)
        if definition.draft.ceremony != ZERO_HASH:
            batches = self._sealing.choose(definition, tip, waited_ms)
            chosen = [batch for batch in batches if not self._has_begun((task_id, step, batch))]
        else:
            chosen = self._choose(definition, step, waited_ms)
        for batch in chosen[: max(0, free)]:
            key = (task_id, step, batch)
            job = asyncio.create_task(self._mine(definition, tip, batch))
            self._running[key] = job
            job.add_done_callback(lambda _, key=key: self._finish(key))  # type: ignore[misc]

    def _choose(self, definition: TaskDefinition, step: int, waited_ms: float) -> list[int]:
        """Batches of the step that this miner holds the lease of and has neither claimed nor begun."""
        core = self._core
        lease_ms = core.chain.params.lease_ms
        present = core.presence.get_present(definition.id, core.clock.now_ms())
        leases = compute_leases(definition.id, step, definition.get_step_batches(step), present)
        chosen = []
        for batch, order in leases.items():
            key = (definition.id, step, batch)
            if self._has_begun(key) or core.address not in order:
                continue
            rank = order.index(core.address)
            if waited_ms >= rank * lease_ms:
                # A claim by an earlier rank may still be in the custody's queue: leave it one lease more.
                claimed = any(
                    c.miner in order[:rank] for c in core.claims.get_for(definition.id, step, batch)
                )
                if not claimed or waited_ms >= (rank + 1) * lease_ms:
                    chosen.append(batch)
        return chosen

    def _has_begun(self, key: tuple[Hash32, int, int]) -> bool:
        return key in self._own or key in self._running

    def _is_sealed(self, claim: Claim) -> bool:
        """Of a committee's task: its root is for members alone."""
        definition = self._core.get_definition(claim.task)
        return definition is not None and definition.draft.ceremony != ZERO_HASH

    def _publish(self, claim: Claim) -> None:
        if self._is_sealed(claim):
            self._sealing.seal(claim)
        else:
            self._core.add_claim(claim)

    def _count_under_way(self) -> int:
        """Batches being computed, and those just claimed: the custody fetches their bundles from here."""
        since = self._core.clock.monotonic() - HANDOVER_S
        return len(self._running) + sum(at > since for at in self._claimed_at.values())

    def _finish(self, key: tuple[Hash32, int, int]) -> None:
        self._running.pop(key, None)
        self._core.pulse.beat()

    async def _mine(self, definition: TaskDefinition, tip: TaskTip, batch: int) -> None:
        core = self._core
        step, weights = tip.state.step, tip.state.weights
        output = self._scratch / f"{definition.id.hex()[:16]}-{step}-{batch}.bundle"
        try:
            await core.hold_training(definition, batch)
            begun = core.clock.monotonic()
            await core.work.compute_bundle(definition, batch, weights, output)
            ref = await core.blobs.put_file(output, move=True)
        except (BlobError, WorkloadError) as error:
            logger.warning("step %d batch %d of task %s: %s", step, batch, definition.id.hex()[:12], error)
            return
        finally:
            output.unlink(missing_ok=True)
        claim = sign_claim(core.key, core.chain.chain_id, definition.id, step, batch, ref)
        self._own[definition.id, step, batch] = claim
        self._claimed_at[definition.id, step, batch] = core.clock.monotonic()
        core.chain.ledger.put_record(_get_claim_key(claim), encode(claim))
        self._publish(claim)
        logger.info(
            "mined step %d batch %d of task %s in %.1f s",
            step,
            batch,
            definition.id.hex()[:12],
            core.clock.monotonic() - begun,
        )

    def _forget_before(self, task_id: Hash32, step: int) -> None:
        """Bundles may be dropped once their step is opened (DESIGN 3.5); this keeps the last steps'."""
        core = self._core
        for claim in list(self._own.values()):
            if claim.task == task_id and claim.step < step:
                self._forget(claim)
        self._drop_bundles(task_id, step - self._retention.bundle_steps)
        for position in [p for p in self._step_seen if p[0] == task_id and p[1] < step]:
            del self._step_seen[position]
        core.claims.drop_before(task_id, step)

    def _forget_closed(self, open_tasks: list[Hash32]) -> None:
        """All bundles of a task go when it ends: evidence against them needs none."""
        for claim in list(self._own.values()):
            if claim.task not in open_tasks:
                self._forget(claim)
        kept = {
            Hash32(key[len(_BUNDLE) :][:32]) for key, _ in self._core.chain.ledger.iterate_records(_BUNDLE)
        }
        for task_id in kept.difference(open_tasks):
            self._drop_bundles(task_id, None)

    def _forget(self, claim: Claim) -> None:
        """The claim; its bundle is dropped later, and found for that after a restart, too."""
        del self._own[claim.task, claim.step, claim.batch]
        self._sealing.forget(claim)
        self._claimed_at.pop((claim.task, claim.step, claim.batch), None)
        bundle = {} if self._retention.policy == "archive" else {_get_bundle_key(claim): claim.bundle.root}
        self._core.chain.ledger.put_records(bundle, [_get_claim_key(claim)])

    def _drop_bundles(self, task_id: Hash32, below: int | None) -> None:
        """Drop the task's bundles of opened steps below `below`; all of them if it is None."""
        core = self._core
        for key, root in list(core.chain.ledger.iterate_records(_BUNDLE + task_id)):
            step = int.from_bytes(key[len(_BUNDLE) + 32 :][:4], "big")
            if below is None or step < below:
                core.blobs.remove(Hash32(root))
                core.chain.ledger.delete_record(key)

    def _load_claims(self) -> None:
        """Claims made before a restart stand: their bundles are still in the blob store."""
        for _, data in self._core.chain.ledger.iterate_records(b"claim/"):
            claim = decode(Claim, data)
            if self._core.blobs.get_path(claim.bundle.root) is not None:
                self._own[claim.task, claim.step, claim.batch] = claim
                self._publish(claim)


def _get_claim_key(claim: Claim) -> bytes:
    return b"claim/" + claim.task + claim.step.to_bytes(4, "big") + claim.batch.to_bytes(4, "big")


_BUNDLE = b"bundle/"


def _get_bundle_key(claim: Claim) -> bytes:
    return _BUNDLE + claim.task + claim.step.to_bytes(4, "big") + claim.batch.to_bytes(4, "big")
