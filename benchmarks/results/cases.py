"""What is mined for each modality: model, targets, schedule; chosen in clear (docs/ABLATION.md)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.folds import Fold, Hospital
from benchmarks.testbed import Contributor, Recipe
from fusion_model.train import Clipping
from node.cli.schedule import SHIFT, build_rates
from workloads.fusion import FusionSpec
from workloads.imaging import PairSource

SCALE_BITS = 20
WEIGHT_BOUND = 4
PRESET = "ckks-16384-60x5"
REWARD = 1000
FALLS = (0.7, 0.5, 0.35)
"""Rungs lie where this share of the way from the first loss to the rehearsed last one is left..."""
LASTS = (1.5, 1.2, 1.08)
"""...and the last ones at these multiples of the rehearsed last loss. A task that noise keeps from the last
one ends with its openings, and its model is that of the rung before."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hyperparameters in plain numbers, as `bmif task draft` and `publish` take them."""

    steps: int = 60
    rate: float = 0.115
    final_rate: float = 0.2
    clip: float = 0.5
    noise: float = 32.0
    """Standard deviation of the noise of an opened gradient sum, in clips; 0 for a task without privacy."""
    loss_clip: float = 0.125
    loss_noise: float = 5.0
    loss_every: int = 5
    batches: int = 2
    """Training batches of a task, and batches a step."""
    validation_batches: int = 2
    initial: str = "fresh"
    """Where weights start: `fresh`, so that all they know was learnt under encryption, or `pretrained`."""
    seed: int = 0

    @property
    def clipping(self) -> Clipping:
        unit = 1 << SCALE_BITS
        return Clipping(round(self.clip * unit), SCALE_BITS, round(self.loss_clip * unit), SCALE_BITS)

    @property
    def loss_openings(self) -> int:
        return self.steps // self.loss_every + 1

    def build_learning_rates(self, patches: int) -> tuple[int, ...]:
        """Integers of the optimiser where a step sums over `patches`."""
        return build_rates(self.rate, self.final_rate, self.steps, 2.0**SHIFT / patches)

    def get_draft_options(self) -> tuple[str, ...]:
        return (
            "--steps", str(self.steps), "--loss-openings", str(self.loss_openings), "--clip", str(self.clip),
            "--noise", str(self.noise), "--loss-clip", str(self.loss_clip),
            "--loss-noise", str(self.loss_noise), "--batches", str(self.batches),
            "--batches-per-step", str(self.batches), "--scale-bits", str(SCALE_BITS),
            "--weight-bound", str(WEIGHT_BOUND), "--preset", PRESET,
        )  # fmt: skip

    def get_publish_options(self) -> tuple[str, ...]:
        return (
            "--batches-per-step", str(self.batches), "--learning-rate", str(self.rate),
            "--final-rate", str(self.final_rate), "--loss-every", str(self.loss_every),
            "--initial", self.initial, "--seed", str(self.seed),
        )  # fmt: skip


def compute_digest(*parts: object) -> str:
    """Names what was asked for: kept results of another case are not taken for this one's."""
    return hashlib.sha256(repr((parts, FALLS, LASTS, SCALE_BITS, WEIGHT_BOUND, PRESET)).encode()).hexdigest()[
        :12
    ]


@dataclass(frozen=True, slots=True)
class Case:
    """One modality of the manifest and the task that suits it."""

    modality: str
    label: str
    spec: FusionSpec
    schedule: Schedule

    def get_model_options(self) -> tuple[str, ...]:
        """The model as options of `bmif task draft`."""
        spec = self.spec
        return (
            "--patch", str(spec.patch), "--kernels", ",".join(map(str, spec.kernels)),
            "--second", str(spec.second), "--planes", ",".join(spec.planes), "--skip", spec.skip,
            "--target", spec.target, "--gradient-weight", str(spec.gradient_weight),
        )  # fmt: skip

    def build_contributors(self, fold: Fold, manifest: Path) -> tuple[Contributor, ...]:
        """The hospitals of a fold; its batches are split evenly over those with patients for them."""
        trainers = sum(bool(hospital.training) for hospital in fold.hospitals)
        holders = sum(bool(hospital.validation) for hospital in fold.hospitals)

        def build(hospital: Hospital) -> Contributor:
            return Contributor(
                hospital.node,
                PairSource(manifest=manifest, modality=self.modality, patients=hospital.patients),
                len(hospital.validation),
                self.schedule.batches // trainers if hospital.training else 0,
                self.schedule.validation_batches // holders if hospital.validation else 0,
            )

        return tuple(build(hospital) for hospital in fold.hospitals)

    def build_recipe(self, fold: Fold, manifest: Path, rungs: tuple[str, ...]) -> Recipe:
        return Recipe(
            f"{self.label} fusion, fold {fold.number}",
            self.build_contributors(fold, manifest),
            rungs,
            self.get_model_options() + self.schedule.get_draft_options(),
            self.schedule.get_publish_options(),
        )


def build_rungs(first: float, last: float, lasts: tuple[float, ...] = LASTS) -> tuple[str, ...]:
    """The ladder between a rehearsal's first and last validation loss."""
    if not 0 < lasts[0] * last < first:
        raise ValueError(f"a loss of {first:.5f} that falls to {last:.5f} gives no ladder")
    ends = [share * last for share in lasts]
    targets = [last + share * (first - last) for share in FALLS]
    targets = [target for target in targets if target > ends[0]] + ends
    return tuple(f"{target:.6f}:{REWARD}" for target in targets)


BACKBONE = tuple(f"backbone-{number}" for number in range(4))

# Chosen by twins in clear, three folds (docs/ABLATION.md). 1x1 kernels: functions of a pixel of both images
# add no error of a neighbourhood, which would cost mutual information, and they learn in few steps.
CASES = (
    Case(
        "MRI-CT",
        "MRI and CT",
        FusionSpec(patch=4, second=1, planes=BACKBONE, skip="maximum", target="blended", gradient_weight=4),
        Schedule(steps=60, rate=0.5, loss_clip=0.05),
    ),
    Case(
        "MRI-PET",
        "MRI and PET",
        FusionSpec(patch=2, kernels=(1, 1, 1, 1), second=1, target="overlay", gradient_weight=4),
        Schedule(steps=80, rate=1.0, loss_clip=0.05),
    ),
    Case(
        "MRI-SPECT",
        "MRI and SPECT",
        FusionSpec(patch=2, kernels=(1, 1, 1, 1), second=1, target="tinted", gradient_weight=4),
        Schedule(steps=80, rate=1.0, loss_clip=0.05),
    ),
)

# Networks come so close to the targets above that a share of what is left says little. Pixel maximum's own
# targets leave a loss that no weights of this network can remove, so convergence can be told there.
CONVERGENCE = Case(
    "MRI-CT",
    "Convergence",
    FusionSpec(patch=2, kernels=(1, 1, 1, 1), second=1, target="maximum", gradient_weight=4),
    Schedule(steps=60, rate=0.5),
)
CONVERGENCE_LASTS = (1.2, 1.08, 1.03, 1.005)
