"""What noise by a worst-case bound costs a task: `BMIF_DATA=... python -m benchmarks.box_noise`.

A single custodian clips each patch; a committee can't, and its noise is judged by what any admitted patch
could change (`workloads.box`). Tasks are mined by the clear twin, with the integers, batches, order and
schedule of an encrypted one, on real pairs (those of `python -m benchmarks.results`, fold 0) or on phantoms:

- `clip`: per-patch clipping and today's noise; `exact`: neither clipping nor noise;
- `today`: no clipping, today's noise on every untied entry; the epsilon is what follows from the bound;
- `same`: noise in proportion to the bound at each step's weights, for the epsilon that `clip` has;
- `epsilon E`: the same for another epsilon.

Each network is mined twice: as it is, and *narrow*: with an image-gradient weight of 1, every |R| cut off at
a limit that contributors promise, and noise shared out by tensor. Without clipping the learning rate must be
lower; each kind of run has the best of some shares, by the median of its last loss. Losses are of the same
validation patches for all runs of a design, unclipped and with whole targets. Epsilon is at delta 1e-6
against t - 1 members, one patch added or removed, of all gradient openings together. The last column is the
noise of an opened mean loss at the last weights if all openings of losses have epsilon 8 together, with
constants as encryption lets them in or, narrow, up to 0.3 a pixel.
"""

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.results.cases import CASES, PRESET, WEIGHT_BOUND, Case, Schedule
from benchmarks.results.folds import build_folds
from benchmarks.testbed import Contributor
from benchmarks.timing import get_machine
from benchmarks.twin import build_twin_batches
from consensus.optimizer import apply_opening
from fusion_model.config import NetworkConfig
from fusion_model.fuse import fuse_luminance
from fusion_model.gradients import Array, compute_patch_gradients, convert_weights, fold_output_bias
from fusion_model.importers.png import import_manifest
from fusion_model.metrics import FusionMetrics, compute_mean_metrics, compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.pictures import convert_to_bytes
from fusion_model.train import Clipping, TrainingBatch, compute_mean_loss, train_twin
from node.cli.schedule import SHIFT
from workloads.box import PatchLimits, TensorNorms, compute_gradient_bound, compute_loss_bound
from workloads.committee_privacy import compute_multiplier
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.imaging import PairSource, load_pairs
from workloads.privacy import compute_epsilon

BITS = 20
BOX = WEIGHT_BOUND << BITS
HOSPITALS = ("one", "two")
DELTA = 1e-6
LOSS_EPSILON = 8.0
CONSTANT = 0.3
"""Of a pixel, where there is a limit."""
SHARES = (0.25, 0.0625)
"""Of a case's learning rate, without clipping."""
METRICS = ("SF", "SCD", "VIF", "Qabf")
OPEN = 1 << 60
"""A clip that clips nothing."""
UNCLIPPED = Clipping(OPEN, BITS, OPEN, BITS)
FIRST = Case("MRI-CT", "first steps", FusionSpec(), Schedule(steps=40, final_rate=0.5))
"""The network that `bmif task draft` has by default."""
NETWORKS = {"default": FIRST, **{case.modality.lower(): case for case in CASES}}


@dataclass(frozen=True, slots=True)
class Variant:
    """How one run is mined."""

    kind: str
    """`clip`, `exact`, `today`, `same` or `epsilon`."""
    epsilon: float = 0.0
    limit: float = 0.0
    """Of |R|; 0 for what encryption lets in."""
    shared: bool = False
    """Noise by tensor."""
    rate: float = 1.0
    """Share of the case's learning rate."""

    @property
    def label(self) -> str:
        return f"epsilon {self.epsilon:g}" if self.kind == "epsilon" else self.kind


@dataclass(frozen=True, slots=True)
class Material:
    """What a case is mined on and judged by."""

    case: Case
    training: list[TrainingBatch]
    validation: list[TrainingBatch]
    held: list[ImagePair]

    @property
    def patches(self) -> int:
        return sum(len(batch.inputs) for batch in self.training)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    variant: str
    rate: float
    seed: int
    losses: tuple[float, ...]
    """Of validation, by the schedule."""
    epsilon: float
    first_noise: float
    """Deviation on an entry of a step's mean gradient, root mean square over entries, at the first step."""
    last_noise: float
    norm: float
    """Bound of one patch's gradient at the last step."""
    largest_weight: float
    metrics: dict[str, float]
    loss_noise: float
    """Deviation of an opened mean loss at the last weights, for `LOSS_EPSILON`."""


