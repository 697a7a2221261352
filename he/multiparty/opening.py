"""Openings of coefficient 0: the sum over all slots, with noise, and nothing else of a ciphertext.

In batch packing a value is a slot, so the sum of all N/2 slots is N/2 / scale times coefficient 0 of the
message polynomial. Of c0 + c1 s that coefficient is N^-1 sum_k (c0[k] + c1[k] s[k]) in the transform's
domain, linear in s: each member of a subset T sends, modulo each prime of the ciphertext's level,

    lambda_j N^-1 sum_k c1[k] S_j[k] + noise_j + mask_j

and c0's part is public. The sum over T is coefficient 0 plus the members' noise; masks cancel.

What is published. Noise is in units of coefficients, the caller's (`he.multiparty.noise` draws it), of a
deviation that `compute_deviation` converts. With t - 1 members who tell everything or add nothing, what is
left is m + noise of one honest member, m the message's coefficient with the ciphertext's own error e, which
depends on the secret. The published numbers are then within (1/2) ||e / deviation||_2 in statistical
distance of the exact sum under the same noise (Pinsker, over all numbers published; `compute_distance`):
kappa = -log2 of that. For finding a key, which is a search and no decision, much less is lost (Renyi
divergence; `compute_lost_bits`). The exact sum under that noise is what the task's privacy statement is
about. Deviations of zero are refused: bare coefficients are linear equations in s. A member must answer one
question once: with independent noise, k answers have it divided by k^1/2; and nothing here knows a good
ciphertext from one made to ask for a coefficient of a share. Who calls this checks both.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Self

import numpy as np

from he.errors import GateError, GateReason, ParameterError
from he.formats import HEADER_BYTES, Body
from he.gate import Source, check_header, check_length, open_source
from he.multiparty.formats import Magic, build_header
from he.multiparty.masking import PairSecrets
from he.multiparty.modular import (
    Residues,
    add,
    compute_constant,
    compute_inner_product,
    compute_lagrange,
    join_residues,
    split_limbs,
)
from he.multiparty.sharing import KeyShare, check_subset
from he.params import CkksParams

_MARGIN = 64
"""Deviations that must fit into half the modulus: 64 members' noise of 8 deviations each, in the worst case
of a sum that is as large as its noise, still don't wrap."""


@dataclass(frozen=True, eq=False)
class Question:
    """Ciphertexts of two components whose coefficients 0 are opened; arrays (2, level, N), gated."""

    params: CkksParams
    bodies: tuple[Residues, ...] = field(repr=False)

    def __post_init__(self) -> None:
        for body in self.bodies:
            if body.ndim != 3 or body.shape[::2] != (2, self.params.ring) or body.dtype != np.uint64:
                raise ParameterError(f"expected two components of residues, got shape {body.shape}")
            if not 1 <= body.shape[1] <= self.params.levels:
                raise ParameterError(f"no ciphertext has level {body.shape[1]}")
        if not self.bodies:
            raise ParameterError("a question is of at least one ciphertext")

    @property
    def levels(self) -> tuple[int, ...]:
        """Of each ciphertext."""
        return tuple(body.shape[1] for body in self.bodies)

    @property
    def moduli(self) -> tuple[tuple[int, ...], ...]:
        """The primes of each ciphertext."""
        return tuple(self.params.primes[:level] for level in self.levels)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of preset, levels and residues; noise and masks are bound to it."""
        hasher = hashlib.sha256(b"bmif question 1\0" + self.params.name.encode("ascii") + b"\0")
        for body in self.bodies:
            hasher.update(bytes([body.shape[1]]))
            hasher.update(np.ascontiguousarray(body, dtype="<u8").data)
        return hasher.digest()


@dataclass(frozen=True, slots=True, repr=False)
class Noise:
    """An integer for each ciphertext, in units of coefficients, and the deviations they were drawn with.

    Draws are secret until added, and must come from a generator that nobody can predict.
    """

    values: tuple[int, ...]
    deviations: tuple[int, ...]
    allow_none: bool = False
    """For tests of arithmetic alone: permits deviations of zero."""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.deviations):
            raise ParameterError(f"{len(self.values)} draws are not of {len(self.deviations)} deviations")
        if min(self.deviations, default=0) < (0 if self.allow_none else 1):
            raise ParameterError("nothing is opened without noise")

    def __repr__(self) -> str:
        return f"Noise({len(self.values)} draws)"


@dataclass(frozen=True, slots=True)
class PartialOpening:
    """What the member at `place` sends of a question, for the subset: residues by ciphertext and prime."""

    place: int
    subset: tuple[int, ...]
    residues: tuple[tuple[int, ...], ...] = field(repr=False)

    def encode(self, question: Question) -> bytes:
        """8 bytes a ciphertext and prime. The header holds place, size of subset and number of ciphertexts,
        then the subset as a set of 64 bits and 8 bytes of the question's digest."""
        words = [word for row in self.residues for word in row]
        return _build_header(question, self.place, self.subset) + np.array(words, dtype="<u8").tobytes()

    @classmethod
    def decode(cls, question: Question, place: int, subset: Sequence[int], source: Source) -> Self:
        """Raises: GateError."""
        view = open_source(source)
        check_length(view, HEADER_BYTES + 8 * sum(question.levels))
        check_header(view, _build_header(question, place, subset))
        words = np.frombuffer(view, dtype="<u8", offset=HEADER_BYTES).tolist()
        rows: list[tuple[int, ...]] = []
        start = 0
        for primes in question.moduli:
            row = tuple(words[start : start + len(primes)])
            if any(word >= prime for word, prime in zip(row, primes, strict=True)):
                raise GateError(
                    GateReason.RESIDUE, f"a residue of ciphertext {len(rows)} is not below its prime"
                )
            rows.append(row)
            start += len(primes)
        return cls(place, tuple(subset), tuple(rows))


