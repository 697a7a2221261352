"""How exact decrypted results are: error statistics, and tolerances measured on the presets."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Precision:
    """Statistics of measured minus expected values."""

    max_error: float
    rms_error: float
    largest: float
    """Largest expected magnitude."""

    @property
    def bits(self) -> float:
        """Bits of the largest expected value that the worst error leaves right."""
        if self.max_error == 0.0:
            return math.inf
        return math.log2(self.largest / self.max_error) if self.largest > 0.0 else 0.0


def compute_precision(measured: Floats, expected: Floats) -> Precision:
    """Raises: ParameterError on arrays of different shapes or without entries."""
    if measured.shape != expected.shape or measured.size == 0:
        raise ParameterError(f"can't compare shapes {measured.shape} and {expected.shape}")
    error = measured - expected
    return Precision(
        max_error=float(np.max(np.abs(error))),
        rms_error=float(np.sqrt(np.mean(error**2))),
        largest=float(np.max(np.abs(expected))),
    )


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest error to expect: absolute + relative * the largest expected magnitude."""

    absolute: float
    relative: float

    def compute_limit(self, expected: Floats) -> float:
        return self.absolute + self.relative * float(np.max(np.abs(expected)))

    def accepts(self, measured: Floats, expected: Floats) -> bool:
        """False also for values that are not finite."""
        return bool((np.abs(measured - expected) <= self.compute_limit(expected)).all())


GRADIENT_TOLERANCE: Final = Tolerance(absolute=2e-5, relative=4e-6)
"""Of any patch's gradient entry against the clear gradient at the *decrypted* inputs and target,
which has the noise of encryption already in it. Relative to the largest entry of the tensor."""

GRADIENT_TOLERANCE_AT_SOURCE: Final = Tolerance(absolute=2e-4, relative=4e-5)
"""The same against the clear gradient at the inputs as they were before encryption."""

LOSS_TOLERANCE: Final = Tolerance(absolute=1e-5, relative=4e-6)
"""Of any patch's loss against the clear loss at the decrypted inputs, target and constant."""

LOSS_TOLERANCE_AT_SOURCE: Final = Tolerance(absolute=5e-5, relative=4e-5)
"""The same against the clear loss at the inputs as they were before encryption."""

INPUT_TOLERANCE: Final = Tolerance(absolute=1e-4, relative=0.0)
"""Of a decrypted pixel against the encrypted one."""
