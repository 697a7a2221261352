"""Arithmetic on ciphertexts' residues as someone without the key can do it."""

import numpy as np

from he.params import CkksParams


def reverse_bits(value: int, bits: int) -> int:
    return int(format(value, f"0{bits}b")[::-1], 2)


def find_root(prime: int, ring: int) -> int:
    """The least primitive 2N-th root of unity: the library's choice."""
    step = (prime - 1) // (2 * ring)
    base = next(g for x in range(2, 100) if pow(g := pow(x, step, prime), ring, prime) == prime - 1)
    square, power, least = base * base % prime, base, base
    for _ in range(ring):
        least = min(least, power)
        power = power * square % prime
    return least


def transform(coefficients: list[int], prime: int) -> list[int]:
    """Negacyclic number-theoretic transform in the library's order (bit-reversed)."""
    ring = len(coefficients)
    bits = ring.bit_length() - 1
    root = find_root(prime, ring)
    powers = [1] * ring
    for index in range(1, ring):
        powers[index] = powers[index - 1] * root % prime
    values, half, blocks = list(coefficients), ring // 2, 1
    while half:
        for block in range(blocks):
            factor = powers[reverse_bits(blocks + block, bits)]
            for low in range(2 * block * half, 2 * block * half + half):
                high = values[low + half] * factor % prime
                values[low + half] = (values[low] - high) % prime
                values[low] = (values[low] + high) % prime
        half, blocks = half // 2, blocks * 2
    return values


def encode_slot(params: CkksParams, slot: int, scale: float) -> list[int]:
    """Coefficients of the message that is `scale` in one slot and 0 in all others."""
    ring = params.ring
    angles = -np.pi * pow(5, slot, 2 * ring) * np.arange(ring) / ring
    return [round(value) for value in (2 * scale / ring * np.cos(angles)).tolist()]


def get_rows(params: CkksParams, coefficients: list[int], level: int) -> np.ndarray:
    """(primes, N) residues of a message."""
    return np.array(
        [transform([c % p for c in coefficients], p) for p in params.primes[:level]], dtype=object
    )
