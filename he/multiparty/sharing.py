"""Shares of which any `threshold` open and fewer say nothing: Shamir over the residues of each prime.

A dealer draws a polynomial f of degree threshold - 1 whose coefficients are polynomials of the ring: f(0) is
what it shares, the others are uniform modulo each prime. It gives f(1 + place) to each place. Sums of what
one place gets from several dealers are shares of the sum, which is in no dealer's and no place's hand. With
fewer than `threshold` values every f(0) is equally likely, whatever the bound of the one who looks.

- key ceremony: every member shares its secret, `share_out`; `combine` adds what one place got.
- refresh: every member shares zero, `share_zero`; `refresh` adds. Old shares and new ones don't mix.
- new members or another threshold: `threshold` old members each share their part of the sum, `reshare`;
  `combine` adds. Whoever keeps `threshold` old shares still opens: they must be forgotten.

A wrong value from a dealer shows in a known answer and cannot be attributed: dealers prove nothing.

Source: Shamir 1979; Mouchet, Bertrand, Hubaux, "An efficient threshold access-structure for RLWE-based
multiparty homomorphic encryption", J. Cryptology 2023.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from he.errors import ParameterError
from he.gate import Source
from he.multiparty.formats import (
    MAX_MEMBERS,
    Magic,
    build_header,
    check_place,
    check_residues,
    encode_residues,
)
from he.multiparty.hidden import Hidden
from he.multiparty.member import MemberSecrets
from he.multiparty.modular import Residues, add, compute_lagrange, multiply
from he.multiparty.sampling import draw_uniform
from he.params import CkksParams

SHARED_LEVELS = 2
"""Entries of gradient bundles and losses of the canonical circuit have at most two primes."""


class Piece(Hidden):
    """What one dealer gives one place; sealed to that member, and to nobody else.

    (levels, N) in the transform's domain. Its header holds dealer, place, threshold and levels.
    """

    __slots__ = ("dealer", "params", "place", "residues", "threshold")

    def __init__(
        self, params: CkksParams, dealer: int, place: int, threshold: int, residues: Residues
    ) -> None:
        self.params = params
        self.dealer = dealer
        self.place = place
        self.threshold = threshold
        self.residues = residues

    def encode(self) -> bytes:
        """For sealing to the member at its place."""
        numbers = (self.dealer, self.place, self.threshold, len(self.residues))
        return build_header(Magic.PIECE, self.params, numbers) + encode_residues(self.residues)

    @classmethod
    def decode(
        cls, params: CkksParams, dealer: int, place: int, threshold: int, levels: int, source: Source
    ) -> Self:
        """Raises: GateError."""
        header = build_header(Magic.PIECE, params, (dealer, place, threshold, levels))
        residues = check_residues(params, source, header, (levels, params.ring))
        return cls(params, dealer, place, threshold, residues)


class KeyShare(Hidden):
    """A member's share of the collective secret, all that it keeps of a ceremony; (levels, N).

    Its header holds place, threshold and levels.
    """

    __slots__ = ("params", "place", "residues", "threshold")

    def __init__(self, params: CkksParams, place: int, threshold: int, residues: Residues) -> None:
        self.params = params
        self.place = place
        self.threshold = threshold
        self.residues = residues

    @property
    def levels(self) -> int:
        return len(self.residues)

    def forget(self) -> None:
        """Overwrites the share, after a refresh or a new sharing."""
        self.residues[:] = 0

    def encode(self) -> bytes:
        """For the member's own protected storage; never for a peer."""
        header = build_header(Magic.KEY_SHARE, self.params, (self.place, self.threshold, self.levels))
        return header + encode_residues(self.residues)

    @classmethod
    def decode(cls, params: CkksParams, place: int, threshold: int, levels: int, source: Source) -> Self:
        """Raises: GateError."""
        header = build_header(Magic.KEY_SHARE, params, (place, threshold, levels))
        return cls(params, place, threshold, check_residues(params, source, header, (levels, params.ring)))


def share_out(
    secrets: MemberSecrets, threshold: int, members: int, levels: int = SHARED_LEVELS
) -> tuple[Piece, ...]:
    """A piece of the member's secret for each place; modulo the first `levels` primes.

    Fresh polynomials each time; dealing twice says no more than dealing once, but pieces of different
    dealings don't fit together: store them.

    Raises: ParameterError on a threshold below 2, where every share is the secret, or above `members`.
    """
    return _deal(secrets.params, secrets.place, secrets.lift_secret(levels), threshold, members)


