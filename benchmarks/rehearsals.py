"""Candidate tasks rehearsed in clear, step by step as they would be mined, and what their models are worth.

Quality on patients that a fold holds back, with the noise of privacy; and in how many steps a task comes
within 2 % of its converged loss, by noise and by batches a step. Renews the sections of docs/ABLATION.md
between its marks. Takes about three minutes on one quiet core.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.ablation import DOCUMENT, REHEARSALS
from benchmarks.results.cases import BACKBONE, CASES, PRESET, WEIGHT_BOUND, Case, Schedule
from benchmarks.results.folds import Fold, build_folds
from benchmarks.results.scoring import DECISIVE, get_published_differences
from benchmarks.twin import build_twin_batches
from consensus.optimizer import apply_opening
from fusion_model.config import WEIGHT_UNIT
from fusion_model.gradients import Array, convert_weights
from fusion_model.importers.png import import_manifest
from fusion_model.losses import LossTarget
from fusion_model.metrics import compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, convert_to_bytes
from fusion_model.pretrained import compute_mean_loss, fit_weights
from fusion_model.train import TrainingBatch, TrainingStep, train_twin
from node.cli.schedule import SHIFT
from workloads.fusing import Fuser
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.privacy import OpeningPlan, compute_privacy_cost

NODES = ("node2", "node3")
SEED = 77
BEGIN, END = REHEARSALS

POINT = (1, 1, 1, 1)
_CT, _PET, _SPECT = CASES
CANDIDATES = (
    _CT,
    replace(_CT, spec=replace(_CT.spec, planes=(), kernels=POINT, patch=2)),
    _PET,
    _SPECT,
    replace(_SPECT, spec=replace(_SPECT.spec, target="overlay")),
    replace(
        _SPECT,
        spec=FusionSpec(target="overlay", gradient_weight=4),
        schedule=Schedule(steps=80, rate=0.2, loss_clip=0.05),
    ),
)
"""What is mined for each modality, then what was rehearsed beside it."""

FLOORED = replace(
    _SPECT,
    spec=replace(_SPECT.spec, target="maximum"),
    schedule=Schedule(steps=100, rate=1.0, final_rate=0.1, loss_clip=8.0, loss_every=10),
)
"""No weights reach these targets, so that 2 % of the converged loss is a distance that can be told."""
TRADES = ((0.0, 2), (32.0, 2), (128.0, 2), (512.0, 2), (128.0, 4))
"""(noise in clips, batches a step)."""
LOSS_NOISE = 5.0


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A candidate's mean differences from pixel maximum, in the order of DECISIVE."""

    case: Case
    figures: tuple[float, ...]
    first: float
    """Validation loss of the last fold, before the first step..."""
    last: float
    """...and after the last."""

    @property
    def ahead(self) -> int:
        published = get_published_differences(self.case.modality)
        return sum(own > published[name] for own, name in zip(self.figures, DECISIVE, strict=True))


def build_batches(case: Case, fold: Fold, manifest: Path) -> tuple[list[TrainingBatch], list[TrainingBatch]]:
    """What the hospitals of a fold would encrypt."""
    slots = WORKLOAD.get_slots(PRESET)
    return build_twin_batches(case.spec, slots, case.build_contributors(fold, manifest))


def run_steps(
    case: Case, training: Sequence[TrainingBatch], validation: Sequence[TrainingBatch]
) -> Iterator[TrainingStep]:
    """The task's steps with noise from a fixed seed."""
    schedule = case.schedule
    generator = np.random.default_rng(SEED)

    def draw(step: int, count: int) -> list[int]:
        values = generator.normal(0, schedule.noise * schedule.clipping.gradient_clip, count)
        return [int(value) for value in np.rint(values)]

    return train_twin(
        case.spec.network,
        WORKLOAD.build_initial_weights(case.spec.encode(), schedule.seed, schedule.initial),
        training,
        validation,
        clipping=schedule.clipping,
        learning_rates=schedule.build_learning_rates(sum(len(batch.inputs) for batch in training)),
        batches_per_step=schedule.batches,
        update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOUND << 20),
        noise=draw,
        loss_schedule=range(0, schedule.steps + 1, schedule.loss_every),
    )


