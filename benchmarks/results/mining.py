"""One fold of one modality: rehearsed in clear, mined on a testnet, trained again by its twins.

What came out is kept as JSON, so that a run of hours can be stopped and goes on where it was.
"""

import json
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Self

from benchmarks.results.apart import call_apart
from benchmarks.results.cases import LASTS, PRESET, WEIGHT_BOUND, Case, build_rungs
from benchmarks.results.draws import Archive, follow_openings, recover_draws
from benchmarks.results.folds import Fold
from benchmarks.results.judges import FOLDER, build_settings, get_judged, write_pairs
from benchmarks.testbed import Contributor, Run, Testbed, TestbedError, console
from benchmarks.twin import Draws, build_twin_batches, collect_twin
from consensus.optimizer import apply_opening
from consensus.task import Draft, OpenGradient, PublishTask
from consensus.types import Hash32
from fusion_model.train import TrainingStep, train_twin
from node.api.client import SyncClient
from node.api.payloads import build_core
from node.api.task_payloads import OpenGradientPayload, PublishPayload
from node.cli.schedule import SHIFT, build_rates
from node.custody import get_keys_directory
from workloads.fusion import WORKLOAD
from workloads.noise import SECRET_BYTES, draw_gaussian

TIMEOUT_S = 2400.0
NODES = 3
"""The custody and two hospitals that contribute, mine and judge: two thirds of stake settle a milestone."""
CUSTODY, WITNESS = "node1", "node2"
TOLERANCE = 0.25
"""A validator accepts where the loss on its own pairs grew by no more than this share of the rehearsed last
loss: its pairs are others than those of the task, and near the end losses move by more than they fall."""
LEAST_VALIDATION = 10_000
"""Patches."""
CONVERGED_STEPS = 400
"""Of the clear run without noise whose last loss is called the converged one."""


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Validation losses before one step."""

    step: int
    seconds: float
    """From publication to the block with the opening."""
    opened: float
    """With noise."""
    twin: float
    """Of the clear twin."""
    noiseless: float
    """Of the twin without noise."""


@dataclass(frozen=True, slots=True)
class Mined:
    """A finished task and its twins."""

    modality: str
    fold: int
    case: str
    """Digest of what was asked for."""
    noisy: bool
    specification: str
    """The model's canonical bytes in hex."""
    held_back: tuple[int, ...]
    judged: tuple[tuple[str, tuple[int, ...]], ...]
    """Each hospital's patients for verdicts."""
    accepted: int
    rejected: int
    """Verdicts."""
    weights: tuple[int, ...]
    """At the last settled milestone."""
    step: int
    """Of those weights."""
    twin_weights: tuple[int, ...]
    """The twin's at the same step: same noise."""
    noiseless_weights: tuple[int, ...]
    """Those of the twin without noise, at the same step."""
    losses: tuple[LossPoint, ...]
    rehearsed: tuple[tuple[int, float], ...]
    """Validation losses of the rehearsal in clear, by step."""
    converged: float
    """Last loss of `CONVERGED_STEPS` clear steps without noise from the same weights."""
    seconds: float
    """From publication to the last milestone."""
    steps: int
    status: str
    rungs: int
    rungs_settled: int
    training_patients: int
    training_patches: int
    validation_patches: int
    privacy: str
    epsilon: float | None

    @property
    def largest_difference(self) -> float:
        """Of a weight from the twin's."""
        pairs = zip(self.weights, self.twin_weights, strict=True)
        return float(max(abs(a - b) for a, b in pairs) * 2.0**-20)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("held_back", "weights", "twin_weights", "noiseless_weights"):
            fields[name] = tuple(fields[name])
        fields["judged"] = tuple((str(node), tuple(patients)) for node, patients in fields["judged"])
        fields["losses"] = tuple(LossPoint(**point) for point in fields["losses"])
        fields["rehearsed"] = tuple((int(s), float(a)) for s, a in fields["rehearsed"])
        return cls(**fields)


