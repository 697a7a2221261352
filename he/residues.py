"""Exact integer-weighted sums of ciphertexts, computed on their residues by matrix products.

A first convolution multiplies ciphertexts by small public integers and adds them up, which is a
matrix product modulo each prime. Residues are cut into limbs so short that products and sums of
doubles are exact, so the order of additions, and with it the linear algebra library, does not
matter: the result is the one that the library's own multiplications and additions give.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Residues = NDArray[np.uint64]

_MANTISSA_BITS = 53
MAX_WEIGHT_BITS = 44
"""Of a row's sum of magnitudes: limbs of eight bits are left then."""
_GROUP_BITS = 40
"""Longer sums are cut into groups of columns: limbs get too short to be fast."""
_CHUNK = 4096
"""Columns at a time; keeps the working set in the cache."""


def compute_weighted_sums(data: Residues, weights: NDArray[np.int64], prime: int, out: Residues) -> None:
    """out = weights @ data modulo `prime`, exactly; data (m, n), weights (p, m), out (p, n).

    Residues lie below `prime`, which has at most 61 bits.

    Raises: ParameterError if a row of weights is too large to be summed exactly.
    """
    largest = max(int(total) for total in np.abs(weights).sum(axis=1))
    if largest.bit_length() > MAX_WEIGHT_BITS:
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


def compute_products(
    columns: Sequence[Residues], matrix: NDArray[np.int64], primes: Sequence[int], out: Residues
) -> None:
    """out = matrix @ columns modulo each prime; columns are (parts, level, n) each, out (p, parts, level, n).

    Raises: ParameterError if one integer is too large for exact sums.
    """
    pieces = _split_columns(matrix)
    for part in range(out.shape[1]):
        for index, prime in enumerate(primes):
            total = out[:, part, index]
            for number, piece in enumerate(pieces):
                data = np.stack([column[part, index] for column in columns[piece]])
                if number == 0:
                    compute_weighted_sums(data, matrix[:, piece], prime, total)
                else:
                    more = np.empty_like(total)
                    compute_weighted_sums(data, matrix[:, piece], prime, more)
                    add_residues(total, more, prime)


def add_residues(total: Residues, more: Residues, prime: int) -> None:
    """total += more modulo `prime`, in place."""
    total += more
    np.subtract(total, np.uint64(prime), out=total, where=total >= np.uint64(prime))


def _split_columns(matrix: NDArray[np.int64]) -> list[slice]:
    """Groups of columns whose rows add up to few enough bits."""
    sums = np.abs(matrix).max(axis=0).cumsum()
    if int(sums[-1]).bit_length() <= _GROUP_BITS or matrix.shape[1] == 1:
        return [slice(0, matrix.shape[1])]
    pieces, start = [], 0
    while start < matrix.shape[1]:
        base = int(sums[start - 1]) if start else 0
        end = max(int(np.searchsorted(sums, base + 2**_GROUP_BITS, side="left")), start + 1)
        pieces.append(slice(start, end))
        start = end
    return pieces


def build_row_matrix(
    kernels: NDArray[np.int64], width: int, stride: int = 1, padding: int = 0
) -> NDArray[np.int64]:
    """(O V, K A W): from K rows of A planes of `width`, in the order [k][a][j], to a row of V results.

    Kernels (O, A, K, K) are moved by `stride`; beyond the border there are zeros.
    """
    outputs, planes, side, _ = kernels.shape
    results = (width + 2 * padding - side) // stride + 1
    matrix = np.zeros((outputs, results, side, planes, width + 2 * padding), dtype=np.int64)
    taps = kernels.transpose(0, 2, 1, 3)
    for j in range(results):
        matrix[:, j, :, :, j * stride : j * stride + side] = taps
    inner = matrix[..., padding : padding + width]
    return np.ascontiguousarray(inner).reshape(outputs * results, -1)