def measure(pair: ImagePair, fused: ByteImage) -> Array:
    figures = compute_metrics(convert_to_bytes(pair.first), convert_to_bytes(pair.second), fused)
    return np.array([getattr(figures, name) for name in DECISIVE])


def rehearse(case: Case, folds: Sequence[Fold], pairs: Sequence[ImagePair], manifest: Path) -> Rehearsed:
    """Every fold's twin on all the pairs that the fold holds back."""
    differences: list[Array] = []
    losses: list[float] = []
    for fold in folds:
        steps = list(run_steps(case, *build_batches(case, fold, manifest)))
        losses += [step.loss for step in (steps[0], steps[-1]) if step.loss is not None]
        fuser = Fuser(case.spec, steps[-1].weights)
        differences += [
            measure(pair, fuser.fuse_luminance(pair))
            - measure(pair, convert_to_bytes(np.maximum(pair.first, pair.second)))
            for pair in pairs
            if pair.patient in fold.held_back
        ]
    figures = tuple(float(value) for value in np.mean(differences, axis=0))
    return Rehearsed(case, figures, losses[-2], losses[-1])


def fit_converged(
    case: Case, start: Sequence[int], training: Sequence[TrainingBatch], validation: Sequence[TrainingBatch]
) -> float:
    """Validation loss where Gauss-Newton ends that starts at `start` and sees all the training patches."""
    inputs = np.concatenate([batch.inputs for batch in training])
    target = LossTarget(
        np.concatenate([batch.target.plane for batch in training]),
        np.concatenate([batch.target.constant for batch in training]),
    )
    network = case.spec.network
    fitted = fit_weights(network, inputs, target, convert_weights(start), rounds=40, ridge=1e-9)
    weights = tuple(int(value) for value in np.rint(fitted / WEIGHT_UNIT))
    means = [compute_mean_loss(network, weights, batch.inputs, batch.target) for batch in validation]
    return float(np.mean(means))


def compute_epsilon(schedule: Schedule) -> float:
    """Of one training patch over all steps, delta 1e-6."""
    clipping = schedule.clipping
    cost = compute_privacy_cost(
        OpeningPlan(
            clipping.gradient_clip,
            round(schedule.noise * clipping.gradient_clip),
            schedule.steps,
            clipping.loss_clip,
            round(LOSS_NOISE * clipping.loss_clip),
            schedule.loss_openings,
            schedule.batches,
            schedule.batches,
        )
    )
    return cost.training_epsilon


def trade_noise(fold: Fold, manifest: Path) -> list[str]:
    """Losses by step over the converged one, a row for each trade."""
    rows = []
    converged = 0.0
    for noise, batches in TRADES:
        case = replace(FLOORED, schedule=replace(FLOORED.schedule, noise=noise, batches=batches))
        training, validation = build_batches(case, fold, manifest)
        steps = list(run_steps(case, training, validation))
        # All rows are told from one minimum: that of two batches, found from the end without noise.
        if not converged:
            converged = fit_converged(case, steps[-1].weights, training, validation)
            print(f"converged {converged:.6f}", flush=True)
        ratios = [step.loss / converged for step in steps if step.loss is not None and not step.step % 20]
        epsilon = "unbounded" if not noise else f"{compute_epsilon(case.schedule):.2f}"
        cells = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        rows.append(f"| {noise:g} | {batches} | {epsilon} | {cells} |")
        print(rows[-1], flush=True)
    return build_trades(fold.number, converged, rows)