def _build_header(question: Question, place: int, subset: Sequence[int]) -> bytes:
    members = sum(1 << member for member in subset).to_bytes(8, "little")
    numbers = (place, len(subset), len(question.bodies))
    return build_header(Magic.PARTIAL_OPENING, question.params, numbers, members + question.digest[:8])


def read_bodies(params: CkksParams, bodies: Sequence[Body], source: Source) -> tuple[Residues, ...]:
    """(2, level, N) of each ciphertext of a blob that passed the gate; views, not copies."""
    view = open_source(source)
    found = []
    for body in bodies:
        shape = (2, body.form.level, params.ring)
        words = np.frombuffer(view, dtype="<u8", offset=body.offset, count=int(np.prod(shape)))
        found.append(words.reshape(shape))
    return tuple(found)


def add_bodies(params: CkksParams, columns: Sequence[Sequence[Residues]]) -> tuple[Residues, ...]:
    """Ciphertexts of several batches added entry by entry: one number an entry is opened, not one a batch."""
    totals = []
    for entry in zip(*columns, strict=True):
        total = entry[0].astype(np.uint64)
        for other in entry[1:]:
            if other.shape != total.shape:
                raise ParameterError("ciphertexts of one entry must have one level")
            for index, prime in enumerate(params.primes[: total.shape[1]]):
                total[:, index] = add(total[:, index], other[:, index], prime)
        totals.append(total)
    return tuple(totals)


