"""Exact integer-weighted sums of ciphertexts, computed on their residues by matrix products.

A first convolution multiplies ciphertexts by small public integers and adds them up, which is a
matrix product modulo each prime. Residues are cut into limbs so short that products and sums of
doubles are exact, so the order of additions, and with it the linear algebra library, does not
matter: the result is the one that the library's own multiplications and additions give.
"""

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Residues = NDArray[np.uint64]

_MANTISSA_BITS = 53
_MAX_WEIGHT_BITS = 40
_CHUNK = 4096
"""Columns at a time; keeps the working set in the cache."""


def compute_weighted_sums(data: Residues, weights: NDArray[np.int64], prime: int, out: Residues) -> None:
    """out = weights @ data modulo `prime`, exactly; data (m, n), weights (p, m), out (p, n).

    Residues lie below `prime`, which has at most 61 bits.

    Raises: ParameterError if a row of weights is too large to be summed exactly.
    """
    largest = max(int(total) for total in np.abs(weights).sum(axis=1))
    if largest.bit_length() > _MAX_WEIGHT_BITS:
        raise ParameterError(f"weights that add up to {largest} are too large for exact sums")
    limb_bits = min(30, _MANTISSA_BITS - 1 - largest.bit_length())
    limbs = -(-prime.bit_length() // limb_bits)
    mask = np.int64((1 << limb_bits) - 1)
    matrix = weights.astype(np.float64)
    signed = data.view(np.int64)
    for start in range(0, data.shape[1], _CHUNK):
        block = signed[:, start : start + _CHUNK]
        total = np.zeros((len(weights), block.shape[1]), dtype=np.int64)
        approximate = np.zeros(total.shape)
        for limb in range(limbs):
            shift = limb * limb_bits
            part = block >> shift
            if limb < limbs - 1:
                part &= mask
            product = matrix @ part.astype(np.float64)
            # Wraps modulo 2^64, like the multiple of the prime below: the difference is exact.
            total += product.astype(np.int64) << shift
            product *= 2.0**shift / prime
            approximate += product
        np.rint(approximate, out=approximate)
        quotient = approximate.astype(np.int64)
        quotient *= prime
        total -= quotient
        # The quotient is off by at most one, so the remainder lies within one prime of its range.
        total += (total >> 63) & prime
        total -= prime
        total += (total >> 63) & prime
        out[:, start : start + _CHUNK] = total.view(np.uint64)