def build_trades(fold: int, converged: float, rows: Sequence[str]) -> list[str]:
    count = FLOORED.schedule.steps // 20 + 1
    return [
        f"MRI and SPECT, fold {fold}, target maximum, kernels 1/1/1/1, second 1, rate 1.0, clip 0.5; "
        "8,192 patches a batch, loss of 16,384 patches of patients who are not trained on, as a multiple of "
        f"the loss where Gauss-Newton converges without noise ({converged:.5f}). Epsilon is one training "
        "patch's over all steps, delta 1e-6; a patient's promises nothing.",
        "",
        "| noise, clips | batches a step | epsilon | "
        + " | ".join(f"step {20 * number}" for number in range(count))
        + " |",
        "|---" * (count + 3) + "|",
        *rows,
    ]


def format_row(row: Rehearsed) -> str:
    spec, schedule = row.case.spec, row.case.schedule
    if spec.planes == BACKBONE:
        planes = "backbone-0..3"
    else:
        planes = " + ".join(spec.planes) or "images alone"
    figures = " | ".join(
        f"{value:+.2f}" if index < 2 else f"{value:+.3f}" for index, value in enumerate(row.figures)
    )
    mined = "mined" if row.case in CASES else ""
    return (
        f"| {row.case.modality} | {mined} | {'/'.join(map(str, spec.kernels))}, {spec.second} | {planes} "
        f"| {spec.skip} | {spec.target} | {schedule.steps} at {schedule.rate:g} "
        f"| {row.first:.5f} to {row.last:.5f} | {figures} | {row.ahead} |"
    )


def build_section(rows: Sequence[Rehearsed], trades: Sequence[str]) -> list[str]:
    return [
        BEGIN,
        "## Noisy steps as mined",
        "",
        f"Made by `python -m benchmarks.rehearsals --write` ({platform.machine()}, Python "
        f"{platform.python_version()}); seed {SEED}.",
        "",
        "Twins of whole tasks in clear: fresh weights, integer steps, clip 0.5, noise of 32 clips, two "
        "batches of 8,192 patches a step, momentum 0.9, half cosine of the rate to a fifth. Three folds by "
        "patient, all pairs that a fold holds back; differences from pixel maximum. Losses are the last "
        "fold's.",
        "",
        "| modality | | first kernels, second | inputs beside the images | skip S | target | steps, rate | "
        "loss | " + " | ".join(DECISIVE) + " | ahead |",
        "|---" * 15 + "|",
        *map(format_row, rows),
        "",
        "## Steps to the converged loss",
        "",
        *trades,
        END,
    ]


def replace_section(text: str, lines: Sequence[str]) -> str:
    """The document with its rehearsals exchanged. Raises ValueError where it has no marks for them."""
    head, mark, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the document has no {BEGIN} before {END}; put both where the section belongs")
    return head + "\n".join(lines) + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the sections of docs/ABLATION.md")
    options = parser.parse_args()
    manifest = Path(os.environ.get("BMIF_DATA", "")) / "fusion" / "manifest.csv"
    if not os.environ.get("BMIF_DATA") or not manifest.is_file():
        parser.error("BMIF_DATA must name a folder that holds fusion/manifest.csv; see README.md")
    begun = time.monotonic()
    print(f"seed {SEED}", flush=True)
    pairs = {case.modality: import_manifest(manifest, case.modality) for case in CASES}
    folds = {name: build_folds([pair.patient for pair in found], NODES) for name, found in pairs.items()}
    trades = trade_noise(folds[FLOORED.modality][0], manifest)
    rows = []
    for case in CANDIDATES:
        rows.append(rehearse(case, folds[case.modality], pairs[case.modality], manifest))
        print(format_row(rows[-1]), flush=True)
    seconds = time.monotonic() - begun
    print(f"{seconds:.0f} s")
    if options.write:
        text = replace_section(DOCUMENT.read_text(encoding="utf-8"), build_section(rows, trades))
        DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
