"""Collective keys out of every member's shares; no member holds, and no function makes, the secret's sum.

With s the sum of the members' s_i, e errors of the library's sampler, all products in the transform's domain
and modulo every prime, the special one P included:

- public key: member i sends b_i = -(a s_i + e_i); the key is (sum b_i, a).
- relinearisation keys, for each data prime j with gadget g_j = P modulo that prime and 0 modulo the others:
  first (h0, h1)_ij = (-u_i a_j + s_i g_j + e, s_i a_j + e), then, with sums over members,
  r_ij = s_i h0_j + (u_i - s_i) h1_j + e. The key is (sum r_ij, h1_j): r + h1 s = P s^2 + s e0 + u e1 + e2.

That is the layout of the library's own: part j is (-(a_j s + e) + g_j s^2, a_j). The error is larger than
that of a single party's, by about N^1/2 for the products and n for their two sums of secrets.

What a member sends first must be committed to before it sees what the others send. The last to choose could
otherwise set sum b to a key of its own, or h1_j to a constant c and h0_j to zero: then r_i is
c (u_i - s_i) + e, and h0_i + h1_i + (u_i - s_i) a_j gives s_i. See tests/he/test_multiparty_attacks.py.

Source: Mouchet, Troncoso-Pastoriza, Bossuat, Hubaux, "Multiparty homomorphic encryption from
ring-learning-with-errors", PETS 2021, protocols 2 and 3.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from he.errors import ParameterError
from he.gate import Source
from he.keys import PublicKey, RelinKeys
from he.multiparty.formats import Magic, build_header, check_residues, encode_residues
from he.multiparty.member import MemberSecrets
from he.multiparty.modular import Residues, add, multiply, negate, subtract
from he.multiparty.ring import lift
from he.multiparty.sampling import draw_error, expand_polynomial
from he.params import CkksParams


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PublicShare:
    """b_i of the member at `place`; (primes, N). Its header holds the place."""

    params: CkksParams
    place: int
    residues: Residues

    def encode(self) -> bytes:
        header = build_header(Magic.PUBLIC_SHARE, self.params, (self.place,))
        return header + encode_residues(self.residues)

    @classmethod
    def decode(cls, params: CkksParams, place: int, source: Source) -> Self:
        """Raises: GateError."""
        header = build_header(Magic.PUBLIC_SHARE, params, (place,))
        shape = (len(params.primes), params.ring)
        return cls(params, place, check_residues(params, source, header, shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RelinFirst:
    """(h0, h1)_ij of the member at `place`; (data primes, 2, primes, N). Its header holds the place."""

    params: CkksParams
    place: int
    residues: Residues

    def encode(self) -> bytes:
        header = build_header(Magic.RELIN_FIRST, self.params, (self.place,))
        return header + encode_residues(self.residues)

    @classmethod
    def decode(cls, params: CkksParams, place: int, source: Source) -> Self:
        """Raises: GateError."""
        header = build_header(Magic.RELIN_FIRST, params, (place,))
        shape = (params.levels, 2, len(params.primes), params.ring)
        return cls(params, place, check_residues(params, source, header, shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RelinSecond:
    """r_ij of the member at `place`; (data primes, primes, N). Its header holds the place."""

    params: CkksParams
    place: int
    residues: Residues

    def encode(self) -> bytes:
        header = build_header(Magic.RELIN_SECOND, self.params, (self.place,))
        return header + encode_residues(self.residues)

    @classmethod
    def decode(cls, params: CkksParams, place: int, source: Source) -> Self:
        """Raises: GateError."""
        header = build_header(Magic.RELIN_SECOND, params, (place,))
        shape = (params.levels, len(params.primes), params.ring)
        return cls(params, place, check_residues(params, source, header, shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RelinSum:
    """Sums over all members of their first rounds; (data primes, 2, primes, N)."""

    params: CkksParams
    members: int
    residues: Residues

    def compute_digest(self) -> bytes:
        return hashlib.sha256(encode_residues(self.residues)).digest()


def build_public_share(secrets: MemberSecrets, seed: bytes) -> PublicShare:
    """b_i under the common string of `seed`; a fresh error each time, so store it and send no other."""
    params = secrets.params
    common = _expand_public(params, seed)
    secret = secrets.lift_secret(len(params.primes))
    error = lift(params, draw_error(params), len(params.primes))
    rows = [
        negate(add(multiply(common[index], secret[index], prime), error[index], prime), prime)
        for index, prime in enumerate(params.primes)
    ]
    return PublicShare(params, secrets.place, np.stack(rows))


def build_relin_first(secrets: MemberSecrets, seed: bytes) -> RelinFirst:
    """(h0, h1)_ij; fresh errors each time, so store it and send no other."""
    params = secrets.params
    count = len(params.primes)
    secret, mask = secrets.lift_secret(count), secrets.lift_mask()
    residues = np.empty((params.levels, 2, count, params.ring), dtype=np.uint64)
    for part in range(params.levels):
        common = _expand_relin(params, seed, part)
        errors = [lift(params, draw_error(params), count) for _ in range(2)]
        for index, prime in enumerate(params.primes):
            hidden = multiply(mask[index], common[index], prime)
            residues[part, 0, index] = subtract(errors[0][index], hidden, prime)
            product = multiply(secret[index], common[index], prime)
            residues[part, 1, index] = add(product, errors[1][index], prime)
        prime = params.primes[part]
        gadget = multiply(secret[part], params.primes[-1] % prime, prime)
        residues[part, 0, part] = add(residues[part, 0, part], gadget, prime)
    return RelinFirst(params, secrets.place, residues)


def add_relin_first(params: CkksParams, shares: Sequence[RelinFirst]) -> RelinSum:
    """The aggregate that second rounds answer, of the shares of all places from 0 on.

    Raises: ParameterError if a place is missing or occurs twice.
    """
    _check_places(params, shares)
    return RelinSum(params, len(shares), _add_all(params, [share.residues for share in shares]))


def build_relin_second(secrets: MemberSecrets, total: RelinSum) -> RelinSecond:
    """r_ij, marked in `secrets` as answered: store both, then send it.

    Every member adds the first rounds itself; an aggregate of another's making can be one that reads s.

    Raises: KeyReuseError if an aggregate was answered before.
    """
    params = secrets.params
    if total.params != params:
        raise ParameterError("the aggregate belongs to another preset")
    count = len(params.primes)
    secret, mask = secrets.lift_secret(count), secrets.lift_mask()
    secrets.mark_answered(total.compute_digest())
    residues = np.empty((params.levels, count, params.ring), dtype=np.uint64)
    for part in range(params.levels):
        error = lift(params, draw_error(params), count)
        for index, prime in enumerate(params.primes):
            first, second = total.residues[part, 0, index], total.residues[part, 1, index]
            product = multiply(secret[index], first, prime)
            other = multiply(subtract(mask[index], secret[index], prime), second, prime)
            residues[part, index] = add(add(product, other, prime), error[index], prime)
    return RelinSecond(params, secrets.place, residues)


def combine_public_key(params: CkksParams, seed: bytes, shares: Sequence[PublicShare]) -> PublicKey:
    """The collective key, of the shares of all places from 0 on.

    Raises: ParameterError if a place is missing or occurs twice.
    """
    _check_places(params, shares)
    total = _add_all(params, [share.residues for share in shares])
    return PublicKey(params, encode_residues(np.stack((total, _expand_public(params, seed)))))


def combine_relin_keys(params: CkksParams, total: RelinSum, shares: Sequence[RelinSecond]) -> RelinKeys:
    """The collective relinearisation keys, of the shares of all places from 0 on.

    Raises: ParameterError if a place is missing or occurs twice.
    """
    _check_places(params, shares)
    if len(shares) != total.members:
        raise ParameterError(f"{len(shares)} second rounds answer an aggregate of {total.members}")
    sums = _add_all(params, [share.residues for share in shares])
    return RelinKeys(params, encode_residues(np.stack((sums, total.residues[:, 1]), axis=1)))


def _expand_public(params: CkksParams, seed: bytes) -> Residues:
    return expand_polynomial(params, seed, b"public key", len(params.primes))


def _expand_relin(params: CkksParams, seed: bytes, part: int) -> Residues:
    return expand_polynomial(params, seed, b"relinearisation key %d" % part, len(params.primes))


def _check_places(params: CkksParams, shares: Sequence[PublicShare | RelinFirst | RelinSecond]) -> None:
    places = [share.place for share in shares]
    if not places or places != list(range(len(places))):
        raise ParameterError(f"expected one share of each place from 0 on, in order, got {places}")
    if any(share.params != params for share in shares):
        raise ParameterError(f"a share does not belong to {params.name}")


def _add_all(params: CkksParams, parts: Sequence[Residues]) -> Residues:
    """Sums modulo each prime; arrays (..., primes, N)."""
    total = parts[0].copy()
    limits = np.array(params.primes, dtype=np.uint64)[:, None]
    for part in parts[1:]:
        total += part
        np.minimum(total, total - limits, out=total)
    return total
