"""One fold of one modality: rehearsed in clear, mined on a testnet, trained again by its twin.

What came out is kept as JSON, so that a run of hours can be stopped and goes on where it was.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

from benchmarks.results.apart import call_apart
from benchmarks.results.cases import PRESET, WEIGHT_BOUND, Case, build_rungs
from benchmarks.results.folds import Fold
from benchmarks.testbed import Contributor, Run, Testbed, TestbedError, console
from benchmarks.twin import build_twin_batches, collect_twin
from consensus.optimizer import apply_opening
from consensus.task import Draft, PublishTask
from consensus.types import Hash32
from fusion_model.train import TrainingStep, train_twin
from node.api.client import SyncClient
from node.api.payloads import build_core
from node.api.task_payloads import PublishPayload
from node.cli.schedule import SHIFT
from workloads.fusion import WORKLOAD
from workloads.noise import SECRET_BYTES, draw_gaussian

TIMEOUT_S = 2400.0


@dataclass(frozen=True, slots=True)
class Mined:
    """A finished task and its twin."""

    modality: str
    fold: int
    noisy: bool
    specification: str
    """The model's canonical bytes in hex."""
    held_back: tuple[int, ...]
    weights: tuple[int, ...]
    """At the last settled milestone."""
    step: int
    """Of those weights."""
    twin_weights: tuple[int, ...]
    """The twin's at the same step."""
    losses: tuple[tuple[int, float, float], ...]
    """(step, opened with noise, the twin's)."""
    rehearsed: tuple[tuple[int, float], ...]
    """Validation losses of the rehearsal in clear, by step."""
    seconds: float
    """From publication to the last milestone."""
    steps: int
    rungs: int
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
        for name in ("held_back", "weights", "twin_weights"):
            fields[name] = tuple(fields[name])
        fields["losses"] = tuple((int(s), float(a), float(b)) for s, a, b in fields["losses"])
        fields["rehearsed"] = tuple((int(s), float(a)) for s, a in fields["rehearsed"])
        return cls(**fields)


def _rehearse(case: Case, contributors: Sequence[Contributor]) -> list[tuple[int, float]]:
    schedule = case.schedule
    slots = WORKLOAD.get_slots(PRESET)
    secret = secrets.token_bytes(SECRET_BYTES)
    training, validation = build_twin_batches(case.spec, slots, contributors)
    steps = train_twin(
        case.spec.network,
        WORKLOAD.build_initial_weights(case.spec.encode(), schedule.seed, schedule.initial),
        training,
        validation,
        clipping=schedule.clipping,
        learning_rates=schedule.build_learning_rates(sum(len(batch.inputs) for batch in training)),
        batches_per_step=schedule.batches,
        update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOUND << 20),
        noise=lambda step, count: draw_gaussian(
            secret, step.to_bytes(4, "big"), count, round(schedule.noise * schedule.clipping.gradient_clip)
        ),
        loss_schedule=range(0, schedule.steps + 1, schedule.loss_every),
    )
    return [(step.step, step.loss) for step in steps if step.loss is not None]


def mine_fold(bed: Testbed, case: Case, fold: Fold, manifest: Path) -> Mined:
    """Raises TestbedError unless the task completes and all nodes agree on it."""
    contributors = case.build_contributors(fold, manifest)
    rehearsed = call_apart(_rehearse, case, contributors)
    console.print(f"{case.label}, fold {fold.number}, rehearsed in clear: {rehearsed}")
    recipe = case.build_recipe(fold, manifest, build_rungs(rehearsed[0][1], rehearsed[-1][1]))
    published = bed.publish(recipe)
    run = bed.mine(published.task, "node2", TIMEOUT_S)
    bed.check_agreement(published.task)
    with bed.connect("node4") as client:
        model = client.call(client.api.get_model(published.task))
        twin = _train_twin(client, published.transaction, contributors, run)
    at = {step.step: step for step in twin}
    clear = {step.step: step.loss for step in twin if step.loss is not None}
    return Mined(
        modality=case.modality,
        fold=fold.number,
        noisy=case.schedule.noise > 0,
        specification=model.specification,
        held_back=fold.held_back,
        weights=tuple(model.weights),
        step=model.step,
        twin_weights=at[model.step].weights,
        losses=tuple((o.step, o.loss_value or 0.0, clear[o.step]) for o in run.losses),
        rehearsed=tuple(rehearsed),
        seconds=run.seconds,
        steps=run.task.gradient_openings.spent,
        rungs=run.task.rungs_settled,
        privacy="" if run.task.privacy is None else run.task.privacy.statement,
        epsilon=None if run.task.privacy is None else run.task.privacy.epsilon,
    )


def _train_twin(
    client: SyncClient, transaction: str, contributors: Sequence[Contributor], run: Run
) -> list[TrainingStep]:
    found = client.call(client.api.get_transaction(transaction)).transaction.payload
    if not isinstance(found, PublishPayload):
        raise TestbedError("the task's publication is no publication")
    publication = build_core(PublishTask, found)
    draft = build_core(Draft, client.call(client.api.get_draft(Hash32(publication.draft).hex())).draft)
    secret = secrets.token_bytes(SECRET_BYTES)
    return call_apart(collect_twin, draft, publication, contributors, secret, run.losses[-1].step)
