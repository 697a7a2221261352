"""A member's rounds: what it draws, what it answers to the others' contributions, and what it keeps.

Nothing of its own secrets meets a contribution that has not passed its gate, or an aggregate that misses its
own. Each round is answered once: for other contributions of earlier rounds than those that were answered,
this folder has no second answer.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from he.errors import HeError
from he.keys import PublicKey, RelinKeys
from he.multiparty.keygen import build_public_share, build_relin_first, build_relin_second
from he.multiparty.known_answer import KnownAnswer, build_known_answer
from he.multiparty.member import MemberSecrets
from he.multiparty.noise import SECRET_BYTES, draw_noise
from he.multiparty.opening import combine_openings, open_partially
from he.multiparty.sharing import KeyShare, Piece, combine, reshare, share_out, share_zero
from he.params import CkksParams
from workloads.base import WorkloadError
from workloads.ceremony import (
    COIN_BYTES,
    EXCHANGE_BYTES,
    ROUNDS,
    SHARED_LEVELS,
    SKIPPED,
    CeremonyTerms,
    FinishedCeremony,
    RefusedError,
    Renewal,
    RoundJob,
)
from workloads.ceremony_blobs import Coin, Contributions, Exchange, build_header, list_own_subsets
from workloads.ceremony_folder import PUBLIC_KEY_FILE, RELIN_KEYS_FILE, CeremonyFolder, open_folder
from workloads.ceremony_share import decode_share, derive_member_keys, encode_share, load_share
from workloads.sealed import NONCE_BYTES, SealingKey

_TEST: Final = b"bmif ceremony test 1\0"


@dataclass(frozen=True, slots=True)
class _Member:
    """One member before one round."""

    terms: CeremonyTerms
    params: CkksParams
    folder: CeremonyFolder
    found: Contributions
    renewal: Renewal | None

    def load_state(self, round_name: str) -> bytes:
        """What is secret of a round that is over. Raises: WorkloadError if it is not there."""
        data = self.folder.load_secret(round_name)
        length = self.terms.get_bytes(round_name)
        if data is None or len(data) <= length:
            raise WorkloadError(f"{round_name}: this folder lacks the member's secrets of that round")
        return data[:-length]

    def check_own(self, finished: int) -> None:
        """Raises WorkloadError unless this member's contributions are those that this folder made."""
        for round_name in ROUNDS[:finished]:
            if self.renewal is not None and round_name in SKIPPED:
                continue
            own = _load_contribution(self.folder, self.terms, round_name)
            if own is None or not self.found.is_own(round_name, own):
                raise WorkloadError(
                    f"{round_name}: the contribution of place {self.terms.place}: "
                    "is not what this member made in this folder"
                )

    def load_keys(self) -> tuple[PublicKey, RelinKeys]:
        """The collective keys: of this ceremony, or of the one that is renewed."""
        if self.renewal is None:
            return self.found.build_keys()
        return (
            PublicKey.decode(self.params, self.renewal.public_key.read_bytes()),
            RelinKeys.decode(self.params, self.renewal.relin_keys.read_bytes()),
        )

    def load_exchange(self) -> Exchange:
        return Exchange(self.terms, self.load_state("coins")[:EXCHANGE_BYTES], self.found.coins)


def make_contribution(job: RoundJob, key: SealingKey | None) -> Path:
    """See `ceremony.run_round`."""
    terms, number = job.terms, len(job.contributions)
    if number >= len(ROUNDS):
        raise WorkloadError("all rounds have their contributions; the ceremony is to be finished")
    round_name, params = ROUNDS[number], terms.get_params()
    with open_folder(job.folder, key) as folder, _as_workload_error(round_name):
        found = _read(job)
        header = build_header(terms, terms.place, round_name, found.transcript)
        data = _load_contribution(folder, terms, round_name)
        if data is None:
            if folder.is_finished:
                raise WorkloadError(f"{round_name}: {job.folder} holds a finished ceremony's keys")
            member = _Member(terms, params, folder, found, job.renewal)
            member.check_own(number)
            found.check()
            state, body = _BUILDERS[round_name](member)
            data = header + body
            if len(data) != terms.get_bytes(round_name):
                raise WorkloadError(f"{round_name}: a contribution of {len(data)} bytes was made")
            folder.store_secret(round_name, state + data)
        if not data.startswith(header):
            raise WorkloadError(
                f"{round_name}: this folder has answered another ceremony or other contributions; "
                "a member answers once"
            )
        return folder.store_blob(round_name, data)


def finish(job: RoundJob, key: SealingKey | None) -> FinishedCeremony:
    """See `ceremony.run_finish`."""
    terms = job.terms
    with open_folder(job.folder, key) as folder, _as_workload_error("test"):
        if not folder.is_finished:
            if len(job.contributions) != len(ROUNDS):
                raise WorkloadError(f"{len(job.contributions)} of {len(ROUNDS)} rounds are over")
            found = _read(job)
            member = _Member(terms, terms.get_params(), folder, found, job.renewal)
            member.check_own(len(ROUNDS))
            found.check()
            public_key, relin_keys = member.load_keys()
            _check_answers(found, build_known_answer(public_key, relin_keys))
            share = member.load_state("test")
            if decode_share(share, allow_insecure=terms.allow_insecure)[0] != terms:
                raise WorkloadError("test: the folder's share is of other terms")
            noise = secrets.token_bytes(SECRET_BYTES)
            folder.store_keys(public_key.encode(), relin_keys.encode(), noise, share)
        folder.erase_secrets()
        own = derive_member_keys(folder.load_noise())
    return FinishedCeremony(job.folder / PUBLIC_KEY_FILE, job.folder / RELIN_KEYS_FILE, own.box_public)


