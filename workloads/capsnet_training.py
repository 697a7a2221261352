"""A hospital's part of a federated round: training from flat weights, losses and predictions.

torch is imported by the calls that need it, never in a process that encrypts.
Source: McMahan et al. 2017 (FedAvg: local epochs between averages); Li et al. 2020, FedProx, eq. 2.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.capsnet_data import CapsuleData

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.capsnet import CapsuleNetwork

Flat = NDArray[np.float32]
Floats = NDArray[np.float64]

_EVALUATED = 128
"""Images evaluated at once."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network says of images."""

    scores: Floats
    """(n, classes): lengths of the class capsules."""
    masks: Floats | None
    """(n, S, S) in [0, 1]: how likely each pixel belongs to the finding; None without the head."""

    def compute_suspicion(self) -> Floats:
        """(n,): length of class 1 less that of class 0; grows with the finding."""
        return self.scores[:, 1] - self.scores[:, 0]


def build_initial(config: CapsuleConfig, seed: int) -> Flat:
    """A federation's first weights; the same seed gives the same."""
    from workloads.capsnet import build_network, get_flat

    return get_flat(build_network(config, seed))


def train_local(
    config: CapsuleConfig, flat: Flat, data: CapsuleData, settings: LocalSettings, seed: int
) -> Flat:
    """Weights after the settings' epochs on the data, begun at `flat`; the same arguments give the same.

    Raises WorkloadError if images, labels or weights do not fit the network, or weights become not finite.
    """
    import torch

    from workloads.capsnet import get_flat

    network = _load(config, flat)
    _check(config, data)
    torch.set_num_threads(1)
    draw = np.random.default_rng([seed, 61])
    start = [parameter.detach().clone() for parameter in network.parameters()]
    weights = _weigh(data, config.classes) if settings.balanced else np.ones(len(data.labels))
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
    network.train()
    for _ in range(settings.epochs):
        order = draw.permutation(len(data.labels))
        for begin in range(0, len(order), settings.batch):
            chosen = order[begin : begin + settings.batch]
            images, masks = _augment(draw, data, chosen, settings)
            labels = torch.from_numpy(data.labels[chosen])
            loss = _compute_loss(
                network, images, labels, masks, torch.from_numpy(weights[chosen]).float(), settings
            )
            if settings.proximal:
                distance = torch.stack(
                    [
                        (now - then).square().sum()
                        for now, then in zip(network.parameters(), start, strict=True)
                    ]
                ).sum()
                loss = loss + settings.proximal / 2 * distance
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    result = get_flat(network)
    if not np.isfinite(result).all():
        raise WorkloadError("training: weights are not finite; lower the rate")
    return result


def evaluate_loss(
    config: CapsuleConfig, flat: Flat, data: CapsuleData, settings: LocalSettings | None = None
) -> float:
    """Mean loss of the images as they are, without the proximal term; labels weigh as the settings say."""
    import torch

    settings = settings or LocalSettings()
    network = _load(config, flat)
    _check(config, data)
    weights = _weigh(data, config.classes) if settings.balanced else np.ones(len(data.labels))
    total = 0.0
    with torch.no_grad():
        for begin in range(0, len(data.labels), _EVALUATED):
            part = slice(begin, begin + _EVALUATED)
            masks = None if data.masks is None else torch.from_numpy(data.masks[part].astype(np.float32))
            loss = _compute_loss(
                network,
                torch.from_numpy(data.images[part].astype(np.float32)),
                torch.from_numpy(data.labels[part]),
                masks,
                torch.from_numpy(weights[part]).float(),
                settings,
            )
            total += float(loss) * len(data.labels[part])
    return total / len(data.labels)


