"""Attacks on a committee's cryptography: what each gains without its rule, and that the rule takes it away.

Rules that others keep (commitments in every round; one counted opening of confirmed ciphertexts only) are
modelled here by what they leave possible.
"""

import hashlib
import inspect
import pkgutil
import typing
from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest

import he.multiparty
from he.context import PrivateContext, PublicContext
from he.errors import KeyReuseError
from he.keys import PublicKey, SecretKey
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
)
from he.multiparty.member import MemberSecrets
from he.multiparty.modular import (
    Residues,
    add,
    center,
    compute_constant,
    compute_lagrange,
    join_residues,
    multiply,
    negate,
    subtract,
)
from he.multiparty.noise import draw_noise as draw_function
from he.multiparty.opening import Noise, PartialOpening, Question, combine_openings
from he.multiparty.ring import Small, invert_transform, lift
from he.multiparty.sampling import draw_error, draw_ternary, expand_polynomial
from he.multiparty.sharing import KeyShare, Piece
from he.params import get_params
from he.plan import Form
from tests.he.committee import SEED, Committee, draw_noise, no_noise
from workloads.noise import draw_gaussian

PARAMS = get_params("test-2048-60x3", allow_insecure=True)
PRIMES = PARAMS.primes
N = PARAMS.ring


@pytest.fixture(scope="module")
def committee() -> Committee:
    return Committee(PARAMS, 3, 2)


@pytest.fixture(scope="module")
def question(committee: Committee) -> Question:
    """An encryption of noise-like values at the lowest level."""
    engine = committee.public.engine
    values = np.random.default_rng(1).normal(size=PARAMS.slots)
    body = np.frombuffer(engine.save(engine.encrypt(values, Form(1, Fraction(2**40)))), "<u8").astype(
        np.uint64
    )
    return Question(PARAMS, (body.reshape(2, 1, N),))


def commit(data: bytes) -> bytes:
    return hashlib.sha256(data + b"salt").digest()


# --- the ceremony -----------------------------------------------------------------------------


def force_aggregate(others: Sequence[RelinFirst], place: int, constant: int) -> RelinFirst:
    """The share with which the aggregate is h0 = 0, h1 = `constant`."""
    total = add_relin_first(PARAMS, others).residues
    limits = np.array(PRIMES, dtype=np.uint64)[:, None]
    residues = np.where(total == 0, total, limits - total)
    wanted = np.broadcast_to(np.uint64(constant), residues[:, 1].shape)
    residues[:, 1] = (residues[:, 1] + wanted) % limits
    return RelinFirst(PARAMS, place, residues)


def read_secret(first: RelinFirst, second: RelinSecond, constant: int) -> Small:
    """s of the member that sent both, taking the aggregate for (0, constant): u - s by rounding, then the
    first round without its mask is P s and an error, modulo the part's own prime."""
    prime, part = PRIMES[0], 0
    scaled = center(invert_transform(second.residues[part, 0], prime), prime)
    difference = np.rint(scaled / constant).astype(np.int64)
    small = np.clip(difference, -128, 127).astype(np.int8)
    common = expand_polynomial(PARAMS, SEED, b"relinearisation key 0", 1)[0]
    rest = add(first.residues[part, 0, 0], first.residues[part, 1, 0], prime)
    rest = add(rest, multiply(lift(PARAMS, small, 1)[0], common, prime), prime)
    # s P + e + e': errors are small beside P, so the candidates -1, 0, 1 are tried on each coefficient.
    coefficients = center(invert_transform(rest, prime), prime)
    special = PRIMES[-1] % prime
    best = np.zeros(N, dtype=np.int8)
    for value in (-1, 1):
        target = center(np.full(1, value * special % prime, dtype=np.uint64), prime)[0]
        best[np.abs(coefficients - target) < 1000] = value
    return best


def test_a_forced_first_round_reads_a_members_secret_without_commitments() -> None:
    """The last member to send knows the others' shares, sets the aggregate, and reads the whole secret of
    everyone who answers. This is the reason for commitments in this round."""
    victim = MemberSecrets.generate(PARAMS, 0)
    first = build_relin_first(victim, SEED)
    forced = force_aggregate([first], 1, 1 << 40)
    total = add_relin_first(PARAMS, [first, forced])
    assert not total.residues[:, 0].any()
    assert bool((total.residues[:, 1] == 1 << 40).all())
    read = read_secret(first, build_relin_second(victim, total), 1 << 40)
    assert bool((lift(PARAMS, read, 2) == victim.lift_secret(2)).all())


