"""Targets: what the members of a committee send each other, and what each stores for itself."""

import struct
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from he.errors import GateError
from he.formats import HEADER_BYTES
from he.multiparty.keygen import PublicShare, RelinFirst, RelinSecond
from he.multiparty.masking import PairSecrets
from he.multiparty.member import MemberSecrets
from he.multiparty.opening import PartialOpening, Question
from he.multiparty.sharing import KeyShare, Piece
from tests.fuzz.gate_targets import PARAMS
from tests.fuzz.target import Target, require

PRIMES = len(PARAMS.primes)
QUESTION = Question(PARAMS, tuple(np.ones((2, level, PARAMS.ring), dtype=np.uint64) for level in (1, 2)))
SUBSET = (1, 3)


class Encodable(Protocol):
    def encode(self) -> bytes: ...


def build_run(decode: Callable[[bytes], Encodable], levels: int) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """GateError alone leaves it; what passes has one encoding and residues below their primes."""
        require(decode(data).encode() == data, "encodes to other bytes")
        words = struct.unpack(f"<{(len(data) - HEADER_BYTES) // 8}Q", data[HEADER_BYTES:])
        for index, word in enumerate(words):
            prime = PARAMS.primes[index // PARAMS.ring % levels]
            require(word < prime, f"word {index} is not below its prime")

    return run


def build_seeds(build: Callable[[np.ndarray], Encodable], *shape: int) -> Callable[[], Iterable[bytes]]:
    def seeds() -> Iterable[bytes]:
        primes = np.array(PARAMS.primes[: shape[-1]], dtype=np.uint64)[:, None]
        for value in (np.uint64(1), primes - np.uint64(1), primes):
            residues = np.empty((*shape, PARAMS.ring), dtype=np.uint64)
            residues[:] = value
            yield build(residues).encode()

    return seeds


def run_member(data: bytes) -> None:
    """`MemberSecrets.decode`: GateError alone; ternary coefficients, and one encoding."""
    secrets = MemberSecrets.decode(PARAMS, 1, data)
    require(secrets.encode() == data, "encodes to other bytes")
    require(set(data[HEADER_BYTES : HEADER_BYTES + 2 * PARAMS.ring]) <= {0, 1, 255}, "not ternary")


def build_members() -> Iterable[bytes]:
    for value in (-1, 0, 1):
        small = np.full(PARAMS.ring, value, dtype=np.int8)
        yield MemberSecrets(PARAMS, 1, small, small, bytes(32)).encode()


def run_pairs(data: bytes) -> None:
    """`PairSecrets.decode`: GateError alone, and one encoding."""
    require(PairSecrets.decode(1, 3, data).encode() == data, "encodes to other bytes")


def run_opening(data: bytes) -> None:
    """`PartialOpening.decode`: GateError alone; one encoding, residues below their primes."""
    opening = PartialOpening.decode(QUESTION, 3, SUBSET, data)
    require(opening.encode(QUESTION) == data, "encodes to other bytes")
    for row, primes in zip(opening.residues, QUESTION.moduli, strict=True):
        require(all(word < prime for word, prime in zip(row, primes, strict=True)), "not below its prime")


def build_openings() -> Iterable[bytes]:
    for residues in (((0,), (0, 0)), tuple(tuple(p - 1 for p in primes) for primes in QUESTION.moduli)):
        yield PartialOpening(3, SUBSET, residues).encode(QUESTION)


def build_targets() -> list[Target]:
    refused, levels = (GateError,), PARAMS.levels
    return [
        Target(
            "multiparty.public_share",
            build_run(lambda data: PublicShare.decode(PARAMS, 2, data), PRIMES),
            refused,
            build_seeds(lambda residues: PublicShare(PARAMS, 2, residues), PRIMES),
        ),
        Target(
            "multiparty.relin_first",
            build_run(lambda data: RelinFirst.decode(PARAMS, 2, data), PRIMES),
            refused,
            build_seeds(lambda residues: RelinFirst(PARAMS, 2, residues), levels, 2, PRIMES),
        ),
        Target(
            "multiparty.relin_second",
            build_run(lambda data: RelinSecond.decode(PARAMS, 2, data), PRIMES),
            refused,
            build_seeds(lambda residues: RelinSecond(PARAMS, 2, residues), levels, PRIMES),
        ),
        Target(
            "multiparty.piece",
            build_run(lambda data: Piece.decode(PARAMS, 0, 2, 2, 2, data), 2),
            refused,
            build_seeds(lambda residues: Piece(PARAMS, 0, 2, 2, residues), 2),
        ),
        Target(
            "multiparty.key_share",
            build_run(lambda data: KeyShare.decode(PARAMS, 2, 2, 2, data), 2),
            refused,
            build_seeds(lambda residues: KeyShare(PARAMS, 2, 2, residues), 2),
        ),
        Target("multiparty.member", run_member, refused, build_members),
        Target(
            "multiparty.pairs",
            run_pairs,
            refused,
            lambda: [PairSecrets(1, {0: bytes(32), 2: bytes(32)}).encode()],
        ),
        Target("multiparty.opening", run_opening, refused, build_openings),
    ]
