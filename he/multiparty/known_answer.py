"""A ciphertext whose opening is known: shows that keys and shares belong together before anybody uses them.

It is a function of the two keys alone, so nobody chooses it. The public key (b, a) is itself an encryption of
its error; with the constant m added and squared, relinearised under the collective keys and taken modulo the
primes that are shared, coefficient 0 is m^2 but for errors of about m. Openings by overlapping subsets of
the members reach every share, and agree only if all lie on one polynomial. Right keys and shares miss by
noise alone; wrong ones give a random residue, which passes with a probability of 2^-24.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from he.backend import Engine
from he.errors import ParameterError
from he.keys import PublicKey, RelinKeys
from he.multiparty.modular import add
from he.multiparty.opening import Question
from he.multiparty.sharing import SHARED_LEVELS
from he.plan import Form

_ROOM_BITS = 20
"""Between the answer and the modulus."""
_NOISE_BITS = 12
"""Between the answer and the noise's deviation; the rest, down to the message's root, hides the error."""
_DEVIATIONS = 128
"""That an answer may miss by: eight of each of 64 members' noise would be 64."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What is opened, what should come out, and the deviation of each member's noise.

    The key's error is of about 2^6 times the root, some 2^30 below the deviation: an opening of it is within
    2^-30 of what it would be without, and there are as many as subsets.
    """

    question: Question
    answer: int
    deviation: int

    def is_answered(self, coefficient: int) -> bool:
        return abs(coefficient - self.answer) <= _DEVIATIONS * self.deviation


def build_known_answer(
    public_key: PublicKey, relin_keys: RelinKeys, levels: int = SHARED_LEVELS
) -> KnownAnswer:
    """Everybody with the same keys builds the same."""
    params = public_key.params
    if relin_keys.params != params or not 2 <= levels <= params.levels:
        raise ParameterError("keys of one preset and at least two of its primes are needed")
    room = params.compute_modulus(levels).bit_length() - 1 - _ROOM_BITS
    root = 1 << (room // 2)
    words = np.frombuffer(public_key.body, dtype="<u8").astype(np.uint64)
    body = words.reshape(2, len(params.primes), params.ring)[:, : params.levels].copy()
    for index, prime in enumerate(params.primes[: params.levels]):
        constant = np.full(params.ring, root % prime, dtype=np.uint64)
        body[0, index] = add(body[0, index], constant, prime)
    engine = Engine(params)
    engine.load_relin_keys(relin_keys.body)
    # A scale of one: the library is asked for residues only.
    product = engine.square(engine.load(body, Form(params.levels, Fraction(1))))
    engine.relinearize_inplace(product)
    engine.drop_inplace(product, levels)
    residues = np.frombuffer(engine.save(product), dtype="<u8").astype(np.uint64)
    question = Question(params, (residues.reshape(2, levels, params.ring),))
    return KnownAnswer(question, root**2, root**2 >> _NOISE_BITS)


def list_test_subsets(threshold: int, members: int) -> tuple[tuple[int, ...], ...]:
    """n - t + 1 subsets of neighbours: any two next to each other share t - 1 places, so if all of them open
    the same, one polynomial goes through every share."""
    return tuple(tuple(range(first, first + threshold)) for first in range(members - threshold + 1))
