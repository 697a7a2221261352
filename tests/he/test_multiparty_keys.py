"""A committee's keys: what members draw and send, and that the library takes the sums for keys of its own."""

import copy
import hashlib
import pickle
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from he.backend import Engine
from he.errors import BuildError, GateError, GateReason, KeyReuseError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES
from he.keys import PublicKey, RelinKeys
from he.multiparty import sampling
from he.multiparty.hidden import Hidden
from he.multiparty.keygen import (
    PublicShare,
    RelinFirst,
    RelinSecond,
    RelinSum,
    add_relin_first,
    build_public_share,
    build_relin_first,
    build_relin_second,
    combine_public_key,
    combine_relin_keys,
)
from he.multiparty.known_answer import build_known_answer, list_test_subsets
from he.multiparty.masking import PairSecrets, compute_pair_secret
from he.multiparty.member import MemberSecrets
from he.multiparty.modular import add, center, compute_lagrange, multiply, subtract
from he.multiparty.ring import Small, invert_transform, lift
from he.multiparty.sampling import draw_error, draw_ternary, expand_uniform
from he.multiparty.sharing import KeyShare, Piece, combine, refresh, reshare, share_out, share_zero
from he.params import CkksParams, get_params
from he.plan import Form
from tests.he.committee import SEED, Committee

PARAMS = get_params("test-2048-60x3", allow_insecure=True)


@pytest.fixture(scope="module")
def committee() -> Committee:
    return Committee(PARAMS, 3, 2)


# --- what is drawn ----------------------------------------------------------------------------


def test_secrets_and_errors_look_as_they_should() -> None:
    secret, error = draw_ternary(PARAMS), draw_error(PARAMS)
    assert set(secret.tolist()) == {-1, 0, 1}
    assert 15 > int(np.abs(error).max()) > 6
    assert float(error.std()) == pytest.approx(3.2, rel=0.15)
    assert bool((draw_ternary(PARAMS) != secret).any())
    assert bool((draw_error(PARAMS) != error).any())


def test_every_draw_has_an_engine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One throw-away for a secret and another for an error: b and a of one would tie them together."""
    made: list[Engine] = []

    class Counted(Engine):
        def __init__(self, params: CkksParams) -> None:
            super().__init__(params)
            made.append(self)

    monkeypatch.setattr(sampling, "Engine", Counted)
    draw_ternary(PARAMS)
    draw_error(PARAMS)
    draw_error(PARAMS)
    assert len(made) == len({id(engine) for engine in made}) == 3


@pytest.mark.parametrize(
    ("name", "draw"), [("secret", draw_ternary), ("error", draw_error)], ids=["secret", "error"]
)
def test_a_sampler_gone_wrong_is_noticed(
    name: str, draw: Callable[[CkksParams], Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "lower", lambda params, values, bound: np.zeros(params.ring, dtype=np.int8))
    with pytest.raises(BuildError, match=name):
        draw(PARAMS)


def test_common_strings_are_pinned() -> None:
    """Every member expands the same from the coin, on every machine and in every version."""
    words = expand_uniform(bytes(range(32)), b"label", PARAMS.primes[0], 4096)
    digest = hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()
    assert digest == "19dd20a3fd2147946109e61e1b721cc4b91304a15ccaa521b47f009eb6f21bff"
    assert bool((words < PARAMS.primes[0]).all())
    assert abs(float(words.mean()) / PARAMS.primes[0] - 0.5) < 0.02
    assert expand_uniform(bytes(range(32)), b"label", PARAMS.primes[0], 100).tolist() == words[:100].tolist()


def test_common_strings_differ_by_seed_label_and_prime() -> None:
    first = expand_uniform(SEED, b"a", PARAMS.primes[0], 8).tolist()
    assert expand_uniform(SEED, b"b", PARAMS.primes[0], 8).tolist() != first
    assert expand_uniform(bytes(32), b"a", PARAMS.primes[0], 8).tolist() != first
    assert expand_uniform(SEED, b"a", PARAMS.primes[1], 8).tolist() != first
    with pytest.raises(ParameterError):
        expand_uniform(SEED[1:], b"a", PARAMS.primes[0], 8)


def test_rejection_leaves_no_residue_out() -> None:
    """A prime just above a power of two, where half of all words are passed over."""
    words = expand_uniform(SEED, b"rejection", 5, 4000).tolist()
    assert all(700 < words.count(value) < 900 for value in range(5))
    assert len(words) == 4000


# --- keys -------------------------------------------------------------------------------------


def test_collective_keys_round_trip_through_the_library(committee: Committee) -> None:
    """Byte for byte: the library's reader may swallow errors and keep what it had."""
    public, relin = committee.keys
    engine = Engine(PARAMS)
    engine.load_public_key(PublicKey.decode(PARAMS, public.encode()).body)
    engine.load_relin_keys(RelinKeys.decode(PARAMS, relin.encode()).body)
    library = engine._library
    assert library.to_bytes_public_key("none")[113:] == public.body
    written, part = library.to_bytes_relin_key("none"), 113 + len(public.body)
    parts = [written[64 + j * part + 113 : 64 + (j + 1) * part] for j in range(PARAMS.levels)]
    assert b"".join(parts) == relin.body


