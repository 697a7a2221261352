"""Clear training with the encrypted task's own integers: loss curves, bounds, metrics of fused images.

`python -m benchmarks.clear_training` trains on phantoms, `--data FOLDER` on the MRI-CT pairs of a manifest.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from consensus.optimizer import apply_opening
from fusion_model.baselines import fuse_average, fuse_laplacian, fuse_maximum
from fusion_model.config import NetworkConfig
from fusion_model.fuse import convert_to_bytes, fuse_planes
from fusion_model.gradients import (
    Array,
    apply_metric,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.importers.png import import_manifest
from fusion_model.initial import build_initial_weights
from fusion_model.metrics import FusionMetrics, compute_mean_metrics, compute_metrics
from fusion_model.pairs import ImagePair, split_by_patient
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.train import Clipping, TrainingBatch, TrainingStep, build_training_batch, train_twin

SLOTS = 8192
BATCHES_PER_STEP = 2
SCALE_BITS = 20
SHIFT = 30
WEIGHT_BOX = 4 << SCALE_BITS
COLUMNS = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM", "SSIM2")


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyperparameters in plain numbers; the integers follow from them."""

    steps: int = 40
    rate: float = 0.115
    """Peak learning rate on the mean gradient; momentum 0.9 multiplies it tenfold in the long run."""
    final_rate: float = 0.5
    """Share of the rate left at the end of the half cosine."""
    clip: float = 0.5
    noise: float = 32.0
    """Standard deviation of the noise of an opened gradient sum, in clips."""
    loss_clip: float = 0.125
    loss_noise: float = 5.0
    """Standard deviation of the noise of an opened sum of losses, in loss clips."""
    seed: int = 0

    @property
    def clipping(self) -> Clipping:
        unit = 1 << SCALE_BITS
        return Clipping(round(self.clip * unit), SCALE_BITS, round(self.loss_clip * unit), SCALE_BITS)

    @property
    def learning_rates(self) -> tuple[int, ...]:
        """Integers lr_t with w <- w - floor(lr_t m / 2^SHIFT)."""
        phase = np.arange(self.steps) / self.steps
        rates = self.rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + np.cos(np.pi * phase)))
        scale = 2.0**SHIFT / (SLOTS * BATCHES_PER_STEP)
        return tuple(round(value) for value in (rates * scale).tolist())


@dataclass(frozen=True, slots=True)
class Data:
    """Training and validation batches, and whole pairs that were not trained on."""

    name: str
    training: list[TrainingBatch]
    validation: list[TrainingBatch]
    held: list[ImagePair]


def load_data(config: NetworkConfig, source: str, held_patients: Sequence[int]) -> Data:
    if source == "phantom":
        training, held = build_phantoms(1, 6), build_phantoms(1, 2, first_patient=100)
        name = "phantoms"
    else:
        pairs = import_manifest(Path(source) / "manifest.csv", "MRI-CT")
        training, held = split_by_patient(pairs, held_patients)
        name = f"MRI-CT, held cases {tuple(held_patients)}"
    patches = extract_patches(training, SLOTS * BATCHES_PER_STEP, 1).inputs
    batches = [
        build_training_batch(config, patches[i * SLOTS : (i + 1) * SLOTS]) for i in range(BATCHES_PER_STEP)
    ]
    return Data(name, batches, [build_training_batch(config, extract_patches(held, SLOTS, 2).inputs)], held)


def run_training(config: NetworkConfig, settings: Settings, data: Data, every: int) -> list[TrainingStep]:
    generator = np.random.default_rng([settings.seed, 99])
    spread = settings.noise * settings.clipping.gradient_clip

    def draw_noise(step: int, count: int) -> list[int]:
        return [int(value) for value in np.rint(generator.normal(0, spread, count))]

    return list(
        train_twin(
            config,
            build_initial_weights(config, settings.seed),
            data.training,
            data.validation,
            clipping=settings.clipping,
            learning_rates=settings.learning_rates,
            batches_per_step=BATCHES_PER_STEP,
            update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOX),
            noise=draw_noise,
            loss_schedule=range(0, settings.steps + 1, every),
        )
    )


