"""Audits: recompute what a block says of training, bit for bit, and report every difference.

An auditor needs no secret and believes nobody. Blocks and transactions are named by their hashes and signed;
weights follow from the openings by the optimiser; gradient bundles and loss ciphertexts are canonical
functions of public weights and encrypted batches, which are named by their hashes, too.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from consensus.block import Block, Work
from consensus.ceremonies import CreateCeremony
from consensus.identifiers import compute_opening_hash, compute_weights_digest
from consensus.task import BlobRef, Claim, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from node.canonical import compute_file_root
from node.clock import Clock
from node.replay import Replay, replay_openings
from node.tasks import TaskDefinition, check_definition
from workloads import base
from workloads.base import WorkloadError


class AuditError(Exception):
    """The audit can't go on: what it needs is not there, or is not what its name says."""


class Kind(StrEnum):
    BLOCK = "block"
    OPENINGS = "openings"
    WEIGHTS = "weights"
    BUNDLE = "bundle"
    LOSS = "loss"
    CREDITS = "credits"
    MILESTONE = "milestone"


class State(StrEnum):
    OK = "ok"
    MISMATCH = "mismatch"
    MISSING = "missing"
    """Could not be checked: a blob is nowhere to be had."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    kind: Kind
    subject: str
    claimed: str
    """What the block says."""
    found: str
    """What the auditor came to."""
    state: State
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task's definition and its openings on the chain, each with the height of its block, in order."""

    definition: TaskDefinition
    openings: tuple[tuple[int, SignedTransaction], ...]
    committees: tuple[CreateCeremony, ...] = ()
    """Whose members opened together, one after the other; none of a single custodian."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to recompute; the cheap checks are always made."""

    steps: bool = True
    losses: bool = True
    batches: int | None = None
    """So many batches of each step, drawn at random; None for all."""
    seed: int = 0


class Source(Protocol):
    """Where an audit gets what it recomputes from; whatever it gives has been checked against its name."""

    def load_task(self, task: Hash32) -> TaskRecord:
        """Raises: AuditError."""
        ...

    def fetch(self, ref: BlobRef) -> Path:
        """A file of exactly the named content. Raises: AuditError if nobody has it."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` recomputations; `what` comes next."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class _Job:
    kind: Kind
    subject: str
    claimed: Hash32
    run: Callable[[], Hash32]


class Auditor:
    """Audits blocks of one chain; heavy jobs run in `executor`'s processes."""

    def __init__(
        self, chain_id: Hash32, source: Source, executor: Executor, scratch: Path, clock: Clock
    ) -> None:
        self._chain_id = chain_id
        self._clock = clock
        self._checked: set[Hash32] = set()
        self._source = source
        self._executor = executor
        self._scratch = scratch

    def audit(self, block: Block, scope: Scope, report: Callable[[Progress], None]) -> list[Finding]:
        """All findings of one block. Raises: AuditError."""
        openings: dict[Hash32, list[OpenGradient | OpenLoss]] = {}
        for transaction in block.body.transactions:
            if isinstance(transaction.payload, OpenGradient | OpenLoss):
                openings.setdefault(transaction.payload.task, []).append(transaction.payload)
        work = block.body.work
        tasks = list(dict.fromkeys([*([work.task] if work else []), *openings]))
        findings: list[Finding] = []
        jobs: list[_Job] = []
        for task in tasks:
            record = self._source.load_task(task)
            reached = [found for height, found in record.openings if height <= block.header.height]
            replay = replay_openings(self._chain_id, record.definition, reached, record.committees)
            findings += self._check_openings(replay, len(reached))
            losses = [opening for opening in openings.get(task, []) if isinstance(opening, OpenLoss)]
            if work is not None and work.task == task:
                findings += check_work(work, replay)
                losses += _find_loss(work, reached, losses)
            jobs += self._plan(record.definition, replay, openings.get(task, []), losses, scope)
        return findings + self._run(jobs, report)

    def _check_openings(self, replay: Replay, count: int) -> list[Finding]:
        state = State.MISMATCH if replay.faults else State.OK
        found = replay.faults[0] if replay.faults else f"{replay.openings} linked and signed"
        claimed = f"{count} openings"
        return [
            Finding(Kind.OPENINGS, "chain of openings", claimed, found, state),
            Finding(
                Kind.WEIGHTS, "optimiser replay", claimed, f"weights of {len(replay.weights)} steps", state
            ),
        ]

    def _plan(
        self,
        definition: TaskDefinition,
        replay: Replay,
        openings: Sequence[OpenGradient | OpenLoss],
        losses: Sequence[OpenLoss],
        scope: Scope,
    ) -> list[_Job]:
        jobs: list[_Job] = []
        chooser = random.Random(scope.seed)
        for opening in openings if scope.steps else ():
            weights = replay.weights.get(opening.step)
            if not isinstance(opening, OpenGradient) or weights is None:
                continue
            claims: Sequence[Claim] = opening.claims
            if scope.batches is not None and scope.batches < len(claims):
                claims = sorted(chooser.sample(claims, scope.batches), key=lambda claim: claim.batch)
            jobs += [self._plan_bundle(definition, claim, weights) for claim in claims]
        for loss in losses if scope.losses else ():
            weights = replay.weights.get(loss.step)
            if weights is not None:
                jobs.append(self._plan_loss(definition, loss, weights))
        return jobs

    # --- recomputations -----------------------------------------------------------------------

    def _plan_bundle(self, definition: TaskDefinition, claim: Claim, weights: tuple[int, ...]) -> _Job:
        def run() -> Hash32:
            workload, draft = base.get_workload(definition.draft.kind), definition.draft
            keys = self._fetch_keys(definition)
            batch = self._fetch_batch(definition, definition.training[claim.batch].blob, validation=False)
            output = self._scratch / f"audit-{claim.step}-{claim.batch}.bundle"
            job = base.GradientJob(draft.preset, draft.model, weights, keys, batch, output)
            try:
                self._executor.submit(workload.run_gradient, job).result()
                return compute_file_root(output)
            finally:
                output.unlink(missing_ok=True)

        return _Job(Kind.BUNDLE, f"step {claim.step}, batch {claim.batch}", claim.bundle.root, run)

    def _plan_loss(self, definition: TaskDefinition, loss: OpenLoss, weights: tuple[int, ...]) -> _Job:
        def run() -> Hash32:
            workload, draft = base.get_workload(definition.draft.kind), definition.draft
            keys = self._fetch_keys(definition)
            ciphertexts = []
            for batch in definition.validation:
                path = self._fetch_batch(definition, batch.blob, validation=True)
                job = base.LossJob(draft.preset, draft.model, weights, keys, path)
                ciphertexts.append(self._executor.submit(workload.run_loss, job).result())
            return Hash32(workload.compute_loss_hash(ciphertexts))

        return _Job(Kind.LOSS, f"step {loss.step}", loss.ciphertext, run)

    def _fetch_keys(self, definition: TaskDefinition) -> base.KeyFile:
        """The keys, through the gate like any peer's bytes."""
        draft = definition.draft
        check_definition(definition)
        public, relin = self._source.fetch(draft.public_key), self._source.fetch(draft.relin_keys)
        if draft.relin_keys.root not in self._checked:
            check = base.get_workload(draft.kind).run_check_keys
            self._executor.submit(check, draft.preset, public, relin).result()
            self._checked.add(draft.relin_keys.root)
        return base.KeyFile(draft.relin_keys.root, relin)

    def _fetch_batch(self, definition: TaskDefinition, ref: BlobRef, *, validation: bool) -> Path:
        draft, path = definition.draft, self._source.fetch(ref)
        if ref.root not in self._checked:
            check = base.get_workload(draft.kind).run_check_batch
            self._executor.submit(check, draft.preset, draft.model, path, validation).result()
            self._checked.add(ref.root)
        return path

    def _run(self, jobs: Sequence[_Job], report: Callable[[Progress], None]) -> list[Finding]:
        findings = []
        for done, job in enumerate(jobs):
            report(Progress(done, len(jobs), f"{job.kind} of {job.subject}"))
            begun = self._clock.monotonic()
            try:
                root = job.run()
            except (AuditError, WorkloadError) as error:
                findings.append(Finding(job.kind, job.subject, job.claimed.hex(), str(error), State.MISSING))
                continue
            state = State.OK if root == job.claimed else State.MISMATCH
            seconds = self._clock.monotonic() - begun
            findings.append(Finding(job.kind, job.subject, job.claimed.hex(), root.hex(), state, seconds))
        report(Progress(len(jobs), len(jobs), "done"))
        return findings