def test_keys_are_those_of_the_sum_of_secrets(committee: Committee) -> None:
    """Of the public key b + a s is a small error; relinearisation keys give s^2 after dividing by P."""
    public = np.frombuffer(committee.keys[0].body, "<u8").astype(np.uint64)
    b, a = public.reshape(2, len(PARAMS.primes), PARAMS.ring)

    for index, prime in enumerate(PARAMS.primes):
        rest = add(b[index], multiply(a[index], committee.secret[index], prime), prime)
        error = center(invert_transform(rest, prime), prime)
        assert int(np.abs(error).max()) < 60
        assert float(error.std()) == pytest.approx(3.2 * 3**0.5, rel=0.15)


def test_stock_operations_work_under_collective_keys(committee: Committee) -> None:
    """Encrypt, multiply, relinearise, rescale; decrypted with the sum that only this test makes."""
    engine = committee.public.engine
    values = np.linspace(-1, 1, PARAMS.slots)
    form = Form(PARAMS.levels, Fraction(2**30))
    fresh = engine.encrypt(values, form)
    assert float(np.abs(committee.private.decrypt(fresh) - values).max()) < 1e-5
    product = engine.square(fresh)
    engine.relinearize_inplace(product)
    assert float(np.abs(committee.private.decrypt(product) - values**2).max()) < 1e-5


def test_a_part_less_is_no_key(committee: Committee) -> None:
    shares = [build_public_share(secrets, SEED) for secrets in committee.secrets]
    with pytest.raises(ParameterError):
        combine_public_key(PARAMS, SEED, [shares[0], shares[2]])
    with pytest.raises(ParameterError):
        combine_public_key(PARAMS, SEED, [shares[0], shares[0], shares[1]])
    with pytest.raises(ParameterError):
        combine_public_key(PARAMS, SEED, [])
    first = [build_relin_first(secrets, SEED) for secrets in committee.secrets]
    total = add_relin_first(PARAMS, first)
    zero = np.zeros((PARAMS.levels, len(PARAMS.primes), PARAMS.ring), dtype=np.uint64)
    with pytest.raises(ParameterError, match="answer an aggregate"):
        combine_relin_keys(PARAMS, total, [RelinSecond(PARAMS, place, zero) for place in range(2)])


def test_shares_of_another_preset_are_refused(committee: Committee) -> None:
    other = get_params("test-4096-60x5", allow_insecure=True)
    share = build_public_share(committee.secrets[0], SEED)
    with pytest.raises(ParameterError, match="does not belong"):
        combine_public_key(other, SEED, [share])
    total = RelinSum(other, 1, np.zeros((4, 2, 5, other.ring), dtype=np.uint64))
    with pytest.raises(ParameterError, match="another preset"):
        build_relin_second(committee.secrets[0], total)
    with pytest.raises(ParameterError, match="one preset"):
        build_known_answer(committee.keys[0], RelinKeys(other, b""))
    small = np.zeros(PARAMS.ring, dtype=np.int8)
    for place in (-1, 64):
        with pytest.raises(ParameterError, match="places"):
            MemberSecrets(PARAMS, place, small, small, bytes(32))


def test_old_shares_can_be_forgotten() -> None:
    share = Committee(PARAMS, 2, 2).shares[0]
    assert share.residues.any()
    share.forget()
    assert not share.residues.any()


