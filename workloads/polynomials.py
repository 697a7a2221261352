"""Polynomials that stand for other functions on a stated interval, with the error they make there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workloads.base import WorkloadError

Floats = NDArray[np.float64]
Method = Literal["least-squares", "chebyshev"]

MAX_DEGREE = 15
_POINTS = 4001
"""Of the grid on which least squares are summed and errors measured."""


@dataclass(frozen=True, slots=True)
class FittedPolynomial:
    """c0 + c1 x + .. + cd x^d in place of a function on [low, high]."""

    coefficients: tuple[float, ...]
    """Lowest first."""
    interval: tuple[float, float]
    error: float
    """Largest distance to the function on a fine grid of the interval."""


def fit_polynomial(
    function: Callable[[Floats], Floats],
    degree: int,
    interval: tuple[float, float],
    method: Method = "least-squares",
) -> FittedPolynomial:
    """The polynomial of `degree` that is nearest to the function on the interval.

    Least squares weighs all of the interval alike; chebyshev interpolates at the Chebyshev nodes, which is
    near the least possible maximum for smooth functions. The function takes and gives arrays (n,).
    Raises WorkloadError for an empty interval, a degree outside 0 to 15, or a function that is not finite.
    """
    low, high = interval
    if not (np.isfinite([low, high]).all() and low < high):
        raise WorkloadError(f"interval: expected two finite numbers, the lower first, got {interval}")
    if not 0 <= degree <= MAX_DEGREE:
        raise WorkloadError(f"degree: expected 0 to {MAX_DEGREE}, got {degree}")
    grid = np.linspace(low, high, _POINTS)
    wanted = np.asarray(function(grid), dtype=np.float64)
    if wanted.shape != grid.shape or not np.isfinite(wanted).all():
        raise WorkloadError(f"function: expected {_POINTS} finite values on [{low}, {high}]")
    domain = [low, high]
    if method == "chebyshev":
        series = np.polynomial.Chebyshev.interpolate(function, degree, domain)
    else:
        series = np.polynomial.Chebyshev.fit(grid, wanted, degree, domain)
    # Chebyshev series on the interval, then powers of x: fitting powers directly is badly conditioned.
    powers = series.convert(kind=np.polynomial.Polynomial).coef
    coefficients = np.zeros(degree + 1)
    coefficients[: len(powers)] = powers
    error = float(np.abs(np.polynomial.polynomial.polyval(grid, coefficients) - wanted).max())
    return FittedPolynomial(tuple(coefficients.tolist()), (float(low), float(high)), error)


def relu(values: Floats) -> Floats:
    return np.maximum(values, 0.0)


def sigmoid(values: Floats) -> Floats:
    """Without overflow for any finite value."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), dtype=np.float64)
