"""Jobs of encrypted inference as a node's services see them: those that run, their ends, their blobs."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from consensus.inference import LIVING_JOBS
from consensus.jobs import ExpireJob, JobRecord, ModelRecord
from consensus.types import Hash32, Millis
from node.core import Core
from node.retention import prune_at_heads
from node.settings import RetentionSettings
from node.tasks import get_next_context

logger = logging.getLogger(__name__)

POLL_S = 2.0
EXPIRE_GRACE_MS = 30_000
RESULT_PREFIX = b"result/"
"""Of the ledger's records of results that this node has computed, by job."""
HELD_PREFIX = b"held/"
"""Of the roots of blobs that are here for the sake of one job or model, by its id."""
ENDED_PREFIX = b"ended-job/"
"""Of the dates of jobs and models that have ended, by id."""


class LivingJobs:
    """The jobs of the head's state that have not ended; each look costs only what is new."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._head: Hash32 | None = None
        self._height = 0
        self._scanned = 0
        self._jobs: dict[Hash32, JobRecord] = {}
        self._ended: list[Hash32] = []

    def get(self) -> list[tuple[Hash32, JobRecord]]:
        """In order of their requests."""
        self._refresh()
        return list(self._jobs.items())

    def take_ended(self) -> list[Hash32]:
        """Jobs that were seen to have ended since the last call; at the first one, all that ever have."""
        self._refresh()
        ended, self._ended = self._ended, []
        return ended

    def _refresh(self) -> None:
        chain = self._core.chain
        if self._head == chain.head_hash:
            return
        if self._head is None or chain.get_hash_by_height(self._height) != self._head:
            # Another branch may number its jobs in another way.
            self._jobs, self._scanned = {}, 0
        state = chain.head_state
        candidates = list(self._jobs)
        for number in range(self._scanned, state.get_job_count()):
            job = state.get_job_id(number)
            if job is not None:
                candidates.append(job)
        self._jobs = {}
        for job in candidates:
            record = state.get_job(job)
            if record is not None and record.status in LIVING_JOBS:
                self._jobs[job] = record
            elif record is not None:
                self._ended.append(job)
        self._scanned = state.get_job_count()
        self._head, self._height = chain.head_hash, chain.head.height


class JobExpirer:
    """Ends jobs whose deadline is over: who was confirmed is paid, else the requester has its fee again.

    Anyone may; the requester does so at once, validators when it has not after a while.
    """

    def __init__(self, core: Core, own_only: bool = False) -> None:
        """`own_only`: leave the jobs of other requesters to validators."""
        self._core = core
        self._own_only = own_only
        self._jobs = LivingJobs(core)

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        while True:
            for job, record in self._jobs.get():
                self._consider(job, record)
            seen = await self._core.pulse.wait(seen, POLL_S)

    def _consider(self, job: Hash32, record: JobRecord) -> None:
        core = self._core
        is_own = record.requester == core.address
        if self._own_only and not is_own:
            return
        context = get_next_context(core.chain, core.clock.now_ms())
        grace = 0 if is_own else EXPIRE_GRACE_MS
        late = replace(context, time=Millis(max(0, context.time - grace)))
        if late.time <= record.request.deadline:
            return
        transaction = core.sign(ExpireJob(job))
        if not core.is_pending(transaction) and core.admit(transaction).accepted:
            logger.info("job %s is over: asked for its end", job.hex()[:12])


def iterate_job_roots(record: JobRecord) -> Iterator[Hash32]:
    """Every blob that a job names: request, keys, and all results that were shown."""
    yield record.request.request.root
    yield record.request.keys.root
    for evaluation in record.evaluations:
        if evaluation.result is not None:
            yield evaluation.result


def iterate_model_roots(record: ModelRecord) -> Iterator[Hash32]:
    yield record.register.model.root
    if record.register.keys is not None:
        yield record.register.keys.root


def note_held(core: Core, identifier: Hash32, root: Hash32) -> None:
    """Remember that a blob is here for the sake of this job or model alone, before it is fetched."""
    if not core.blobs.has(root):
        note_made(core, identifier, root)


def note_made(core: Core, identifier: Hash32, root: Hash32) -> None:
    """Remember it of a blob that this node has made for it."""
    key = HELD_PREFIX + identifier
    held = core.chain.ledger.get_record(key) or b""
    if root not in split_roots(held):
        core.chain.ledger.put_record(key, held + root)


def split_roots(roots: bytes) -> set[Hash32]:
    """Those of such a record."""
    return {Hash32(roots[at : at + 32]) for at in range(0, len(roots), 32)}


class JobPruner:
    """Drops the blobs of jobs and models that ended more than `evidence_ms` ago; an archive's does nothing.

    Only what this node fetched or computed for them, or uploaded for its own: a job may name any blob, and
    must not make others lose it. An end is dated by the first head on which this node saw it, so blobs may be
    kept longer, never shorter.
    """

    def __init__(
        self, core: Core, settings: RetentionSettings, get_others: Callable[[], set[Hash32]] = set
    ) -> None:
        """`get_others`: roots that something else needs."""
        self._core = core
        self._settings = settings
        self._get_others = get_others
        self._needed: set[Hash32] | None = None
        self._jobs = LivingJobs(core)

    async def run(self) -> None:
        """Until cancelled."""
        await prune_at_heads(self._core, self._settings, self.prune)

    def get_needed(self) -> set[Hash32]:
        """Roots that jobs and models need, at the last look; there has been one."""
        if self._needed is None:
            self.prune()
        return self._needed or set()

    def prune(self) -> None:
        """Date what has ended, and drop what is out of date by the chain's time."""
        core = self._core
        ledger, now = core.chain.ledger, core.chain.head.time
        needed = {root for _, record in self._jobs.get() for root in iterate_job_roots(record)}
        self._date_models(needed, now)
        for job in self._jobs.take_ended():
            self._date(job, now)
        due = []
        for key, date in list(ledger.iterate_records(ENDED_PREFIX)):
            identifier = Hash32(key[len(ENDED_PREFIX) :])
            if now < int.from_bytes(date, "big") + core.chain.params.evidence_ms:
                needed |= self._get_named(identifier)
            else:
                due.append(identifier)
        self._needed = needed
        if due:
            needed = needed | self._get_others()
        for identifier in due:
            self._drop(identifier, needed)

    def _date_models(self, needed: set[Hash32], now: int) -> None:
        """A model's blobs are needed while it may be asked for, or runs."""
        state = self._core.chain.head_state
        running = {record.request.model for _, record in self._jobs.get()}
        for number in range(state.get_model_count()):
            model = state.get_model_id(number)
            record = None if model is None else state.get_model(model)
            if model is None or record is None:
                continue
            is_active = not record.is_retired and now <= record.register.expires
            if is_active or model in running:
                needed.update(iterate_model_roots(record))
            else:
                self._date(model, now)

    def _get_named(self, identifier: Hash32) -> set[Hash32]:
        """Every blob that a job or a model names."""
        state = self._core.chain.head_state
        job, model = state.get_job(identifier), state.get_model(identifier)
        named = set() if job is None else set(iterate_job_roots(job))
        return named if model is None else named | set(iterate_model_roots(model))

    def _get_own(self, identifier: Hash32) -> set[Hash32]:
        """What is here for the sake of the job or model: fetched, computed, or of this node's own asking."""
        core, state = self._core, self._core.chain.head_state
        own = split_roots(core.chain.ledger.get_record(HELD_PREFIX + identifier) or b"")
        own |= split_roots(core.chain.ledger.get_record(RESULT_PREFIX + identifier) or b"")
        job, model = state.get_job(identifier), state.get_model(identifier)
        is_own = job is not None and job.requester == core.address
        if is_own or (model is not None and model.owner == core.address):
            own |= self._get_named(identifier)
        return own

    def _date(self, identifier: Hash32, now: int) -> None:
        """Once, and only where there is something to drop."""
        ledger = self._core.chain.ledger
        key = ENDED_PREFIX + identifier
        if ledger.get_record(key) is None and any(map(self._core.blobs.has, self._get_own(identifier))):
            ledger.put_record(key, now.to_bytes(8, "big"))

    def _drop(self, identifier: Hash32, needed: set[Hash32]) -> None:
        """What a job that runs again, after a reorganisation, needs is not due."""
        core = self._core
        roots = self._get_own(identifier) - needed
        dropped = sum(core.blobs.remove(root) for root in roots)
        keys = [prefix + identifier for prefix in (ENDED_PREFIX, HELD_PREFIX, RESULT_PREFIX)]
        core.chain.ledger.put_records({}, keys)
        if dropped:
            logger.info("dropped %d blobs of %s, which ended long ago", dropped, identifier.hex()[:12])