def test_a_member_answers_one_aggregate_only() -> None:
    """Also when its state is stored and read again in between."""
    secrets = [MemberSecrets.generate(PARAMS, place) for place in range(2)]
    total = add_relin_first(PARAMS, [build_relin_first(own, SEED) for own in secrets])
    resumed = MemberSecrets.decode(PARAMS, 0, secrets[0].encode())
    assert not resumed.has_answered
    build_relin_second(resumed, total)
    again = MemberSecrets.decode(PARAMS, 0, resumed.encode())
    for own in (resumed, again):
        assert own.has_answered
        with pytest.raises(KeyReuseError):
            build_relin_second(own, total)


def test_a_resumed_member_makes_the_same_key(committee: Committee) -> None:
    stored = committee.secrets[1].encode()
    resumed = MemberSecrets.decode(PARAMS, 1, stored)
    assert bool((resumed.lift_secret(2) == committee.secrets[1].lift_secret(2)).all())
    assert bool((resumed.lift_mask() == committee.secrets[1].lift_mask()).all())
    assert resumed.encode() == stored


def test_what_is_forgotten_is_gone() -> None:
    own = MemberSecrets.generate(PARAMS, 0)
    kept = own._secret
    own.forget()
    assert kept is not None
    assert not kept.any()
    for call in (
        own.encode,
        own.lift_mask,
        lambda: own.lift_secret(1),
        lambda: build_public_share(own, SEED),
    ):
        with pytest.raises(MissingKeyError):
            call()


# --- sharing ----------------------------------------------------------------------------------


def open_secret(shares: list[KeyShare]) -> np.ndarray:
    rows = []
    for index, prime in enumerate(PARAMS.primes[: shares[0].levels]):
        points = [1 + share.place for share in shares]
        total = np.zeros(PARAMS.ring, dtype=np.uint64)
        for share, point in zip(shares, points, strict=True):
            total = add(
                total, multiply(share.residues[index], compute_lagrange(points, point, prime), prime), prime
            )
        rows.append(total)
    return np.stack(rows)


@pytest.mark.parametrize(("members", "threshold"), [(2, 2), (3, 2), (3, 3), (8, 5)])
def test_any_threshold_of_shares_gives_the_secret(members: int, threshold: int) -> None:
    made = Committee(PARAMS, members, threshold)
    for first in range(members - threshold + 1):
        assert bool((open_secret(made.shares[first : first + threshold]) == made.secret[:2]).all())
    spread = [*made.shares[: threshold - 1], made.shares[-1]]
    assert bool((open_secret(spread) == made.secret[:2]).all())
    short = open_secret(made.shares[: threshold - 1])
    assert not bool((short == made.secret[:2]).any(axis=1).all())


def test_fewer_shares_are_consistent_with_every_secret() -> None:
    """t - 1 shares and any guess of the secret lie on one polynomial of degree t - 1: for every secret there
    is exactly one choice of a missing share, so t - 1 shares say nothing."""
    made = Committee(PARAMS, 3, 3)
    held = made.shares[:2]

    for guess in (draw_ternary(PARAMS), np.zeros(PARAMS.ring, dtype=np.int8)):
        target, rows = lift(PARAMS, guess, 2), []
        for index, prime in enumerate(PARAMS.primes[:2]):
            rest = target[index]
            for share in held:
                factor = compute_lagrange((1, 2, 3), 1 + share.place, prime)
                rest = subtract(rest, multiply(share.residues[index], factor, prime), prime)
            rows.append(multiply(rest, pow(compute_lagrange((1, 2, 3), 3, prime), -1, prime), prime))
        forged = KeyShare(PARAMS, 2, 3, np.stack(rows))
        assert bool((open_secret([*held, forged]) == target).all())


def test_shares_are_uniform_and_new_at_every_dealing() -> None:
    own = MemberSecrets.generate(PARAMS, 0)
    first, second = share_out(own, 2, 3), share_out(own, 2, 3)
    for piece, other in zip(first, second, strict=True):
        assert not bool((piece.residues == other.residues).any())
        for row, prime in zip(piece.residues, PARAMS.primes, strict=False):
            assert abs(float(row.mean()) / prime - 0.5) < 0.04


