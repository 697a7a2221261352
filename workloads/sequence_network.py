"""The sequence network in torch: convolution blocks a frame, an LSTM with polynomial gates, a weighted unit.

After HE-CLSTM (ACM TOIT 2021). Everything but batch normalisation's statistics is a polynomial of the
frames, so that what is trained here is what ciphertexts evaluate. Import it inside the call that trains:
torch and the encryption library do not share a process.
"""

import torch
from torch import Tensor, nn

from he.recurrent import OddCubic
from workloads.sequence import LOGISTIC, RELU, TANH, SequenceConfig


class Penalty:
    """Sums by how much the arguments of polynomials leave the intervals that these were fitted on."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.largest: dict[str, float] = {}

    def add(self, name: str, x: Tensor, bound: float) -> None:
        """The mean square of what lies outside [-bound, bound]; remembers the largest |x| by name."""
        term = torch.relu(x.abs() - bound).square().mean()
        self.total = term if self.total is None else self.total + term
        self.largest[name] = max(self.largest.get(name, 0.0), float(x.detach().abs().max()))


def apply_square(x: Tensor) -> Tensor:
    c0, c1, c2 = RELU.coefficients
    return c0 + x * (c1 + c2 * x)


def apply_cubic(curve: OddCubic, x: Tensor) -> Tensor:
    return curve.c0 + x * (curve.c1 + curve.c3 * x * x)


class FrameNetwork(nn.Module):
    """Two convolution blocks, global average pooling and a dense layer: (N, C, S, S) to (N, features)."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        first, second = config.channels
        self.first = nn.Conv2d(config.planes, first, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(first)
        self.second = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(second)
        self.dense = nn.Linear(second, config.features)

    def forward(self, frames: Tensor, penalty: Penalty) -> Tensor:
        x = self.first_norm(self.first(frames))
        penalty.add("first", x, RELU.interval[1])
        x = self.second_norm(self.second(apply_square(x)))
        penalty.add("second", x, RELU.interval[1])
        features: Tensor = self.dense(apply_square(x).mean(dim=(2, 3)))
        return features


class SequenceNetwork(nn.Module):
    """Windows (B, T, C, S, S) to decisions (B, T), as logits."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = FrameNetwork(config)
        if config.temporal:
            self.weights = nn.Linear(config.features, 4 * config.hidden)
            self.recurrent = nn.Linear(config.hidden, 4 * config.hidden, bias=False)
            with torch.no_grad():
                # The forget gate begins open.
                self.weights.bias[config.hidden : 2 * config.hidden] = 1.0
        if config.weighted:
            self.balance = nn.Parameter(torch.zeros(config.features))
        self.head = nn.Linear(config.features, 1)

    def get_spatial_share(self) -> Tensor:
        """(features,): the weight of the spatial feature; the temporal one has the rest."""
        if not self.config.temporal:
            return torch.ones(self.config.features)
        if not self.config.weighted:
            return torch.full((self.config.features,), 0.5)
        return torch.sigmoid(self.balance)

    def forward(self, windows: Tensor, penalty: Penalty) -> Tensor:
        batch, steps = windows.shape[:2]
        x = self.frames(windows.flatten(0, 1), penalty).unflatten(0, (batch, steps))
        if not self.config.temporal:
            alone: Tensor = self.head(x).squeeze(-1)
            return alone
        share = self.get_spatial_share()
        hidden: Tensor | None = None
        cell: Tensor | None = None
        decisions = []
        for step in range(steps):
            z = self.weights(x[:, step])
            if hidden is not None:
                z = z + self.recurrent(hidden)
            i, f, g, o = z.chunk(4, dim=1)
            for name, part, bound in (
                ("input", i, LOGISTIC.bound),
                ("forget", f, LOGISTIC.bound),
                ("candidate", g, TANH.bound),
                ("output", o, LOGISTIC.bound),
            ):
                penalty.add(name, part, bound)
            new = apply_cubic(LOGISTIC, i) * apply_cubic(TANH, g)
            cell = new if cell is None else new + apply_cubic(LOGISTIC, f) * cell
            penalty.add("cell", cell, TANH.bound)
            hidden = apply_cubic(LOGISTIC, o) * apply_cubic(TANH, cell)
            decisions.append(self.head(share * x[:, step] + (1.0 - share) * hidden).squeeze(-1))
        return torch.stack(decisions, dim=1)
