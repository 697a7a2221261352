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

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    Array,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    split_weights,
)

__all__ = ["PolynomialFusion", "compute_patch_gradients", "compute_patch_losses"]


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