def test_a_refresh_keeps_the_secret_and_ends_old_shares() -> None:
    made = Committee(PARAMS, 3, 2)
    dealt = [share_zero(PARAMS, dealer, 2, 3) for dealer in range(3)]
    renewed = [refresh(share, [pieces[share.place] for pieces in dealt], range(3)) for share in made.shares]
    for pair in ((0, 1), (1, 2), (0, 2)):
        assert bool((open_secret([renewed[place] for place in pair]) == made.secret[:2]).all())
    assert not bool((open_secret([made.shares[0], renewed[1]]) == made.secret[:2]).any())


def test_new_members_and_threshold() -> None:
    """2 of 3 hand over to 3 of 5; the rest of the old ones take no part."""
    made = Committee(PARAMS, 3, 2)
    subset = (0, 2)
    dealt = [reshare(made.shares[place], subset, 3, 5) for place in subset]
    new = [combine([pieces[place] for pieces in dealt], subset) for place in range(5)]
    assert bool((open_secret([new[0], new[2], new[4]]) == made.secret[:2]).all())
    assert bool((open_secret(new[1:4]) == made.secret[:2]).all())
    assert not bool((open_secret(new[:2]) == made.secret[:2]).any())
    with pytest.raises(ParameterError):
        reshare(made.shares[1], subset, 3, 5)


def test_pieces_that_do_not_belong_together_are_refused(committee: Committee) -> None:
    dealt = [share_out(own, 2, 3) for own in committee.secrets]
    other = share_out(committee.secrets[2], 3, 3)
    cases = [
        [dealt[0][1], dealt[1][1]],
        [dealt[0][1], dealt[1][1], dealt[1][1]],
        [dealt[0][1], dealt[1][1], dealt[2][0]],
        [dealt[0][1], dealt[1][1], other[1]],
        [dealt[0][1], dealt[1][1], share_out(committee.secrets[2], 2, 3, 1)[1]],
    ]
    for pieces in cases:
        with pytest.raises(ParameterError):
            combine(pieces, range(3))
    with pytest.raises(ParameterError, match="one dealer"):
        combine([dealt[0][1]], [0])
    with pytest.raises(ParameterError):
        refresh(committee.shares[1], [dealt[0][1]], range(3))
    for threshold, members in ((1, 3), (4, 3), (2, 65)):
        with pytest.raises(ParameterError):
            share_out(committee.secrets[0], threshold, members)


# --- known answer -----------------------------------------------------------------------------


def test_the_known_answer_is_the_same_for_all_and_opens(committee: Committee) -> None:
    known, again = (build_known_answer(*committee.keys) for _ in range(2))
    assert known.question.digest == again.question.digest
    for subset in list_test_subsets(2, 3):
        opened = committee.open(subset, known.question)[0]
        assert known.is_answered(opened)
        # The error that the noise must hide; see KnownAnswer.
        assert abs(opened - known.answer) < known.deviation >> 28


def test_wrong_keys_or_shares_do_not_answer(committee: Committee) -> None:
    other = Committee(PARAMS, 3, 2)
    mixed = build_known_answer(committee.keys[0], other.keys[1])
    assert not mixed.is_answered(committee.open((0, 1), mixed.question)[0])
    known = build_known_answer(*committee.keys)
    assert not known.is_answered(other.open((0, 1), known.question)[0])
    swapped = Committee(PARAMS, 3, 2)
    swapped.secrets = committee.secrets
    swapped.shares[2].residues[1, 5] ^= np.uint64(1)
    assert known.is_answered(swapped.open((0, 1), known.question)[0])
    assert not known.is_answered(swapped.open((1, 2), known.question)[0])
    with pytest.raises(ParameterError):
        build_known_answer(*committee.keys, levels=1)


def test_neighbouring_subsets_reach_every_share() -> None:
    assert list_test_subsets(2, 3) == ((0, 1), (1, 2))
    assert list_test_subsets(5, 8) == tuple(tuple(range(i, i + 5)) for i in range(4))
    assert list_test_subsets(3, 3) == ((0, 1, 2),)


# --- formats ----------------------------------------------------------------------------------


