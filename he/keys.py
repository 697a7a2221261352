"""One class a key; bytes go through the gate, and a secret key shows itself to nobody."""

from dataclasses import dataclass
from typing import NoReturn, Self

from he.backend import Engine
from he.formats import Magic, build_header
from he.gate import (
    Source,
    build_galois_header,
    check_galois_keys,
    check_public_key,
    check_relin_keys,
    check_secret_key,
)
from he.params import CkksParams


@dataclass(frozen=True, slots=True, repr=False)
class PublicKey:
    """Encrypts; public."""

    params: CkksParams
    body: bytes

    def encode(self) -> bytes:
        return build_header(Magic.PUBLIC_KEY, self.params) + self.body

    @classmethod
    def decode(cls, params: CkksParams, source: Source) -> Self:
        """Raises: GateError."""
        return cls(params, bytes(check_public_key(params, source)))

    def __repr__(self) -> str:
        return f"PublicKey({self.params.name})"


@dataclass(frozen=True, slots=True, repr=False)
class RelinKeys:
    """Brings products back to two components; public, decrypts nothing."""

    params: CkksParams
    body: bytes

    def encode(self) -> bytes:
        return build_header(Magic.RELIN_KEYS, self.params) + self.body

    @classmethod
    def decode(cls, params: CkksParams, source: Source) -> Self:
        """Raises: GateError."""
        return cls(params, bytes(check_relin_keys(params, source)))

    def __repr__(self) -> str:
        return f"RelinKeys({self.params.name})"


@dataclass(frozen=True, slots=True, repr=False)
class GaloisKeys:
    """Rotates slots by exactly these steps; public, decrypts nothing."""

    params: CkksParams
    rotations: tuple[int, ...]
    """Ascending, from 1 to one less than the slots."""
    body: bytes

    def encode(self) -> bytes:
        return build_galois_header(self.params, self.rotations) + self.body

    @classmethod
    def decode(cls, params: CkksParams, rotations: tuple[int, ...], source: Source) -> Self:
        """Raises: GateError."""
        return cls(params, rotations, bytes(check_galois_keys(params, rotations, source)))

    def __repr__(self) -> str:
        return f"GaloisKeys({self.params.name}, {len(self.rotations)} rotations)"


class SecretKey:
    """Decrypts. Its residues leave only by `encode`, which the key's holder calls to store it.

    It has no representation, comparison, copy or pickle, so that no log, error message or worker
    argument carries it by accident.
    """

    __slots__ = ("_body", "params")

    def __init__(self, params: CkksParams, body: bytes) -> None:
        self.params = params
        self._body = body

    def encode(self) -> bytes:
        """For the holder's own protected storage; never for a peer."""
        return build_header(Magic.SECRET_KEY, self.params) + self._body

    @classmethod
    def decode(cls, params: CkksParams, source: Source) -> Self:
        """Raises: GateError."""
        return cls(params, bytes(check_secret_key(params, source)))

    def load_into(self, engine: Engine) -> None:
        """Gives the key to `engine`, which then decrypts."""
        engine.load_secret_key(self._body)

    def __repr__(self) -> str:
        return "SecretKey(hidden)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied")

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied")
