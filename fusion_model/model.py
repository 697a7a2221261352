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
    compute_first_places,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    split_weights,
)
from fusion_model.inference import FADE_SLOPE

__all__ = ["PolynomialFusion", "compute_patch_gradients", "compute_patch_losses"]


class PolynomialFusion(nn.Module):
    """F = S + sum_c v_c * (w_c * X + b_c)^2 - sum v b^2 in float64; a black input gives exactly 0."""

    def __init__(self, config: NetworkConfig, weights: npt.ArrayLike) -> None:
        """`weights`: the flat float parameters in the order of `NetworkConfig`."""
        super().__init__()
        flat = np.array(weights, dtype=np.float64)
        layers = split_weights(config, flat)
        self.config = config
        self.first = nn.Parameter(torch.from_numpy(flat[: config.first_weights].copy()))
        """w as it stands in the flat order, so that nothing outside a channel's own kernel is trained."""
        self.bias = nn.Parameter(torch.from_numpy(layers.bias.copy()))
        self.second = nn.Parameter(torch.from_numpy(layers.second.copy()))

    @classmethod
    def from_integers(cls, config: NetworkConfig, weights: Sequence[int]) -> Self:
        """The network of integer weights in units of 2^-20."""
        return cls(config, convert_weights(weights))

    def get_flat(self) -> Array:
        """The parameters as one flat vector."""
        return np.concatenate([p.detach().numpy().ravel() for p in (self.first, self.bias, self.second)])

    def get_first(self) -> Tensor:
        """w as one convolution's kernels (channels, inputs, kernel, kernel), zeros around smaller ones."""
        c, k = self.config.channels, self.config.kernel
        places = torch.tensor(compute_first_places(self.config))
        dense = self.first.new_zeros(c * self.config.inputs * k * k).index_copy(0, places, self.first)
        return dense.reshape(c, self.config.inputs, k, k)

    def forward(self, inputs: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fused windows (N, H-2m, W-2m) of inputs (N, inputs, H, W), without padding.

        `skip` (N, H, W) is the image that the network adds to; the mean of the first two inputs if None.
        """
        m = self.config.margin
        linear = functional.conv2d(inputs, self.get_first())
        # z^2 - b^2 instead of z^2 + d: equal in exact arithmetic, and black stays exactly black.
        centred = linear * (linear + 2 * self.bias[:, None, None])
        change = functional.conv2d(centred, self.second[None])[:, 0]
        base = inputs[:, :2].mean(dim=1) if skip is None else skip
        return base[:, m : base.shape[1] - m, m : base.shape[2] - m] + change

    def fuse(self, inputs: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fused images (N, H, W) of the inputs' size, by reflection at the border; see `compute_fade`."""
        m = self.config.margin
        planes = functional.pad(inputs, (m, m, m, m), mode="reflect")
        base = inputs[:, :2].mean(dim=1) if skip is None else skip
        # The border is cut off again: what stands in it does not matter.
        change = self.forward(planes, functional.pad(base, (m, m, m, m))) - base
        if not m:
            return base + change
        return base + torch.clamp(FADE_SLOPE * inputs[:, :2].amax(dim=1), max=1.0) * change
