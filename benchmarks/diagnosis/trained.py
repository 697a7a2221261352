"""Networks trained in clear for the tables: quadratic and ReLU of equal size, several seeds, kept on disk.

Imports torch by its calls: for a process that does not encrypt.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from he.network import encode
from workloads.diagnosis_config import CHANNELS, Activation, DiagnosisConfig, TrainingSettings
from workloads.diagnosis_data import DiagnosisData
from workloads.diagnosis_metrics import DiagnosisMetrics, choose_threshold, compute_auc, compute_metrics

SEEDS = {2: 3, 3: 1, 4: 1}
"""Seeds trained, by number of convolution blocks."""
EPOCHS = 25
PENALTY = 1.0


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


def get_network_path(folder: Path, blocks: int, seed: int = 0) -> Path:
    return folder / f"network-{blocks}-{seed}"


def train_all(data: DiagnosisData, folder: Path) -> list[Trained]:
    """Every network that the folder does not have yet, and the figures of all."""
    found = []
    for blocks, seeds in SEEDS.items():
        for seed in range(seeds):
            for activation in ("polynomial", "relu"):
                path = folder / f"trained-{blocks}-{activation}-{seed}.json"
                if not path.exists():
                    trained = train(data, folder, blocks, activation, seed)
                    path.write_text(json.dumps(asdict(trained)))
                found.append(Trained(**json.loads(path.read_text())))
                print(f"{path.stem}: AUC {found[-1].auc[0]:.4f}", flush=True)
    return found


def train(data: DiagnosisData, folder: Path, blocks: int, activation: Activation, seed: int) -> Trained:
    import torch

    from benchmarks.timing import measure
    from workloads.diagnosis import compute_logits, measure_ranges, train_network
    from workloads.network_export import export_network

    torch.set_num_threads(1)
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
        get_network_path(folder, blocks, seed).write_bytes(encode(exported))
        ranges = measure_ranges(exported, data.test.images)
        shares, error = tuple(one.outside for one in ranges), ranges[0].error
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
    )


def describe(metrics: DiagnosisMetrics) -> dict[str, tuple[float, float, float]]:
    named = ("auc", "sensitivity", "specificity")
    return {
        name: (one.value, one.low, one.high)
        for name, one in zip(named, (metrics.auc, metrics.sensitivity, metrics.specificity), strict=True)
    }


def compute_mean(found: list[Trained], blocks: int, activation: str) -> tuple[float, float]:
    """Mean AUC over seeds, on val and on test."""
    rows = [one for one in found if (one.blocks, one.activation) == (blocks, activation)]
    return float(np.mean([one.val_auc for one in rows])), float(np.mean([one.auc[0] for one in rows]))
