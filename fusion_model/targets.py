"""What the fused image should be: training targets made in clear by whoever holds the images.

The loss weighs two of them: an intensity target T with weight 1 and a signed image-gradient target g with
weight `NetworkConfig.gradient_weight`. That weight is one number under two names: lambda where the loss is
described over images, mu where the circuits and patches are.
"""

from typing import NamedTuple

import numpy as np

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array


class FusionTargets(NamedTuple):
    """Targets on the output window of n patches."""

    intensity: Array
    """T, (n, O, O)."""
    gradient_x: Array
    """Wanted F[:, :, j+1] - F[:, :, j], (n, O, O-1)."""
    gradient_y: Array
    """Wanted F[:, i+1, :] - F[:, i, :], (n, O-1, O)."""


def compute_maximum_intensity(inputs: Array) -> Array:
    """The brightest input at each pixel; inputs (n, inputs, H, W)."""
    return np.asarray(inputs.max(axis=1), dtype=np.float64)


def compute_strongest_difference(inputs: Array, axis: int) -> Array:
    """The signed difference along image axis 0 (rows) or 1 (columns) of largest magnitude among the inputs.

    Equal magnitudes take the earlier input.
    """
    differences = np.diff(inputs, axis=axis + 2)
    choice = np.abs(differences).argmax(axis=1, keepdims=True)
    return np.asarray(np.take_along_axis(differences, choice, axis=1)[:, 0], dtype=np.float64)


def build_targets(config: NetworkConfig, inputs: Array) -> FusionTargets:
    """Maximum intensity and the stronger signed gradient, cut to the network's output window.

    `inputs` is (n, inputs, P, P) of any P larger than twice the margin, so whole images serve too.
    """
    m = config.margin
    inner = inputs[:, :, m : inputs.shape[2] - m, m : inputs.shape[3] - m]
    return FusionTargets(
        compute_maximum_intensity(inner),
        compute_strongest_difference(inner, axis=1),
        compute_strongest_difference(inner, axis=0),
    )
