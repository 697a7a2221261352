"""A committee in one process: what its members do, and what a test alone may do, add secrets up."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from he.context import PrivateContext, PublicContext
from he.keys import PublicKey, RelinKeys, SecretKey
from he.multiparty.keygen import (
    add_relin_first,
    build_public_share,
    build_relin_first,
    build_relin_second,
    combine_public_key,
    combine_relin_keys,
)
from he.multiparty.masking import PairSecrets, compute_pair_secret
from he.multiparty.member import MemberSecrets
from he.multiparty.modular import Residues, add
from he.multiparty.opening import Noise, PartialOpening, Question, combine_openings, open_partially
from he.multiparty.sharing import KeyShare, combine, share_out
from he.params import CkksParams

SEED = bytes(range(32))


def make_pairs(members: int, ceremony: bytes = b"ceremony") -> list[PairSecrets]:
    found: list[dict[int, bytes]] = [{} for _ in range(members)]
    for low, high in itertools.combinations(range(members), 2):
        exchanged = hashlib.sha256(b"exchange %d %d" % (low, high)).digest()
        found[low][high] = found[high][low] = compute_pair_secret(exchanged, ceremony, (low, high))
    return [PairSecrets(place, secrets) for place, secrets in enumerate(found)]


def no_noise(question: Question) -> Noise:
    count = len(question.bodies)
    return Noise((0,) * count, (0,) * count, allow_none=True)


def draw_noise(rng: np.random.Generator, deviations: Sequence[int]) -> Noise:
    """Not cryptographic: for tests."""
    return Noise(tuple(round(float(rng.normal()) * value) for value in deviations), tuple(deviations))


@dataclass
class Committee:
    params: CkksParams
    members: int
    threshold: int
    levels: int = 2
    secrets: list[MemberSecrets] = field(init=False)

    def __post_init__(self) -> None:
        self.secrets = [MemberSecrets.generate(self.params, place) for place in range(self.members)]

    @cached_property
    def keys(self) -> tuple[PublicKey, RelinKeys]:
        public = [build_public_share(secrets, SEED) for secrets in self.secrets]
        total = add_relin_first(self.params, [build_relin_first(secrets, SEED) for secrets in self.secrets])
        second = [build_relin_second(secrets, total) for secrets in self.secrets]
        return (
            combine_public_key(self.params, SEED, public),
            combine_relin_keys(self.params, total, second),
        )

    @cached_property
    def public(self) -> PublicContext:
        return PublicContext(self.params, *self.keys)

    @cached_property
    def shares(self) -> list[KeyShare]:
        dealt = [share_out(own, self.threshold, self.members, self.levels) for own in self.secrets]
        dealers = range(self.members)
        return [combine([pieces[place] for pieces in dealt], dealers) for place in dealers]

    @cached_property
    def pairs(self) -> list[PairSecrets]:
        return make_pairs(self.members)

    @cached_property
    def secret(self) -> Residues:
        """The sum of all secrets, which nobody but a test may make; (primes, N)."""
        total = self.secrets[0].lift_secret(len(self.params.primes))
        for other in self.secrets[1:]:
            lifted = other.lift_secret(len(self.params.primes))
            rows = zip(total, lifted, self.params.primes, strict=True)
            total = np.stack([add(a, b, prime) for a, b, prime in rows])
        return total

    @cached_property
    def private(self) -> PrivateContext:
        """What a single custodian would hold."""
        return PrivateContext(SecretKey(self.params, self.secret.tobytes()), *self.keys)

    def ask(
        self, place: int, subset: Sequence[int], question: Question, noise: Noise, binding: bytes = b"step 1"
    ) -> PartialOpening:
        return open_partially(self.shares[place], self.pairs[place], subset, question, noise, binding)

    def open(
        self, subset: Sequence[int], question: Question, noises: Sequence[Noise] | None = None
    ) -> tuple[int, ...]:
        given = noises or [no_noise(question)] * len(subset)
        parts = [self.ask(place, subset, question, noise) for place, noise in zip(subset, given, strict=True)]
        return combine_openings(question, parts)
