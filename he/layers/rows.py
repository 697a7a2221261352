"""Rows of values as residues, and exact arithmetic on them that needs no encryption library.

A row is (C, W, parts, level, N) uint64 in NTT form: of every channel and column one ciphertext of two or
three parts. Additions, constants and lower levels are plain arithmetic on residues.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from he.network import Floats
from he.residues import Residues, add_residues


def quantise(values: Floats, scale: Fraction) -> NDArray[np.int64]:
    """The integers nearest to `scale` times `values`, ties to even; exact, so the same everywhere."""
    flat = [round(Fraction(float(value)) * scale) for value in values.flat]
    return np.array(flat, dtype=np.int64).reshape(values.shape)


def add_constants(row: Residues, constants: Sequence[int], primes: Sequence[int]) -> None:
    """Adds an exact integer to every value of each channel, in place."""
    for channel, constant in enumerate(constants):
        for index, prime in enumerate(primes[: row.shape[3]]):
            total = row[channel, :, 0, index]
            add_residues(total, np.full_like(total, constant % prime), prime)


def add_rows(first: Residues, second: Residues, primes: Sequence[int]) -> Residues:
    """The sum at the lower of both levels; equal scales are the plan's promise."""
    level = min(first.shape[3], second.shape[3])
    total = first[:, :, :, :level].copy()
    for index, prime in enumerate(primes[:level]):
        add_residues(total[:, :, :, index], second[:, :, :, index], prime)
    return total


def negate(row: Residues, primes: Sequence[int]) -> None:
    """In place."""
    for index, prime in enumerate(primes[: row.shape[3]]):
        part = row[:, :, :, index]
        np.subtract(np.uint64(prime), part, out=part, where=part != 0)
