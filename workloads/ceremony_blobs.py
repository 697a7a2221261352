"""Contributions to a key ceremony: their one valid form, and the gate that they pass before they are used.

A header of 112 bytes: magic of the round (8), preset name (32, zero-padded), members, threshold, place and
zero as uint16, ceremony (32), and the digest of all contributions of all earlier rounds (32). The reader
knows what it expects and compares. So a contribution of another place, round or ceremony, or of a member that
saw other contributions than this one, is refused. Bodies, in this order:

- coins: 32 bytes, an X25519 public key;
- shares: `PublicShare`, `RelinFirst`;
- relin: `RelinSecond`;
- secrets: for each other place, ascending: nonce (12), sealed `Piece`;
- test: for each of `list_test_subsets` that holds the place: `PartialOpening`.
"""

import hashlib
import struct
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from he.errors import GateError, GateReason, HeError
from he.formats import HEADER_BYTES, WORD_BYTES
from he.gate import Source, check_length, open_source
from he.keys import PublicKey, RelinKeys
from he.multiparty.hidden import Hidden
from he.multiparty.keygen import (
    PublicShare,
    RelinFirst,
    RelinSecond,
    RelinSum,
    add_relin_first,
    combine_public_key,
    combine_relin_keys,
)
from he.multiparty.known_answer import list_test_subsets
from he.multiparty.masking import PairSecrets, compute_pair_secret
from he.multiparty.opening import PartialOpening, Question
from he.multiparty.sharing import Piece
from he.params import CkksParams
from workloads.base import WorkloadError
from workloads.ceremony import (
    COIN_BYTES,
    CONTRIBUTION_HEADER_BYTES,
    EXCHANGE_BYTES,
    ROUNDS,
    SHARED_LEVELS,
    CeremonyTerms,
    RefusedError,
    get_opening_bytes,
    get_sealed_piece_bytes,
)
from workloads.sealed import NONCE_BYTES

T = TypeVar("T")

_MAGIC: Final = {
    "coins": b"BMIFCCO1",
    "shares": b"BMIFCSH1",
    "relin": b"BMIFCRL1",
    "secrets": b"BMIFCSC1",
    "test": b"BMIFCTE1",
}
_TRANSCRIPT: Final = b"bmif ceremony transcript 1\0"
_COINS: Final = b"bmif ceremony coins 1\0"
_PIECE: Final = b"bmif ceremony piece 1\0"
_PAIR: Final = b"bmif ceremony pair 1\0"
_FIELD: Final = 2**255 - 19
_PROBE: Final = bytes(range(EXCHANGE_BYTES))
"""A private key of nobody's."""


def build_header(terms: CeremonyTerms, place: int, round_name: str, transcript: bytes) -> bytes:
    """The one valid header."""
    return struct.pack(
        "<8s32s4H32s32s",
        _MAGIC[round_name],
        terms.preset.encode("ascii"),
        terms.members,
        terms.threshold,
        place,
        0,
        terms.ceremony,
        transcript,
    )


@dataclass(frozen=True, slots=True)
class Coin:
    """What a member draws first: its part of the seed, and where secrets are sealed to."""

    coin: bytes
    exchange_key: bytes

    def encode(self) -> bytes:
        return self.coin + self.exchange_key

    @classmethod
    def decode(cls, source: Source) -> Self:
        """Raises: GateError, also on keys with which every exchange is zero, and second spellings."""
        view = open_source(source)
        check_length(view, COIN_BYTES + EXCHANGE_BYTES)
        found = cls(bytes(view[:COIN_BYTES]), bytes(view[COIN_BYTES:]))
        if int.from_bytes(found.exchange_key, "little") >= _FIELD:
            raise GateError(GateReason.RESIDUE, "an exchange key that is not below the field's prime")
        try:
            X25519PrivateKey.from_private_bytes(_PROBE).exchange(
                X25519PublicKey.from_public_bytes(found.exchange_key)
            )
        except ValueError:
            raise GateError(GateReason.TRANSPARENT, "an exchange key of small order") from None
        return found


