"""Exact arithmetic modulo primes of up to 61 bits on arrays of residues.

Doubles hold 53 bits, products of residues 122. A product is therefore made in two halves of one factor,
each with a quotient small enough to be found in doubles within one, and a remainder that is exact
modulo 2^64; inner products are sums of limbs so short that doubles add them exactly. Nothing here depends
on the order of additions, thus not on the linear algebra library.

Times depend on the values in no other way than arithmetic of the processor does: no branches.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Residues = NDArray[np.uint64]

MAX_BITS = 61
"""Of a prime: remainders of up to one and a half primes must fit into 63 bits."""
_HALF_BITS = 30
_HALF_MASK = np.int64((1 << _HALF_BITS) - 1)
_CHUNK = 4096
"""Residues at a time; keeps the working set in the cache."""
_LIMB_BITS = 16
"""Of inner products: sums of up to 2^21 products of limbs are exact in doubles."""
_MAX_TERMS = 1 << (53 - 2 * _LIMB_BITS)


def check_prime(prime: int) -> None:
    if not 2 < prime < 1 << MAX_BITS:
        raise ParameterError(f"{prime} is no odd prime of at most {MAX_BITS} bits")


def multiply(a: Residues, b: Residues | int, prime: int) -> Residues:
    """a b modulo `prime`, exactly; residues below `prime` of one shape, or a number for `b`.

    With b = b1 2^30 + b0, first r = a b1 - q prime, |r| <= prime / 2 and a little more, then
    r 2^30 + a b0 - q' prime. Both quotients are below 1.5 2^31, so three roundings of doubles err
    by less than 2^-19 and rint gives one of the two nearest: remainders lie within one prime of zero.
    """
    check_prime(prime)
    first = np.ascontiguousarray(a, dtype=np.uint64)
    shape = first.shape
    left = first.reshape(-1).view(np.int64)
    right: NDArray[np.int64] | np.int64
    if isinstance(b, int):
        right = np.int64(b % prime)
    else:
        if b.shape != shape:
            raise ParameterError(f"expected factors of one shape, got {shape} and {b.shape}")
        right = np.ascontiguousarray(b, dtype=np.uint64).reshape(-1).view(np.int64)
    out = np.empty(left.shape, dtype=np.int64)
    inverse = 1.0 / prime
    modulus = np.int64(prime)
    for start in range(0, left.size, _CHUNK):
        part = left[start : start + _CHUNK]
        other = right if isinstance(right, np.int64) else right[start : start + _CHUNK]
        out[start : start + _CHUNK] = _multiply_chunk(part, other, modulus, inverse)
    return out.view(np.uint64).reshape(shape)


def _multiply_chunk(
    a: NDArray[np.int64], b: NDArray[np.int64] | np.int64, prime: np.int64, inverse: float
) -> NDArray[np.int64]:
    high, low = b >> _HALF_BITS, b & _HALF_MASK
    scaled = a * inverse  # a / prime, in doubles
    quotient = np.rint(scaled * high).astype(np.int64)
    # Integers wrap modulo 2^64 here and below; the differences are small, hence exact.
    rest = a * high
    quotient *= prime
    rest -= quotient
    approximate = rest * (inverse * (1 << _HALF_BITS))
    approximate += scaled * low
    np.rint(approximate, out=approximate)
    quotient = approximate.astype(np.int64)
    quotient *= prime
    rest <<= _HALF_BITS
    rest += a * low
    rest -= quotient
    rest += (rest >> 63) & prime
    rest -= prime
    rest += (rest >> 63) & prime
    return rest


def add(a: Residues, b: Residues, prime: int) -> Residues:
    """a + b modulo `prime`; residues below it."""
    total = a + b
    # Below the prime the difference wraps to something larger, so the smaller one is the residue.
    least: Residues = np.minimum(total, total - np.uint64(prime))
    return least


def subtract(a: Residues, b: Residues, prime: int) -> Residues:
    """a - b modulo `prime`; residues below it."""
    difference = a - b
    least: Residues = np.minimum(difference, difference + np.uint64(prime))
    return least


def negate(a: Residues, prime: int) -> Residues:
    """-a modulo `prime`; residues below it."""
    return np.where(a == 0, a, np.uint64(prime) - a)


def reduce_signed(values: NDArray[np.int64], prime: int) -> Residues:
    """Residues of integers of magnitude below `prime`."""
    return (values + ((values >> 63) & np.int64(prime))).astype(np.uint64)


def center(values: Residues, prime: int) -> NDArray[np.int64]:
    """The integers of least magnitude with these residues, in (-prime / 2, prime / 2)."""
    signed = values.astype(np.int64)
    return np.where(signed > prime // 2, signed - np.int64(prime), signed)


def split_limbs(values: Residues) -> NDArray[np.float64]:
    """(4, N): limbs of 16 bits of (N,) residues, the least significant first."""
    limbs = np.ascontiguousarray(values, dtype="<u8").view("<u2").reshape(-1, 4).T
    return np.ascontiguousarray(limbs, dtype=np.float64)


def compute_inner_product(a: NDArray[np.float64], b: NDArray[np.float64], prime: int) -> int:
    """sum a_k b_k modulo `prime`, exactly; both as limbs (4, N) with N at most 2^21."""
    if a.shape != b.shape or a.shape[1] > _MAX_TERMS:
        raise ParameterError(f"expected limbs of one shape, at most {_MAX_TERMS}, got {a.shape}, {b.shape}")
    products: list[list[float]] = (a @ b.T).tolist()
    total = 0
    for i, row in enumerate(products):
        for j, value in enumerate(row):
            total += int(value) << (_LIMB_BITS * (i + j))
    return total % prime


def compute_constant(values: Residues, prime: int) -> int:
    """Coefficient 0 of the polynomial with these values (N,) in the transform's domain.

    The values are those at all primitive 2N-th roots of unity, whose powers other than the zeroth add up to
    zero over them: N^-1 times the sum of the values, in any order.
    """
    low = int((values & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
    high = int((values >> np.uint64(32)).sum(dtype=np.uint64))
    return ((high << 32) + low) * pow(values.size, -1, prime) % prime


def compute_lagrange(points: Sequence[int], point: int, prime: int) -> int:
    """The factor of the value at `point` in the value at 0 of a polynomial of degree below len(points).

    Raises: ParameterError if points are not distinct modulo the prime, or one is 0, the secret's own place.
    """
    reduced = [value % prime for value in points]
    if len(set(reduced)) != len(reduced) or 0 in reduced or point not in points:
        raise ParameterError(f"points must be distinct, not zero and hold {point}, got {list(points)}")
    numerator = denominator = 1
    for other in points:
        if other != point:
            numerator = numerator * other % prime
            denominator = denominator * (other - point) % prime
    return numerator * pow(denominator, -1, prime) % prime


def join_residues(residues: Sequence[int], primes: Sequence[int]) -> int:
    """The integer of least magnitude with these residues, by the Chinese remainder theorem."""
    value, modulus = 0, 1
    for residue, prime in zip(residues, primes, strict=True):
        step = (residue - value) * pow(modulus, -1, prime) % prime
        value += modulus * step
        modulus *= prime
    return value - modulus if value > modulus // 2 else value
