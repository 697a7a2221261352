"""The loss that ciphertexts can train: of degree 2 in the fused image, with targets that are data.

For one patch, L = [sum (F - T)^2 + mu sum |grad F - g|^2] / O^2. With F = S + F', S the mean of the inputs,

    O^2 L = F' . M F' - 2 F' . R + const,   M = I + mu D'D,   R = T + mu D'g - M S,

so one target plane R and one constant carry everything the network needs to know of the targets.
"""

from typing import NamedTuple

import numpy as np

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array, apply_metric
from fusion_model.targets import FusionTargets, build_targets


class LossTarget(NamedTuple):
    """What is encrypted beside a patch's pixels."""

    plane: Array
    """R, (n, O, O)."""
    constant: Array
    """O^2 times the loss of the plain mean S, (n,): not divided by O^2."""


def compute_full_losses(config: NetworkConfig, fused: Array, targets: FusionTargets) -> Array:
    """Each patch's loss from its fused window (n, O, O), straight from the definition."""
    area = fused.shape[1] * fused.shape[2]
    total = ((fused - targets.intensity) ** 2).sum(axis=(1, 2))
    gradients = ((np.diff(fused, axis=2) - targets.gradient_x) ** 2).sum(axis=(1, 2))
    gradients += ((np.diff(fused, axis=1) - targets.gradient_y) ** 2).sum(axis=(1, 2))
    return np.asarray((total + config.gradient_weight * gradients) / area, dtype=np.float64)


def build_loss_target(config: NetworkConfig, inputs: Array, targets: FusionTargets) -> LossTarget:
    """R and the constant for patches (n, inputs, P, P) and their targets."""
    m, mu = config.margin, config.gradient_weight
    skip = inputs[:, :, m : inputs.shape[2] - m, m : inputs.shape[3] - m].mean(axis=1)
    plane = targets.intensity - apply_metric(config, skip)
    plane[:, :, 1:] += mu * targets.gradient_x
    plane[:, :, :-1] -= mu * targets.gradient_x
    plane[:, 1:] += mu * targets.gradient_y
    plane[:, :-1] -= mu * targets.gradient_y
    area = skip.shape[1] * skip.shape[2]
    return LossTarget(plane, compute_full_losses(config, skip, targets) * area)


def build_training_target(config: NetworkConfig, inputs: Array) -> LossTarget:
    """R and the constant for the default targets: maximum intensity and the stronger gradient."""
    return build_loss_target(config, inputs, build_targets(config, inputs))
