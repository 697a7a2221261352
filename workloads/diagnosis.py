"""Training of a diagnosis network in clear, its evaluation, and how well its polynomials stay in range.

torch is imported by the calls that need it, never in a process that encrypts.
Source: Ran & Li, Journal of Imaging Informatics in Medicine 2025: batch norm and degree-2 activations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from he.network import Network, Polynomial, evaluate_all
from workloads.base import WorkloadError
from workloads.diagnosis_config import DiagnosisConfig, TrainingSettings

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Report = Callable[[int, float], None]
"""(epoch, mean loss of its batches)."""

_EVALUATED = 512
"""Images evaluated at once."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with what is known of them."""

    images: Floats
    """(n, C, H, W) in [0, 1]."""
    labels: Integers
    """(n,) of 0 and 1."""
    groups: Integers
    """(n,): images of one patient or source have the same number."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images) == len(self.labels) == len(self.groups):
            raise WorkloadError(
                f"images: expected (n, C, H, W) with n labels and groups, got {self.images.shape},"
                f" {len(self.labels)} and {len(self.groups)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, chosen: NDArray[np.bool_] | Integers) -> "LabelledImages":
        return LabelledImages(self.images[chosen], self.labels[chosen], self.groups[chosen])


@dataclass(frozen=True, slots=True)
class RangeShare:
    """How one polynomial's inputs lie to the interval that it was fitted on."""

    layer: str
    interval: tuple[float, float]
    error: float
    """Largest distance to the replaced function on the interval."""
    outside: float
    """Share of inputs outside the interval."""
    low: float
    high: float
    """Least and greatest input seen."""


def train_network(
    data: LabelledImages,
    config: DiagnosisConfig,
    settings: TrainingSettings,
    report: Report | None = None,
) -> "nn.Sequential":
    """The network after all epochs, in evaluation mode; the same arguments give the same network.

    Cross-entropy on the logit plus the range penalty. Raises WorkloadError if images have another shape,
    a label is missing, or the loss is not finite in the end.
    """
    import torch

    from workloads.diagnosis_network import build_network, compute_excess

    if data.shape != config.shape:
        raise WorkloadError(f"images: the network expects {config.shape}, got {data.shape}")
    if set(np.unique(data.labels).tolist()) != {0, 1} or len(data.labels) < settings.batch:
        raise WorkloadError(
            f"labels: training needs both labels and at least a batch of {settings.batch} images,"
            f" got {np.bincount(data.labels, minlength=2).tolist()}"
        )
    draw = np.random.default_rng([settings.seed, 11])
    network = build_network(config, settings.seed)
    images = torch.from_numpy(data.images.astype(np.float32))
    labels = torch.from_numpy(data.labels.astype(np.float32))
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
    batches = len(images) // settings.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * batches)
    network.train()
    mean = float("inf")
    for epoch in range(settings.epochs):
        order = torch.from_numpy(draw.permutation(len(images)))
        losses = []
        for number in range(batches):
            chosen = order[number * settings.batch : (number + 1) * settings.batch]
            down, right = (int(move) for move in draw.integers(-settings.shift, settings.shift + 1, 2))
            moved = torch.roll(images[chosen], (down, right), (2, 3))
            logits = network(moved)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[chosen])
            total = loss + settings.range_penalty * compute_excess(network)
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            # A polynomial far outside its interval would throw one step's weights away.
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        mean = float(np.mean(losses))
        if report is not None:
            report(epoch, mean)
    if not np.isfinite(mean):
        raise WorkloadError("training: the loss is not finite; lower the rate or raise the range penalty")
    return network.eval()


def compute_logits(network: "nn.Sequential", images: Floats) -> Floats:
    """(n,) of images (n, C, H, W), by torch in single precision."""
    import torch

    with torch.no_grad():
        parts = [
            network(torch.from_numpy(images[start : start + _EVALUATED].astype(np.float32)))[:, 0].numpy()
            for start in range(0, len(images), _EVALUATED)
        ]
    return np.concatenate(parts).astype(np.float64)


def measure_ranges(network: Network, images: Floats) -> tuple[RangeShare, ...]:
    """Of every polynomial in the network, over all images (n, C, H, W)."""
    values = evaluate_all(network, images)
    shares = []
    for layer in network.layers:
        if isinstance(layer, Polynomial):
            x = values[layer.source]
            low, high = layer.interval
            outside = float(((x < low) | (x > high)).mean())
            shares.append(
                RangeShare(layer.name, layer.interval, layer.error, outside, float(x.min()), float(x.max()))
            )
    return tuple(shares)
