"""How many integers fit into one ciphertext and into which ring, so that a sum of updates decrypts exactly.

An update is a vector of P integers. Values v_0 .. v_(d-1) share one polynomial coefficient as digits of

    m = sum_j v_j M^j,   M = 2 C + 1,   C = bound x weights_total,

so that digits of a sum, which lie in [-C, C], never reach into each other. What is encrypted is D m modulo q,
with D = floor(q / M^d). A ciphertext decrypts to D m + e; e is the *noise*, and m is found by rounding when
|e| < D / 2: then |D m + e| <= D (M^d - 1) / 2 + |e| < q / 2 and nothing wraps.

**The bound of the noise.** The library encrypts modulo q p, where p is the special prime, and divides by p
with rounding. Its noise in one coefficient is

    e = E / p - (r_0 + sum_k r_k s_k),   E = e_0 + e_1 * s - e_k * u.

E is of fresh errors, each at most 21 in magnitude (the library's centred binomial distribution), and of the
ternary s and u, so |E| <= 21 (2 N + 1) < 2^21 <= p up to N = 32768: the first term is below 1. The others are
what the division left of the two components: N + 1 numbers in [-1/2, 1/2], uniform and independent as far as
the scheme is secure, with signs from the ternary s. A sum of n <= 64 updates adds n (N + 1) of them at most.
By Hoeffding's inequality it exceeds t with probability 2 exp(-2 t^2 / (n (N + 1))) at most, and with
t^2 = 2000 (N + 1) that is 2 exp(-62.5) < 2^-89: over the 2^25 coefficients that an update has at most, a
sum fails to decrypt exactly with probability below 2^-64. So D > 2 (t + 64) suffices.

The special prime is no part of what travels: it is only as large as this bound asks, and it pays, because
without its division the noise would be that of E, sixteen times as large.

**What is not saved.** Of the first component a few low bits only carry noise. Leaving out t = 4 of them adds
64 x 2^3 to the bound at most and saves 4 bits of the 2 log2 q of a coefficient: one in a hundred where q has
two hundred. It would take coefficients instead of the transform's domain, and long integers instead of
residues, in every sum. The second component is uniform, and what is rounded off it is multiplied by the key.

Everything here is integer arithmetic on public numbers: all who know them come to the same plan. Nothing here
needs the encryption library.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import isqrt, prod
from typing import Final

from he.errors import MagnitudeError, ParameterError
from he.formats import HEADER_BYTES
from he.params import MAX_MODULUS_BITS, CkksParams, build_params

MAX_UPDATES: Final = 64
"""Of one sum; the noise is planned for so many."""

MAX_PARAMETERS: Final = 1 << 25
MAX_CAPACITY: Final = (1 << 56) - 1
"""Largest magnitude of a sum: it stays exact in int64 with room for more."""

SPECIAL_BITS: Final = 22
"""Of the special prime: see the bound of the noise."""

MAX_DATA_BITS: Final = 50
"""Of a data prime, so that products modulo it are exact in doubles (see `he.transform`)."""

_RINGS: Final = (4096, 8192, 16384)
"""A larger ring saves less than a thirtieth of the bytes."""

_HEADER = struct.Struct("<8s32sHH20s")


class AggregateMagic(bytes, Enum):
    UPDATE = b"BMIFAGU1"
    SUM = b"BMIFAGS1"


@dataclass(frozen=True, slots=True)
class AggregatePlan:
    """Parameters, layout and exact lengths of one federation's updates."""

    parameters: int
    """P: integers of an update."""
    bound: int
    """Largest magnitude of a participant's value before its weight."""
    weights_total: int
    """Sum of all participants' weights."""
    params: CkksParams
    digits: int
    """d: values that share a coefficient."""
    ciphertexts: int

    @property
    def capacity(self) -> int:
        """C: largest magnitude of a value of the sum."""
        return self.bound * self.weights_total

    @property
    def radix(self) -> int:
        """M."""
        return 2 * self.capacity + 1

    @property
    def primes(self) -> tuple[int, ...]:
        """The data primes."""
        return self.params.primes[:-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits that a residue takes, by data prime."""
        return tuple(prime.bit_length() for prime in self.primes)

    @property
    def modulus(self) -> int:
        """q."""
        return prod(self.primes)

    @property
    def delta(self) -> int:
        """D: what a unit of m is multiplied by."""
        return int(self.modulus // self.radix**self.digits)

    @property
    def update_bytes(self) -> int:
        """Exact length of an update, and of a sum."""
        return HEADER_BYTES + self.ciphertexts * 2 * self.params.ring * sum(self.widths) // 8

    @property
    def bits(self) -> float:
        """Bits that travel for a value."""
        return 8 * self.update_bytes / self.parameters

    def build_header(self, magic: AggregateMagic, count: int) -> bytes:
        """The one valid header: magic, parameters' name, updates that are in it, digits, and 20 bytes of the
        SHA-256 of P, bound and total weight."""
        numbers = struct.pack("<3Q", self.parameters, self.bound, self.weights_total)
        digest = hashlib.sha256(numbers).digest()[:20]
        return _HEADER.pack(magic.value, self.params.name.encode("ascii"), count, self.digits, digest)

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} values in {self.ciphertexts} ciphertexts of {self.params.name},"
            f" {self.digits} a coefficient, sums to +-{self.capacity:,}: {self.update_bytes:,} bytes"
            f" ({self.bits:.1f} bits a value)"
        )


def compute_noise_bound(ring: int) -> int:
    """Largest magnitude of the noise of a sum of 64 updates, but for a probability below 2^-64."""
    return isqrt(2000 * (ring + 1)) + 1 + MAX_UPDATES


def plan_aggregate(
    parameters: int, bound: int, weights_total: int, *, ring: int | None = None, insecure: bool = False
) -> AggregatePlan:
    """The plan of fewest bytes at 128 bits of security, for sums of up to 64 updates of P integers.

    Each participant's values are at most `bound` times its weight in magnitude; weights add up to
    `weights_total`. `ring` and `insecure` (no limit on the modulus' bits below ring 4096) are for tests.

    Raises: ParameterError on numbers out of range; MagnitudeError if the sum's values are too large.
    """
    for name, value, most in (
        ("parameters", parameters, MAX_PARAMETERS),
        ("bound", bound, MAX_CAPACITY),
        ("weights_total", weights_total, MAX_CAPACITY),
    ):
        if not 1 <= value <= most:
            raise ParameterError(f"{name} must lie in [1, {most}], not {value}")
    if bound * weights_total > MAX_CAPACITY:
        raise MagnitudeError(
            f"sums to {bound * weights_total} exceed {MAX_CAPACITY}: lower bound ({bound}) or weights"
            f" ({weights_total})"
        )
    return _plan(parameters, bound, weights_total, ring, insecure)


@lru_cache(maxsize=64)
def _plan(parameters: int, bound: int, weights_total: int, ring: int | None, insecure: bool) -> AggregatePlan:
    candidates = sorted(
        (ciphertexts * degree * bits, degree, bits, digits, ciphertexts)
        for degree in (_RINGS if ring is None else (ring,))
        for bits, digits, ciphertexts in _list_candidates(parameters, bound * weights_total, degree, insecure)
    )
    for _, degree, bits, digits, ciphertexts in candidates:
        try:
            params = build_params(degree, (*_split(bits), SPECIAL_BITS), insecure=insecure)
        except ParameterError:
            continue  # A ring has few primes of few bits.
        plan = AggregatePlan(parameters, bound, weights_total, params, digits, ciphertexts)
        if plan.delta > 2 * compute_noise_bound(degree):
            return plan
    raise MagnitudeError(f"no ring holds sums to {bound * weights_total}")


def _list_candidates(
    parameters: int, capacity: int, ring: int, insecure: bool
) -> Iterator[tuple[int, int, int]]:
    """Bits of the data primes, digits and ciphertexts. Primes are a little less than powers of two, so the
    fewest bits may fall short by one."""
    most = MAX_MODULUS_BITS[4096 if insecure else ring] - SPECIAL_BITS
    digits, needed = 1, 2 * compute_noise_bound(ring) + 1
    while True:
        least = (needed * (2 * capacity + 1) ** digits).bit_length()
        ciphertexts = -(-parameters // (ring * digits))
        for bits in (least, least + 1):
            if bits <= most:
                yield bits, digits, ciphertexts
        if least > most or ciphertexts == 1:
            return
        digits += 1


def _split(bits: int) -> tuple[int, ...]:
    """Sizes of as few primes as there can be, as equal as can be, the larger ones first."""
    count = -(-bits // MAX_DATA_BITS)
    small, larger = divmod(bits, count)
    return (small + 1,) * larger + (small,) * (count - larger)
