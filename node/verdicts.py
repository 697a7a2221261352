"""A validator's verdicts: does each newly taken milestone's model do on *its own* pairs as well as the last
settled one? (DESIGN 5)

The pairs are read and evaluated in a worker process; two losses with noise come back, and the decision
follows from these two published numbers alone. A verdict is stored before it is sent and never made anew,
so that a restart can't give a second, different one.
"""

import logging
import secrets
from pathlib import Path

from consensus.codec import decode, encode
from consensus.payload import Verdict
from consensus.records import TaskState, TaskStatus, Unsettled
from consensus.transaction import SignedTransaction
from consensus.types import ZERO_HASH, Hash32
from node.core import Core
from node.keystore import write_private_file
from node.living import LivingTasks
from node.settings import VerdictSettings
from node.tasks import TaskDefinition
from workloads.base import PrivatePairs, VerdictJob, WorkloadError
from workloads.noise import SECRET_BYTES

logger = logging.getLogger(__name__)

POLL_S = 2.0
SECRET_FILE = "verdict.key"


class Judge:
    """Gives one verdict on each milestone that awaits them, while this node is a validator with pairs."""

    def __init__(self, core: Core, settings: VerdictSettings, data_dir: Path) -> None:
        self._core = core
        self._settings = settings
        self._secret = data_dir / SECRET_FILE
        self._failed: set[Hash32] = set()
        self._tasks = LivingTasks(core)

    async def run(self) -> None:
        """Until cancelled."""
        if not self._settings.is_given:
            return
        self._make_secret()
        seen = -1
        while True:
            for task_id, task in self._tasks.get(TaskStatus.OPEN, TaskStatus.CLOSING):
                if task.unsettled:
                    await self._serve(task_id, task)
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _make_secret(self) -> None:
        """The key of the noise; a torn one is made anew."""
        if self._secret.is_file() and self._secret.stat().st_size == SECRET_BYTES:
            return
        self._secret.unlink(missing_ok=True)
        write_private_file(self._secret, secrets.token_bytes(SECRET_BYTES))

    async def _serve(self, task_id: Hash32, task: TaskState) -> None:
        core = self._core
        definition = core.get_definition(task_id)
        if definition is None or not core.chain.head_state.get_stake(core.address):
            return
        for item in task.unsettled:
            if core.address in (*item.accepted, *item.rejected):
                continue
            transaction = self._get_stored(task_id, item) or await self._judge(definition, task, item)
            if transaction is not None and not core.is_pending(transaction):
                self._send(transaction)

    async def _judge(
        self, definition: TaskDefinition, task: TaskState, item: Unsettled
    ) -> SignedTransaction | None:
        core, settings, draft = self._core, self._settings, definition.draft
        milestone = item.milestone
        if milestone.loss_opening in self._failed:
            return None
        after = core.history.get(definition.id, milestone.weights_digest)
        before = (
            definition.publication.initial_weights
            if task.settled is None
            else core.history.get(definition.id, task.settled.weights_digest)
        )
        if before is None or after is None:
            return None  # not replayed yet
        # A committee can't clip; its draft's clip is the unit of a multiplier.
        clip = draft.loss_clip if draft.ceremony == ZERO_HASH else 1 << draft.loss_scale_bits
        noise = -(-draft.loss_noise * clip // draft.loss_clip)
        if settings.noise is not None:
            noise = round(settings.noise * clip)
        job = VerdictJob(
            draft.model,
            before,
            after,
            PrivatePairs(settings.pairs, settings.modality, settings.phantoms, settings.phantom_seed),
            settings.patches,
            clip,
            draft.loss_scale_bits,
            noise,
            self._secret,
            core.chain.chain_id + definition.id,
        )
        try:
            losses = await core.work.compute_losses_in_clear(draft.kind, job)
        except WorkloadError as error:
            logger.error(
                "no verdict on step %d of task %s: %s", milestone.step, definition.id.hex()[:12], error
            )
            self._failed.add(milestone.loss_opening)
            return None
        tolerance = losses.deviation
        if settings.tolerance is not None:
            tolerance = round(settings.tolerance * 2**draft.loss_scale_bits)
        accept = losses.after <= losses.before + tolerance
        verdict = Verdict(definition.id, milestone.loss_opening, accept, losses.before, losses.after)
        transaction = core.sign(verdict)
        core.chain.ledger.put_record(_get_key(definition.id, item), encode(transaction))
        return transaction

    def _get_stored(self, task_id: Hash32, item: Unsettled) -> SignedTransaction | None:
        record = self._core.chain.ledger.get_record(_get_key(task_id, item))
        return None if record is None else decode(SignedTransaction, record)

    def _send(self, transaction: SignedTransaction) -> None:
        admission = self._core.admit(transaction)
        verdict = transaction.payload
        if isinstance(verdict, Verdict) and admission.accepted:
            word = "accepted" if verdict.accept else "rejected"
            logger.info("verdict on a milestone of task %s: %s", verdict.task.hex()[:12], word)


def _get_key(task: Hash32, item: Unsettled) -> bytes:
    # By the opening, which is the same on every fork.
    return b"own-verdict/" + task + item.milestone.loss_opening