def open_partially(
    share: KeyShare,
    pairs: PairSecrets,
    subset: Sequence[int],
    question: Question,
    noise: Noise,
    binding: bytes,
) -> PartialOpening:
    """The member's part of the opening by `subset`. `binding` names what the opening is for: task, step,
    attempt; masks are bound to it, to the subset and to the ciphertexts.

    Raises: ParameterError on a subset that is not of the share's threshold or misses the member, ciphertexts
    of more primes than are shared, and noise that could wrap; MissingKeyError.
    """
    params = share.params
    check_subset(subset, share.place, share.threshold)
    if question.params != params or pairs.place != share.place or not binding:
        raise ParameterError("share, pair secrets and question must belong together, under a binding")
    if max(question.levels) > share.levels:
        raise ParameterError(f"{share.levels} primes are shared; a ciphertext has {max(question.levels)}")
    if len(noise.values) != len(question.bodies):
        raise ParameterError(f"{len(noise.values)} draws are not of {len(question.bodies)} ciphertexts")
    for deviation, value, level in zip(noise.deviations, noise.values, question.levels, strict=True):
        if 2 * _MARGIN * max(deviation, abs(value) // 8) >= params.compute_modulus(level):
            raise ParameterError(f"noise of deviation {deviation} could wrap at level {level}")
    points = [1 + place for place in subset]
    primes = params.primes[: share.levels]
    factors = [
        compute_lagrange(points, 1 + share.place, prime) * pow(params.ring, -1, prime) % prime
        for prime in primes
    ]
    limbs = [split_limbs(row) for row in share.residues]
    masks = pairs.compute_masks(subset, binding + question.digest, question.moduli)
    rows = []
    for body, value, mask in zip(question.bodies, noise.values, masks, strict=True):
        row = []
        for index in range(body.shape[1]):
            product = compute_inner_product(split_limbs(body[1, index]), limbs[index], primes[index])
            # After the factor: before it, the noise of two subsets' answers would cancel.
            row.append((factors[index] * product + value + mask[index]) % primes[index])
        rows.append(tuple(row))
    return PartialOpening(share.place, tuple(subset), tuple(rows))


def combine_openings(question: Question, openings: Sequence[PartialOpening]) -> tuple[int, ...]:
    """Coefficient 0 of each ciphertext with all noise, an exact signed integer.

    A wrong part makes it a random residue; nothing here can tell.

    Raises: ParameterError unless each member of one subset has sent its part.
    """
    subset = openings[0].subset
    if tuple(opening.place for opening in openings) != subset or any(
        opening.subset != subset for opening in openings
    ):
        raise ParameterError(f"expected the part of each of {list(subset)} for that subset, in order")
    values = []
    for number, (body, primes) in enumerate(zip(question.bodies, question.moduli, strict=True)):
        residues = []
        for index, prime in enumerate(primes):
            total = compute_constant(np.ascontiguousarray(body[0, index]), prime)
            total += sum(opening.residues[number][index] for opening in openings)
            residues.append(total % prime)
        values.append(join_residues(residues, primes))
    return tuple(values)


def compute_sum(params: CkksParams, coefficient: int, scale: Fraction) -> Fraction:
    """The sum over all slots of a message with this coefficient 0, exactly."""
    return Fraction(coefficient * params.slots) / scale


def round_sum(
    params: CkksParams, coefficient: int, scale: Fraction, scale_bits: int, factor: Fraction = Fraction(1)
) -> int:
    """That sum times `factor` in units of 2^-scale_bits, rounded half to even."""
    return round(compute_sum(params, coefficient, scale) * factor * (1 << scale_bits))


def compute_deviation(
    params: CkksParams, deviation: int, scale: Fraction, scale_bits: int, factor: Fraction = Fraction(1)
) -> int:
    """The least deviation of coefficients that gives `round_sum` at least one of `deviation` in its units."""
    return math.ceil(Fraction(deviation, 2**scale_bits) / factor * scale / params.slots)


def compute_distance(errors: Sequence[float], deviations: Sequence[float]) -> float:
    """A bound of the statistical distance between integers under Gaussian noise and the same ones moved by
    `errors`: half the norm of errors over deviations (Pinsker's inequality)."""
    return 0.5 * math.sqrt(_sum_squares(errors, deviations))


def compute_lost_bits(errors: Sequence[float], deviations: Sequence[float], security: int = 128) -> float:
    """Bits that a search of `security` bits, as for the key, becomes easier by numbers moved by `errors`.

    With D the sum of squares of errors over deviations, the Renyi divergence of order a is a D / 2 and a
    probability p becomes at most (p exp(a D / 2))^((a - 1) / a): security / a + (a - 1) D / (2 ln 2) bits, at
    the best order.

    Source: Bai, Lepoint, Roux-Langlois, Sakzad, Stehle, Steinfeld, "Improved security proofs in lattice-based
    cryptography: using the Renyi divergence rather than the statistical distance", J. Cryptology 2018.
    """
    rate = _sum_squares(errors, deviations) / (2 * math.log(2))
    if rate == 0:
        return 0.0
    order = max(math.sqrt(security / rate), 1.0)
    return security / order + (order - 1) * rate


def _sum_squares(errors: Sequence[float], deviations: Sequence[float]) -> float:
    return math.fsum((error / deviation) ** 2 for error, deviation in zip(errors, deviations, strict=True))
