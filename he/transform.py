"""The number-theoretic transform between coefficients and what the library computes with, on arrays.

Ciphertexts and plaintexts of the library are in the transform's domain, in bit-reversed order and of the
least primitive root of unity (SEAL's `NTTTables`). The library has no call that encodes integer coefficients
under CKKS but through doubles, so the transform is here, exact for primes of at most 50 bits.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Integers = NDArray[np.int64]

MAX_BITS = 50
"""Of a prime: the quotient of a product, found in doubles, is then off by less than one."""


def multiply_modulo(a: Integers, b: Integers | int, prime: int) -> Integers:
    """a b modulo `prime`, exactly; both in [0, prime), `prime` of at most 50 bits.

    a b / prime < 2^50 has an error below 3/8 in doubles, of three roundings, and rint adds a half: the
    remainder, exact modulo 2^64, lies within one prime of zero.
    """
    factor = np.asarray(b, dtype=np.int64)
    quotient = np.rint(a.astype(np.float64) * factor.astype(np.float64) * (1.0 / prime)).astype(np.int64)
    remainder: Integers = a * factor - quotient * prime
    remainder += (remainder >> 63) & prime
    return remainder


@lru_cache(maxsize=64)
def _build_tables(ring: int, prime: int) -> tuple[Integers, Integers]:
    """Powers of the root, and of its inverse, in bit-reversed order."""
    if prime.bit_length() > MAX_BITS or (prime - 1) % (2 * ring):
        raise ParameterError(f"{prime} is no prime of at most {MAX_BITS} bits that splits ring {ring}")
    root = _find_root(prime, ring)
    order = np.zeros(ring, dtype=np.intp)
    for bit in range(ring.bit_length() - 1):
        order[1 << bit : 2 << bit] = order[: 1 << bit] + (ring >> (bit + 1))
    tables = []
    for base in (root, pow(root, -1, prime)):
        powers = np.empty(ring, dtype=np.int64)
        power = 1
        for index in range(ring):
            powers[index] = power
            power = power * base % prime
        tables.append(powers[order])
        tables[-1].flags.writeable = False
    return tables[0], tables[1]


def _find_root(prime: int, ring: int) -> int:
    """The least primitive 2N-th root of unity."""
    step = (prime - 1) // (2 * ring)
    candidate = 2
    while pow(base := pow(candidate, step, prime), ring, prime) != prime - 1:
        candidate += 1
    square, least = base * base % prime, base
    for _ in range(ring):
        base = base * square % prime
        least = min(least, base)
    return least


def transform(coefficients: Integers, prime: int) -> Integers:
    """(..., N) of coefficients (..., N) in [0, prime)."""
    ring = coefficients.shape[-1]
    powers, _ = _build_tables(ring, prime)
    values, blocks = coefficients.copy(), 1
    while blocks < ring:
        pairs = values.reshape(-1, blocks, 2, ring // (2 * blocks))
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        product = multiply_modulo(high, powers[blocks : 2 * blocks, None], prime)
        np.subtract(low, product, out=high)
        high += (high >> 63) & prime
        low += product
        low -= prime
        low += (low >> 63) & prime
        blocks *= 2
    return values


def invert(values: Integers, prime: int) -> Integers:
    """(..., N) coefficients in [0, prime) of what `transform` gave."""
    ring = values.shape[-1]
    _, powers = _build_tables(ring, prime)
    result, blocks = values.copy(), ring // 2
    while blocks:
        pairs = result.reshape(-1, blocks, 2, ring // (2 * blocks))
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        difference = low - high
        difference += (difference >> 63) & prime
        low += high
        low -= prime
        low += (low >> 63) & prime
        high[...] = multiply_modulo(difference, powers[blocks : 2 * blocks, None], prime)
        blocks //= 2
    return multiply_modulo(result, pow(ring, -1, prime), prime)
