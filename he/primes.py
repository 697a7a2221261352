"""The primes of a preset, derived: for each size the largest that split the ring, smallest first.

The encryption library derives a chain from ring degree and sizes in the same way, so that a preset can be
written down before the library is asked; the backend still compares the two.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from he.errors import ParameterError

MAX_PRIME_BITS = 60

_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Miller-Rabin to these is a proof below 2^64 (Sorenson and Webster 2015)."""


def is_prime(number: int) -> bool:
    """Exact below 2^64."""
    if number < 2:
        return False
    if number in _BASES:
        return True
    if any(number % base == 0 for base in _BASES):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, base, odd, twos) for base in _BASES)


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    value = pow(base, odd, number)
    if value in (1, number - 1):
        return True
    for _ in range(twos - 1):
        value = value * value % number
        if value == number - 1:
            return True
    return False


def derive_primes(ring: int, bits: Sequence[int]) -> tuple[int, ...]:
    """One prime of each size in `bits`, in this order, all different and 1 modulo twice the ring degree.

    Raises: ParameterError if there are not so many of a size.
    """
    found: dict[int, list[int]] = defaultdict(list)
    for size, count in Counter(bits).items():
        if not 2 <= size <= MAX_PRIME_BITS:
            raise ParameterError(f"primes have 2 to {MAX_PRIME_BITS} bits, not {size}")
        step = 2 * ring
        candidate = (2**size - 1) // step * step + 1
        if candidate >= 2**size:
            candidate -= step
        while len(found[size]) < count:
            if candidate < 2 ** (size - 1):
                raise ParameterError(f"ring degree {ring} has fewer than {count} primes of {size} bits")
            if is_prime(candidate):
                found[size].append(candidate)
            candidate -= step
    return tuple(found[size].pop() for size in bits)