def list_formats(committee: Committee) -> list[tuple[bytes, Callable[[bytes], object], int]]:
    """Encoding, decoder, and offset of a residue."""
    own = committee.secrets[1]
    total = add_relin_first(PARAMS, [build_relin_first(secrets, SEED) for secrets in committee.secrets])
    fresh = MemberSecrets.decode(PARAMS, 1, own.encode()[:-32] + bytes(32))
    piece = share_out(own, 2, 3)[2]
    return [
        (build_public_share(own, SEED).encode(), lambda data: PublicShare.decode(PARAMS, 1, data), 64),
        (build_relin_first(own, SEED).encode(), lambda data: RelinFirst.decode(PARAMS, 1, data), 64),
        (build_relin_second(fresh, total).encode(), lambda data: RelinSecond.decode(PARAMS, 1, data), 64),
        (piece.encode(), lambda data: Piece.decode(PARAMS, 1, 2, 2, 2, data), 64),
        (committee.shares[1].encode(), lambda data: KeyShare.decode(PARAMS, 1, 2, 2, data), 64),
        (own.encode(), lambda data: MemberSecrets.decode(PARAMS, 1, data), 64),
    ]


def test_formats_are_exact(committee: Committee) -> None:
    for data, decode, offset in list_formats(committee):
        assert decode(data).encode() == data  # type: ignore[attr-defined]
        forged = bytearray(data)
        forged[offset : offset + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
        for wrong, reason in (
            (data[:-1], GateReason.LENGTH),
            (data + b"\0", GateReason.LENGTH),
            (b"", GateReason.LENGTH),
            (data[:7] + b"9" + data[8:], GateReason.HEADER),
            (data[:40] + b"\x02" + data[41:], GateReason.HEADER),
            (data[:63] + b"\x01" + data[64:], GateReason.HEADER),
            (bytes(forged), GateReason.RESIDUE),
        ):
            with pytest.raises(GateError) as raised:
                decode(wrong)
            assert raised.value.reason is reason


def test_zero_polynomials_are_refused(committee: Committee) -> None:
    for data, decode, _ in list_formats(committee)[:5]:
        with pytest.raises(GateError) as raised:
            decode(data[:HEADER_BYTES] + bytes(len(data) - HEADER_BYTES))
        assert raised.value.reason is GateReason.TRANSPARENT


def test_a_stored_coefficient_that_is_not_ternary_is_refused(committee: Committee) -> None:
    data = bytearray(committee.secrets[0].encode())
    for value in (2, 0x80, 0xFE):
        data[70] = value
        with pytest.raises(GateError):
            MemberSecrets.decode(PARAMS, 0, bytes(data))


def test_pair_secrets_are_of_one_pair_and_ceremony() -> None:
    secret = compute_pair_secret(b"x", b"ceremony", (2, 1))
    assert secret == compute_pair_secret(b"x", b"ceremony", (1, 2))
    others = [(b"y", b"ceremony", (1, 2)), (b"x", b"other", (1, 2)), (b"x", b"ceremony", (1, 3))]
    assert len({secret, *(compute_pair_secret(*other) for other in others)}) == 4
    for bad in ((b"x", b"c", (1, 1)), (b"", b"c", (1, 2)), (b"x", b"", (1, 2)), (b"x", b"c", (1, 64))):
        with pytest.raises(ParameterError):
            compute_pair_secret(*bad)
    pairs = PairSecrets(1, {0: secret, 2: bytes(32)})
    assert PairSecrets.decode(1, 3, pairs.encode()).encode() == pairs.encode()
    with pytest.raises(GateError):
        PairSecrets.decode(2, 3, pairs.encode())
    with pytest.raises(GateError):
        PairSecrets.decode(1, 4, pairs.encode())
    for wrong in ({1: secret}, {0: secret[:-1]}, {64: secret}):
        with pytest.raises(ParameterError):
            PairSecrets(1, wrong)


# --- secrecy in the process -------------------------------------------------------------------


def test_secrets_show_themselves_to_nobody(committee: Committee) -> None:
    hidden: list[Hidden] = [
        committee.secrets[0],
        committee.shares[0],
        committee.pairs[0],
        share_out(committee.secrets[0], 2, 3)[0],
    ]
    for item in hidden:
        name = f"{type(item).__name__}(hidden)"
        assert repr(item) == str(item) == f"{item}" == f"{item!r:}" == name
        for leak in (pickle.dumps, copy.copy, copy.deepcopy, lambda item: item.__getstate__()):
            with pytest.raises(TypeError):
                leak(item)
        assert not hasattr(item, "__dict__")