def test_a_share_committed_before_forces_nothing() -> None:
    """The forced share does not open the commitment made before; the one that does leaves a random aggregate,
    and the same reading finds nothing."""
    victim, rogue = (MemberSecrets.generate(PARAMS, place) for place in range(2))
    guess = force_aggregate([build_relin_first(MemberSecrets.generate(PARAMS, 0), SEED)], 1, 1 << 40)
    committed = commit(guess.encode())
    first = build_relin_first(victim, SEED)
    assert commit(force_aggregate([first], 1, 1 << 40).encode()) != committed
    for own in (guess, build_relin_first(rogue, SEED)):
        again = MemberSecrets.decode(PARAMS, 0, victim.encode())
        total = add_relin_first(PARAMS, [first, own])
        read = read_secret(first, build_relin_second(again, total), 1 << 40)
        secret = center(invert_transform(victim.lift_secret(1)[0], PRIMES[0]), PRIMES[0])
        # A guess of all zeros is right in a third of all places; this is no better.
        assert float((read == secret).mean()) < 0.4


def forge_key(secret: Small) -> Residues:
    """b of a key (b, a) of the rogue's own, under the common string."""
    count = len(PRIMES)
    common, own = expand_polynomial(PARAMS, SEED, b"public key", count), lift(PARAMS, secret, count)
    error = lift(PARAMS, draw_error(PARAMS), count)
    rows = [
        negate(add(multiply(common[i], own[i], prime), error[i], prime), prime)
        for i, prime in enumerate(PRIMES)
    ]
    return np.stack(rows)


def read_with(secret: Small, key: PublicKey) -> float:
    """Largest error of what this secret alone decrypts of an encryption under `key`."""
    values = np.linspace(-1, 1, PARAMS.slots)
    form = Form(PARAMS.levels, Fraction(2**30))
    lifted = lift(PARAMS, secret, len(PRIMES))
    private = PrivateContext(SecretKey(PARAMS, lifted.tobytes()), key, None)
    return float(np.abs(private.decrypt(PublicContext(PARAMS, key).encrypt(values, form)) - values).max())


def test_a_rogue_last_share_fixes_the_public_key_unless_committed() -> None:
    """With the others' shares at hand the last member makes the collective key its own; committed before
    it sees them, it can't."""
    members = [MemberSecrets.generate(PARAMS, place) for place in range(3)]
    shares = [build_public_share(own, SEED) for own in members[:2]]
    secret = draw_ternary(PARAMS)
    wanted = forge_key(secret)

    def make_rogue(seen: Sequence[PublicShare]) -> PublicShare:
        rows = []
        for index, prime in enumerate(PRIMES):
            rest = wanted[index]
            for share in seen:
                rest = subtract(rest, share.residues[index], prime)
            rows.append(rest)
        return PublicShare(PARAMS, 2, np.stack(rows))

    late = make_rogue(shares)
    assert read_with(secret, combine_public_key(PARAMS, SEED, [*shares, late])) < 1e-5
    early = make_rogue([])
    committed = commit(early.encode())
    assert commit(late.encode()) != committed
    assert read_with(secret, combine_public_key(PARAMS, SEED, [*shares, early])) > 1.0


def test_a_second_aggregate_is_not_answered(committee: Committee) -> None:
    """Two answers would be r - r' = s (h0 - h0') + (u - s) (h1 - h1') + errors, of the asker's choice."""
    total = RelinSum(PARAMS, 3, np.zeros((PARAMS.levels, 2, len(PRIMES), N), dtype=np.uint64))
    _ = committee.keys
    with pytest.raises(KeyReuseError, match="one aggregate"):
        build_relin_second(committee.secrets[0], total)


