"""A ciphertext with what the library does not keep reliably: its level and exact scale."""

from fractions import Fraction
from typing import ClassVar, NoReturn, Protocol


class NativeCiphertext(Protocol):
    """The library's ciphertext; only the backend calls it."""

    def copy(self) -> "NativeCiphertext": ...
    def set_scale(self, scale: float, /) -> None: ...
    def size(self) -> int: ...
    def to_bytes(self, compression: str, /) -> bytes: ...


class CiphertextTensor:
    """One ciphertext: a batch of patches at one place of the circuit.

    Level and scale are tracked here, because the library's own level is wrong after loading and
    rescaling and its scale is a rounded double. There are no operators, on either side: every
    operation is an explicit call of the backend, which checks levels and scales. Neither `repr`
    nor copying decrypts, and it is not pickled.
    """

    __slots__ = ("components", "level", "native", "scale")
    __array_ufunc__: ClassVar[None] = None
    """Keeps numpy from taking a tensor for an object array."""

    def __init__(self, native: NativeCiphertext, level: int, scale: Fraction, components: int) -> None:
        self.native = native
        self.level = level
        self.scale = scale
        self.components = components

    def __repr__(self) -> str:
        bits = float(self.scale).hex().partition("p")[2]
        return f"CiphertextTensor(level={self.level}, scale=2^{bits}, components={self.components})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("ciphertexts travel as gated bytes, not as pickles")

    def __copy__(self) -> NoReturn:
        raise TypeError("copy ciphertexts through the backend, which keeps level and scale")

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        raise TypeError("copy ciphertexts through the backend, which keeps level and scale")


class NativePlaintext(Protocol):
    """The library's plaintext; only the backend calls it."""

    def set_scale(self, scale: float, /) -> None: ...
    def to_bytes(self, compression: str, /) -> bytes: ...


class Constant:
    """An exact integer, the same in every slot, as residues in NTT form at one level and scale."""

    __slots__ = ("level", "native", "scale")

    def __init__(self, native: NativePlaintext, level: int, scale: Fraction) -> None:
        self.native = native
        self.level = level
        self.scale = scale

    def __repr__(self) -> str:
        return f"Constant(level={self.level})"


class PlainVector:
    """One value a slot, in clear, as residues in NTT form at one level and scale."""

    __slots__ = ("level", "native", "scale")

    def __init__(self, native: NativePlaintext, level: int, scale: Fraction) -> None:
        self.native = native
        self.level = level
        self.scale = scale

    def __repr__(self) -> str:
        return f"PlainVector(level={self.level})"