def compute_linear_loss(config: NetworkConfig, data: Data) -> float:
    """Validation loss of the best linear filter of the network's own reach on top of the plain mean."""
    reach = 2 * config.margin + 1

    def build_design(inputs: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(inputs, (reach, reach), axis=(2, 3))
        return windows.transpose(0, 2, 3, 1, 4, 5).reshape(len(inputs), config.output, config.output, -1)

    size = config.inputs * reach**2
    normal, right = np.zeros((size, size)), np.zeros(size)
    for batch in data.training:
        design = build_design(batch.inputs)
        weighted = np.stack([apply_metric(config, design[..., i]) for i in range(size)], axis=-1)
        normal += np.einsum("nijp,nijq->pq", design, weighted, optimize=True)
        right += np.einsum("nijp,nij->p", design, batch.target.plane)
    taps = np.linalg.solve(normal + 1e-6 * np.eye(size), right)
    losses = []
    for batch in data.validation:
        change = build_design(batch.inputs) @ taps
        quadratic = ((apply_metric(config, change) - 2 * batch.target.plane) * change).sum(axis=(1, 2))
        losses.append((quadratic + batch.target.constant) / config.output**2)
    return float(np.concatenate(losses).mean())


def compute_table(
    config: NetworkConfig, networks: dict[str, Sequence[int]], pairs: Sequence[ImagePair]
) -> dict[str, FusionMetrics]:
    rows: dict[str, list[FusionMetrics]] = {}
    for pair in pairs:
        a, b = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
        fused = {
            "average": fuse_average(a, b),
            "maximum": fuse_maximum(a, b),
            "Laplacian": fuse_laplacian(a, b),
        }
        fused |= {name: fuse_planes(config, weights, pair.planes) for name, weights in networks.items()}
        for name, image in fused.items():
            rows.setdefault(name, []).append(compute_metrics(a, b, image))
    return {name: compute_mean_metrics(figures) for name, figures in rows.items()}


def print_bounds(config: NetworkConfig, steps: Sequence[TrainingStep], data: Data) -> None:
    """Quantiles that justify the clips."""
    batch, held = data.training[0], data.validation[0]
    for label, step in (("first", steps[0]), ("last", steps[-1])):
        flat = convert_weights(step.weights)
        gradients = compute_patch_gradients(config, flat, batch.inputs, batch.target.plane)
        norms = np.linalg.norm(fold_output_bias(config, flat, gradients), axis=1)
        losses = compute_patch_losses(config, flat, held.inputs, held.target.plane, held.target.constant)
        shares = (0.5, 0.9, 0.99, 1.0)
        print(f"  {label}: gradient norm quantiles {shares}: {np.quantile(norms, shares).round(3).tolist()}")
        print(f"  {label}: patch loss quantiles {shares}: {np.quantile(losses, shares).round(4).tolist()}")
    print(f"  largest |weight| at the end: {np.abs(convert_weights(steps[-1].weights)).max():.3f}")


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="phantom", help="'phantom' or a folder with manifest.csv")
    parser.add_argument("--held", type=int, nargs="+", default=[28, 34], help="patients held back")
    parser.add_argument("--steps", type=int, nargs="+", default=[40])
    parser.add_argument("--gradient-weight", type=int, default=1)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--clip", type=float, default=defaults.clip)
    parser.add_argument("--noise", type=float, default=defaults.noise)
    parser.add_argument("--loss-clip", type=float, default=defaults.loss_clip)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="metrics of fused held-back pairs")
    options = parser.parse_args()

    config = NetworkConfig(gradient_weight=options.gradient_weight)
    data = load_data(config, options.data, options.held)
    networks: dict[str, Sequence[int]] = {}
    print(
        f"{data.name}; gradient weight {config.gradient_weight}; "
        f"best linear 5x5 filter: {compute_linear_loss(config, data):.5f}"
    )
    for count in options.steps:
        settings = Settings(
            count,
            options.rate,
            clip=options.clip,
            noise=options.noise,
            loss_clip=options.loss_clip,
            seed=options.seed,
        )
        started = time.perf_counter()
        steps = run_training(config, settings, data, every=5)
        losses = {step.step: step.loss for step in steps if step.loss is not None}
        print(
            f"{count} steps in {time.perf_counter() - started:.1f} s; shift {SHIFT}, "
            f"rates {settings.learning_rates}"
        )
        print("  " + "  ".join(f"{step}: {loss:.5f}" for step, loss in losses.items()))
        noise = settings.loss_noise * settings.loss_clip / (SLOTS * len(data.validation))
        print(
            f"  fall {losses[0] / losses[count]:.2f}; "
            f"noise of an opened mean: {noise / losses[count]:.2%} of the last loss"
        )
        print_bounds(config, steps, data)
        networks[f"network, {count}"] = steps[-1].weights
    if options.table:
        print("| method | " + " | ".join(COLUMNS) + " |")
        for name, figures in compute_table(config, networks, data.held).items():
            print(f"| {name} | " + " | ".join(f"{getattr(figures, column):.3f}" for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