def test_no_function_takes_secrets_or_shares_of_several_members() -> None:
    """So no process that uses them as meant holds the sum of the secrets; tests that need it add them up
    themselves."""
    found = 0
    for info in pkgutil.iter_modules(he.multiparty.__path__):
        module = import_module(f"he.multiparty.{info.name}")
        content = vars(module).values()
        members = [value for value in content if getattr(value, "__module__", "") == module.__name__]
        functions = [value for value in members if inspect.isfunction(value)]
        for cls in (value for value in members if inspect.isclass(value)):
            functions += [value for value in vars(cls).values() if inspect.isfunction(value)]
        for function in functions:
            hints = typing.get_type_hints(function)
            hints.pop("return", None)
            taken = [hint for hint in hints.values() if mentions(hint, (MemberSecrets, KeyShare))]
            found += len(taken)
            assert len(taken) <= 1, function
            # Alone, or in a union, but never in a collection.
            for hint in taken:
                assert hint in (MemberSecrets, KeyShare, Piece | KeyShare), function
    assert found >= 5


def mentions(hint: object, classes: tuple[type, ...]) -> bool:
    return hint in classes or any(mentions(part, classes) for part in typing.get_args(hint))


# --- openings ---------------------------------------------------------------------------------


def strip_mask(made: Committee, part: PartialOpening, asked: Question, binding: bytes = b"step 1") -> int:
    """What the member would have sent without masks, of a question of one ciphertext of one prime."""
    masks = made.pairs[part.place].compute_masks(part.subset, binding + asked.digest, asked.moduli)
    return (part.residues[0][0] - masks[0][0]) % PRIMES[0]


def compute_point(made: Committee, place: int, asked: Question) -> int:
    """N^-1 <c1, S_j>: what the holder of a share computes of a ciphertext."""
    product = multiply(asked.bodies[0][1, 0], made.shares[place].residues[0], PRIMES[0])
    return compute_constant(product, PRIMES[0])


def to_signed(value: int) -> int:
    return join_residues([value % PRIMES[0]], PRIMES[:1])


def test_a_chosen_ciphertext_reads_a_coefficient_of_the_secret(committee: Committee) -> None:
    """c1 = 2^57 asks for coefficient 0 of the secret itself, through any noise that a task can bear. No
    arithmetic here can tell it from a gradient: members open confirmed ciphertexts only."""
    body = np.zeros((2, 1, N), dtype=np.uint64)
    body[1] = 1 << 57
    asked = Question(PARAMS, (body,))
    rng = np.random.default_rng(3)
    noises = [draw_noise(rng, [2**50]) for _ in range(2)]
    opened = committee.open((0, 2), asked, noises)[0]
    secret = center(invert_transform(committee.secret[0], PRIMES[0]), PRIMES[0])
    assert round(opened / 2**57) == secret[0]


def test_a_part_alone_says_nothing(committee: Committee, question: Question) -> None:
    """Even of a ciphertext chosen to read the member's own share: its mask is known to the other member of
    the subset alone."""
    body = np.zeros((2, 1, N), dtype=np.uint64)
    body[1] = 1
    asked = Question(PARAMS, (body,))
    part = committee.ask(1, (1, 2), asked, no_noise(asked))
    share = invert_transform(committee.shares[1].residues[0], PRIMES[0])
    factor = compute_lagrange((2, 3), 2, PRIMES[0])
    coefficient = factor * int(share[0]) % PRIMES[0]
    assert part.residues[0][0] != coefficient
    assert strip_mask(committee, part, asked) == coefficient


def test_openings_of_one_ciphertext_average_fresh_noise_and_not_the_functions(
    committee: Committee, question: Question
) -> None:
    """64 answers with fresh noise are worth an eighth of it; a function of the question has one answer."""
    deviation = 2**30
    exact = committee.open((0, 1), question)[0]
    fresh = []
    for seed in range(64):
        noise = draw_noise(np.random.default_rng(seed), [deviation])
        fresh.append(committee.open((0, 1), question, [noise, no_noise(question)])[0])
    assert abs(np.mean(fresh) - exact) < 4 * deviation / 8
    assert float(np.std(fresh)) == pytest.approx(deviation, rel=0.35)
    bound = [
        committee.open((0, 1), question, [draw_bound(committee, question, (0, 1), 0), no_noise(question)])[0]
        for _ in range(4)
    ]
    assert len(set(bound)) == 1
    # Not by chance: a draw so near to zero comes once in a million.
    assert abs(bound[0] - exact) > deviation / 10**6


