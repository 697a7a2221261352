"""Errors of the homomorphic engine; every refusal names its reason."""

from enum import StrEnum


class HeError(Exception):
    """Anything that the homomorphic engine refuses."""


class ParameterError(HeError):
    """Parameters that are unknown, insecure or not what the library derived."""


class BuildError(HeError):
    """The installed library is built in a way that this package can't rely on."""


class DepthError(HeError):
    """A circuit or operation needs more levels than the ciphertext has left."""


class MagnitudeError(HeError):
    """A message could grow past the modulus and wrap, which would change every slot."""


class LevelError(HeError):
    """Operands at different levels, or an operation that would need implicit switching."""


class ScaleError(HeError):
    """Operands at different exact scales."""


class ComponentsError(HeError):
    """An operation on a ciphertext of the wrong number of components."""


class MissingKeyError(HeError):
    """An operation needs a key that this context does not hold."""


class KeyReuseError(HeError):
    """Keys were to be made where other keys already are."""


class ImaginaryError(HeError):
    """Foreign slots hold complex numbers where real ones were promised."""


class GateReason(StrEnum):
    """Why the byte gate refused foreign bytes; the sender is at fault in every case."""

    LENGTH = "length"
    HEADER = "header"
    RESIDUE = "residue"
    TRANSPARENT = "transparent"


class GateError(HeError):
    """Foreign bytes refused before the library saw one of them."""

    def __init__(self, reason: GateReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["GateError"], tuple[GateReason, str]]:
        return GateError, (self.reason, self.detail)
