"""What a fuzz target is: a decoder of foreign bytes, its documented errors, what holds of what it accepts."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Violation(AssertionError):
    """An invariant of a decoder does not hold; never one of its documented errors."""


class Form(StrEnum):
    """The language of a target's inputs, for the mutations that know it."""

    BINARY = "binary"
    MSGPACK = "msgpack"
    ROUTED = "routed"
    """Name of a route, a zero byte, msgpack."""
    JSON = "json"
    TEXT = "text"
    PEM = "pem"
    PNG = "png"


Run = Callable[[bytes], object]
Seeds = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder. `run` raises one of `refusals` for bytes that it refuses and nothing else, ever."""

    name: str
    run: Run
    refusals: tuple[type[Exception], ...]
    seeds: Seeds
    form: Form = Form.BINARY
    max_bytes: int = 4096
    """Longest input that the fuzzer makes."""
    growth: int = 100
    """Bytes of memory that a byte of input may claim, beyond `base`."""
    base: int = 512 * 1024
    """Bytes of memory that an input may claim whatever its length; encoding alone takes half of this."""
    frames: int = 150
    """Python frames that an input may nest."""
    effort: int = 1
    """Share of the fuzzing time, relative to other targets."""

    def execute(self, data: bytes) -> bool:
        """True if the decoder accepts. Whatever this raises is a fault of the decoder."""
        try:
            self.run(data)
        except self.refusals:
            return False
        return True

    def execute_bounded(self, data: bytes) -> bool:
        """`execute`, with a RecursionError for an input that nests deeper than `frames`."""
        depth, frame = 0, sys._getframe()
        while (back := frame.f_back) is not None:
            depth, frame = depth + 1, back
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(depth + self.frames)
        try:
            return self.execute(data)
        finally:
            sys.setrecursionlimit(limit)


def require(condition: bool, claim: str) -> None:
    """`assert` that is no AssertionError of the code under test."""
    if not condition:
        raise Violation(claim)