def rehearse(case: Case, contributors: Sequence[Contributor]) -> list[tuple[int, float]]:
    """Losses by step of the task in clear, with noise of its strength."""
    schedule = case.schedule
    secret = secrets.token_bytes(SECRET_BYTES)
    noise = round(schedule.noise * schedule.clipping.gradient_clip)
    training, validation = build_twin_batches(case.spec, WORKLOAD.get_slots(PRESET), contributors)
    patches = sum(len(batch.inputs) for batch in training)
    steps = train_twin(
        case.spec.network,
        WORKLOAD.build_initial_weights(case.spec.encode(), schedule.seed, schedule.initial),
        training,
        validation,
        clipping=schedule.clipping,
        learning_rates=schedule.build_learning_rates(patches),
        batches_per_step=schedule.batches,
        update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOUND << 20),
        noise=lambda step, count: draw_gaussian(secret, step.to_bytes(4, "big"), count, noise),
        loss_schedule=range(0, schedule.steps + 1, schedule.loss_every),
    )
    return [(step.step, step.loss) for step in steps if step.loss is not None]


def _converge(case: Case, contributors: Sequence[Contributor]) -> float:
    """The least validation loss of a long clear run without noise: rate and its end as scheduled."""
    schedule = case.schedule
    training, validation = build_twin_batches(case.spec, WORKLOAD.get_slots(PRESET), contributors)
    patches = sum(len(batch.inputs) for batch in training)
    steps = train_twin(
        case.spec.network,
        WORKLOAD.build_initial_weights(case.spec.encode(), schedule.seed, schedule.initial),
        training,
        validation,
        clipping=schedule.clipping,
        learning_rates=build_rates(schedule.rate, schedule.final_rate, CONVERGED_STEPS, 2.0**SHIFT / patches),
        batches_per_step=schedule.batches,
        update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOUND << 20),
        noise=lambda step, count: (0,) * count,
        loss_schedule=(0, CONVERGED_STEPS),
    )
    return [step.loss for step in steps if step.loss is not None][-1]


def start_testnet(
    bed: Testbed, case: Case, fold: Fold, manifest: Path, tolerance: float, base_port: int
) -> None:
    """Nodes whose validators judge on patients of their own; the custody keeps the bundles of every step."""
    bed.init(NODES, NODES - 1, base_port)
    for hospital in fold.hospitals:
        folder = bed.testnet.get_directory(hospital.node) / FOLDER
        write_pairs(folder, manifest, case.modality, get_judged(hospital))
        bed.configure(hospital.node, {"verdict": build_settings(case.modality, tolerance)})
    bed.configure(CUSTODY, {"retention": {"policy": "archive"}})
    bed.bmif("testnet", "up", "--dir", str(bed.directory))