def load_material(case: Case, phantoms: bool, batches: int) -> Material:
    case = replace(case, schedule=replace(case.schedule, batches=batches))
    if phantoms:
        sources = [
            PairSource(phantoms=6, phantom_seed=1),
            PairSource(phantoms=2, phantom_seed=1, first_phantom=50),
        ]
        contributors = [
            Contributor("one", sources[0], 0, batches, 0),
            Contributor("two", sources[1], 2, 0, case.schedule.validation_batches),
        ]
        held = load_pairs(PairSource(phantoms=2, phantom_seed=1, first_phantom=100))
    else:
        manifest = find_manifest()
        pairs = import_manifest(manifest, case.modality)
        fold = build_folds([pair.patient for pair in pairs], HOSPITALS)[0]
        contributors = list(case.build_contributors(fold, manifest))
        held = [pair for pair in pairs if pair.patient in fold.held_back]
    training, validation = build_twin_batches(case.spec, WORKLOAD.get_slots(PRESET), contributors)
    return Material(case, training, validation, held)


def find_manifest() -> Path:
    manifest = Path(os.environ.get("BMIF_DATA", "")) / "fusion" / "manifest.csv"
    if not manifest.is_file():
        raise SystemExit("BMIF_DATA must name a folder that holds fusion/manifest.csv, or use --phantoms")
    return manifest


def build_limits(spec: FusionSpec, limit: float) -> PatchLimits:
    declared = PatchLimits.build(spec.circuit)
    if not limit:
        return declared
    return PatchLimits(Fraction(limit), Fraction(CONSTANT) * spec.network.output**2)


def cut_targets(batches: Sequence[TrainingBatch], limit: float) -> list[TrainingBatch]:
    """Every R within the limit."""
    if not limit:
        return list(batches)
    return [
        TrainingBatch(b.inputs, b.target._replace(plane=np.clip(b.target.plane, -limit, limit)))
        for b in batches
    ]


def sum_gradients(config: NetworkConfig, weights: Sequence[int], batches: Sequence[TrainingBatch]) -> Array:
    """The exact sum over all patches of the untied gradient."""
    flat = convert_weights(weights)
    parts = [compute_patch_gradients(config, flat, b.inputs, b.target.plane).sum(axis=0) for b in batches]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


@dataclass
class BoxNoise:
    """Noise of every step of a run without clipping, and what it has cost."""

    material: Material
    variant: Variant
    multiplier: Fraction
    generator: np.random.Generator
    limits: PatchLimits
    square: float = 0.0
    deviations: list[float] | None = None
    norm: float = 0.0

    def draw(self, weights: Sequence[int]) -> Array:
        """For the untied entries, in numbers."""
        case, spec = self.material.case, self.material.case.spec
        counts = (
            spec.network.first_weights,
            spec.channels,
            spec.parameters - spec.network.second_start,
            1,
        )
        bound = compute_gradient_bound(spec.circuit, weights, self.limits)
        joint = bound.compute_norm(BITS)
        self.norm = joint / 2**BITS
        if self.variant.kind == "exact":
            return np.zeros(sum(counts))
        today = round(case.schedule.noise * case.schedule.clipping.gradient_clip)
        if self.variant.kind == "today":
            deviations = TensorNorms(*(today,) * 4)
        elif self.variant.shared:
            deviations = bound.share_noise(self.multiplier, BITS)
        else:
            deviations = TensorNorms(*(math.ceil(self.multiplier * joint),) * 4)
        self.square += float(bound.compute_ratio(deviations, BITS))
        spread = np.repeat(np.array([float(d) for d in deviations]) / 2**BITS, counts)
        self.deviations = [*(self.deviations or []), float(np.sqrt(np.mean(spread**2)))]
        return np.asarray(self.generator.normal(0, 1, len(spread)) * spread)


def mine(material: Material, variant: Variant, seed: int) -> Iterator[tuple[tuple[int, ...], BoxNoise]]:
    """Weights before each step and after the last, without clipping."""
    case = material.case
    spec, schedule = case.spec, case.schedule
    steps = schedule.steps
    wanted = variant.epsilon
    if variant.kind == "same":
        wanted = compute_epsilon(steps / schedule.noise**2, DELTA)
    multiplier = compute_multiplier(wanted, steps, DELTA) if wanted else 0.0
    noise = BoxNoise(
        material,
        variant,
        Fraction(multiplier),
        np.random.default_rng([seed, 7]),
        build_limits(spec, variant.limit),
    )
    batches = cut_targets(material.training, variant.limit)
    weights = WORKLOAD.build_initial_weights(spec.encode(), schedule.seed, schedule.initial)
    momentum: tuple[int, ...] = (0,) * len(weights)
    schedule = replace(schedule, rate=schedule.rate * variant.rate)
    for rate in schedule.build_learning_rates(material.patches):
        yield weights, noise
        noisy = sum_gradients(spec.network, weights, batches) + noise.draw(weights)
        folded = fold_output_bias(spec.network, convert_weights(weights), noisy)
        opened = tuple(round(value * 2**BITS) for value in folded.tolist())
        weights, momentum = apply_opening(weights, momentum, opened, rate, SHIFT, BOX)
    yield weights, noise


