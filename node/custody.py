"""The custody's service: checks bundles, opens sums, and never opens a step twice differently.

Everything that leaves it is on disk first. After a crash it finds its verified sums and signed
openings in the ledger's records and goes on; noise is a function of its secret and of what is opened,
so even an opening that was lost before it was stored comes out the same.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from consensus.codec import decode, encode
from consensus.identifiers import compute_weights_digest
from consensus.openings import is_loss_due
from consensus.payload import WrongBundle
from consensus.task import Batch, Claim, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import ZERO_HASH, Address, Hash32
from consensus.work import LossCheck
from node.accuser import accuse
from node.blobs import BlobError
from node.canonical import compute_canonical_root
from node.core import Core
from node.custody_keys import CustodyKeys
from node.living import LivingTasks
from node.tasks import TaskDefinition, TaskTip
from node.work import WorkerPool
from workloads import base
from workloads.base import WorkloadError
from workloads.custodian import BundleJob, Custodian, LossSumJob, PrepareJob, SingleCustodian

logger = logging.getLogger(__name__)

POLL_S = 1.0
BUNDLE_PATIENCE_S = 5.0
"""A claimed bundle should be there at once; other claims of the batch wait behind it."""
BatchKey = tuple[Hash32, int, int]
"""(task, step, batch)."""


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A claim whose bundle was compared with the clear, and its clipped sums."""

    claim: Claim
    sums: tuple[int, ...]


def get_keys_directory(data_dir: Path, public_key: Hash32) -> Path:
    """Where the custody keeps a task's secret: named by the public key it belongs to."""
    return data_dir / "custody" / public_key.hex()


def get_clear_path(data_dir: Path, public_key: Hash32, batch: Hash32) -> Path:
    """Where a contributed batch's clear arrays are kept, once it is decrypted and found honest."""
    return get_keys_directory(data_dir, public_key) / f"{batch.hex()}.npz"