class Exchange(Hidden):
    """A member's X25519 key of one ceremony, and what it agrees on with each other member."""

    __slots__ = ("_coins", "_private", "_terms")

    def __init__(self, terms: CeremonyTerms, private: bytes, coins: Sequence[Coin]) -> None:
        self._terms = terms
        self._private = X25519PrivateKey.from_private_bytes(private)
        self._coins = coins
        if self._private.public_key().public_bytes_raw() != coins[terms.place].exchange_key:
            raise WorkloadError("the folder's exchange key is not the one that was sent")

    def seal(self, piece: Piece, nonce: bytes) -> bytes:
        """For the piece's place alone. A nonce is of one piece only."""
        cipher = ChaCha20Poly1305(self._derive(_PIECE, piece.dealer, piece.place, piece.place))
        return nonce + cipher.encrypt(nonce, piece.encode(), self._name(piece.dealer, piece.place))

    def open(self, params: CkksParams, dealer: int, sealed: memoryview) -> Piece:
        """What `dealer` sealed to this member. Raises: GateError, WorkloadError."""
        place = self._terms.place
        cipher = ChaCha20Poly1305(self._derive(_PIECE, dealer, place, dealer))
        nonce, body = bytes(sealed[:NONCE_BYTES]), bytes(sealed[NONCE_BYTES:])
        try:
            data = cipher.decrypt(nonce, body, self._name(dealer, place))
        except InvalidTag:
            raise WorkloadError(f"the piece for place {place} does not open") from None
        return Piece.decode(params, dealer, place, self._terms.threshold, SHARED_LEVELS, data)

    def build_pairs(self) -> PairSecrets:
        own, found = self._terms.place, {}
        for other in range(self._terms.members):
            if other != own:
                low, high = sorted((own, other))
                exchanged = self._derive(_PAIR, low, high, other)
                found[other] = compute_pair_secret(exchanged, self._terms.ceremony, (low, high))
        return PairSecrets(own, found)

    def _name(self, dealer: int, place: int) -> bytes:
        return _PIECE + self._terms.ceremony + bytes([dealer, place])

    def _derive(self, label: bytes, first: int, second: int, other: int) -> bytes:
        keys = self._coins[first].exchange_key + self._coins[second].exchange_key
        info = label + keys + self._terms.ceremony + bytes([first, second])
        exchanged = self._private.exchange(X25519PublicKey.from_public_bytes(self._coins[other].exchange_key))
        return HKDF(SHA256(), 32, None, info).derive(exchanged)


@contextmanager
def naming(round_name: str, place: int) -> Iterator[None]:
    """Says whose contribution it was that something is wrong with."""
    try:
        yield
    except (HeError, WorkloadError) as error:
        raise RefusedError(f"{round_name}: the contribution of place {place}: {error}") from error