def share_zero(
    params: CkksParams, dealer: int, threshold: int, members: int, levels: int = SHARED_LEVELS
) -> tuple[Piece, ...]:
    """A piece of zero for each place, for `refresh`."""
    zero = np.zeros((levels, params.ring), dtype=np.uint64)
    return _deal(params, dealer, zero, threshold, members)


def reshare(
    share: KeyShare, subset: Sequence[int], threshold: int, members: int, dealer: int | None = None
) -> tuple[Piece, ...]:
    """A piece for each new place of this member's part of the secret; `subset` are the old places that do
    so, as many as the old threshold. `dealer` is the member's new place, its old one if not given."""
    check_subset(subset, share.place, share.threshold)
    points = [1 + place for place in subset]
    rows = []
    for row, prime in zip(share.residues, share.params.primes, strict=False):
        rows.append(multiply(row, compute_lagrange(points, 1 + share.place, prime), prime))
    own = share.place if dealer is None else dealer
    return _deal(share.params, own, np.stack(rows), threshold, members)


def combine(pieces: Sequence[Piece], dealers: Sequence[int]) -> KeyShare:
    """The share of the one place that all these pieces are for, one from each of `dealers`.

    Raises: ParameterError if a piece is missing, doubled, or for another place or sharing.
    """
    first = pieces[0]
    if sorted(piece.dealer for piece in pieces) != sorted(set(dealers)):
        raise ParameterError(f"expected one piece from each of {list(dealers)}")
    if len(dealers) < 2:
        raise ParameterError("with one dealer, its secret is the collective one")
    total = _add_pieces(first.residues, pieces[1:], first)
    return KeyShare(first.params, first.place, first.threshold, total)


def refresh(share: KeyShare, pieces: Sequence[Piece], dealers: Sequence[int]) -> KeyShare:
    """The new share of the same secret, with one piece of zero from each of `dealers`.

    Raises: ParameterError if a piece is missing, doubled, or for another place or sharing.
    """
    if sorted(piece.dealer for piece in pieces) != sorted(set(dealers)):
        raise ParameterError(f"expected one piece from each of {list(dealers)}")
    total = _add_pieces(share.residues, pieces, share)
    return KeyShare(share.params, share.place, share.threshold, total)


def check_subset(subset: Sequence[int], place: int, threshold: int) -> None:
    """Raises: ParameterError unless `subset` are `threshold` ascending places, `place` one of them."""
    if list(subset) != sorted(set(subset)) or len(subset) != threshold or place not in subset:
        raise ParameterError(f"expected {threshold} ascending places with {place}, got {list(subset)}")
    for other in subset:
        check_place(other)


def _deal(
    params: CkksParams, dealer: int, constant: Residues, threshold: int, members: int
) -> tuple[Piece, ...]:
    if not 2 <= threshold <= members <= MAX_MEMBERS:
        raise ParameterError(f"thresholds are 2 to the {members} members, at most {MAX_MEMBERS}")
    check_place(dealer)
    levels = len(constant)
    higher = [draw_uniform(params, levels) for _ in range(threshold - 1)]
    pieces = []
    for place in range(members):
        rows = []
        for index, prime in enumerate(params.primes[:levels]):
            value = higher[-1][index]
            for coefficient in (*(row[index] for row in reversed(higher[:-1])), constant[index]):
                value = add(multiply(value, 1 + place, prime), coefficient, prime)
            rows.append(value)
        pieces.append(Piece(params, dealer, place, threshold, np.stack(rows)))
    return tuple(pieces)


def _add_pieces(start: Residues, pieces: Sequence[Piece], like: Piece | KeyShare) -> Residues:
    total = start.copy()
    for piece in pieces:
        same = (piece.params, piece.place, piece.threshold, piece.residues.shape)
        if same != (like.params, like.place, like.threshold, like.residues.shape):
            raise ParameterError("a piece is for another place or of another sharing")
        for index, prime in enumerate(like.params.primes[: len(total)]):
            total[index] = add(total[index], piece.residues[index], prime)
    return total
