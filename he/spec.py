"""The polynomial network F' = sum_c v_c * (w_c * X + b_c)^2 + d: shapes and integer weights."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

MAX_WEIGHT = 2**32
"""Magnitude of an integer weight that no specification exceeds; the plan is stricter by far."""

MAX_CHANNELS = 64
MAX_KERNEL = 15

_FORMAT = struct.Struct(">5H")


@dataclass(frozen=True, slots=True)
class PolynomialSpec:
    """Shapes of the network and of its loss; fixes the order of weights and gradients.

    Every channel has a kernel of its own side: 1x1, 3x3 and 5x5 channels beside each other are the
    branches of an Inception block. A channel of a smaller kernel sees the centre of the window that
    the largest one sees.

    Weights: channel by channel w[c][a, k, l] of the channel's own side, then b[c], then v[c, k, l] of
    side `second`, each flattened in C order, as integers in units of 2^-weight_scale_bits. Gradients:
    the same, then the output bias d, which is tied to -sum v b^2 and so no weight. The fused image is
    F = S + F' with a skip image S that is data.
    """

    patch: int = 6
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    """Odd side of each channel's first kernel."""
    second: int = 3
    """Odd side of every second kernel."""
    inputs: int = 2
    """Planes of X: the two images, then what is computed from them."""
    gradient_weight: int = 1
    """mu of the loss sum (F - T)^2 + mu sum |grad F - g|^2."""

    def __post_init__(self) -> None:
        limits = (
            ("patch", self.patch, 1, 64),
            ("the number of kernels", len(self.kernels), 1, MAX_CHANNELS),
            *((f"kernels[{c}]", side, 1, MAX_KERNEL) for c, side in enumerate(self.kernels[:MAX_CHANNELS])),
            ("second", self.second, 1, MAX_KERNEL),
            ("inputs", self.inputs, 2, 16),
            ("gradient_weight", self.gradient_weight, 0, 1024),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise ParameterError(f"{name} must lie in [{low}, {high}], not {value}")
        for side in (*self.kernels, self.second):
            if side % 2 == 0:
                raise ParameterError(f"kernels must be odd, not {side}")
        if self.output < 1:
            raise ParameterError(
                f"patch {self.patch} leaves no output after kernels of sides {self.kernel} and {self.second}"
            )

    @property
    def channels(self) -> int:
        return len(self.kernels)

    @property
    def kernel(self) -> int:
        """K: side of the largest first kernel, and so of the window that each channel is given."""
        return max(self.kernels)

    @property
    def hidden(self) -> int:
        """Z: side of the hidden window."""
        return self.patch - self.kernel + 1

    @property
    def output(self) -> int:
        """O: side of the output window."""
        return self.hidden - self.second + 1

    @property
    def margin(self) -> int:
        """Pixels that a patch has on each side of its output window."""
        return (self.patch - self.output) // 2

    @property
    def first_weights(self) -> int:
        """Number of weights of the first layer without its biases."""
        return self.inputs * sum(side**2 for side in self.kernels)

    @property
    def second_start(self) -> int:
        """Place of the first weight of v."""
        return self.first_weights + self.channels

    @property
    def parameters(self) -> int:
        """Number of integer weights."""
        return self.second_start + self.channels * self.second**2

    @property
    def gradients(self) -> int:
        """Number of gradient entries: every weight's and the tied output bias's."""
        return self.parameters + 1

    def get_first_start(self, channel: int) -> int:
        """Place of the first weight of w[channel]."""
        return self.inputs * sum(side**2 for side in self.kernels[:channel])

    def get_inset(self, channel: int) -> int:
        """Pixels between the channel's kernel and the border of the largest one."""
        return (self.kernel - self.kernels[channel]) // 2

    def encode(self) -> bytes:
        """The spec's only encoding: patch, second, inputs, gradient weight and number of channels as
        big-endian 16-bit numbers, then a byte a channel: the side of its kernel."""
        head = (self.patch, self.second, self.inputs, self.gradient_weight, self.channels)
        return _FORMAT.pack(*head) + bytes(self.kernels)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises: ParameterError."""
        if len(data) < _FORMAT.size:
            raise ParameterError(f"a spec has at least {_FORMAT.size} bytes, not {len(data)}")
        patch, second, inputs, gradient_weight, channels = _FORMAT.unpack_from(data)
        if len(data) != _FORMAT.size + channels:
            raise ParameterError(
                f"a spec of {channels} channels has {_FORMAT.size + channels} bytes, not {len(data)}"
            )
        return cls(patch, tuple(data[_FORMAT.size :]), second, inputs, gradient_weight)

    def split(self, weights: Sequence[int]) -> "IntegerWeights":
        """The flat weights by tensor.

        Raises: ParameterError if there are not exactly `parameters` of them, or one is out of range.
        """
        if len(weights) != self.parameters:
            raise ParameterError(f"expected {self.parameters} weights, got {len(weights)}")
        if max(abs(weight) for weight in weights) > MAX_WEIGHT:
            raise ParameterError(f"weights must lie in [-{MAX_WEIGHT}, {MAX_WEIGHT}]")
        values = np.array(weights, dtype=np.int64)
        w = np.zeros((self.channels, self.inputs, self.kernel, self.kernel), dtype=np.int64)
        start = 0
        for c, side in enumerate(self.kernels):
            count, low = self.inputs * side**2, self.get_inset(c)
            inner = values[start : start + count].reshape(self.inputs, side, side)
            w[c, :, low : low + side, low : low + side] = inner
            start += count
        return IntegerWeights(
            w=w,
            b=values[start : self.second_start],
            v=values[self.second_start :].reshape(self.channels, self.second, self.second),
        )


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Weights by tensor: w (C, A, K, K), smaller kernels with zeros around them, b (C,), v (C, V, V)."""

    w: NDArray[np.int64]
    b: NDArray[np.int64]
    v: NDArray[np.int64]

    def compute_tied_bias(self) -> int:
        """-sum v b^2 in units of the cube of a weight's unit; exact."""
        return -sum(
            int(value) * int(bias) ** 2
            for bias, plane in zip(self.b, self.v, strict=True)
            for value in plane.flat
        )
