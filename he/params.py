"""CKKS presets with their exact primes, and the 128-bit security limit."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from he.errors import ParameterError

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


def get_params(name: str, *, allow_insecure: bool = False) -> CkksParams:
    """The preset of that name, checked.

    Raises: ParameterError if it is unknown, or insecure and not explicitly allowed.
    """
    params = PRESETS.get(name)
    if params is None:
        raise ParameterError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    if params.insecure and not allow_insecure:
        raise ParameterError(f"preset {name!r} is insecure and for tests only")
    params.check_security()
    return params
