"""Polynomials of small coefficients, and what they are in the library's transform domain.

`he.transform` has the same transform for primes of at most 50 bits, where a product is one step; this one is
for those of up to 61 bits that keys and ciphertexts of the training presets have.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError
from he.multiparty.modular import Residues, add, center, check_prime, multiply, reduce_signed, subtract
from he.params import CkksParams

Small = NDArray[np.int8]


@lru_cache(maxsize=64)
def _build_tables(ring: int, prime: int) -> tuple[Residues, Residues]:
    """Powers of the least primitive 2N-th root of unity, and of its inverse, in bit-reversed order."""
    check_prime(prime)
    if (prime - 1) % (2 * ring):
        raise ParameterError(f"{prime} does not split ring {ring}")
    step, candidate = (prime - 1) // (2 * ring), 2
    while pow(base := pow(candidate, step, prime), ring, prime) != prime - 1:
        candidate += 1
    odd = _build_powers(base * base % prime, ring, prime)
    root = int(multiply(odd, base, prime).min())
    order = np.zeros(ring, dtype=np.intp)
    for bit in range(ring.bit_length() - 1):
        order[1 << bit : 2 << bit] = order[: 1 << bit] + (ring >> (bit + 1))
    forward = _build_powers(root, ring, prime)[order]
    inverse = _build_powers(pow(root, -1, prime), ring, prime)[order]
    for table in (forward, inverse):
        table.flags.writeable = False
    return forward, inverse


def _build_powers(base: int, count: int, prime: int) -> Residues:
    """(count,), count a power of two: base^0, base^1, ... by doubling."""
    powers = np.ones(count, dtype=np.uint64)
    size = 1
    while size < count:
        powers[size : 2 * size] = multiply(powers[:size], pow(base, size, prime), prime)
        size *= 2
    return powers


def transform(coefficients: Residues, prime: int) -> Residues:
    """(N,) values of (N,) coefficients, in the library's order."""
    ring = coefficients.size
    powers, _ = _build_tables(ring, prime)
    values, blocks = coefficients, 1
    while blocks < ring:
        pairs = values.reshape(blocks, 2, -1)
        factors = np.broadcast_to(powers[blocks : 2 * blocks, None], pairs[:, 1].shape)
        upper, lower = pairs[:, 0], multiply(pairs[:, 1], factors, prime)
        values = np.stack((add(upper, lower, prime), subtract(upper, lower, prime)), axis=1).reshape(-1)
        blocks *= 2
    return values


def invert_transform(values: Residues, prime: int) -> Residues:
    """(N,) coefficients of (N,) values, which are in the library's order."""
    ring = values.size
    _, powers = _build_tables(ring, prime)
    blocks = ring // 2
    while blocks:
        pairs = values.reshape(blocks, 2, -1)
        upper, lower = pairs[:, 0], pairs[:, 1]
        factors = np.broadcast_to(powers[blocks : 2 * blocks, None], upper.shape)
        difference = multiply(subtract(upper, lower, prime), factors, prime)
        values = np.stack((add(upper, lower, prime), difference), axis=1).reshape(-1)
        blocks //= 2
    return multiply(values, pow(ring, -1, prime), prime)


def lift(params: CkksParams, coefficients: Small, primes: int) -> Residues:
    """(primes, N): a small polynomial modulo each of the first `primes` primes, transformed."""
    if coefficients.shape != (params.ring,):
        raise ParameterError(f"expected {params.ring} coefficients, got shape {coefficients.shape}")
    signed = coefficients.astype(np.int64)
    return np.stack([transform(reduce_signed(signed, prime), prime) for prime in params.primes[:primes]])


def lower(params: CkksParams, values: Residues, bound: int) -> Small:
    """(N,): the coefficients, of magnitude at most `bound` < 128, of a polynomial modulo every prime.

    Raises: ParameterError if some coefficient is larger, or residues of different primes are of different
    polynomials. The message says which and no value: it may be of a secret.
    """
    if values.shape != (len(params.primes), params.ring) or not 0 < bound < 128:
        raise ParameterError(f"expected residues modulo every prime, got shape {values.shape}")
    found: Small | None = None
    for index, prime in enumerate(params.primes):
        if not bool((values[index] < prime).all()):
            raise ParameterError(f"a residue is not below prime {index}")
        signed = center(invert_transform(values[index], prime), prime)
        if not bool((np.abs(signed) <= bound).all()):
            raise ParameterError(f"a coefficient modulo prime {index} is larger than {bound}")
        small = signed.astype(np.int8)
        if found is not None and not bool((found == small).all()):
            raise ParameterError(f"prime {index} has another polynomial than prime 0")
        found = small
    assert found is not None
    return found
