"""The polynomial fusion network in torch, and its integer weights.

`compute_patch_gradients` and `compute_patch_losses` of the same network live in `gradients`, free of torch.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion_model.config import WEIGHT_UNIT, NetworkConfig
from fusion_model.gradients import (
    Array,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    split_weights,
)

__all__ = ["PolynomialFusion", "build_initial_weights", "compute_patch_gradients", "compute_patch_losses"]


class PolynomialFusion(nn.Module):
    """F = S + sum_c v_c * (w_c * X + b_c)^2 - sum v b^2 in float64; a black input gives exactly 0."""

    def __init__(self, config: NetworkConfig, weights: npt.ArrayLike) -> None:
        """`weights`: the flat float parameters in the order of `NetworkConfig`."""
        super().__init__()
        layers = split_weights(config, np.array(weights, dtype=np.float64))
        self.config = config
        self.first = nn.Parameter(torch.from_numpy(layers.first.copy()))
        self.bias = nn.Parameter(torch.from_numpy(layers.bias.copy()))
        self.second = nn.Parameter(torch.from_numpy(layers.second.copy()))

    @classmethod
    def from_integers(cls, config: NetworkConfig, weights: Sequence[int]) -> Self:
        """The network of integer weights in units of 2^-20."""
        return cls(config, convert_weights(weights))

    def get_flat(self) -> Array:
        """The parameters as one flat vector."""
        return np.concatenate([p.detach().numpy().ravel() for p in (self.first, self.bias, self.second)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Fused windows (N, H-2m, W-2m) of inputs (N, inputs, H, W) in [0, 1], without padding."""
        m = self.config.margin
        linear = functional.conv2d(inputs, self.first)
        # z^2 - b^2 instead of z^2 + d: equal in exact arithmetic, and black stays exactly black.
        centred = linear * (linear + 2 * self.bias[:, None, None])
        change = functional.conv2d(centred, self.second[None])[:, 0]
        skip = inputs[:, :, m : inputs.shape[2] - m, m : inputs.shape[3] - m].mean(dim=1)
        return skip + change

    def fuse(self, inputs: Tensor) -> Tensor:
        """Fused images (N, H, W) of the inputs' size, by reflection at the border."""
        m = self.config.margin
        return self.forward(functional.pad(inputs, (m, m, m, m), mode="reflect"))


def build_initial_weights(config: NetworkConfig, seed: int) -> tuple[int, ...]:
    """Deterministic integer starting weights in units of 2^-20.

    Half the channels see +-0.6 (A - B) of the first two inputs in the kernel's centre plus N(0, 0.15) everywhere; the
    second layer is N(0, 0.03), the biases 0.3 on the other half.
    """
    generator = np.random.default_rng(seed)
    c, k, half = config.channels, config.kernel, config.channels // 2
    first = generator.normal(0, 0.15, (c, config.inputs, k, k))
    second = generator.normal(0, 0.03, (c, k, k))
    bias = np.zeros(c)
    centre = k // 2
    signs = np.where(np.arange(half) % 2 == 0, 0.6, -0.6)
    first[:half, 0, centre, centre] += signs
    first[:half, 1, centre, centre] -= signs
    bias[half:] = 0.3
    flat = np.concatenate([first.ravel(), bias, second.ravel()])
    return tuple(int(value) for value in np.rint(flat / WEIGHT_UNIT))
