"""A capsule network with dynamic routing, for classes and for masks, and its weights as one flat vector.

Importing this imports torch; never in a process that encrypts. No layer has running statistics, so that the
weights are all there is to average; group norm stands where batch norm would.
Source: Sabour, Frosst & Hinton 2017, Dynamic Routing Between Capsules: squash (eq. 1), routing (procedure 1),
margin loss (eq. 4). Weights shared between places and group norm are ours.
"""

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from workloads.base import WorkloadError
from workloads.capsnet_config import FIRST_KERNEL, KERNEL, MASK_CHANNELS, CapsuleConfig

Flat = NDArray[np.float32]

UPPER_MARGIN, LOWER_MARGIN, ABSENT_WEIGHT = 0.9, 0.1, 0.5
"""m+, m- and lambda of the margin loss."""
_GROUPS = 4
_SMALL = 1e-8


def squash(capsules: Tensor) -> Tensor:
    """Vectors along the last axis with their direction kept and their length n made n^2 / (1 + n^2)."""
    square = capsules.square().sum(dim=-1, keepdim=True)
    return capsules * (square / (1 + square) / (square + _SMALL).sqrt())


def route(predictions: Tensor, iterations: int) -> Tensor:
    """Class capsules (B, J, E) of predictions (B, I, J, E) by agreement, as procedure 1.

    Couplings are a softmax over classes J. Gradients flow through the last iteration's sum alone.
    """
    fixed = predictions.detach()
    agreement = torch.zeros(predictions.shape[:3])
    for _ in range(iterations - 1):
        coupling = agreement.softmax(dim=2)
        capsules = squash(torch.einsum("bij,bije->bje", coupling, fixed))
        agreement = agreement + torch.einsum("bije,bje->bij", fixed, capsules)
    return squash(torch.einsum("bij,bije->bje", agreement.softmax(dim=2), predictions))


class CapsuleNetwork(nn.Module):
    """Images (B, 1, S, S) in [0, 1] to lengths of class capsules (B, classes), and logits of masks."""

    def __init__(self, config: CapsuleConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.channels
        field = config.primary_types * config.primary_size
        self.first = nn.Conv2d(1, first, FIRST_KERNEL, config.strides[0], FIRST_KERNEL // 2)
        self.first_norm = nn.GroupNorm(_GROUPS, first)
        self.second = nn.Conv2d(first, second, KERNEL, config.strides[1], KERNEL // 2)
        self.second_norm = nn.GroupNorm(_GROUPS, second)
        self.primary = nn.Conv2d(second, field, KERNEL, config.strides[2], KERNEL // 2)
        # Class capsules shall begin neither near 0 nor saturated: places that share weights agree,
        # others add up like random numbers.
        self.transform = nn.Parameter(
            torch.randn(config.transforms, config.classes, config.primary_size, config.class_size)
            / (sqrt(config.transforms) * (config.capsules / config.transforms))
        )
        if config.segmentation:
            self.gate_place = nn.Conv2d(field, second, 1)
            self.gate_class = nn.Linear(config.classes * config.class_size, second, bias=False)
            self.mask_inner = nn.Conv2d(second, MASK_CHANNELS, KERNEL, 1, KERNEL // 2)
            self.mask_outer = nn.Conv2d(MASK_CHANNELS, 1, KERNEL, 1, KERNEL // 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Lengths (B, classes) in [0, 1), and mask logits (B, S, S) or None without the head."""
        spread, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        # Scanners and publishers window differently.
        features = torch.relu(self.first_norm(self.first((images - mean) / (spread + 1e-3))))
        features = torch.relu(self.second_norm(self.second(features)))
        primary = self._build_primary(features)
        classes = route(self._predict(primary), self.config.routing)
        lengths = (classes.square().sum(dim=-1) + _SMALL).sqrt()
        return lengths, self._draw_mask(features, primary, classes) if self.config.segmentation else None

    def _build_primary(self, features: Tensor) -> Tensor:
        """(B, types, places, size), squashed."""
        config = self.config
        field = self.primary(features).reshape(-1, config.primary_types, config.primary_size, config.grid**2)
        return squash(field.transpose(2, 3))

    def _predict(self, primary: Tensor) -> Tensor:
        """(B, I, classes, class size): what each primary capsule expects of each class."""
        config = self.config
        weights = self.transform.reshape(config.primary_types, -1, *self.transform.shape[1:])
        weights = weights.expand(-1, config.grid**2, -1, -1, -1)
        if config.shared:
            predictions = torch.einsum("btpd,tjde->btpje", primary, weights[:, 0])
        else:
            predictions = torch.einsum("btpd,tpjde->btpje", primary, weights)
        return predictions.flatten(1, 2)

    def _draw_mask(self, features: Tensor, primary: Tensor, classes: Tensor) -> Tensor:
        """Features of the second convolution, weighed by what capsules of the place and of the image say."""
        grid = self.config.grid
        field = primary.transpose(2, 3).reshape(len(primary), -1, grid, grid)
        place = self.gate_place(field)
        gate = torch.sigmoid(place + self.gate_class(classes.flatten(1))[:, :, None, None])
        gate = functional.interpolate(gate, size=features.shape[2:], mode="bilinear", align_corners=False)
        inner = torch.relu(self.mask_inner(features * gate))
        side = self.config.side
        inner = functional.interpolate(inner, size=(side, side), mode="bilinear", align_corners=False)
        mask: Tensor = self.mask_outer(inner)[:, 0]
        return mask


def build_network(config: CapsuleConfig, seed: int) -> CapsuleNetwork:
    """With weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CapsuleNetwork(config)


def compute_margin_loss(lengths: Tensor, labels: Tensor) -> Tensor:
    """(B,): of lengths (B, classes) where labels (B,) are there and the other classes are absent."""
    present = functional.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    there = (UPPER_MARGIN - lengths).clamp_min(0).square()
    absent = (lengths - LOWER_MARGIN).clamp_min(0).square()
    return (present * there + ABSENT_WEIGHT * (1 - present) * absent).sum(dim=1)


def compute_mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice plus mean cross-entropy; (B, S, S) each.

    Dice is of all images of the batch with a mask together: hospitals without the finding would else teach
    the others to draw nothing.
    """
    chance = torch.sigmoid(logits)
    drawn = masks.amax(dim=(1, 2), keepdim=True)
    dice = (2 * (chance * masks).sum() + 1) / ((chance * drawn).sum() + masks.sum() + 1)
    return 1 - dice + functional.binary_cross_entropy_with_logits(logits, masks)


# --- flat weights -----------------------------------------------------------------------------


def get_names(network: CapsuleNetwork) -> tuple[str, ...]:
    """Of the weights, in the order in which the flat vector holds them, each in C order."""
    return tuple(name for name, _ in network.named_parameters())


def get_flat(network: CapsuleNetwork) -> Flat:
    """All weights, (P,) in single precision; P is the configuration's `count_parameters()`."""
    with torch.no_grad():
        parts = [parameter.detach().reshape(-1) for parameter in network.parameters()]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32).copy()


def set_flat(network: CapsuleNetwork, flat: Flat) -> None:
    """Raises WorkloadError if the vector has another length or holds what is not finite."""
    expected = network.config.count_parameters()
    if flat.shape != (expected,) or not np.isfinite(flat).all():
        raise WorkloadError(f"weights: expected {expected} finite numbers, got {flat.shape}")
    source = torch.from_numpy(np.array(flat, dtype=np.float32))
    start = 0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(source[start : start + parameter.numel()].reshape(parameter.shape))
            start += parameter.numel()
