"""The loss that ciphertexts can train: of degree 2 in the fused image, with targets that are data.

For one patch, L = [sum (F - T)^2 + mu sum |grad F - g|^2] / O^2. With F = S + F', S the images' mean,

    O^2 L = F' . M F' - 2 F' . R + const,   M = I + mu D'D,   R = T + mu D'g - M S,

so one target plane R and one constant carry everything the network needs to know of the targets.
"""

from typing import NamedTuple

import numpy as np

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array, apply_metric
from fusion_model.patches import PatchSet
from fusion_model.prepared import round_to_grid
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


def build_loss_target(
    config: NetworkConfig, inputs: Array, targets: FusionTargets, skip: Array | None = None
) -> LossTarget:
    """R and the constant for patches (n, inputs, P, P), their targets and their skip S (n, O, O).

    Without `skip`, S is the mean of the two images.
    """
    m, mu = config.margin, config.gradient_weight
    if skip is None:
        skip = inputs[:, :2, m : inputs.shape[2] - m, m : inputs.shape[3] - m].mean(axis=1)
    plane = targets.intensity - apply_metric(config, skip)
    plane[:, :, 1:] += mu * targets.gradient_x
    plane[:, :, :-1] -= mu * targets.gradient_x
    plane[:, 1:] += mu * targets.gradient_y
    plane[:, :-1] -= mu * targets.gradient_y
    area = skip.shape[1] * skip.shape[2]
    return LossTarget(plane, compute_full_losses(config, skip, targets) * area)


def build_training_target(config: NetworkConfig, inputs: Array) -> LossTarget:
    """R and the constant for the default targets: maximum intensity and the stronger gradient."""
    return build_loss_target(config, inputs, build_targets(config, inputs[:, :2]))


def build_patch_target(config: NetworkConfig, patches: PatchSet, levels: int) -> LossTarget:
    """R and the constant of patches whose skip and targets lie on the grid of `levels`.

    R then lies on the grid of multiples of 1/(2 levels) and the constant of 1/(4 levels^2): a skip has
    halves. Rounding takes away what float arithmetic has added.
    Raises ValueError unless the patches were cut with the network's margin.
    """
    o = config.output
    if patches.skip.shape[1:] != (o, o):
        raise ValueError(f"expected patches with a margin of {config.margin}: windows {o}x{o}")
    target = build_loss_target(config, patches.inputs, patches.targets, patches.skip)
    return LossTarget(round_to_grid(target.plane, 2 * levels), round_to_grid(target.constant, 4 * levels**2))


def compute_least_constant(config: NetworkConfig, plane: Array) -> Array:
    """R' M^-1 R of each loss target (n, O, O): O^2 L is at least the constant less this, whatever F' is.

    A constant that some skip and targets belong to is never smaller: with r = [T - S, sqrt(mu) (g - DS)] and
    A = [I; sqrt(mu) D] it is r'r, R = A'r and M = A'A, so R' M^-1 R is the squared length of r's projection.
    D'D of a window is diagonal in its cosines (the Neumann Laplacian), so M^-1 needs no system solved.
    """
    o = config.output
    places = np.arange(o)
    cosines = np.cos(np.pi * np.outer(places, places + 0.5) / o) * np.sqrt(2 / o)
    cosines[0] = np.sqrt(1 / o)
    stencil = 2 - 2 * np.cos(np.pi * places / o)
    metric = 1 + config.gradient_weight * (stencil[:, None] + stencil)
    spectrum = cosines @ plane @ cosines.T
    return np.asarray((spectrum**2 / metric).sum(axis=(1, 2)), dtype=np.float64)