def mine_clipped(material: Material, seed: int) -> Iterator[tuple[int, ...]]:
    case = material.case
    schedule, generator = case.schedule, np.random.default_rng([seed, 7])
    spread = schedule.noise * schedule.clipping.gradient_clip
    steps = train_twin(
        case.spec.network,
        WORKLOAD.build_initial_weights(case.spec.encode(), schedule.seed, schedule.initial),
        material.training,
        material.validation,
        clipping=schedule.clipping,
        learning_rates=schedule.build_learning_rates(material.patches),
        batches_per_step=schedule.batches,
        update=partial(apply_opening, shift=SHIFT, box=BOX),
        noise=lambda step, count: [round(value) for value in generator.normal(0, spread, count).tolist()],
        loss_schedule=(),
    )
    for step in steps:
        yield step.weights


def run(material: Material, variant: Variant, seed: int) -> Outcome:
    case, schedule = material.case, material.case.schedule
    config = case.spec.network
    noise: BoxNoise | None = None
    losses = []
    weights: tuple[int, ...] = ()
    if variant.kind == "clip":
        states: Iterator[tuple[tuple[int, ...], BoxNoise | None]] = (
            (weights, None) for weights in mine_clipped(material, seed)
        )
    else:
        states = ((weights, noise) for weights, noise in mine(material, variant, seed))
    for step, state in enumerate(states):
        weights, noise = state
        if step % schedule.loss_every == 0 or step == schedule.steps:
            losses.append(compute_mean_loss(config, weights, material.validation, UNCLIPPED))
    clip = schedule.clipping.gradient_clip / 2**BITS
    if noise is None:
        square, deviations, norm = schedule.steps / schedule.noise**2, [schedule.noise * clip], clip
    else:
        square = noise.square if noise.deviations else math.inf
        deviations, norm = noise.deviations or [0.0], noise.norm
    return Outcome(
        variant.label,
        variant.rate,
        seed,
        tuple(losses),
        math.inf if math.isinf(square) else compute_epsilon(square, DELTA),
        deviations[0] / material.patches,
        deviations[-1] / material.patches,
        norm,
        float(np.abs(convert_weights(weights)).max()),
        score(material, weights),
        compute_loss_noise(material, variant, weights),
    )


def score(material: Material, weights: Sequence[int]) -> dict[str, float]:
    spec = material.case.spec
    rows: list[FusionMetrics] = []
    for pair in material.held:
        fused = fuse_luminance(spec.network, weights, pair, spec.settings)
        rows.append(compute_metrics(convert_to_bytes(pair.first), convert_to_bytes(pair.second), fused))
    mean = compute_mean_metrics(rows)
    return {name: float(getattr(mean, name)) for name in METRICS}


def score_first(material: Material) -> dict[str, float]:
    """Of the weights that nothing has trained."""
    case = material.case
    return score(
        material,
        WORKLOAD.build_initial_weights(case.spec.encode(), case.schedule.seed, case.schedule.initial),
    )


def compute_loss_noise(material: Material, variant: Variant, weights: Sequence[int]) -> float:
    case = material.case
    bound = compute_loss_bound(case.spec.circuit, weights, build_limits(case.spec, variant.limit))
    multiplier = compute_multiplier(LOSS_EPSILON, case.schedule.loss_openings, DELTA)
    patches = sum(len(batch.inputs) for batch in material.validation)
    return float(multiplier * bound.compute_sensitivity(BITS) / 2**BITS / patches)


def build_variants(limit: float, epsilons: Sequence[float]) -> list[Variant]:
    """Each kind, without its learning rate."""
    box = [Variant(kind, limit=limit, shared=bool(limit)) for kind in ("exact", "today", "same")]
    others = [Variant("epsilon", epsilon, limit, shared=bool(limit)) for epsilon in epsilons]
    return [Variant("clip", limit=limit), *box, *others]


def run_best(material: Material, variant: Variant, seeds: int) -> list[Outcome]:
    """Runs of all seeds at the share of the learning rate whose median of last losses is least."""
    count = 1 if variant.kind == "exact" else seeds
    shares = (1.0,) if variant.kind == "clip" else SHARES
    tried = [[run(material, replace(variant, rate=share), seed) for seed in range(count)] for share in shares]
    return min(tried, key=lambda runs: statistics.median(outcome.losses[-1] for outcome in runs))