def predict(config: CapsuleConfig, flat: Flat, images: Floats) -> Predictions:
    """Of images (n, 1, S, S) in [0, 1]; raises WorkloadError if they or the weights do not fit."""
    import torch

    network = _load(config, flat)
    if images.shape[1:] != config.shape:
        raise WorkloadError(f"images: the network expects (n, 1, {config.side}, {config.side})")
    scores, masks = [], []
    with torch.no_grad():
        for begin in range(0, len(images), _EVALUATED):
            part = torch.from_numpy(images[begin : begin + _EVALUATED].astype(np.float32))
            lengths, logits = network(part)
            scores.append(lengths.numpy())
            if logits is not None:
                masks.append(torch.sigmoid(logits).numpy())
    joined = np.concatenate(masks).astype(np.float64) if masks else None
    return Predictions(np.concatenate(scores).astype(np.float64), joined)


def compute_dice(masks: Floats, truth: Floats, threshold: float = 0.5) -> Floats:
    """(n,): 2 |A and B| / (|A| + |B|) of each image; 1 where both are empty."""
    found, real = masks >= threshold, truth >= 0.5
    both = (found & real).sum(axis=(1, 2))
    total = found.sum(axis=(1, 2)) + real.sum(axis=(1, 2))
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def _load(config: CapsuleConfig, flat: Flat) -> "CapsuleNetwork":
    from workloads.capsnet import build_network, set_flat

    network = build_network(config, 0)
    set_flat(network, flat)
    return network.eval()


def _check(config: CapsuleConfig, data: CapsuleData) -> None:
    if data.images.shape[1:] != config.shape:
        raise WorkloadError(f"images: the network expects {config.shape}, got {data.images.shape[1:]}")
    if not len(data.labels) or data.labels.min() < 0 or data.labels.max() >= config.classes:
        raise WorkloadError(f"labels: expected at least one image, labels from 0 to {config.classes - 1}")
    if config.segmentation and data.masks is None:
        raise WorkloadError("masks: the network draws masks, and the data has none to learn from")


def _weigh(data: CapsuleData, classes: int) -> Floats:
    """(n,) with mean 1: all labels that occur weigh the same together."""
    counts = np.bincount(data.labels, minlength=classes)
    present = np.count_nonzero(counts)
    return np.asarray(len(data.labels) / (present * counts[data.labels]), dtype=np.float64)


def _augment(
    draw: np.random.Generator, data: CapsuleData, chosen: NDArray[np.int64], settings: LocalSettings
) -> tuple["Tensor", "Tensor | None"]:
    """Images, and masks alike, mirrored and moved; images' contrast and brightness changed."""
    import torch

    images = data.images[chosen].astype(np.float32)
    masks = None if data.masks is None else data.masks[chosen].astype(np.float32)
    for row in range(len(chosen)):
        move = tuple(int(one) for one in draw.integers(-settings.shift, settings.shift + 1, 2))
        flip = settings.mirror and draw.random() < 0.5
        images[row, 0] = _move(images[row, 0], move, flip)
        if masks is not None:
            masks[row] = _move(masks[row], move, flip)
    factor, offset = draw.uniform(-settings.contrast, settings.contrast, (2, len(chosen), 1, 1, 1))
    changed = np.clip((images - 0.5) * (1 + factor) + 0.5 + offset, 0, 1).astype(np.float32)
    return torch.from_numpy(changed), None if masks is None else torch.from_numpy(masks)


def _move(image: NDArray[np.float32], move: tuple[int, ...], flip: bool) -> NDArray[np.float32]:
    moved = np.roll(image, move, (0, 1))
    return moved[:, ::-1] if flip else moved


def _compute_loss(
    network: "CapsuleNetwork",
    images: "Tensor",
    labels: "Tensor",
    masks: "Tensor | None",
    weights: "Tensor",
    settings: LocalSettings,
) -> "Tensor":
    from workloads.capsnet import compute_margin_loss, compute_mask_loss

    lengths, logits = network(images)
    loss = (compute_margin_loss(lengths, labels) * weights).mean()
    if logits is not None and masks is not None:
        loss = loss + settings.mask_weight * compute_mask_loss(logits, masks)
    return loss
