"""A trained diagnosis model: its network, and a document of what it was trained on and how good it is."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from he.errors import ParameterError
from he.network import Network, decode, encode, evaluate
from workloads.base import WorkloadError
from workloads.diagnosis import Floats, RangeShare, Report, measure_ranges, train_network
from workloads.diagnosis_config import DiagnosisConfig, TrainingSettings
from workloads.diagnosis_data import DiagnosisData
from workloads.diagnosis_metrics import DiagnosisMetrics, choose_threshold, compute_metrics
from workloads.polynomials import sigmoid

PROVENANCE_SUFFIX = ".json"
MAX_NETWORK_BYTES = 1 << 26
MAX_PROVENANCE_BYTES = 1 << 16
_EVALUATED = 256


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from: to be published with it. It tells nothing of single images."""

    format: Literal["bmif-diagnosis-1"]
    classes: tuple[str, str]
    """Names of the labels 0 and 1."""
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""
    network_sha256: str
    data_sha256: str
    images: tuple[int, int, int]
    """Of the splits train, val and test."""
    seed: int
    epochs: int
    channels: tuple[int, ...]
    threshold: float
    """Logits from here on count as label 1; chosen on val."""
    metrics: Mapping[str, tuple[float, float, float]]
    """auc, sensitivity and specificity on test, each with its interval's ends."""
    outside: Mapping[str, float]
    """Share of val's pre-activations outside their polynomial's interval, by layer."""
    even_contrast: bool = False
    """Whether images are brought to one mean and spread before they are encrypted."""
    keys_sha256: str = ""
    """Of the evaluation keys of the pair that the weights are encrypted under; empty if they are clear."""

    def encode(self) -> str:
        """JSON with sorted keys."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


_PROVENANCE = TypeAdapter(Provenance)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedDiagnosis:
    """What `bmif diagnose train` makes."""

    network: Network
    provenance: Provenance
    ranges: tuple[RangeShare, ...]


def train_diagnosis(
    data: DiagnosisData,
    config: DiagnosisConfig,
    settings: TrainingSettings,
    report: Report | None = None,
    *,
    even_contrast: bool = False,
) -> TrainedDiagnosis:
    """Trains on `train`, chooses the threshold on `val`, measures on `test`.

    `even_contrast` only says how the data were read, for who asks about other images. Raises WorkloadError.
    """
    # Imports torch, which must not meet the encryption library in one process.
    from workloads.network_export import export_network

    network = export_network(train_network(data.train, config, settings, report), config.shape)
    threshold = choose_threshold(evaluate_logits(network, data.val.images), data.val.labels)
    logits = evaluate_logits(network, data.test.images)
    metrics = compute_metrics(
        logits, data.test.labels, threshold, groups=data.test.groups, seed=settings.seed
    )
    ranges = measure_ranges(network, data.val.images)
    provenance = Provenance(
        format="bmif-diagnosis-1",
        classes=data.classes,
        shape=config.shape,
        network_sha256=sha256(encode(network)).hexdigest(),
        data_sha256=data.compute_digest(),
        images=(len(data.train.labels), len(data.val.labels), len(data.test.labels)),
        seed=settings.seed,
        epochs=settings.epochs,
        channels=config.channels,
        threshold=threshold,
        metrics=describe_metrics(metrics),
        outside={share.layer: share.outside for share in ranges},
        even_contrast=even_contrast,
    )
    return TrainedDiagnosis(network, provenance, ranges)


def describe_metrics(metrics: DiagnosisMetrics) -> dict[str, tuple[float, float, float]]:
    """Figures by name, with their intervals' ends."""
    named = {
        "auc": metrics.auc,
        "sensitivity": metrics.sensitivity,
        "specificity": metrics.specificity,
    }
    return {name: (one.value, one.low, one.high) for name, one in named.items()}


def evaluate_logits(network: Network, images: Floats) -> Floats:
    """(n,) of images (n, C, H, W), in double precision as encrypted evaluation approximates it."""
    if network.outputs != 1:
        raise WorkloadError(f"network: a diagnosis has one logit, this network gives {network.outputs}")
    parts = [
        evaluate(network, images[at : at + _EVALUATED])[:, 0] for at in range(0, len(images), _EVALUATED)
    ]
    return np.concatenate(parts)


def compute_probability(logit: float) -> float:
    """Of the label 1."""
    return float(sigmoid(np.array(logit)))


# --- files ------------------------------------------------------------------------------------


def get_provenance_path(model: Path) -> Path:
    return model.with_name(model.name + PROVENANCE_SUFFIX)


def save_model(trained: TrainedDiagnosis, path: Path) -> None:
    """The network at `path`, its provenance beside it; each appears whole or not at all."""
    for target, data in (
        (path, encode(trained.network)),
        (get_provenance_path(path), trained.provenance.encode().encode()),
    ):
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(data)
        os.replace(part, target)


def load_network(path: Path) -> Network:
    """Raises WorkloadError if it is no network."""
    try:
        return decode(_read(path, MAX_NETWORK_BYTES))
    except ParameterError as error:
        raise WorkloadError(f"{path}: is not a network that `bmif diagnose train` wrote: {error}") from error


def load_provenance(path: Path) -> Provenance:
    """Raises WorkloadError naming the fields at fault."""
    try:
        return _PROVENANCE.validate_json(_read(path, MAX_PROVENANCE_BYTES), strict=True)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:3]
        )
        raise WorkloadError(f"{path}: is no model's provenance: {problems}") from error


def _read(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist")
    size = path.stat().st_size
    if size > limit:
        raise WorkloadError(f"{path}: has {size} bytes, more than the {limit} that it may have")
    return path.read_bytes()
