"""BMIF's full fusion network in torch: the teacher, and the best result that clear training gives.

The paper describes a CNN with Inception blocks without giving its layers; this is our reconstruction: a 3x3
stem, Inception blocks (1x1, 3x3, 5x5, the larger two behind a 1x1 reduction) with residual connections, a 3x3
convolution to a few bounded feature planes, and a head of degree 2 that adds its change to the pixel maximum.
The head has the form of the network that is mined, so a frozen trunk ("backbone") fits under it.
`BackboneConfig(width=64)` is the full size, 43k parameters; smaller ones are shipped.

Source: BMIF (Xiang et al., ACM TOMM 2023), fusion model; Szegedy et al. 2015, Inception with reductions.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion_model.backbone import GATE_SLOPE, Array32, Backbone, BackboneConfig
from fusion_model.gradients import Array

_GAINS = {"weight": 2.0, "one": 0.5, "three": 0.5, "five": 0.5}
"""Variance gains: 2 before a rectifier, less for a block's branches, whose sum is added to their input."""

FULL_NETWORK = BackboneConfig(width=64)
"""The full network's size."""


class Teacher(nn.Module):
    """Planes and fused images of pairs; in float32. A black pair gives exactly 0."""

    def __init__(self, config: BackboneConfig, arrays: Mapping[str, Array32]) -> None:
        super().__init__()
        self.config = config
        # Module names may hold no dots.
        self.weights = nn.ParameterDict(
            {_mangle(name): nn.Parameter(torch.from_numpy(arrays[name].copy())) for name in config.shapes}
        )

    @classmethod
    def from_seed(cls, config: BackboneConfig, seed: int) -> "Teacher":
        """A new network: He-initialised trunk, a head that hardly changes the pixel maximum yet."""
        return cls(config, build_initial_arrays(config, seed))

    @classmethod
    def from_backbone(cls, backbone: Backbone) -> "Teacher":
        """The network of a weights file."""
        return cls(backbone.config, backbone.arrays)

    def get_backbone(self, provenance: str) -> Backbone:
        """The weights as they are now, for evaluation in numpy."""
        arrays = {name: self.get_array(name).detach().numpy().copy() for name in self.config.shapes}
        return Backbone(self.config, arrays, provenance)

    def get_array(self, name: str) -> Tensor:
        """One of the arrays that `BackboneConfig.shapes` names."""
        array: Tensor = self.weights[_mangle(name)]
        return array

    def compute_planes(self, pairs: Tensor) -> Tensor:
        """The bounded features (N, planes, H, W) of pairs (N, 2, H, W), borders continued by 0."""
        trunk = _rise(self._convolve(pairs, "stem.weight"), self.get_array("stem.bias"))
        for block in range(self.config.blocks):
            name = f"block{block}"
            branches = [
                self._convolve(trunk, f"{name}.one"),
                self._convolve(self._convolve(trunk, f"{name}.reduce3"), f"{name}.three"),
                self._convolve(self._convolve(trunk, f"{name}.reduce5"), f"{name}.five"),
            ]
            trunk = trunk + _rise(torch.cat(branches, dim=1), self.get_array(f"{name}.bias"))
        return _compute_gate(pairs)[:, None] * torch.tanh(self._convolve(trunk, "planes.weight"))

    def forward(self, pairs: Tensor) -> Tensor:
        """Fused images (N, H, W), not clipped, of pairs (N, 2, H, W) in [0, 1]."""
        inputs = torch.cat([pairs, self.compute_planes(pairs)], dim=1)
        linear = self._convolve(inputs, "head.first")
        squares = linear * (linear + 2 * self.get_array("head.bias")[:, None, None])
        change = self._convolve(squares, "head.second")[:, 0]
        return pairs.amax(dim=1) + _compute_gate(pairs) * change

    def fuse(self, first: Array, second: Array) -> Array:
        """One fused image (H, W) in [0, 1]."""
        pair = torch.from_numpy(np.stack([first, second]).astype(np.float32))
        with torch.no_grad():
            fused: Tensor = self(pair[None])
        return np.asarray(fused[0].clamp(0, 1).numpy(), dtype=np.float64)

    def _convolve(self, planes: Tensor, name: str) -> Tensor:
        kernels = self.get_array(name)
        return functional.conv2d(planes, kernels, padding=kernels.shape[-1] // 2)


def build_initial_arrays(config: BackboneConfig, seed: int) -> dict[str, Array32]:
    """Starting weights, a function of the seed alone."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array32] = {}
    for name, shape in config.shapes.items():
        if name.endswith("bias"):
            values = np.full(shape, 0.5) if name == "head.bias" else generator.normal(0, 0.1, shape)
        else:
            spread = np.sqrt(_GAINS.get(name.split(".")[-1], 1.0) / np.prod(shape[1:]))
            # Planes start far from their bounds and the image next to the pixel maximum: a head that
            # begins with large errors is first pushed to 0, where a square has no gradient left.
            spread *= {"planes.weight": 0.5, "head.first": 1.5, "head.second": 0.02}.get(name, 1.0)
            values = generator.normal(0, spread, shape)
        arrays[name] = values.astype(np.float32)
    return arrays


def _compute_gate(pairs: Tensor) -> Tensor:
    """(N, H, W): 1 where either image is bright enough to matter, falling to 0 at black."""
    return (GATE_SLOPE * pairs.amax(dim=1)).clamp(max=1)


def _rise(values: Tensor, bias: Tensor) -> Tensor:
    """relu(x + b) - relu(b)."""
    shift = bias[:, None, None]
    return torch.relu(values + shift) - torch.relu(shift)


def _mangle(name: str) -> str:
    return name.replace(".", "_")
