"""Makes the shipped backbone, or trains the full network on one's own pairs and measures it.

`python -m benchmarks.train_backbone` trains on simulated pairs and phantoms and writes
`fusion_model/weights/backbone.json`. `--data FOLDER` (with `manifest.csv`) trains the full network on the
patients that are not `--held` and prints its metrics on the held-back ones beside pixel maximum; such weights
are written only where `--out` says, and are no part of the project.
"""

import argparse
import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from fusion_model.backbone import BackboneConfig, compute_teacher_image, save_backbone
from fusion_model.baselines import fuse_maximum
from fusion_model.gradients import Array
from fusion_model.importers.png import import_manifest
from fusion_model.metrics import FusionMetrics, compute_mean_metrics, compute_metrics
from fusion_model.pairs import ImagePair, split_by_patient
from fusion_model.phantom import build_phantoms
from fusion_model.simulated import PICTURES, SIMULATED_SIZE, build_simulated_pairs
from fusion_model.teacher import FULL_NETWORK, Teacher
from fusion_model.teacher_losses import LossWeights
from fusion_model.teacher_train import TeacherSettings, train_teacher

WEIGHTS = Path("fusion_model/weights/backbone.json")
COLUMNS = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM2", "SSIM")

PUBLIC_SETTINGS = TeacherSettings(
    BackboneConfig(), LossWeights(similarity=0.1, fidelity=1.0, correlation=0.03), steps=1500, rate=4e-3
)
"""What the shipped weights are trained with: one core, ten minutes."""

FULL_SETTINGS = TeacherSettings(FULL_NETWORK)

_PHANTOM_SHARE = 6
"""One phantom to so many simulated pairs."""

_FIRST_PHANTOM = 100_000
"""Phantoms' patient numbers begin here, above all simulated pairs'."""


def build_public_pairs(seed: int, count: int) -> list[ImagePair]:
    """Simulated pairs and phantoms, all of whose sources may be shipped."""
    phantoms = build_phantoms(
        seed, count // _PHANTOM_SHARE, slices=1, size=SIMULATED_SIZE, first_patient=_FIRST_PHANTOM
    )
    return build_simulated_pairs(seed, count) + phantoms


def describe_provenance(settings: TeacherSettings, count: int) -> str:
    """What the shipped weights were trained on and how, for their file."""
    pictures = "; ".join(f"{name} ({licence})" for name, licence in PICTURES.items())
    return (
        f"Trained by benchmarks/train_backbone.py, seed {settings.seed} (data: {settings.seed + 1}), "
        f"{settings.steps} steps of {settings.crops} crops at rate {settings.rate}, loss "
        f"{asdict(settings.loss)}, on {count} simulated pairs and {count // _PHANTOM_SHARE} synthetic head "
        "phantoms; no patient's image was used. Pictures behind the simulated pairs, all from the wheel of "
        f"scikit-image {metadata.version('scikit-image')}: "
        f"{pictures}."
    )


def compute_figures(
    fuse: Callable[[Array, Array], Array], groups: Mapping[str, Sequence[ImagePair]]
) -> dict[str, FusionMetrics]:
    """Mean metrics of each group of pairs."""

    def measure(pair: ImagePair) -> FusionMetrics:
        a, b = (np.rint(255 * image).astype(np.uint8) for image in (pair.first, pair.second))
        return compute_metrics(a, b, np.rint(255 * fuse(pair.first, pair.second)).astype(np.uint8))

    return {name: compute_mean_metrics([measure(pair) for pair in pairs]) for name, pairs in groups.items()}


def print_table(
    title: str, figures: Mapping[str, FusionMetrics], maximum: Mapping[str, FusionMetrics]
) -> None:
    """One row a group: the figures, and in brackets their differences from pixel maximum's."""
    for name, row in figures.items():
        cells = " | ".join(
            f"{getattr(row, column):.3f} ({getattr(row, column) - getattr(maximum[name], column):+.3f})"
            for column in COLUMNS
        )
        print(f"| {title} | {name} | {cells} |")


def load_groups(
    folder: Path, held: Sequence[int], modality: str | None
) -> tuple[list[ImagePair], dict[str, list[ImagePair]]]:
    """Training pairs of all modalities together, and held-back pairs by modality; a case is one patient."""
    manifest = folder / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8") as file:
        modalities = sorted({row["modality"] for row in csv.DictReader(file)})
    if modality is not None:
        modalities = [modality]
    training: list[ImagePair] = []
    groups: dict[str, list[ImagePair]] = {}
    for name in modalities:
        pairs = import_manifest(manifest, name)
        kept_back = sorted(set(held) & {pair.patient for pair in pairs})
        if not kept_back:
            raise SystemExit(f"{manifest}: no held-back patient has {name}; choose others with --held")
        rest, groups[name] = split_by_patient(pairs, kept_back)
        training += rest
    return training, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with manifest.csv; without it, public data")
    parser.add_argument("--held", type=int, nargs="+", default=[3, 4, 28, 40, 41], help="patients held back")
    parser.add_argument("--width", type=int, help="channels of the trunk")
    parser.add_argument("--modality", help="train and measure on this modality of the manifest alone")
    parser.add_argument("--correlation", type=float, help="weight of the correlations of differences")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--pairs", type=int, default=500, help="simulated pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="weights file to write")
    options = parser.parse_args()

    groups: dict[str, list[ImagePair]] = {}
    if options.data is None:
        settings = PUBLIC_SETTINGS
        training = build_public_pairs(options.seed + 1, options.pairs)
    else:
        settings = FULL_SETTINGS
        training, groups = load_groups(options.data, options.held, options.modality)
    settings = replace(
        settings,
        config=replace(settings.config, width=options.width or settings.config.width),
        loss=settings.loss
        if options.correlation is None
        else replace(settings.loss, correlation=options.correlation),
        steps=options.steps or settings.steps,
        seed=options.seed,
    )
    torch.set_num_threads(1)  # the operations are small: threads would wait for each other
    print(f"{settings.config.parameters} parameters, {len(training)} training pairs, {settings}", flush=True)
    started = time.perf_counter()
    teacher: Teacher = train_teacher(
        training, settings, report=lambda step, value: print(f"  step {step}: loss {value:.4f}", flush=True)
    )
    print(f"{time.perf_counter() - started:.0f} s")
    out = options.out or (WEIGHTS if options.data is None else None)
    provenance = (
        describe_provenance(settings, options.pairs)
        if options.data is None
        else f"Trained on {options.data.name} without patients {options.held}; not to be shipped."
    )
    backbone = teacher.get_backbone(provenance)
    if out is not None:
        save_backbone(out, backbone)
        print(f"written to {out}")
    if groups:
        print("| method | pairs | " + " | ".join(COLUMNS) + " |")
        maximum = compute_figures(
            lambda a, b: fuse_maximum((255 * a).round().astype("u1"), (255 * b).round().astype("u1")) / 255,
            groups,
        )
        print_table("pixel maximum", maximum, maximum)
        full = compute_figures(lambda a, b: compute_teacher_image(a, b, backbone), groups)
        print_table("full network", full, maximum)


if __name__ == "__main__":
    main()