def show_material(material: Material, limit: float, console: Console) -> None:
    """How large honest numbers are beside their limits."""
    spec, schedule = material.case.spec, material.case.schedule
    planes = np.abs(np.concatenate([batch.target.plane for batch in material.training]))
    constants = np.concatenate([b.target.constant for b in material.validation]) / spec.network.output**2
    weights = WORKLOAD.build_initial_weights(spec.encode(), schedule.seed, schedule.initial)
    flat = convert_weights(weights)
    parts = [
        compute_patch_gradients(spec.network, flat, batch.inputs, batch.target.plane)
        for batch in cut_targets(material.training, limit)
    ]
    norms = np.linalg.norm(np.concatenate(parts), axis=1)
    shares = (0.5, 0.99, 1.0)
    figures = [np.quantile(values, shares).round(3) for values in (planes, constants, norms)]
    allowed = build_limits(spec, limit)
    bound = compute_gradient_bound(spec.circuit, weights, allowed)
    by_tensor = [round(norm / 2**BITS, 3) for norm in bound.compute_norms(BITS)]
    console.print(
        f"{material.patches} training patches, image-gradient weight {spec.gradient_weight}. Median, 99 % "
        f"and largest: |R| {figures[0]}, loss of the skip image {figures[1]}, norm of a patch's untied "
        f"gradient at the first weights {figures[2]}.",
        soft_wrap=True,
    )
    console.print(
        f"Limit of |R| {float(allowed.target):g}, which cuts {np.mean(planes > float(allowed.target)):.1%}: "
        f"bound of the gradient {bound.compute_norm(BITS) / 2**BITS:.3f}; of w, b, v, d {by_tensor}.",
        soft_wrap=True,
    )


def build_table(title: str, groups: Sequence[Sequence[Outcome]]) -> Table:
    table = Table(title=title)
    table.add_column("mined with")
    columns = ("rate", "epsilon", "bound", "noise of the mean", "last loss", *METRICS, "opened loss")
    for name in columns:
        table.add_column(name, justify="right")
    for runs in groups:
        ordered = sorted(runs, key=lambda outcome: outcome.losses[-1])
        median = ordered[len(ordered) // 2]
        lasts = [f"{outcome.losses[-1]:.3g}" for outcome in (median, ordered[0], ordered[-1])]
        table.add_row(
            median.variant,
            f"1/{1 / median.rate:g}",
            f"{median.epsilon:.3g}",
            f"{median.norm:.3g}",
            f"{median.first_noise:.2g} to {median.last_noise:.2g}",
            lasts[0] if len(runs) == 1 else f"{lasts[0]} ({lasts[1]} to {lasts[2]})",
            *(f"{median.metrics[name]:.3f}" for name in METRICS),
            f"{median.loss_noise:.2g}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", choices=sorted(NETWORKS), default=["default", "mri-pet"])
    parser.add_argument("--phantoms", action="store_true", help="synthetic pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="another number of steps")
    parser.add_argument("--batches", type=int, default=2, help="of a step, 8192 patches each")
    parser.add_argument("--limit", type=float, default=0.5, help="of |R|, narrow")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8.0])
    parser.add_argument("--output", type=Path, help="JSON of all runs")
    options = parser.parse_args()
    console = Console(highlight=False, width=170)
    console.print(get_machine())
    kept: dict[str, list[dict[str, object]]] = {}
    for name in options.network:
        for limit in (0.0, options.limit):
            case = NETWORKS[name]
            if options.steps is not None:
                case = replace(case, schedule=replace(case.schedule, steps=options.steps))
            if limit:
                case = replace(case, spec=replace(case.spec, gradient_weight=1))
            title = f"{name}, {'narrow' if limit else 'as it is'}, {case.schedule.steps} steps"
            material = load_material(case, options.phantoms, options.batches)
            console.print(f"\n{title}")
            show_material(material, limit, console)
            groups = [
                run_best(material, variant, options.seeds)
                for variant in build_variants(limit, options.epsilons)
            ]
            untrained = ", ".join(f"{metric} {value:.3f}" for metric, value in score_first(material).items())
            console.print(f"First weights: loss {groups[0][0].losses[0]:.4f}, {untrained}.")
            console.print("Median (least to largest) of seeds.")
            console.print(build_table(title, groups))
            kept[title] = [asdict(outcome) for runs in groups for outcome in runs]
    if options.output is not None:
        options.output.write_text(json.dumps(kept, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
