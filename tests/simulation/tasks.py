"""Tasks of a run: their whole script fixed beforehand, custodies that follow it or cheat, blobs that move."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consensus.claims import sign_claim
from consensus.crypto import hash_domain
from consensus.identifiers import (
    compute_draft_hash,
    compute_opening_hash,
    compute_task_id,
    compute_weights_digest,
)
from consensus.optimizer import apply_opening
from consensus.payload import Payload
from consensus.publication import get_step_batches
from consensus.state import TaskStatus
from consensus.task import (
    Batch,
    BlobRef,
    Claim,
    Contribute,
    Draft,
    DraftTask,
    Milestone,
    OpenGradient,
    OpenLoss,
    Optimizer,
    PatientRange,
    PublishTask,
)
from consensus.transaction import compute_transaction_id, sign_transaction
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from tests.simulation.archive import Archive, TransactionItem
from tests.simulation.truth import compute_bundle_root, compute_loss_ciphertext, get_key, is_liked

if TYPE_CHECKING:
    from tests.simulation.node import Node, Run

FETCH_MS = 600
RETRY_MS = 2_000


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What a task will be and how its custody behaves."""

    number: int
    start_ms: int
    pace_ms: int
    span_ms: int
    """From the start to the deadline."""
    mode: str
    """honest, vanish, equivocate, lie, late: what the custody does at opening number `at`."""
    at: int
    losses: tuple[int, ...]
    """Opened at every scheduled step; steps are twice as many."""
    targets: tuple[int, ...]
    rewards: tuple[int, ...]
    fee: int
    bond: int
    miners: tuple[str, ...]
    """Who claims batch after batch."""
    fakers: frozenset[str]
    """Miners whose bundles are not the canonical ones."""
    liked: float
    """Share of validators whose private pairs like the model."""
    given: tuple[int, ...] | None
    """Nodes that the custody gives the blobs to; None for all."""