def _find_loss(
    work: Work, reached: Sequence[SignedTransaction], present: Sequence[OpenLoss]
) -> list[OpenLoss]:
    """The loss opening that the work names, if the block itself does not hold it."""
    return [
        found.payload
        for found in reached
        if isinstance(found.payload, OpenLoss)
        and compute_opening_hash(found.payload) == work.loss_opening
        and found.payload not in present
    ]


def check_work(work: Work, replay: Replay) -> list[Finding]:
    """W3 and W5 to W7 against the replay."""
    met = replay.met.get(work.loss_opening)
    if met is None:
        claimed = f"rungs {work.first_rung} to {work.last_rung}"
        return [Finding(Kind.MILESTONE, claimed, claimed, "no such loss was opened", State.MISMATCH)]
    subject = f"rungs {met.first_rung} to {met.last_rung}"
    said = (work.first_rung, work.last_rung, work.step, work.loss, work.openings)
    is_met = said == (met.first_rung, met.last_rung, met.step, met.loss, met.openings)
    digest, own = compute_weights_digest(work.weights), compute_weights_digest(replay.weights[met.step])
    paid = sum(credit.batches for credit in work.credits)
    counted = sum(credit.batches for credit in met.credits)
    return [
        Finding(
            Kind.MILESTONE,
            subject,
            f"step {work.step}, loss {work.loss}",
            f"step {met.step}, loss {met.loss}",
            State.OK if is_met else State.MISMATCH,
        ),
        Finding(
            Kind.WEIGHTS, subject, digest.hex(), own.hex(), State.OK if digest == own else State.MISMATCH
        ),
        Finding(
            Kind.CREDITS,
            subject,
            f"{paid} batches of {len(work.credits)} miners",
            f"{counted} batches of {len(met.credits)} miners",
            State.OK if work.credits == met.credits else State.MISMATCH,
        ),
    ]