def _read(job: RoundJob) -> Contributions:
    return Contributions(job.terms, job.contributions, () if job.renewal is None else SKIPPED)


def _check_answers(found: Contributions, known: KnownAnswer) -> None:
    wrong = [
        subset
        for subset, openings in sorted(found.read_openings(known.question).items())
        if not known.is_answered(combine_openings(known.question, openings)[0])
    ]
    if wrong:
        names = ", ".join("-".join(str(place) for place in subset) for subset in wrong)
        raise RefusedError(
            f"test: the known answer is wrong by the places {names}; some piece or opening is, "
            "and whose can't be told"
        )


def _make_coins(member: _Member) -> tuple[bytes, bytes]:
    private = X25519PrivateKey.generate()
    coin = Coin(secrets.token_bytes(COIN_BYTES), private.public_key().public_bytes_raw())
    # The rest seeds the test's noise.
    return private.private_bytes_raw() + secrets.token_bytes(SECRET_BYTES), coin.encode()


def _make_shares(member: _Member) -> tuple[bytes, bytes]:
    own, seed = MemberSecrets.generate(member.params, member.terms.place), member.found.seed
    body = build_public_share(own, seed).encode() + build_relin_first(own, seed).encode()
    state = own.encode()
    own.forget()
    return state, body


def _make_relin(member: _Member) -> tuple[bytes, bytes]:
    own = MemberSecrets.decode(member.params, member.terms.place, member.load_state("shares"))
    body = build_relin_second(own, member.found.relin_total).encode()
    # Marked as answered, and stored together with the answer.
    state = own.encode()
    own.forget()
    return state, body


def _make_secrets(member: _Member) -> tuple[bytes, bytes]:
    terms, renewal = member.terms, member.renewal
    if renewal is None:
        own = MemberSecrets.decode(member.params, terms.place, member.load_state("relin"))
        pieces = share_out(own, terms.threshold, terms.members, SHARED_LEVELS)
        own.forget()
    else:
        pieces = _deal_again(member, renewal)
    exchange = member.load_exchange()
    sealed = [
        exchange.seal(piece, secrets.token_bytes(NONCE_BYTES))
        for piece in pieces
        if piece.place != terms.place
    ]
    return pieces[terms.place].encode(), b"".join(sealed)


def _deal_again(member: _Member, renewal: Renewal) -> tuple[Piece, ...]:
    """A dealer's part of the secret, so that all together deal it; of anybody else zero."""
    terms = member.terms
    if terms.place not in renewal.dealers:
        return share_zero(member.params, terms.place, terms.threshold, terms.members, SHARED_LEVELS)
    if renewal.folder is None:
        raise WorkloadError("secrets: this member's old share is not here; restore its folder")
    share, _ = load_share(renewal.folder, renewal.keys, allow_insecure=terms.allow_insecure)
    if share.place != renewal.old_places[renewal.dealers.index(terms.place)]:
        raise WorkloadError(f"secrets: {renewal.folder} holds the share of another place")
    pieces = reshare(share, renewal.old_places, terms.threshold, terms.members, dealer=terms.place)
    share.forget()
    return pieces


def _make_test(member: _Member) -> tuple[bytes, bytes]:
    terms, exchange = member.terms, member.load_exchange()
    known = build_known_answer(*member.load_keys())
    share, pairs = _combine_pieces(member, exchange), exchange.build_pairs()
    seed = member.load_state("coins")[EXCHANGE_BYTES:]
    openings = []
    for subset in list_own_subsets(terms, terms.place):
        binding = _TEST + terms.ceremony + bytes([len(subset), *subset])
        noise = draw_noise(seed, binding + known.question.digest, (known.deviation,))
        opening = open_partially(share, pairs, subset, known.question, noise, binding)
        openings.append(opening.encode(known.question))
    return encode_share(terms, share, pairs), b"".join(openings)


def _combine_pieces(member: _Member, exchange: Exchange) -> KeyShare:
    terms = member.terms
    pieces = []
    for dealer in range(terms.members):
        if dealer == terms.place:
            state = member.load_state("secrets")
            pieces.append(Piece.decode(member.params, dealer, dealer, terms.threshold, SHARED_LEVELS, state))
        else:
            pieces.append(member.found.open_piece(exchange, dealer))
    return combine(pieces, range(terms.members))


_BUILDERS: Final[dict[str, Callable[[_Member], tuple[bytes, bytes]]]] = {
    "coins": _make_coins,
    "shares": _make_shares,
    "relin": _make_relin,
    "secrets": _make_secrets,
    "test": _make_test,
}
"""What is secret of the round, and the contribution's body."""


def _load_contribution(folder: CeremonyFolder, terms: CeremonyTerms, round_name: str) -> bytes | None:
    """What this member made, if it did."""
    length = terms.get_bytes(round_name)
    data = folder.load_blob(round_name)
    if data is None or len(data) != length:
        stored = folder.load_secret(round_name)
        data = None if stored is None else stored[-length:]
    return data


@contextmanager
def _as_workload_error(round_name: str) -> Iterator[None]:
    try:
        yield
    except HeError as error:
        raise WorkloadError(f"{round_name}: {error}") from error
