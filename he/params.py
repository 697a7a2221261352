"""CKKS presets with their exact primes, parameters built for one network, and the 128-bit security limit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Final

from he.errors import ParameterError
from he.primes import derive_primes

MAX_MODULUS_BITS: Final = MappingProxyType({4096: 106, 8192: 214, 16384: 430, 32768: 868})
"""Most bits of the whole modulus, special prime counted, at 128 bits of security, by ring degree."""


@dataclass(frozen=True, slots=True)
class CkksParams:
    """One named parameter set; equal names mean equal parameters everywhere.

    `primes` are the data primes from the last to be dropped to the first, then the special prime.
    A ciphertext of level l lives modulo the first l primes.
    """

    name: str
    ring: int
    primes: tuple[int, ...]
    data_scale_bits: int
    weight_scale_bits: int
    insecure: bool = False
    """True for small test rings, which no real data may meet."""

    @property
    def slots(self) -> int:
        """Number of values a ciphertext holds: patches of a batch."""
        return self.ring // 2

    @property
    def levels(self) -> int:
        """Level of a fresh ciphertext: the number of data primes."""
        return len(self.primes) - 1

    @property
    def prime_bits(self) -> tuple[int, ...]:
        return tuple(prime.bit_length() for prime in self.primes)

    def compute_modulus(self, level: int) -> int:
        """The modulus of ciphertexts at `level`."""
        if not 1 <= level <= self.levels:
            raise ParameterError(f"{self.name}: levels are 1 to {self.levels}, not {level}")
        modulus = 1
        for prime in self.primes[:level]:
            modulus *= prime
        return modulus

    def check_security(self) -> None:
        """Returns only if the preset gives 128 bits, or is flagged insecure for tests.

        Raises: ParameterError with the bits used and allowed.
        """
        if self.insecure:
            return
        limit = MAX_MODULUS_BITS.get(self.ring)
        if limit is None:
            raise ParameterError(f"{self.name}: no security limit is known for ring degree {self.ring}")
        used = sum(self.prime_bits)
        if used > limit:
            raise ParameterError(
                f"{self.name}: the modulus has {used} bits, at most {limit} give 128-bit security"
                f" at ring degree {self.ring}"
            )


_PRESETS = (
    CkksParams(
        name="ckks-16384-60x5",
        ring=16384,
        primes=(
            1152921504604979201,
            1152921504605962241,
            1152921504606584833,
            1152921504606683137,
            1152921504606748673,
        ),
        data_scale_bits=30,
        weight_scale_bits=20,
    ),
    CkksParams(
        # A level more at the end than the circuit needs: room for weights whose gradients could wrap.
        name="ckks-16384-60x6",
        ring=16384,
        primes=(
            1152921504600260609,
            1152921504604979201,
            1152921504605962241,
            1152921504606584833,
            1152921504606683137,
            1152921504606748673,
        ),
        data_scale_bits=30,
        weight_scale_bits=20,
    ),
    CkksParams(
        name="test-4096-60x5",
        ring=4096,
        primes=(
            1152921504606584833,
            1152921504606601217,
            1152921504606683137,
            1152921504606748673,
            1152921504606830593,
        ),
        data_scale_bits=30,
        weight_scale_bits=20,
        insecure=True,
    ),
    CkksParams(
        name="ckks-8192-60x3",
        ring=8192,
        primes=(1152921504606683137, 1152921504606748673, 1152921504606830593),
        data_scale_bits=30,
        weight_scale_bits=20,
    ),
    CkksParams(
        name="test-2048-60x3",
        ring=2048,
        primes=(1152921504606683137, 1152921504606748673, 1152921504606830593),
        data_scale_bits=30,
        weight_scale_bits=20,
        insecure=True,
    ),
)

PRESETS: Final = MappingProxyType({preset.name: preset for preset in _PRESETS})

MAX_PRIMES: Final = 32
MAX_NAME: Final = 32
"""Bytes that a header keeps for a name."""

_RINGS: Final = (1024, 2048, 4096, 8192, 16384, 32768)
_BUILT_NAME: Final = re.compile(r"(ckks|test)-([1-9][0-9]{3,4})-([0-9.x]{2,})")
_RUN: Final = re.compile(r"([1-9][0-9])(?:x([1-9][0-9]?))?")


def build_params(ring: int, bits: Sequence[int], *, insecure: bool = False) -> CkksParams:
    """Parameters of this ring degree with primes of these sizes, the special prime last.

    The name says everything: `ckks-16384-50.30x3.50` has data primes of 50, 30, 30 and 30 bits, the last of
    them dropped first, and a special prime of 50. Names of insecure ones begin with `test-`. The presets
    are named in the same way and equal what is built here.

    Raises: ParameterError if that gives less than 128 bits and is not said to be insecure, or if there is
    no such ring, prime or name.
    """
    return _build_params(ring, tuple(bits), insecure)


@lru_cache(maxsize=64)
def _build_params(ring: int, bits: tuple[int, ...], insecure: bool) -> CkksParams:
    if ring not in _RINGS:
        raise ParameterError(f"ring degree must be one of {', '.join(map(str, _RINGS))}, not {ring}")
    if not 2 <= len(bits) <= MAX_PRIMES:
        raise ParameterError(
            f"2 to {MAX_PRIMES} primes are needed, the special one included, not {len(bits)}"
        )
    sizes = ".".join(
        f"{size}x{count}" if count > 1 else str(size)
        for size, count in ((size, len(list(run))) for size, run in groupby(bits))
    )
    name = f"{'test' if insecure else 'ckks'}-{ring}-{sizes}"
    if len(name) > MAX_NAME:
        raise ParameterError(
            f"{name}: at most {MAX_NAME} characters fit into headers; use fewer sizes of primes"
        )
    params = PRESETS.get(name)
    if params is None:
        primes = derive_primes(ring, bits)
        params = CkksParams(name, ring, primes, data_scale_bits=30, weight_scale_bits=20, insecure=insecure)
    params.check_security()
    return params


def _parse_name(name: str) -> CkksParams | None:
    """The parameters of a name as `build_params` makes them, None for any other text."""
    found = _BUILT_NAME.fullmatch(name)
    if found is None or len(name) > MAX_NAME:
        return None
    bits: list[int] = []
    for text in found[3].split("."):
        run = _RUN.fullmatch(text)
        if run is None:
            return None
        bits += [int(run[1])] * int(run[2] or 1)
    if len(bits) > MAX_PRIMES or int(found[2]) not in _RINGS:
        return None
    params = build_params(int(found[2]), bits, insecure=found[1] == "test")
    return params if params.name == name else None


def get_params(name: str, *, allow_insecure: bool = False) -> CkksParams:
    """The preset of that name, or the parameters that `build_params` gives it, checked.

    Raises: ParameterError if it is unknown, or insecure and not explicitly allowed.
    """
    params = PRESETS.get(name) or _parse_name(name)
    if params is None:
        raise ParameterError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    if params.insecure and not allow_insecure:
        raise ParameterError(f"preset {name!r} is insecure and for tests only")
    params.check_security()
    return params
