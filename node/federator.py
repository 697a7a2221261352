"""A validator's part in federated rounds: check updates, add them, judge models on data of its own.

Updates are added only once the block that closed their list is final, so that all validators add the same
ones. A sum is exact and a judgement is stored before it is sent: whatever is done again after a restart gives
the same transaction. What takes long is done in worker processes: one for checks and sums, which loads
neither library, and one for judging.
"""

import asyncio
import filecmp
import logging
from collections.abc import Coroutine
from pathlib import Path

from consensus.codec import decode, encode
from consensus.context import BlockContext
from consensus.federation import is_closable, is_endable, is_list_final, is_settleable
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    EndFederation,
    FederationRecord,
    JudgeRound,
    RoundPhase,
    SettleRound,
    Submission,
)
from consensus.types import Hash32
from node.blobs import BlobError
from node.core import Core
from node.federated_work import (
    ApplyJob,
    FederatedWork,
    JudgeJob,
    Losses,
    PatientPool,
    Terms,
)
from node.federations import (
    RETRY_S,
    ClosedList,
    LivingFederations,
    Sender,
    add_listed,
    build_list,
    compute_round_owner,
    fetch_held,
    fetch_terms,
    get_final_list,
)
from node.settings import FederationSettings
from node.tasks import get_next_context
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 1.0
SUM_PREFIX = b"federation-sum/"
"""Of the ledger's records of sums that this node has computed, by their list."""
JUDGED_PREFIX = b"federation-judged/"
"""Of the judgements that this node has made, by round and model."""
ABSTAINED = Losses(-1, -1)
"""The model follows from the sum, and there are no data here to judge it on."""


