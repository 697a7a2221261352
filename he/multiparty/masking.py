"""Masks that make one member's partial opening say nothing, and cancel in the sum of all of the subset's.

Without them partial openings are worth more than their sum. Of t = 2, with places 0, 1, 2: who holds the
share of place 0 knows every other share up to the secret, so of what places 1 and 2 publish for their own
subset, -3 m + noise and 4 m + noise up to what is known, it has the message m under a fifth of one member's
noise. Noise after the Lagrange factor does not help: the factor is then in the message. With a mask that
each pair of the subset's members shares, added by one and subtracted by the other, all that is learned is the
sum over the members that don't tell: the message and all of their noise.

A mask is a function of the pair's secret and the whole question, so a repeated question has the same answer
and two questions never the same mask.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Self

from he.errors import GateError, GateReason, MissingKeyError, ParameterError
from he.gate import Source, check_length, open_source
from he.multiparty.formats import check_place
from he.multiparty.hidden import Hidden
from he.multiparty.sampling import SEED_BYTES, expand_uniform

_DOMAIN = b"bmif pair secret 1\0"


def compute_pair_secret(exchanged: bytes, ceremony: bytes, places: tuple[int, int]) -> bytes:
    """32 bytes that two members alone know: of their Diffie-Hellman exchange, in this ceremony."""
    low, high = sorted(places)
    check_place(low)
    check_place(high)
    if low == high or not exchanged or not ceremony:
        raise ParameterError("a pair secret is of two members, their exchange and their ceremony")
    parts = bytes([low, high]) + hashlib.sha256(ceremony).digest() + hashlib.sha256(exchanged).digest()
    return hashlib.sha256(_DOMAIN + parts).digest()


class PairSecrets(Hidden):
    """A member's secrets with each other member, by place; as long as its share."""

    __slots__ = ("_secrets", "place")

    def __init__(self, place: int, secrets: Mapping[int, bytes]) -> None:
        check_place(place)
        if place in secrets or any(len(secret) != SEED_BYTES for secret in secrets.values()):
            raise ParameterError(f"expected {SEED_BYTES} bytes for each other member")
        for other in secrets:
            check_place(other)
        self.place = place
        self._secrets = dict(secrets)

    def compute_masks(
        self, subset: Sequence[int], question: bytes, moduli: Sequence[Sequence[int]]
    ) -> tuple[tuple[int, ...], ...]:
        """A mask for each ciphertext and prime (`moduli`); over the members of `subset` they add up to zero.

        Raises: MissingKeyError without a secret for a member of `subset`.
        """
        label = hashlib.sha256(bytes([len(subset), *subset]) + question).digest()
        primes = sorted({prime for row in moduli for prime in row})
        total = {prime: [0] * len(moduli) for prime in primes}
        for other in subset:
            if other == self.place:
                continue
            secret = self._secrets.get(other)
            if secret is None:
                raise MissingKeyError(f"no secret is shared with place {other}")
            sign = 1 if self.place < other else -1
            for prime in primes:
                stream = expand_uniform(secret, label, prime, len(moduli)).tolist()
                total[prime] = [
                    (mask + sign * word) % prime for mask, word in zip(total[prime], stream, strict=True)
                ]
        return tuple(tuple(total[prime][index] for prime in row) for index, row in enumerate(moduli))

    def encode(self) -> bytes:
        """For the member's own protected storage: (place, secret) of each other member, ascending."""
        return b"".join(bytes([place]) + self._secrets[place] for place in sorted(self._secrets))

    @classmethod
    def decode(cls, place: int, members: int, source: Source) -> Self:
        """What `encode` gave, of a committee of `members`.

        Raises: GateError.
        """
        view = open_source(source)
        check_length(view, (members - 1) * (1 + SEED_BYTES))
        size, found = 1 + SEED_BYTES, {}
        for index, other in enumerate(other for other in range(members) if other != place):
            if view[index * size] != other:
                raise GateError(GateReason.HEADER, "not the secrets with every other member, by place")
            found[other] = bytes(view[index * size + 1 : (index + 1) * size])
        return cls(place, found)
