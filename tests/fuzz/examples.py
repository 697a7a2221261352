"""Example values of any dataclass of the chain, made from its field types: the same ones in every run."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

from consensus.types import Address, Amount, Hash32, Height, Millis, Signature

T = TypeVar("T")

TRIES = 250
INTEGERS = (0, 1, 2, 5, 127, 128, 255, 256, 65_536, 2**31, 2**53, -1, -33, -(2**31))
QUANTITIES = (0, 1, 2, 7, 1_000, 1_700_000_000_000, 2**63 - 1)
HASHES = tuple(bytes([number]) * 32 for number in range(4))
"""Few, so that fields of one value name each other."""
TEXTS = ("", "a", "per-patch", "fusion-training", "ckks-16384-60x5", "ä€😀")


class _First(random.Random):
    """Draws the same place everywhere: the plainest values, which few limits refuse."""

    def __init__(self, place: int) -> None:
        super().__init__(0)
        self._place = place

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[min(self._place, len(seq) - 1)]


@cache
def build_examples(cls: type) -> tuple[object, ...]:
    """Values that between them use every member of every union and enum in `cls`; plain ones first."""
    draw = random.Random(cls.__name__)
    found: list[object] = [_build(cls, _First(place)) for place in (0, 1)]
    seen: set[str] = set()
    for _ in range(TRIES):
        value = _build(cls, draw)
        features = set(_iterate_features(value, cls.__name__))
        if not features <= seen:
            seen |= features
            found.append(value)
    return tuple(found)


@cache
def _get_hints(cls: type) -> tuple[object, ...]:
    hints = get_type_hints(cls)
    return tuple(hints[field.name] for field in fields(cls))


def _build(annotation: object, draw: random.Random) -> object:
    if annotation in (Hash32, Address):
        return draw.choice(HASHES)
    if annotation is Signature:
        return draw.choice((b"", bytes(64)))
    if annotation in (Amount, Height, Millis):
        return draw.choice(QUANTITIES)
    if annotation is bool:
        return draw.random() < 0.5
    if annotation is int:
        return draw.choice(INTEGERS)
    if annotation is bytes:
        return draw.choice((b"", b"\x93\x01", bytes(40)))
    if annotation is str:
        return draw.choice(TEXTS)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return tuple(_build(arguments[0], draw) for _ in range(draw.choice((0, 1, 1, 2))))
    if origin in (Union, UnionType):
        return _build(draw.choice(arguments), draw)
    if annotation is NoneType:
        return None
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation(*(_build(hint, draw) for hint in _get_hints(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return draw.choice(list(annotation))
    raise TypeError(f"no example for {annotation!r}")


def _iterate_features(value: object, path: str) -> Iterator[str]:
    """What an example shows: kinds of members, members of enums, empty and filled tuples, by place."""
    if is_dataclass(value):
        yield f"{path}:{type(value).__name__}"
        for field in fields(value):
            yield from _iterate_features(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple):
        yield f"{path}[{bool(value)}]"
        for item in value:
            yield from _iterate_features(item, f"{path}[]")
    elif value is None or isinstance(value, Enum):
        yield f"{path}={value}"