class Contributions:
    """Of all members to the finished rounds. Lengths and headers are checked here, bodies by `check`.

    Raises: RefusedError naming round and place.
    """

    def __init__(
        self, terms: CeremonyTerms, paths: Sequence[Sequence[Path]], skipped: Container[str] = ()
    ) -> None:
        """`skipped`: rounds without contributions."""
        self._terms = terms
        self._params = terms.get_params()
        self._views: dict[str, list[memoryview]] = {}
        counts = [0 if round_name in skipped else terms.members for round_name in ROUNDS]
        if len(paths) > len(ROUNDS) or [len(row) for row in paths] != counts[: len(paths)]:
            raise WorkloadError(f"expected a contribution of each of {terms.members} members a round")
        transcript = hashlib.sha256(_TRANSCRIPT)
        for round_name, row in zip(ROUNDS, paths, strict=False):
            if round_name in skipped:
                continue
            views = []
            for place, path in enumerate(row):
                header = build_header(terms, place, round_name, transcript.digest())
                with naming(round_name, place):
                    view = open_source(path)
                    check_length(view, terms.get_bytes_of(place, round_name))
                    if view[:CONTRIBUTION_HEADER_BYTES] != header:
                        raise GateError(
                            GateReason.HEADER,
                            "is not of this ceremony, round, place and the contributions before it",
                        )
                views.append(view)
            for view in views:
                transcript.update(hashlib.sha256(view).digest())
            self._views[round_name] = views
        self.transcript = transcript.digest()
        """Of all these contributions; in the header of the next round's."""

    def check(self) -> None:
        """Every body that can be checked without secrets or the known answer. Raises: RefusedError."""
        found: list[object] = []
        if "coins" in self._views:
            found.append(self.coins)
        if "shares" in self._views:
            found.extend((self.public_shares, self.relin_total))
        if "relin" in self._views:
            found.append(self.relin_seconds)

    def is_own(self, round_name: str, data: bytes) -> bool:
        return self._views[round_name][self._terms.place] == data

    @cached_property
    def coins(self) -> tuple[Coin, ...]:
        return tuple(self._read("coins", lambda place, body: Coin.decode(body)))

    @property
    def seed(self) -> bytes:
        """Of the common strings: of everybody's coin, so of nobody's choice."""
        parts = (_COINS, self._terms.ceremony, *(coin.coin for coin in self.coins))
        return hashlib.sha256(b"".join(parts)).digest()

    @cached_property
    def public_shares(self) -> tuple[PublicShare, ...]:
        end = self._public_bytes
        return tuple(
            self._read("shares", lambda place, body: PublicShare.decode(self._params, place, body[:end]))
        )

    @cached_property
    def relin_total(self) -> RelinSum:
        start = self._public_bytes
        first = list(
            self._read("shares", lambda place, body: RelinFirst.decode(self._params, place, body[start:]))
        )
        return add_relin_first(self._params, first)

    @cached_property
    def relin_seconds(self) -> tuple[RelinSecond, ...]:
        return tuple(self._read("relin", lambda place, body: RelinSecond.decode(self._params, place, body)))

    def build_keys(self) -> tuple[PublicKey, RelinKeys]:
        """The collective keys, through the gate that everybody's keys go through."""
        public = combine_public_key(self._params, self.seed, self.public_shares)
        relin = combine_relin_keys(self._params, self.relin_total, self.relin_seconds)
        try:
            return (
                PublicKey.decode(self._params, public.encode()),
                RelinKeys.decode(self._params, relin.encode()),
            )
        except GateError as error:
            raise RefusedError(f"relin: the collective keys are none: {error}") from error

    def open_piece(self, exchange: Exchange, dealer: int) -> Piece:
        """What `dealer` sealed to this member. Raises: RefusedError naming it."""
        own, length = self._terms.place, get_sealed_piece_bytes(self._params)
        start = length * (own if own < dealer else own - 1)
        with naming("secrets", dealer):
            return exchange.open(
                self._params, dealer, self._get_body("secrets", dealer)[start : start + length]
            )

    def read_openings(self, question: Question) -> dict[tuple[int, ...], list[PartialOpening]]:
        """By subset, in order of places. Raises: RefusedError."""
        terms, length = self._terms, get_opening_bytes()
        found: dict[tuple[int, ...], list[PartialOpening]] = {}
        for place in range(terms.members):
            body = self._get_body("test", place)
            for index, subset in enumerate(list_own_subsets(terms, place)):
                part = body[index * length : (index + 1) * length]
                with naming("test", place):
                    found.setdefault(subset, []).append(PartialOpening.decode(question, place, subset, part))
        return found

    @property
    def _public_bytes(self) -> int:
        return HEADER_BYTES + len(self._params.primes) * self._params.ring * WORD_BYTES

    def _get_body(self, round_name: str, place: int) -> memoryview:
        return self._views[round_name][place][CONTRIBUTION_HEADER_BYTES:]

    def _read(self, round_name: str, decode: Callable[[int, memoryview], T]) -> Iterator[T]:
        for place in range(self._terms.members):
            with naming(round_name, place):
                found = decode(place, self._get_body(round_name, place))
            yield found


def list_own_subsets(terms: CeremonyTerms, place: int) -> tuple[tuple[int, ...], ...]:
    """Subsets of the test that hold `place`."""
    return tuple(subset for subset in list_test_subsets(terms.threshold, terms.members) if place in subset)