class TaskScript:
    """Every transaction of a task's custody and contributor, signed, and the weights of every step."""

    def __init__(self, plan: TaskPlan, archive: Archive) -> None:
        self.plan = plan
        self._archive = archive
        self.custody = get_key(f"custody {plan.number}")
        self.contributor = get_key(f"contributor {plan.number}")
        self.steps = 2 * (len(plan.losses) - 1)
        name = f"{plan.number}"
        draft = self._build_draft(name)
        draft_hash = compute_draft_hash(archive.chain_id, draft)
        contribution = Contribute(
            draft=draft_hash,
            training=tuple(Batch(_build_blob(f"training {name} {i}"), 8) for i in range(3)),
            validation=(Batch(_build_blob(f"validation {name}"), 4),),
            patients=(
                PatientRange(1, False, 0, 0, 8),
                PatientRange(1, False, 1, 0, 8),
                PatientRange(2, False, 2, 0, 8),
                PatientRange(3, True, 0, 0, 4),
            ),
        )
        contributed = sign_transaction(self.contributor, archive.chain_id, 0, contribution)
        self.publication = PublishTask(
            draft=draft_hash,
            contributions=(compute_transaction_id(contributed),),
            order=(2, 0, 1),
            batches_per_step=2,
            initial_weights=(10, -20, 30),
            optimizer=Optimizer(4, (8,) * self.steps),
            loss_schedule=tuple(range(0, self.steps + 1, 2)),
            ladder=tuple(
                Milestone(target, Amount(reward))
                for target, reward in zip(plan.targets, plan.rewards, strict=True)
            ),
            batch_fee=Amount(plan.fee),
            bond=Amount(plan.bond),
            deadline=Millis(archive.genesis.time + plan.start_ms + plan.span_ms),
        )
        self.task = compute_task_id(self.publication)
        self.first = (
            self._sign(DraftTask(draft), 0),
            archive.add_transaction(contributed),
            self._sign(self.publication, 1),
        )
        self.weights: dict[int, tuple[int, ...]] = {}
        self.openings: list[TransactionItem] = []
        self.variant: TransactionItem | None = None
        """The other opening of an equivocating custody."""
        self._build_openings()

    def _sign(self, payload: Payload, nonce: int = 0) -> TransactionItem:
        transaction = sign_transaction(self.custody, self._archive.chain_id, nonce, payload)
        return self._archive.add_transaction(transaction)

    def _build_draft(self, name: str) -> Draft:
        return Draft(
            kind="fusion-training",
            title=f"task {name}",
            salt=bytes(16),
            preset="simulated",
            model=b"model",
            parameters=3,
            weight_box=1_000,
            public_key=_build_blob(f"public key {name}"),
            relin_keys=_build_blob(f"relin keys {name}"),
            clipping="per-patch",
            gradient_scale_bits=20,
            gradient_clip=1_000,
            gradient_noise=1,
            loss_scale_bits=20,
            loss_clip=1_000,
            loss_noise=1,
            max_gradient_openings=self.steps,
            max_loss_openings=len(self.plan.losses),
            privacy="none",
            ceremony=ZERO_HASH,
        )

    def _build_openings(self) -> None:
        plan, weights, previous = self.plan, self.publication.initial_weights, ZERO_HASH
        momentum: tuple[int, ...] = (0, 0, 0)
        for step in range(self.steps + 1):
            self.weights[step] = weights
            digest = compute_weights_digest(weights)
            if step % 2 == 0:
                ciphertext = compute_loss_ciphertext(self.task, step, weights)
                if plan.mode == "lie" and len(self.openings) >= plan.at:
                    ciphertext = hash_domain("simulated-lie", ciphertext)
                loss = OpenLoss(self.task, step, previous, digest, ciphertext, plan.losses[step // 2], 1, ())
                previous = self._add(loss, replace(loss, loss=loss.loss - 1))
            if step == self.steps:
                break
            gradient = (5 + step, 6, -7)
            opening = OpenGradient(
                self.task, step, previous, digest, self._build_claims(step, digest), (), gradient, 1, ()
            )
            previous = self._add(opening, replace(opening, gradient=(5 + step, 6, -8)))
            weights, momentum = apply_opening(weights, momentum, gradient, 8, 4, 1_000)

    def _build_claims(self, step: int, digest: Hash32) -> tuple[Claim, ...]:
        claims = []
        for batch in get_step_batches(self.publication, step):
            name = self.plan.miners[(2 * step + batch) % len(self.plan.miners)]
            root = compute_bundle_root(self.task, step, batch, digest)
            if name in self.plan.fakers:
                root = hash_domain("simulated-lie", root)
            bundle = BlobRef(root, 100)
            claims.append(sign_claim(get_key(name), self._archive.chain_id, self.task, step, batch, bundle))
        return tuple(claims)

    def _add(self, opening: OpenGradient | OpenLoss, other: OpenGradient | OpenLoss) -> Hash32:
        if self.plan.mode == "equivocate" and len(self.openings) == self.plan.at:
            self.variant = self._sign(other)
        self.openings.append(self._sign(opening))
        return compute_opening_hash(opening)


def _build_blob(name: str) -> BlobRef:
    return BlobRef(hash_domain("simulated-blob", name.encode()), 100)


class TaskBook:
    """What nodes can learn of the run's tasks beside the chain: weights, taste, blobs."""

    def __init__(self) -> None:
        self.scripts: dict[Hash32, TaskScript] = {}
        self._wanted: set[tuple[int, Hash32]] = set()

    def get_weights(self, task: Hash32, step: int) -> tuple[int, ...] | None:
        script = self.scripts.get(task)
        return None if script is None else script.weights.get(step)

    def is_liked(self, task: Hash32, validator: bytes) -> bool:
        return is_liked(task, validator, self.scripts[task].plan.liked)

    def want_blobs(self, node: "Node", task: Hash32) -> None:
        """Begins to fetch, and goes on until the blobs are there."""
        if (node.index, task) not in self._wanted and task in self.scripts:
            self._wanted.add((node.index, task))
            self._fetch(node, task)

    def _fetch(self, node: "Node", task: Hash32) -> None:
        run = node.run
        if task in node.blobs:
            return
        given = self.scripts[task].plan.given
        sources = [other for other in run.nodes if other.is_honest and other.is_up and task in other.blobs]
        is_given = given is None or node.index in given
        if is_given or any(run.network.is_linked(node.index, other.index) for other in sources):
            run.engine.after(run.network.random.randrange(FETCH_MS), node.on_blobs, task)
        run.engine.after(RETRY_MS, self._fetch, node, task)


class Custody:
    """Publishes one task and opens its numbers through an honest node that is up."""

    def __init__(self, run: "Run", script: TaskScript) -> None:
        self._run = run
        self._script = script
        self._released: list[TransactionItem] = []
        self._next = 0
        self._next_resend = 0
        run.book.scripts[script.task] = script
        run.engine.after(script.plan.start_ms, self._start)

    def _get_host(self) -> "Node":
        nodes = [node for node in self._run.nodes if node.is_honest]
        return next((node for node in nodes if node.is_up), nodes[0])

    def _start(self) -> None:
        self._run.trace("custody", f"publishes task {self._script.task.hex()[:8]}, {self._script.plan.mode}")
        for item in self._script.first:
            self._release(item)
        self._tick()

    def _release(self, item: TransactionItem) -> None:
        self._released.append(item)
        self._get_host().submit(item)

    def _tick(self) -> None:
        plan, engine = self._script.plan, self._run.engine
        if engine.now > engine.start + plan.start_ms + plan.span_ms:
            return
        host = self._get_host()
        if engine.now >= self._next_resend:
            self._next_resend = engine.now + 5_000
            for item in self._released:
                host.submit(item)
        record = dict(self._run.archive.get_tasks(host.head)).get(self._script.task)
        if record is not None and record.status == TaskStatus.OPEN:
            self._open()
        engine.after(plan.pace_ms, self._tick)

    def _open(self) -> None:
        script, plan = self._script, self._script.plan
        index = self._next
        if index >= len(script.openings) or (plan.mode == "vanish" and index >= plan.at):
            return
        self._next += 1
        item = script.openings[index]
        if plan.mode == "late" and index == plan.at:
            self._run.engine.after(8 * plan.pace_ms, self._release, item)
        elif plan.mode == "equivocate" and index == plan.at and script.variant is not None:
            for place, node in enumerate(self._run.nodes):
                self._run.network.send(node.index, node.index, script.variant if place % 2 else item)
            self._released.append(item)
        else:
            self._release(item)
