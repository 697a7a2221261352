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

_FORMAT = struct.Struct(">5H")


@dataclass(frozen=True, slots=True)
class PolynomialSpec:
    """Shapes of the network and of its loss; fixes the order of weights and gradients.

    Weights: w[c, a, k, l], then b[c], then v[c, k, l], each flattened in C order, as integers in
    units of 2^-weight_scale_bits. Gradients: the same, then the output bias d, which is tied to
    -sum v b^2 and so no weight. The fused image is F = mean of the first two inputs + F'.
    """

    patch: int = 6
    channels: int = 4
    kernel: int = 3
    inputs: int = 2
    gradient_weight: int = 1
    """mu of the loss sum (F - T)^2 + mu sum |grad F - g|^2."""

    def __post_init__(self) -> None:
        limits = (
            ("patch", self.patch, 1, 64),
            ("channels", self.channels, 1, 64),
            ("kernel", self.kernel, 1, 15),
            ("inputs", self.inputs, 2, 16),
            ("gradient_weight", self.gradient_weight, 0, 1024),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise ParameterError(f"{name} must lie in [{low}, {high}], not {value}")
        if self.kernel % 2 == 0:
            raise ParameterError(f"kernel must be odd, not {self.kernel}")
        if self.output < 1:
            raise ParameterError(
                f"patch {self.patch} leaves no output after two {self.kernel}x{self.kernel} kernels"
            )

    @property
    def hidden(self) -> int:
        """Z: side of the hidden window."""
        return self.patch - self.kernel + 1

    @property
    def output(self) -> int:
        """O: side of the output window."""
        return self.hidden - self.kernel + 1

    @property
    def parameters(self) -> int:
        """Number of integer weights."""
        return self.channels * ((self.inputs + 1) * self.kernel**2 + 1)

    @property
    def gradients(self) -> int:
        """Number of gradient entries: every weight's and the tied output bias's."""
        return self.parameters + 1

    def encode(self) -> bytes:
        """The spec's only encoding: five big-endian 16-bit numbers in field order."""
        return _FORMAT.pack(self.patch, self.channels, self.kernel, self.inputs, self.gradient_weight)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises: ParameterError."""
        if len(data) != _FORMAT.size:
            raise ParameterError(f"a spec has {_FORMAT.size} bytes, not {len(data)}")
        return cls(*_FORMAT.unpack(data))

    def split(self, weights: Sequence[int]) -> "IntegerWeights":
        """The flat weights by tensor.

        Raises: ParameterError if there are not exactly `parameters` of them, or one is out of range.
        """
        if len(weights) != self.parameters:
            raise ParameterError(f"expected {self.parameters} weights, got {len(weights)}")
        if max(abs(weight) for weight in weights) > MAX_WEIGHT:
            raise ParameterError(f"weights must lie in [-{MAX_WEIGHT}, {MAX_WEIGHT}]")
        values = np.array(weights, dtype=np.int64)
        first = self.channels * self.inputs * self.kernel**2
        second = first + self.channels
        return IntegerWeights(
            w=values[:first].reshape(self.channels, self.inputs, self.kernel, self.kernel),
            b=values[first:second],
            v=values[second:].reshape(self.channels, self.kernel, self.kernel),
        )


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Weights by tensor: w (C, A, K, K), b (C,), v (C, K, K)."""

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
