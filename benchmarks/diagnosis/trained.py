"""Networks trained in clear for the tables: quadratic and ReLU of equal size, several seeds, kept on disk.

Imports torch by its calls: for a process that does not encrypt.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from he.network import encode
from workloads.diagnosis import Floats
from workloads.diagnosis_config import CHANNELS, Activation, DiagnosisConfig, TrainingSettings
from workloads.diagnosis_data import DiagnosisData
from workloads.diagnosis_images import even_contrast
from workloads.diagnosis_metrics import DiagnosisMetrics, choose_threshold, compute_auc, compute_metrics

SEEDS = {2: 3, 3: 3, 4: 3}
"""Seeds trained, by number of convolution blocks."""
EVENED = (2, 3, 4)
"""Blocks of the networks that are trained on images of even contrast too."""
EPOCHS = 25
PENALTY = 1.0
MOVES = 4
"""Draws of the changes to validation images."""
ACTIVATIONS: tuple[Activation, Activation] = ("polynomial", "relu")


@dataclass(frozen=True, slots=True)
class Trained:
    """One network's figures, by the test split but for `val_auc`."""

    blocks: int
    activation: str
    seed: int
    parameters: int
    val_auc: float
    auc: tuple[float, float, float]
    """With the ends of its interval; so the next two."""
    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]
    threshold: float
    outside: tuple[float, ...]
    """Share of test's pre-activations outside the interval, by polynomial."""
    error: float
    """Largest distance of the polynomial to ReLU on the interval; 0 for ReLU."""
    reach: float
    training_cpu_s: float
    moved_auc: float | None = None
    """On validation images whose place, contrast and brightness were changed; None: not measured."""
    evened: bool = False
    """Whether images of all splits were brought to even contrast."""


def get_network_path(folder: Path, blocks: int, seed: int = 0) -> Path:
    return folder / f"network-{blocks}-{seed}"


def train_all(data: DiagnosisData, folder: Path) -> list[Trained]:
    """Every network that the folder does not have yet, and the figures of all."""
    runs = [(blocks, seed, False) for blocks, seeds in SEEDS.items() for seed in range(seeds)]
    runs += [(blocks, seed, True) for blocks in EVENED for seed in range(SEEDS[blocks])]
    found = []
    for blocks, seed, evened in runs:
        for activation in ACTIVATIONS:
            path = folder / f"trained-{blocks}-{activation}-{seed}{'-evened' if evened else ''}.json"
            if not path.exists():
                trained = train(data, folder, blocks, activation, seed, evened)
                path.write_text(json.dumps(asdict(trained)))
            found.append(Trained(**json.loads(path.read_text())))
            print(f"{path.stem}: AUC {found[-1].auc[0]:.4f}", flush=True)
    return found


def _even(data: DiagnosisData) -> DiagnosisData:
    train, val, test = (
        replace(part, images=even_contrast(part.images)) for part in (data.train, data.val, data.test)
    )
    return replace(data, train=train, val=val, test=test)


def move_images(images: Floats, seed: int) -> Floats:
    """Each image moved by up to 3 pixels, its contrast times 0.7 to 1.3, its brightness up to 0.1 off."""
    draw = np.random.default_rng([seed, 5])
    moved = np.stack([np.roll(image, tuple(draw.integers(-3, 4, 2)), (1, 2)) for image in images])
    mean = moved.mean(axis=(1, 2, 3), keepdims=True)
    contrast, brightness = (draw.uniform(*ends, mean.shape) for ends in ((0.7, 1.3), (-0.1, 0.1)))
    result: Floats = np.clip((moved - mean) * contrast + mean + brightness, 0.0, 1.0)
    return result


def train(
    data: DiagnosisData, folder: Path, blocks: int, activation: Activation, seed: int, evened: bool
) -> Trained:
    """One network; that of a quadratic is kept as `get_network_path` says, unless images were evened."""
    import torch

    from benchmarks.timing import measure
    from workloads.diagnosis import compute_logits, measure_ranges, train_network
    from workloads.network_export import export_network

    torch.set_num_threads(1)
    moved_images = [move_images(data.val.images, draw) for draw in range(MOVES)]
    if evened:
        data, moved_images = _even(data), [even_contrast(images) for images in moved_images]
    config = DiagnosisConfig(data.train.shape, CHANNELS[blocks], activation=activation)
    settings = TrainingSettings(epochs=EPOCHS, range_penalty=PENALTY, seed=seed)
    timing, network = measure(lambda: train_network(data.train, config, settings), 1)
    val, test = (compute_logits(network, part.images) for part in (data.val, data.test))
    threshold = choose_threshold(val, data.val.labels)
    metrics = compute_metrics(test, data.test.labels, threshold, groups=data.test.groups)
    shares: tuple[float, ...] = ()
    error = 0.0
    if activation == "polynomial":
        exported = export_network(network, config.shape)
        if not evened:
            get_network_path(folder, blocks, seed).write_bytes(encode(exported))
        ranges = measure_ranges(exported, data.test.images)
        shares, error = tuple(one.outside for one in ranges), ranges[0].error
    moved = [compute_auc(compute_logits(network, images), data.val.labels) for images in moved_images]
    return Trained(
        blocks=blocks,
        activation=activation,
        seed=seed,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        val_auc=compute_auc(val, data.val.labels),
        **describe(metrics),
        threshold=threshold,
        outside=shares,
        error=error,
        reach=config.reach,
        training_cpu_s=timing.cpu_s,
        moved_auc=float(np.mean(moved)),
        evened=evened,
    )


def describe(metrics: DiagnosisMetrics) -> dict[str, tuple[float, float, float]]:
    named = ("auc", "sensitivity", "specificity")
    return {
        name: (one.value, one.low, one.high)
        for name, one in zip(named, (metrics.auc, metrics.sensitivity, metrics.specificity), strict=True)
    }


@dataclass(frozen=True, slots=True)
class Mean:
    """Over the seeds of one kind of network: AUCs."""

    seeds: int
    val: float
    moved: float | None
    test: float


def compute_mean(found: Sequence[Trained], blocks: int, activation: str, evened: bool = False) -> Mean:
    wanted = (blocks, activation, evened)
    rows = [one for one in found if (one.blocks, one.activation, one.evened) == wanted]
    moved = [one.moved_auc for one in rows if one.moved_auc is not None]
    return Mean(
        len(rows),
        float(np.mean([one.val_auc for one in rows])),
        float(np.mean(moved)) if len(moved) == len(rows) else None,
        float(np.mean([one.auc[0] for one in rows])),
    )