class Federator:
    """Serves every living federation; anybody may close and settle, only validators have a say."""

    def __init__(
        self,
        core: Core,
        settings: FederationSettings,
        scratch: Path,
        work: FederatedWork,
    ) -> None:
        self._core = core
        self._settings = settings
        self._scratch = scratch
        self._work = work
        self._federations = LivingFederations(core)
        self._sums = PatientPool(settings.max_seconds, core.work.observer)
        self._judges = PatientPool(settings.max_seconds, core.work.observer)
        self._running: dict[bytes, asyncio.Task[None]] = {}
        core.drain.watch("rounds", lambda: len(self._running))
        self._sender = Sender(core)
        self._not_before: dict[bytes, float] = {}
        self._refused: set[bytes] = set()
        self._terms: dict[Hash32, Terms] = {}
        self._checked: set[bytes] = set()

    @property
    def is_computing(self) -> bool:
        """Whether a worker process checks, adds or judges."""
        return self._sums.is_busy or self._judges.is_busy

    async def run(self) -> None:
        """Until cancelled."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        seen = -1
        try:
            while True:
                living = self._federations.get()
                for federation, record in living:
                    self._consider(federation, record)
                self._forget_ended({federation for federation, _ in living})
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            self._sums.close()
            self._judges.close()

    def _consider(self, federation: Hash32, record: FederationRecord) -> None:
        """Everything that this node can do for the federation now."""
        core, current = self._core, record.round
        state, context = core.chain.head_state, get_next_context(core.chain, core.clock.now_ms())
        has_say = state.get_stake(core.address) > 0
        if is_endable(record, context):
            self._sender.send(EndFederation(federation))
        elif current.phase is RoundPhase.TRAINING:
            if has_say:
                self._attest(federation, record)
            self._close(federation, record, context)
        elif is_settleable(state, record, context):
            self._sender.send(SettleRound(federation, current.number))
        elif has_say and current.phase is RoundPhase.SUMMING:
            self._confirm(federation, record)
        elif has_say and current.phase is RoundPhase.OPENED:
            self._judge(federation, record)

    def _is_waiting(self, key: bytes) -> bool:
        return self._not_before.get(key, 0.0) > self._core.clock.monotonic()

    # --- training: what came is checked -------------------------------------------------------

    def _attest(self, federation: Hash32, record: FederationRecord) -> None:
        """Vouch that updates are here and may be added; each once, so far as no transaction says so."""
        current, own = record.round, self._core.address
        said = self._get_pending_attestations(federation, current.number)
        good = []
        for item in current.submissions:
            root = item.update.root
            if own in item.attested or root in said:
                continue
            if federation + root in self._checked:
                good.append(root)
            else:
                self._start(federation + root, self._check(federation, record, item))
        if good:
            self._sender.send(AttestUpdates(federation, current.number, tuple(sorted(good))))

    def _get_pending_attestations(self, federation: Hash32, number: int) -> set[Hash32]:
        said: set[Hash32] = set()
        for pooled in self._core.mempool.get_all():
            payload = pooled.transaction.payload
            if pooled.transaction.sender != self._core.address or not isinstance(payload, AttestUpdates):
                continue
            if (payload.federation, payload.round) == (federation, number):
                said.update(payload.updates)
        return said

    async def _check(self, federation: Hash32, record: FederationRecord, item: Submission) -> None:
        terms = await self._get_terms(federation, record)
        owner = compute_round_owner(federation, record.round.number)
        path = await fetch_held(self._core, owner, item.update)
        await self._sums.run(self._work.check_update, terms, path)
        self._checked.add(federation + item.update.root)

    async def _get_terms(self, federation: Hash32, record: FederationRecord) -> Terms:
        """Checked once. Raises: BlobError, WorkloadError."""
        if federation not in self._terms:
            terms = await fetch_terms(self._core, federation, record.create)
            model = await fetch_held(self._core, federation, record.create.model)
            await self._sums.run(self._work.check_terms, terms, model)
            self._terms[federation] = terms
        return self._terms[federation]

    def _close(self, federation: Hash32, record: FederationRecord, context: BlockContext) -> None:
        if is_closable(self._core.chain.head_state, record, context):
            self._sender.send(CloseRound(federation, record.round.number))

    # --- the sum ------------------------------------------------------------------------------

    def _confirm(self, federation: Hash32, record: FederationRecord) -> None:
        current, core = record.round, self._core
        if current.total is not None or any(vote.validator == core.address for vote in current.sums):
            return
        if not is_list_final(core.chain.head_state, record):
            return
        closed = get_final_list(core, federation)
        if closed is None or closed.round != current.number:
            return  # not final yet
        found = core.chain.ledger.get_record(SUM_PREFIX + closed.digest)
        if found is None or not core.blobs.has(Hash32(found)):
            self._start(closed.digest, self._add(federation, record, closed))
        else:
            self._sender.send(ConfirmSum(federation, current.number, Hash32(found)))

    async def _add(self, federation: Hash32, record: FederationRecord, closed: ClosedList) -> None:
        core = self._core
        terms = await self._get_terms(federation, record)
        total = await add_listed(core, self._sums, self._work, terms, closed, self._scratch)
        core.chain.ledger.put_record(SUM_PREFIX + closed.digest, total.root)
        logger.info("added %d updates: %s", len(closed.updates), _describe(federation, closed.round))

    # --- the judgement ------------------------------------------------------------------------

    def _judge(self, federation: Hash32, record: FederationRecord) -> None:
        """Say what this node's own data say, once; without data, only that a model does not recompute."""
        core, current = self._core, record.round
        if current.model is None or any(item.validator == core.address for item in current.judgements):
            return
        key = compute_round_owner(federation, current.number) + current.model.root
        found = core.chain.ledger.get_record(JUDGED_PREFIX + key)
        if found is None:
            self._start(key, self._compare(federation, record, key))
            return
        losses = decode(Losses, found)
        if losses != ABSTAINED:
            payload = JudgeRound(federation, current.number, current.model.root, losses.before, losses.after)
            self._sender.send(payload)

    async def _compare(self, federation: Hash32, record: FederationRecord, key: bytes) -> None:
        """Recompute the model, then compare both on this node's data. Stored before it is sent."""
        core, current, data = self._core, record.round, self._settings.data
        if current.opened is None or current.model is None:
            return
        terms = await self._get_terms(federation, record)
        owner = compute_round_owner(federation, current.number)
        before = await fetch_held(core, federation, record.model)
        opened = await fetch_held(core, owner, current.opened)
        after = await fetch_held(core, owner, current.model)
        output = self._scratch / f"{current.model.root.hex()}.model"
        weights = build_list(federation, record).weights
        if not await self._recompute(ApplyJob(terms, before, opened, weights, output), after):
            logger.error("the model does not follow from the sum: %s", _describe(federation, current.number))
            losses = Losses(0, record.create.slack + 1)
        elif data is None:
            losses = ABSTAINED
        else:
            losses = await self._judges.run(self._work.judge, JudgeJob(terms, before, after, data))
            if losses.before < 0 or losses.after < 0:
                raise WorkloadError("a loss is negative")
        core.chain.ledger.put_record(JUDGED_PREFIX + key, encode(losses))
        logger.info("judged %s: %s", _describe(federation, current.number), losses)

    async def _recompute(self, job: ApplyJob, model: Path) -> bool:
        """Whether the model is the one that follows. What can't be applied at all does not follow either."""
        try:
            await self._sums.run(self._work.apply, job)
            return await asyncio.to_thread(filecmp.cmp, job.output, model, shallow=False)
        except WorkloadError as error:
            logger.warning("what was opened can't be applied: %s", error)
            return False
        finally:
            job.output.unlink(missing_ok=True)

    # --- work ---------------------------------------------------------------------------------

    def _start(self, key: bytes, work: Coroutine[object, object, None]) -> None:
        is_begun = key in self._running or key in self._refused
        if is_begun or self._is_waiting(key) or self._core.drain.is_draining:
            work.close()
            return
        self._running[key] = asyncio.create_task(self._guard(key, work))
        self._running[key].add_done_callback(lambda _: self._finish(key))

    def _finish(self, key: bytes) -> None:
        self._running.pop(key, None)
        self._core.pulse.beat()

    async def _guard(self, key: bytes, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except BlobError as error:
            self._not_before[key] = self._core.clock.monotonic() + RETRY_S
            logger.warning("a federation waits for its blobs: %s", error)
        except (WorkloadError, OSError) as error:
            # The same bytes would be refused again.
            self._refused.add(key)
            logger.warning("refused: %s", error)

    def _forget_ended(self, living: set[Hash32]) -> None:
        for federation in [item for item in self._terms if item not in living]:
            del self._terms[federation]
        if not living:
            self._sender.forget()
            self._not_before.clear()
            self._refused.clear()
            self._checked.clear()


def _describe(federation: Hash32, number: int) -> str:
    return f"round {number} of federation {federation.hex()[:12]}"
