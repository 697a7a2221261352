"""What a member must not show: no representation, copy or pickle carries it by accident."""

from typing import NoReturn


class Hidden:
    """Base of classes with secret content, which leaves only by a method named for it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is never pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is never pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is never pickled or copied")

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is never pickled or copied")