def draw_bound(made: Committee, asked: Question, subset: tuple[int, ...], place: int) -> Noise:
    """As a member does: a function of its secret and the question, subset and attempt included."""
    binding = b"step 1, attempt 1" + bytes(subset) + asked.digest
    return draw_function(bytes([place]) * 32, binding, [2**30])


def test_noise_in_doubles_would_leave_low_bits_bare() -> None:
    """At the deviations of coefficients at two primes: m + noise modulo 64 is then m modulo 64, through any
    noise. Drawn in integers every bit is noise."""
    deviation = 2**61
    coarse = draw_gaussian(bytes(32), b"question", 64, deviation)
    exact = draw_function(bytes(32), b"question", [deviation] * 64).values
    bare = [sum(value % 64 == 0 for value in values) for values in (coarse, exact)]
    assert bare[0] > 50
    assert bare[1] < 10


def test_noise_of_two_subsets_does_not_cancel(committee: Committee, question: Question) -> None:
    """Were noise bound to the ciphertext alone, the member of both subsets would give its exact value away by
    two answers, unmasked; bound to the subset as well it doesn't."""
    value, prime = compute_point(committee, 1, question), PRIMES[0]
    factors = [compute_lagrange(points, 2, prime) for points in ((1, 2), (2, 3))]
    inverse = pow(factors[0] - factors[1], -1, prime)

    def cancel(noises: Sequence[Noise]) -> int:
        parts = [
            committee.ask(1, subset, question, noise)
            for subset, noise in zip(((0, 1), (1, 2)), noises, strict=True)
        ]
        bare = [strip_mask(committee, part, question) for part in parts]
        return (bare[0] - bare[1]) * inverse % prime

    same = draw_bound(committee, question, (0, 1), 1)
    assert cancel([same, same]) == value
    assert cancel([same, draw_bound(committee, question, (1, 2), 1)]) != value


def test_noise_before_the_factor_is_not_the_tasks(committee: Committee, question: Question) -> None:
    """Of subset (0, 2) the factors are 3/2 and -1/2: noise multiplied by them is none of any size, and of
    (1, 2), 3 and -2, it is not the noise that the statement names."""
    prime, deviation = PRIMES[0], 2**30
    rng = np.random.default_rng(5)
    draws = [draw_noise(rng, [deviation]).values[0] | 1 for _ in range(200)]
    half = compute_lagrange((1, 3), 3, prime)
    assert min(abs(to_signed(half * draw)) for draw in draws) > 2**50
    triple = compute_lagrange((2, 3), 2, prime)
    assert float(np.std([to_signed(triple * draw) for draw in draws])) > 2.5 * deviation
    # After it, what the sum has of this member's is the draw, whatever the subset.
    exact = committee.open((0, 2), question)[0]
    for subset in ((0, 2), (1, 2)):
        noise = Noise((draws[0],), (deviation,))
        assert committee.open(subset, question, [no_noise(question), noise])[0] == exact + draws[0]


def test_unmasked_parts_would_be_worth_more_than_their_sum(committee: Committee, question: Question) -> None:
    """The holder of share 0 is outside the subset (1, 2) and sees both parts. Each share is an affine
    function of the message m that it can compute, so parts are -3 m + noise and 4 m + noise: m under a fifth
    of the noise of one member. With masks it has the sum alone: m and the noise of both."""
    prime, deviation = PRIMES[0], 2**30
    rng, known = np.random.default_rng(7), compute_point(committee, 0, question)
    exact = committee.open((1, 2), question)[0]
    public = compute_constant(question.bodies[0][0, 0], prime)
    unmasked, masked = [], []
    for index in range(60):
        parts = [
            committee.ask(place, (1, 2), question, draw_noise(rng, [deviation]), b"step %d" % index)
            for place in (1, 2)
        ]
        bare = [strip_mask(committee, part, question, b"step %d" % index) for part in parts]
        # f(2) = 2 f(1) - f(0), f(3) = 3 f(1) - 2 f(0), and f(0) = m - public.
        values = [bare[0] - 3 * (2 * known + public), bare[1] + 2 * (3 * known + 2 * public)]
        low, high = (to_signed(value) for value in values)
        unmasked.append((4 * high - 3 * low) / 25 - exact)
        masked.append(combine_openings(question, parts)[0] - exact)
    assert float(np.std(unmasked)) == pytest.approx(deviation / 5, rel=0.3)
    assert float(np.std(masked)) == pytest.approx(deviation * 2**0.5, rel=0.3)