def mine_fold(
    bed: Testbed,
    case: Case,
    fold: Fold,
    manifest: Path,
    base_port: int,
    digest: str,
    lasts: tuple[float, ...] = LASTS,
) -> Mined:
    """Raises TestbedError unless the task ends with a settled model and all nodes agree on it."""
    contributors = case.build_contributors(fold, manifest)
    rehearsed = call_apart(rehearse, case, contributors)
    last = rehearsed[-1][1]
    shown = ", ".join(f"{step}: {loss:.6f}" for step, loss in rehearsed)
    console.print(f"{case.label}, fold {fold.number}, rehearsed in clear: {shown}", soft_wrap=True)
    start_testnet(bed, case, fold, manifest, TOLERANCE * last, base_port)
    recipe = case.build_recipe(fold, manifest, build_rungs(rehearsed[0][1], last, lasts))
    published = bed.publish(recipe)
    begun_ms = time.time_ns() // 1_000_000
    run = bed.mine(published.task, WITNESS, TIMEOUT_S, expires=True)
    if not run.task.rungs_settled:
        raise TestbedError("no milestone was settled")
    if run.task.validation_patches < LEAST_VALIDATION:
        raise TestbedError(
            f"{run.task.validation_patches} validation patches, at least {LEAST_VALIDATION} are wanted"
        )
    bed.check_agreement(published.task)
    with bed.connect(WITNESS) as client:
        model = client.call(client.api.get_model(published.task))
        draft, publication = _read_definition(client, published.transaction)
        openings = _read_openings(client, published.task)
        chain_id = client.call(client.api.get_status()).chain_id
    bed.stop()  # its workers' memory and time are of use to the twins
    home = bed.testnet.get_directory(CUSTODY) / "data"
    archive = Archive(
        get_keys_directory(home, draft.public_key.root), home / "blobs", bytes.fromhex(chain_id), draft
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        converging = pool.submit(_converge, case, contributors)
        twin = _train_twin(archive, publication, contributors, openings, run.losses[-1].step)
        noiseless = call_apart(collect_twin, draft, publication, contributors, None, run.losses[-1].step)
        converged = converging.result()
    verdicts = [verdict.accept for item in run.milestones.items for verdict in item.verdicts]
    return Mined(
        modality=case.modality,
        fold=fold.number,
        case=digest,
        noisy=case.schedule.noise > 0,
        specification=model.specification,
        held_back=fold.held_back,
        judged=tuple((hospital.node, get_judged(hospital)) for hospital in fold.hospitals),
        accepted=sum(verdicts),
        rejected=len(verdicts) - sum(verdicts),
        weights=tuple(model.weights),
        step=model.step,
        twin_weights=_find(twin, model.step).weights,
        noiseless_weights=_find(noiseless, model.step).weights,
        losses=_build_points(run, begun_ms, twin, noiseless),
        rehearsed=tuple(rehearsed),
        converged=converged,
        seconds=run.seconds,
        steps=run.task.gradient_openings.spent,
        status=run.task.status,
        rungs=run.task.rungs,
        rungs_settled=run.task.rungs_settled,
        training_patients=len(fold.training),
        training_patches=run.task.training_patches,
        validation_patches=run.task.validation_patches,
        privacy="" if run.task.privacy is None else run.task.privacy.statement,
        epsilon=None if run.task.privacy is None else run.task.privacy.epsilon,
    )


def _find(steps: Sequence[TrainingStep], number: int) -> TrainingStep:
    return next(step for step in steps if step.step == number)


def _build_points(
    run: Run, begun_ms: int, twin: Sequence[TrainingStep], noiseless: Sequence[TrainingStep]
) -> tuple[LossPoint, ...]:
    return tuple(
        LossPoint(
            opening.step,
            (opening.time - begun_ms) / 1000,
            opening.loss_value or 0.0,
            _find(twin, opening.step).loss or 0.0,
            _find(noiseless, opening.step).loss or 0.0,
        )
        for opening in run.losses
    )


def _read_definition(client: SyncClient, transaction: str) -> tuple[Draft, PublishTask]:
    found = client.call(client.api.get_transaction(transaction)).transaction.payload
    if not isinstance(found, PublishPayload):
        raise TestbedError("the task's publication is no publication")
    publication = build_core(PublishTask, found)
    return build_core(
        Draft, client.call(client.api.get_draft(Hash32(publication.draft).hex())).draft
    ), publication


def _read_openings(client: SyncClient, task: str) -> list[OpenGradient]:
    """The gradient openings of a task, by step."""
    openings = []
    for listed in client.collect(client.api.iterate_openings(task)):
        if listed.kind == "gradient":
            payload = client.call(client.api.get_transaction(listed.transaction)).transaction.payload
            if not isinstance(payload, OpenGradientPayload):
                raise TestbedError(f"transaction {listed.transaction} is no opening")
            openings.append(build_core(OpenGradient, payload))
    return sorted(openings, key=lambda opening: opening.step)


def _train_twin(
    archive: Archive,
    publication: PublishTask,
    contributors: Sequence[Contributor],
    openings: Sequence[OpenGradient],
    last: int,
) -> list[TrainingStep]:
    """The twin with the custody's own draws."""
    slots = WORKLOAD.get_slots(archive.draft.preset)
    patches = [slots] * sum(contributor.training_batches for contributor in contributors)
    draws: Draws = recover_draws(
        archive, tuple(follow_openings(archive.draft, publication, openings, patches))
    )
    return call_apart(collect_twin, archive.draft, publication, contributors, draws, last)
