"""Patches that make a gradient or a loss as large as they can: projected ascent with torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import conv2d

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    split_weights,
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    config: NetworkConfig
    weights: tuple[int, ...]
    target: float
    """Limit of |R|."""

    def compute_norms(self, inputs: Array, target: Array) -> Array:
        gradients = compute_patch_gradients(self.config, convert_weights(self.weights), inputs, target)
        return np.asarray(np.linalg.norm(gradients, axis=1))

    def compute_losses(self, inputs: Array, target: Array, constant: float) -> Array:
        return compute_patch_losses(
            self.config, convert_weights(self.weights), inputs, target, np.full(len(inputs), constant)
        )

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Patches inside the limits, half of them corners."""
        config = self.config
        inputs = generator.uniform(0, 1, (count, config.inputs, config.patch, config.patch))
        inputs[:, 2:] = 2 * inputs[:, 2:] - 1
        target = generator.uniform(-1, 1, (count, config.output, config.output))
        inputs[::2, :2], inputs[::2, 2:] = np.rint(inputs[::2, :2]), np.sign(inputs[::2, 2:])
        target[::2] = np.sign(target[::2])
        return inputs, self.target * target

    def ascend(self, kind: str, seed: int, starts: int = 64, steps: int = 120) -> tuple[Array, Array]:
        """Patches with a large gradient ('norm') or a large ('loss') or small ('-loss') loss."""
        generator = torch.Generator().manual_seed(seed)
        config = self.config

        def draw(*shape: int) -> torch.Tensor:
            values = 2 * torch.randn(starts, *shape, generator=generator, dtype=torch.float64)
            return values.requires_grad_()

        free = draw(config.inputs, config.patch, config.patch), draw(config.output, config.output)
        optimizer = torch.optim.Adam(free, lr=0.2)
        aim: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
        aim = self._compute_square if kind == "norm" else self._compute_loss
        for _ in range(steps):
            optimizer.zero_grad()
            value = aim(*self._confine(*free))
            (value if kind == "-loss" else -value if kind == "loss" else -value.log()).sum().backward()
            optimizer.step()
        inputs, target = self._confine(*free)
        return inputs.detach().numpy(), target.detach().numpy()

    def _confine(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, planes = inputs[:, :2].sigmoid(), inputs[:, 2:].tanh()
        return torch.cat([images, planes], 1), self.target * target.tanh()

    def _compute_change(self, inputs: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """F' (n, O, O) of weights with a patch each, w (n, c, a, k, k), so that each has its own gradient."""
        first, bias, second, output = tensors
        n, c = first.shape[:2]
        joined = inputs.reshape(1, -1, *inputs.shape[2:])
        z = conv2d(joined, first.reshape(n * c, *first.shape[2:]), groups=n) + bias.reshape(1, -1, 1, 1)
        change = conv2d(z**2, second.reshape(n, c, *second.shape[2:]), groups=n)[0]
        return change + output.reshape(n, 1, 1)

    def _get_tensors(self, count: int) -> tuple[torch.Tensor, ...]:
        layers = split_weights(self.config, convert_weights(self.weights))
        tied = -float((layers.second.sum(axis=(1, 2)) * layers.bias**2).sum())
        parts = (layers.first, layers.bias, layers.second, np.array([tied]))
        return tuple(torch.tensor(part).expand(count, *part.shape).clone().requires_grad_() for part in parts)

    def _compute_loss(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Without the constant, (n,)."""
        return self._measure(self._compute_change(inputs, self._get_tensors(len(inputs))), target)

    def _measure(self, change: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        steps = change.diff(dim=1).square().sum((1, 2)) + change.diff(dim=2).square().sum((1, 2))
        total = (change.square() - 2 * change * target).sum((1, 2))
        return (total + self.config.gradient_weight * steps) / self.config.output**2

    def _compute_square(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The squared norm of each patch's untied gradient, by automatic differentiation, (n,)."""
        tensors = self._get_tensors(len(inputs))
        loss = self._measure(self._compute_change(inputs, tensors), target).sum()
        first, *others = torch.autograd.grad(loss, tensors, create_graph=True)
        mask = torch.zeros_like(first)
        for channel, side in enumerate(self.config.kernels):
            low = (self.config.kernel - side) // 2
            mask[:, channel, :, low : low + side, low : low + side] = 1
        parts = (first * mask, *others)
        return torch.stack([part.square().flatten(1).sum(1) for part in parts]).sum(0)