def test_unmasked_parts_would_give_low_bits_away_through_any_noise(
    committee: Committee, question: Question
) -> None:
    """Of subset (0, 2), seen by the holder of share 1: 4 times part 0 is 3 m + 4 noise, so m modulo 4."""
    prime, known = PRIMES[0], compute_point(committee, 1, question)
    exact = committee.open((0, 2), question)[0]
    public = compute_constant(question.bodies[0][0, 0], prime)
    for seed in range(8):
        noise = draw_noise(np.random.default_rng(seed), [2**45])
        part = committee.ask(0, (0, 2), question, noise)
        # f(1) = (f(0) + f(2)) / 2, with f(0) = m - public; the factor is 3/2.
        left = to_signed(4 * strip_mask(committee, part, question) - 3 * (known - public))
        assert left % 4 == 3 * exact % 4
        # Masked, what is left is uniform; of eight, all right by chance once in 65536.
    masked = [
        to_signed(
            4 * committee.ask(0, (0, 2), question, no_noise(question), b"step %d" % seed).residues[0][0]
            - 3 * (known - public)
        )
        for seed in range(8)
    ]
    assert any(value % 4 != 3 * exact % 4 for value in masked)


def test_the_last_to_answer_learns_the_noised_sum_and_no_more(
    committee: Committee, question: Question
) -> None:
    """It has its own share and mask, adds nothing, and sees the other part first: what it can take off leaves
    the message with the whole noise of the other."""
    exact = committee.open((0, 1), question)[0]
    noise = draw_noise(np.random.default_rng(9), [2**30])
    part = committee.ask(0, (0, 1), question, noise)
    own = committee.ask(1, (0, 1), question, no_noise(question))
    assert combine_openings(question, [part, own])[0] - exact == noise.values[0]
    # The part is uniform to all others, and to it the noised message and what it knew before.
    prime = PRIMES[0]
    rest = part.residues[0][0] + own.residues[0][0] + compute_constant(question.bodies[0][0, 0], prime)
    assert to_signed(rest) == exact + noise.values[0]


def test_two_subsets_for_one_attempt_are_two_openings(committee: Committee, question: Question) -> None:
    """The holder of share 0 tells member 1 that the subset is (0, 1), and member 2 that it is (0, 2): it has
    the message under two noises. Nothing here can see that; members take the subset from what all see."""
    exact = committee.open((0, 1), question)[0]
    rng = np.random.default_rng(11)
    for other in (1, 2):
        noise = draw_noise(rng, [2**30])
        own = committee.ask(0, (0, other), question, no_noise(question))
        part = committee.ask(other, (0, other), question, noise)
        assert combine_openings(question, [own, part])[0] - exact == noise.values[0]


def test_a_wrong_share_shows_and_another_subset_opens(committee: Committee, question: Question) -> None:
    """A shift of one residue of a share makes the result a random residue: out of all bounds."""
    exact = committee.open((0, 1), question)[0]
    wrong = Committee(PARAMS, 3, 2)
    wrong.secrets, wrong.pairs = committee.secrets, committee.pairs
    wrong.shares = [KeyShare(PARAMS, share.place, 2, share.residues.copy()) for share in committee.shares]
    wrong.shares[2].residues[0, 7] ^= np.uint64(1)
    assert abs(wrong.open((0, 2), question)[0] - exact) > 2**40
    assert wrong.open((0, 1), question)[0] == exact


def test_parts_for_different_questions_stay_masked(committee: Committee, question: Question) -> None:
    """A lead that tells two members different steps or ciphertexts gets residues that don't combine."""
    exact = committee.open((0, 1), question)[0]
    noise = no_noise(question)
    other = Question(PARAMS, (add(question.bodies[0], question.bodies[0], PRIMES[0]),))
    a = committee.ask(0, (0, 1), question, noise)
    for b in (
        committee.ask(1, (0, 1), question, noise, b"step 2"),
        committee.ask(1, (0, 1), other, noise),
    ):
        assert abs(combine_openings(question, [a, b])[0] - exact) > 2**40