class Custody:
    """Serves every task of this node's account, one after the other."""

    def __init__(
        self,
        core: Core,
        data_dir: Path,
        workers: int,
        *,
        keep_bundles: bool = False,
        keys: CustodyKeys | None = None,
    ) -> None:
        """`data_dir` holds the tasks' keys; `keys` opens those that are sealed."""
        self._core = core
        self._keys = keys or CustodyKeys(data_dir)
        self._keep_bundles = keep_bundles
        self._data_dir = data_dir
        self._pool = WorkerPool(workers, "custody", core.work.observer)
        self._checking: dict[BatchKey, asyncio.Task[None]] = {}
        core.drain.watch("bundles to check", lambda: len(self._checking))
        self._bundles: set[Hash32] = set()
        self._faults: Counter[Address] = Counter()
        self._forgotten: set[Hash32] = set()
        self._tasks = LivingTasks(core)

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        try:
            while True:
                for task_id in self._core.get_open_tasks():
                    definition = self._core.get_definition(task_id)
                    if definition is not None and self._is_own(definition):
                        await self._serve(definition)
                self._forget_ended()
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._checking.values():
                task.cancel()
            self._pool.close()

    async def _serve(self, definition: TaskDefinition) -> None:
        """Open whatever can be opened now."""
        while True:
            tip = self._core.get_tip(definition.id)
            if tip is None or tip.is_finished or self._is_over(definition):
                return
            if self._get_opening(definition.id, "gradient", tip.state.step) is None:
                self._check_claims(definition, tip)  # while the loss is opened, too
            if is_loss_due(tip.state, definition.publication):
                opened = await self._open_loss(definition, tip)
            else:
                opened = await self._open_gradient(definition, tip)
            if not opened:
                return

    def _is_own(self, definition: TaskDefinition) -> bool:
        """This node alone opens it; a committee's is `CommitteeCustody`'s."""
        return definition.custody == self._core.address and definition.draft.ceremony == ZERO_HASH

    def _forget_ended(self) -> None:
        """Sums without noise and decrypted batches go with their task, however it ended."""
        core = self._core
        for task_id in self._tasks.get_ended() - self._forgotten:
            definition = core.get_definition(task_id)
            self._forgotten.add(task_id)
            if definition is None or not self._is_own(definition):
                continue
            sums = [key for key, _ in core.chain.ledger.iterate_records(b"verified/" + task_id)]
            core.chain.ledger.put_records({}, sums)
            for clear in self._get_keys(definition).glob("*.npz"):
                clear.unlink()

    def _is_over(self, definition: TaskDefinition) -> bool:
        """Past the deadline no block takes an opening; the task is left to expire."""
        return self._core.clock.now_ms() > definition.publication.deadline

    # --- losses -------------------------------------------------------------------------------

    async def _open_loss(self, definition: TaskDefinition, tip: TaskTip) -> bool:
        core, draft, step = self._core, definition.draft, tip.state.step
        if tip.state.loss_openings >= draft.max_loss_openings:
            return False
        stored = self._get_opening(definition.id, "loss", step)
        if stored is not None:
            return self._publish(stored)
        weights = tip.state.weights
        try:
            await core.hold_validation(definition)
            losses = await core.work.compute_losses(definition, weights)
            sums = await asyncio.gather(
                *(
                    self._sum_losses(definition, batch, weights, loss)
                    for batch, loss in zip(definition.validation, losses, strict=True)
                )
            )
            ciphertext = Hash32(base.get_workload(draft.kind).compute_loss_hash(losses))
            patches = sum(batch.patches for batch in definition.validation)
            unopened = OpenLoss(
                definition.id, step, tip.state.previous, compute_weights_digest(weights), ciphertext, 0, 1, ()
            )
            loss = await self._pool.run(
                (await self._get_custodian(definition)).open_loss,
                tuple(sums),
                patches,
                draft.loss_noise,
                core.chain.chain_id + encode(unopened),
            )
        except (BlobError, WorkloadError) as error:
            logger.error("the loss at step %d can't be opened: %s", step, error)
            return False
        core.work.verdicts.remember(LossCheck(definition.id, step, weights), ciphertext)
        opening = OpenLoss(
            definition.id, step, tip.state.previous, compute_weights_digest(weights), ciphertext, loss, 1, ()
        )
        logger.info("opened the loss at step %d: %.6f", step, loss / 2**draft.loss_scale_bits)
        return self._publish(self._store_opening("loss", opening))

    async def _sum_losses(
        self, definition: TaskDefinition, batch: Batch, weights: tuple[int, ...], loss: bytes
    ) -> int:
        draft = definition.draft
        return await self._pool.run(
            (await self._get_custodian(definition)).run_loss_sum,
            LossSumJob(
                draft.preset,
                draft.model,
                weights,
                await self._prepare(definition, batch, validation=True),
                loss,
                draft.loss_clip,
                draft.loss_scale_bits,
            ),
        )

    # --- gradients ----------------------------------------------------------------------------

    def _check_claims(self, definition: TaskDefinition, tip: TaskTip) -> None:
        """Begin to check one claimed bundle for each batch of the step that has none verified yet."""
        step = tip.state.step
        if self._core.drain.is_draining:
            return
        for batch in definition.get_step_batches(step):
            key = (definition.id, step, batch)
            if key in self._checking or self._get_verified(key) is not None:
                continue
            claim = self._choose(definition, key)
            if claim is not None:
                job = asyncio.create_task(self._check(definition, tip.state.weights, claim))
                self._checking[key] = job
                self._bundles.add(claim.bundle.root)
                job.add_done_callback(lambda _, claim=claim: self._finish(claim))  # type: ignore[misc]

    def _choose(self, definition: TaskDefinition, key: BatchKey) -> Claim | None:
        """The claim to check next: by the miner with the fewest faults, then in order of arrival."""
        claims = [
            claim
            for claim in self._core.claims.get_for(*key)
            if self._has_right_size(definition, claim)
            and not self._is_refused(key, claim.bundle.root)
            and claim.bundle.root not in self._bundles
        ]
        return min(claims, key=lambda claim: self._faults[claim.miner], default=None)

    def _has_right_size(self, definition: TaskDefinition, claim: Claim) -> bool:
        draft = definition.draft
        sizes = base.get_workload(draft.kind).get_sizes(draft.preset, draft.model)
        return claim.bundle.length == sizes.bundle

    def _finish(self, claim: Claim) -> None:
        self._checking.pop((claim.task, claim.step, claim.batch), None)
        self._bundles.discard(claim.bundle.root)
        self._core.pulse.beat()

    async def _check(self, definition: TaskDefinition, weights: tuple[int, ...], claim: Claim) -> None:
        """Fetch a bundle and compare every patch with the clear; keep its sums or refuse it for good."""
        core, draft = self._core, definition.draft
        try:
            await core.hold_training(definition, claim.batch)
            clear = await self._prepare(definition, definition.training[claim.batch], validation=False)
            try:
                bundle = await core.fetcher.fetch(claim.bundle, patience_s=BUNDLE_PATIENCE_S)
            except BlobError:
                self._faults[claim.miner] += 1
                raise
            job = BundleJob(
                draft.preset,
                draft.model,
                weights,
                clear,
                bundle,
                draft.gradient_clip,
                draft.gradient_scale_bits,
            )
            result = await self._pool.run((await self._get_custodian(definition)).run_bundle, job)
            canonical = None
            if result.sums is None:
                canonical = await compute_canonical_root(
                    core, definition, claim.batch, weights, self._get_keys(definition)
                )
            if canonical == claim.bundle.root:
                # An honest bundle whose error is larger than any measured so far must not stop the task.
                logger.warning("step %d batch %d: honest, with a large error", claim.step, claim.batch)
                result = await self._pool.run(
                    (await self._get_custodian(definition)).run_bundle, replace(job, recomputed=True)
                )
        except BlobError as error:
            logger.warning("bundle of step %d batch %d not here yet: %s", claim.step, claim.batch, error)
            return
        except WorkloadError as error:
            logger.error("batch %d can't be opened: %s", claim.batch, error)
            return
        key = (definition.id, claim.step, claim.batch)
        if result.sums is None:
            core.chain.ledger.put_record(_get_refused_key(key, claim.bundle.root), b"1")
            self._faults[claim.miner] += 1
            # No detail: errors of a refused bundle are decryptions of foreign bytes.
            logger.error(
                "bundle of step %d batch %d by %s differs from the clear: refused, nothing opened",
                claim.step,
                claim.batch,
                claim.miner.hex()[:12],
            )
            if canonical is not None:
                accuse(core, WrongBundle(claim, canonical))
        else:
            self._store_verified(key, VerifiedBundle(claim, result.sums))
        if not self._keep_bundles:
            core.blobs.remove(claim.bundle.root)

    async def _open_gradient(self, definition: TaskDefinition, tip: TaskTip) -> bool:
        core, draft, step = self._core, definition.draft, tip.state.step
        if step >= draft.max_gradient_openings:
            return False
        stored = self._get_opening(definition.id, "gradient", step)
        if stored is not None:
            return self._publish(stored)
        verified = [
            self._get_verified((definition.id, step, batch)) for batch in definition.get_step_batches(step)
        ]
        bundles = [bundle for bundle in verified if bundle is not None]
        if len(bundles) < len(verified):
            return False
        sums = tuple(sum(column) for column in zip(*(bundle.sums for bundle in bundles), strict=True))
        claims = tuple(bundle.claim for bundle in bundles)
        digest = compute_weights_digest(tip.state.weights)
        unopened = OpenGradient(definition.id, step, tip.state.previous, digest, claims, (), (), 1, ())
        gradient = await self._pool.run(
            (await self._get_custodian(definition)).open_gradient,
            sums,
            draft.gradient_noise,
            core.chain.chain_id + encode(unopened),
        )
        opening = replace(unopened, gradient=gradient)
        logger.info("opened step %d", step)
        transaction = self._store_opening("gradient", opening)
        # Sums without noise have no use from here on, so they are not kept.
        core.chain.ledger.put_records({}, [_get_verified_key((definition.id, step, c.batch)) for c in claims])
        return self._publish(transaction)

    # --- clear batches and keys ---------------------------------------------------------------

    def _get_keys(self, definition: TaskDefinition) -> Path:
        return get_keys_directory(self._data_dir, definition.draft.public_key.root)

    async def _get_custodian(self, definition: TaskDefinition) -> Custodian:
        """Raises: WorkloadError where its keys are sealed and the passphrase is not there."""
        folder = self._get_keys(definition)
        keys = await asyncio.to_thread(self._keys.unlock, "custody", folder.name)
        return SingleCustodian(folder, keys=keys)

    async def _prepare(self, definition: TaskDefinition, batch: Batch, *, validation: bool) -> Path:
        """The clear arrays of a contributed batch, decrypted and checked once."""
        draft = definition.draft
        output = get_clear_path(self._data_dir, draft.public_key.root, batch.blob.root)
        if not output.exists():
            await self._pool.run(
                (await self._get_custodian(definition)).run_prepare,
                PrepareJob(
                    draft.preset,
                    draft.model,
                    self._core.work.get_path(batch.blob.root),
                    batch.patches,
                    validation,
                    output,
                ),
            )
        return output

    # --- records ------------------------------------------------------------------------------

    def _publish(self, transaction: SignedTransaction) -> bool:
        """Submit a stored opening; False if the rules refuse it, which ends the turn."""
        admission = self._core.admit(transaction)
        if not admission.accepted:
            logger.error("own opening refused: %s %s", admission.reason, admission.detail)
        return admission.accepted and not admission.known

    def _get_opening(self, task: Hash32, kind: str, step: int) -> SignedTransaction | None:
        record = self._core.chain.ledger.get_record(_get_opening_key(task, kind, step))
        return None if record is None else decode(SignedTransaction, record)

    def _store_opening(self, kind: str, opening: OpenGradient | OpenLoss) -> SignedTransaction:
        transaction = self._core.sign(opening)
        self._core.chain.ledger.put_record(
            _get_opening_key(opening.task, kind, opening.step), encode(transaction)
        )
        return transaction

    def _is_refused(self, key: BatchKey, bundle: Hash32) -> bool:
        return self._core.chain.ledger.get_record(_get_refused_key(key, bundle)) is not None

    def _get_verified(self, key: BatchKey) -> VerifiedBundle | None:
        record = self._core.chain.ledger.get_record(_get_verified_key(key))
        return None if record is None else decode(VerifiedBundle, record)

    def _store_verified(self, key: BatchKey, bundle: VerifiedBundle) -> None:
        self._core.chain.ledger.put_record(_get_verified_key(key), encode(bundle))


def _get_opening_key(task: Hash32, kind: str, step: int) -> bytes:
    return b"opening/" + kind.encode() + b"/" + task + step.to_bytes(4, "big")


def _get_refused_key(key: BatchKey, bundle: Hash32) -> bytes:
    # For this batch alone: another one's right bundle, claimed here, must stay acceptable there.
    return b"refused/" + _encode_key(key) + bundle


def _get_verified_key(key: BatchKey) -> bytes:
    return b"verified/" + _encode_key(key)


def _encode_key(key: BatchKey) -> bytes:
    task, step, batch = key
    return task + step.to_bytes(4, "big") + batch.to_bytes(4, "big")
