"""Vectors of slots as polynomials with exact integer coefficients, so that encoding is reproducible.

An encoder rounds the coefficients that a Fourier transform gives, and two builds of a library may round one
of them differently. So the owner of a vector rounds once, here, and sends the integers; everyone then gives
the encoder the slots of that very polynomial. They are so close to integers after its transform that every
build rounds to the same ones (see MAX_COEFFICIENT).

A real vector v of period P (a power of two up to N/2) is a polynomial c in Y = X^(N/2P) of degree below 2P
with c[2P - k] = -c[k], c[P] = 0: P integers determine it.  v[j] = c(z^(3^j)), z = exp(i pi / 2P); powers of 3
are the order of slots in SEAL (`GaloisTool`, `CKKSEncoder`).
"""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from he.errors import MagnitudeError, ParameterError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_COEFFICIENT = (1 << 40) - 1
"""Transforms of doubles there and back miss an integer of 40 bits by less than 2^-8 at any degree here."""

_GENERATOR = 3


@lru_cache(maxsize=32)
def _get_exponents(period: int) -> NDArray[np.intp]:
    """3^j modulo 4P for each slot."""
    exponents = np.empty(period, dtype=np.intp)
    power = 1
    for index in range(period):
        exponents[index] = power
        power = power * _GENERATOR % (4 * period)
    return exponents


def _check_period(period: int) -> None:
    if period < 1 or period & (period - 1):
        raise ParameterError(f"a vector's period must be a power of two, not {period}")


def round_coefficients(values: Floats, scale: Fraction) -> Integers:
    """(P,): the polynomial nearest to `scale` times `values` (P,); not reproducible between machines.

    Raises: ParameterError on another length than a power of two; MagnitudeError if a coefficient is not
    finite or too large.
    """
    _check_period(len(values))
    period = len(values)
    points = np.zeros(4 * period)
    exponents = _get_exponents(period)
    points[exponents] = values
    points[4 * period - exponents] = values
    exact = np.fft.rfft(points)[:period].real * (float(scale) / (2 * period))
    if not float(np.max(np.abs(exact))) <= MAX_COEFFICIENT:
        raise MagnitudeError(
            f"a vector with a coefficient of {float(np.max(np.abs(exact))):.4g} is too large"
        )
    return np.rint(exact).astype(np.int64)


def compute_slots(coefficients: Integers) -> Floats:
    """(P,): the slots of the polynomial with these (P,) integers.

    Raises: ParameterError; MagnitudeError if an integer is too large to survive transforms exactly.
    """
    _check_period(len(coefficients))
    if int(np.max(np.abs(coefficients))) > MAX_COEFFICIENT:
        raise MagnitudeError(f"a coefficient of a vector exceeds {MAX_COEFFICIENT}")
    period = len(coefficients)
    full = np.zeros(4 * period)
    full[:period] = coefficients
    full[period + 1 : 2 * period] = -coefficients[:0:-1]
    return np.fft.fft(full)[_get_exponents(period)].real
