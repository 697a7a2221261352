"""What a member draws for one ceremony and forgets after it: its secret, and the mask of its relin share."""

from typing import Self

import numpy as np

from he.errors import GateError, GateReason, KeyReuseError, MissingKeyError
from he.formats import HEADER_BYTES
from he.gate import Source, check_header, check_length, open_source
from he.multiparty.formats import Magic, build_header, check_place
from he.multiparty.hidden import Hidden
from he.multiparty.modular import Residues
from he.multiparty.ring import Small, lift
from he.multiparty.sampling import draw_ternary
from he.params import CkksParams

DIGEST_BYTES = 32
_UNANSWERED = bytes(DIGEST_BYTES)


class MemberSecrets(Hidden):
    """One member's part s of the collective secret, and u, which hides s in its relinearisation share.

    Of one attempt only: a new attempt draws new ones. They answer one aggregate of first rounds and no
    second: two answers are two equations about the same unknowns, of the sender's choice.
    """

    __slots__ = ("_answered", "_mask", "_secret", "params", "place")

    def __init__(self, params: CkksParams, place: int, secret: Small, mask: Small, answered: bytes) -> None:
        check_place(place)
        self.params = params
        self.place = place
        self._secret: Small | None = secret
        self._mask: Small | None = mask
        self._answered = answered

    @classmethod
    def generate(cls, params: CkksParams, place: int) -> Self:
        """Fresh ones of the member at `place`, from the library's sampler."""
        return cls(params, place, draw_ternary(params), draw_ternary(params), _UNANSWERED)

    def lift_secret(self, primes: int) -> Residues:
        """(primes, N): s in the transform's domain, for this package's rounds alone.

        Raises: MissingKeyError once forgotten.
        """
        if self._secret is None:
            raise MissingKeyError("the member's secret was forgotten")
        return lift(self.params, self._secret, primes)

    def lift_mask(self) -> Residues:
        """(primes, N): u in the transform's domain, for this package's rounds alone.

        Raises: MissingKeyError once forgotten.
        """
        if self._mask is None:
            raise MissingKeyError("the member's secret was forgotten")
        return lift(self.params, self._mask, len(self.params.primes))

    @property
    def has_answered(self) -> bool:
        """True once a second round was computed: then send what was stored of it."""
        return self._answered != _UNANSWERED

    def mark_answered(self, aggregate: bytes) -> None:
        """Takes the digest of the aggregate that is about to be answered.

        Raises: KeyReuseError if one was, the same one included: a second answer has a second error.
        """
        if self.has_answered:
            raise KeyReuseError("a member answers one aggregate in an attempt; send the stored answer again")
        self._answered = aggregate

    def forget(self) -> None:
        """Overwrites both polynomials; copies that the interpreter made are beyond reach."""
        for polynomial in (self._secret, self._mask):
            if polynomial is not None:
                polynomial[:] = 0
        self._secret = self._mask = None

    def encode(self) -> bytes:
        """For the member's own protected storage; never for a peer.

        Store it before the first round is sent, and again, with the second round, before that is sent.
        """
        if self._secret is None or self._mask is None:
            raise MissingKeyError("the member's secret was forgotten")
        header = build_header(Magic.MEMBER_SECRETS, self.params, (self.place,))
        return header + self._secret.tobytes() + self._mask.tobytes() + self._answered

    @classmethod
    def decode(cls, params: CkksParams, place: int, source: Source) -> Self:
        """Raises: GateError."""
        view = open_source(source)
        check_length(view, HEADER_BYTES + 2 * params.ring + DIGEST_BYTES)
        check_header(view, build_header(Magic.MEMBER_SECRETS, params, (place,)))
        small = np.frombuffer(view, dtype=np.int8, offset=HEADER_BYTES, count=2 * params.ring)
        # Not by magnitude: that of -128 is -128 here.
        if not bool(((small >= -1) & (small <= 1)).all()):
            raise GateError(GateReason.RESIDUE, "a coefficient is not ternary")
        answered = bytes(view[-DIGEST_BYTES:])
        return cls(params, place, small[: params.ring].copy(), small[params.ring :].copy(), answered)
