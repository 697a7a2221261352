"""A committee opens the sums of a real gradient bundle, and what that costs beside a single party's key."""

import math
from fractions import Fraction

import numpy as np
import pytest

from he.errors import GateError, GateReason, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES, build_bundle_layout, build_loss_layout
from he.gate import check_bundle
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.multiparty.known_answer import build_known_answer, list_test_subsets
from he.multiparty.masking import PairSecrets
from he.multiparty.opening import (
    Noise,
    PartialOpening,
    Question,
    add_bodies,
    combine_openings,
    compute_deviation,
    compute_distance,
    compute_lost_bits,
    compute_sum,
    open_partially,
    read_bodies,
    round_sum,
)
from he.packing import decrypt_bundle, encrypt_batch
from he.params import get_params
from he.plan import Form, build_plan
from he.spec import PolynomialSpec
from tests.he.committee import Committee, draw_noise, make_pairs, no_noise
from tests.he.conftest import World
from tests.he.reference import compute_gradients, compute_losses, compute_target

PARAMS = get_params("test-4096-60x5", allow_insecure=True)
TINY = get_params("test-2048-60x3", allow_insecure=True)
SPEC = PolynomialSpec()
NOISE = 16 * 2**20
"""A task's gradient noise, 32 clips of half a unit, in units of 2^-20."""
BITS = 20


def get_factors(spec: PolynomialSpec) -> list[Fraction]:
    """Of differentiation, as `he.packing.decrypt_bundle` puts them in."""
    return [
        Fraction(2 if index >= spec.second_start else 4, spec.output**2) for index in range(spec.gradients)
    ]


class Opened:
    """One committee's bundle and loss of a world's batch, encrypted under the collective key."""

    def __init__(self, world: World, members: int, threshold: int) -> None:
        self.world = world
        self.committee = Committee(world.params, members, threshold)
        target, constant = compute_target(world.spec, world.problem)
        batch = encrypt_batch(self.committee.public, world.spec, world.problem.inputs, target, constant)
        self.bundle = compute_gradient_bundle(self.committee.public, world.spec, world.weights, batch)
        self.loss = compute_loss_ciphertext(self.committee.public, world.spec, world.weights, batch)
        plan = build_plan(world.params, world.spec)
        self.bodies = build_bundle_layout(plan).bodies
        self.scales = [body.form.scale for body in self.bodies]
        self.question = Question(world.params, read_bodies(world.params, self.bodies, self.bundle))
        bodies = build_loss_layout(plan).bodies
        self.loss_scale = bodies[0].form.scale
        self.loss_question = Question(world.params, read_bodies(world.params, bodies, self.loss))
        self.clear = compute_gradients(world.params, world.spec, world.weights, world.problem).sum(axis=0)
        self.clear_loss = compute_losses(world.params, world.spec, world.weights, world.problem).sum()

    def convert(self, coefficients: tuple[int, ...]) -> np.ndarray:
        """Sums of gradients."""
        factors = get_factors(self.world.spec)
        rows = zip(coefficients, self.scales, factors, strict=True)
        return np.array([float(compute_sum(self.world.params, m, s) * f) for m, s, f in rows])

    @property
    def deviations(self) -> list[int]:
        rows = zip(self.scales, get_factors(self.world.spec), strict=True)
        return [compute_deviation(self.world.params, NOISE, s, BITS, f) for s, f in rows]


@pytest.fixture(scope="module")
def opened(small: World) -> Opened:
    return Opened(small, 3, 2)


def check_openings(opened: Opened, subsets: list[tuple[int, ...]]) -> tuple[float, float]:
    """Largest error of a sum over the largest sum of its kind, collective and of a single party's key."""
    committee, world = opened.committee, opened.world
    results = [committee.open(subset, opened.question) for subset in subsets]
    assert all(result == results[0] for result in results), "subsets open the same, bit for bit"
    single = decrypt_bundle(world.private, world.spec, world.bundle).sum(axis=0)
    whole = decrypt_bundle(committee.private, world.spec, opened.bundle).sum(axis=0)
    found = opened.convert(results[0])
    # What a single holder of the whole key decrypts, slot by slot, adds up to what was opened.
    assert np.allclose(found, whole, rtol=1e-9, atol=1e-6)
    largest = float(np.abs(opened.clear).max())
    errors = [float(np.abs(values - opened.clear).max()) / largest for values in (found, single)]
    loss = committee.open(subsets[0], opened.loss_question)[0]
    sum_loss = float(compute_sum(world.params, loss, opened.loss_scale)) / world.spec.output**2
    assert sum_loss == pytest.approx(opened.clear_loss, rel=1e-4)
    return errors[0], errors[1]


def test_any_two_of_three_open_the_gradient_sums(opened: Opened) -> None:
    check_bundle(PARAMS, SPEC, opened.bundle)
    collective, single = check_openings(opened, [(0, 1), (1, 2), (0, 2)])
    print(f"largest error over largest sum: collective {collective:.2e}, single party {single:.2e}")
    assert collective < 2e-5


def test_three_of_three_open_the_same_bundle(opened: Opened) -> None:
    """The same secrets, shared out with another threshold: keys and ciphertexts don't know of it."""
    strict = Committee(PARAMS, 3, 3)
    strict.secrets = opened.committee.secrets
    expected = opened.committee.open((0, 1), opened.question)
    assert strict.open((0, 1, 2), opened.question) == expected


@pytest.mark.parametrize(("members", "threshold"), [(3, 3), (8, 5)])
def test_other_committees_open_sums(members: int, threshold: int) -> None:
    """Sums of encryptions under the collective key, without the circuit, which `slow` runs in full."""
    committee = Committee(TINY, members, threshold)
    engine, form = committee.public.engine, Form(2, Fraction(2**60))
    values = np.random.default_rng(4).normal(size=TINY.slots)
    body = np.frombuffer(engine.save(engine.encrypt(values, form)), "<u8").astype(np.uint64)
    question = Question(TINY, (body.reshape(2, form.level, TINY.ring),))
    for subset in (tuple(range(threshold)), tuple(range(members - threshold, members))):
        result = committee.open(subset, question)[0]
        assert float(compute_sum(TINY, result, form.scale)) == pytest.approx(values.sum(), abs=1e-9)
    known = build_known_answer(*committee.keys)
    for subset in list_test_subsets(threshold, members):
        assert known.is_answered(committee.open(subset, known.question)[0])


def test_sums_of_batches_are_opened_as_one_number(opened: Opened) -> None:
    columns = [opened.question.bodies] * 3
    total = Question(PARAMS, add_bodies(PARAMS, columns))
    once = opened.committee.open((0, 2), opened.question)
    assert opened.committee.open((0, 2), total) == tuple(3 * value for value in once)
    with pytest.raises(ParameterError):
        add_bodies(PARAMS, [opened.question.bodies[:1], opened.question.bodies[-1:]])


def test_noise_is_the_tasks_in_its_units(opened: Opened) -> None:
    """The opened integer, in units of 2^-20 of a gradient, has the noise that was added, by t members."""
    rng = np.random.default_rng(1)
    noises = [draw_noise(rng, opened.deviations) for _ in range(2)]
    exact = opened.committee.open((0, 1), opened.question)
    found = opened.committee.open((0, 1), opened.question, noises)
    differences = []
    for index, (noised, clean) in enumerate(zip(found, exact, strict=True)):
        assert noised - clean == noises[0].values[index] + noises[1].values[index]
        scale, factor = opened.scales[index], get_factors(SPEC)[index]
        differences.append(
            round_sum(PARAMS, noised, scale, BITS, factor) - round_sum(PARAMS, clean, scale, BITS, factor)
        )
    assert float(np.std(differences)) == pytest.approx(NOISE * 2**0.5, rel=0.25)


def describe_error(opened: Opened, subset: tuple[int, ...]) -> tuple[float, float]:
    """Bits of distance of a bundle's published numbers, under the noise of one member, and bits lost by a
    search in a thousand of them; printed with each kind of entry's largest share of it."""
    exact, factors = opened.committee.open(subset, opened.question), get_factors(SPEC)
    errors = [
        float(coefficient - Fraction(float(clear)) / factor * scale / opened.world.params.slots)
        for coefficient, clear, factor, scale in zip(exact, opened.clear, factors, opened.scales, strict=True)
    ]
    ratios = np.abs(np.array(errors) / np.array(opened.deviations, dtype=np.float64))
    starts = [0, SPEC.first_weights, SPEC.first_weights + SPEC.channels, SPEC.gradients - 1]
    parts = np.log2(np.maximum.reduceat(ratios, starts)).round(1).tolist()
    kappa = -math.log2(compute_distance(errors, opened.deviations))
    lost = compute_lost_bits(errors * 1000, opened.deviations * 1000)
    print(f"kappa {kappa:.1f}; lost in 1000 bundles {lost:.2f} bits; log2 of error / noise, w b v d: {parts}")
    return kappa, lost


def test_what_the_error_adds_to_a_published_number(opened: Opened) -> None:
    """The ciphertexts' own error, which depends on the key, is far below the noise of one member."""
    kappa, lost = describe_error(opened, (0, 1))
    assert kappa > 12
    assert lost < 1


def test_distances_are_those_of_the_formulas() -> None:
    assert compute_distance([3.0, 4.0], [1.0, 1.0]) == 2.5
    assert compute_lost_bits([0.0], [1.0]) == 0.0
    square = 2**-12
    assert compute_lost_bits([square**0.5], [1.0]) == pytest.approx(
        math.sqrt(2 * 128 * square / math.log(2)), rel=0.01
    )


def test_units_convert_exactly() -> None:
    scale = Fraction(2**40)
    assert compute_sum(PARAMS, 3, scale) == Fraction(3 * PARAMS.slots, 2**40)
    assert round_sum(PARAMS, 2**29, scale, 20) == 2**20
    assert round_sum(PARAMS, -(2**29), scale, 20, Fraction(1, 4)) == -(2**18)
    assert compute_deviation(PARAMS, 2**20, scale, 20) == 2**29
    assert compute_deviation(PARAMS, 1, Fraction(2**40, 3), 20) == math.ceil(2**9 / 3)
    deviation = compute_deviation(PARAMS, 12345, Fraction(10**12), 20, Fraction(1, 9))
    assert compute_sum(PARAMS, deviation, Fraction(10**12)) / 9 * 2**20 >= 12345


# --- refusals ---------------------------------------------------------------------------------


def test_bare_sums_are_refused(opened: Opened) -> None:
    count = len(opened.question.bodies)
    for deviations in ((0,) * count, (*(1,) * (count - 1), 0), (-1,) * count, ()):
        with pytest.raises(ParameterError):
            Noise((0,) * count, deviations)
    assert repr(Noise((12345,), (7,))) == "Noise(1 draws)"


def test_questions_that_do_not_fit_are_refused(opened: Opened) -> None:
    made, question = opened.committee, opened.question
    noise = no_noise(question)
    for subset in ((0,), (0, 1, 2), (1, 0), (0, 0), (1, 2), (0, 70)):
        with pytest.raises(ParameterError):
            made.ask(0, subset, question, noise)
    with pytest.raises(ParameterError, match="binding"):
        made.ask(0, (0, 1), question, noise, b"")
    with pytest.raises(ParameterError):
        open_partially(made.shares[0], made.pairs[1], (0, 1), question, noise, b"x")
    with pytest.raises(MissingKeyError):
        open_partially(made.shares[0], PairSecrets(0, {2: bytes(32)}), (0, 1), question, noise, b"x")
    with pytest.raises(ParameterError, match="draws"):
        made.ask(0, (0, 1), question, Noise((1,), (1,)))
    level = Question(PARAMS, (np.ones((2, 1, PARAMS.ring), dtype=np.uint64),))
    for value, deviation in ((0, 2**54), (2**57, 1)):
        with pytest.raises(ParameterError, match="wrap"):
            made.ask(0, (0, 1), level, Noise((value,), (deviation,)))
    three = Question(PARAMS, (np.ones((2, 3, PARAMS.ring), dtype=np.uint64),))
    with pytest.raises(ParameterError, match="shared"):
        made.ask(0, (0, 1), three, no_noise(three))
    shapes = ((3, 1, PARAMS.ring), (2, 5, PARAMS.ring), (2, 0, PARAMS.ring), (2, 1, 8), (2, PARAMS.ring))
    for shape in shapes:
        with pytest.raises(ParameterError):
            Question(PARAMS, (np.ones(shape, dtype=np.uint64),))
    with pytest.raises(ParameterError):
        Question(PARAMS, ())


def test_parts_of_other_subsets_do_not_combine(opened: Opened) -> None:
    made, question = opened.committee, opened.question
    noise = no_noise(question)
    a, b = made.ask(0, (0, 1), question, noise), made.ask(1, (0, 1), question, noise)
    other = made.ask(1, (1, 2), question, noise)
    for parts in ([a], [a, a], [b, a], [a, other]):
        with pytest.raises(ParameterError):
            combine_openings(question, parts)


def test_partial_openings_travel_exactly(opened: Opened) -> None:
    part = opened.committee.ask(2, (0, 2), opened.question, no_noise(opened.question))
    data = part.encode(opened.question)
    assert len(data) == HEADER_BYTES + 8 * sum(opened.question.levels) == 64 + 8 * (113 + 5)
    assert PartialOpening.decode(opened.question, 2, (0, 2), data) == part
    for question, place, subset in (
        (opened.question, 0, (0, 2)),
        (opened.question, 2, (1, 2)),
        (Question(PARAMS, tuple(body + np.uint64(0) for body in opened.question.bodies[:-1])), 2, (0, 2)),
    ):
        with pytest.raises(GateError):
            PartialOpening.decode(question, place, subset, data)
    forged = data[:64] + (PARAMS.primes[0]).to_bytes(8, "little") + data[72:]
    with pytest.raises(GateError) as raised:
        PartialOpening.decode(opened.question, 2, (0, 2), forged)
    assert raised.value.reason is GateReason.RESIDUE
    assert "residues" not in repr(part)


def test_a_repeated_question_has_the_same_answer_and_others_other_masks(opened: Opened) -> None:
    made, question = opened.committee, opened.question
    noise = no_noise(question)
    first = made.ask(0, (0, 1), question, noise)
    assert made.ask(0, (0, 1), question, noise) == first
    other = made.ask(0, (0, 1), question, noise, b"step 2")
    pairs = zip(first.residues, other.residues, strict=True)
    assert all(a != b for old, new in pairs for a, b in zip(old, new, strict=True))


def test_masks_cancel_and_hide_each_part() -> None:
    pairs = make_pairs(4)
    moduli = [PARAMS.primes[:1], PARAMS.primes[:2], PARAMS.primes[:1]]
    for subset in ((0, 1, 3), (1, 2), (0, 1, 2, 3)):
        masks = [pairs[place].compute_masks(subset, b"question", moduli) for place in subset]
        for number, row in enumerate(moduli):
            for index, prime in enumerate(row):
                assert sum(mask[number][index] for mask in masks) % prime == 0
                assert all(mask[number][index] for mask in masks)
    assert pairs[1].compute_masks((1, 2), b"a", moduli) != pairs[1].compute_masks((0, 1), b"a", moduli)


# --- the real preset --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("members", "threshold", "subsets"),
    [(3, 2, [(0, 1), (1, 2), (0, 2)]), (8, 5, [(0, 1, 2, 3, 4), (1, 3, 5, 6, 7)])],
    ids=["2 of 3", "5 of 8"],
)
def test_committees_open_under_the_real_preset(
    real: World, members: int, threshold: int, subsets: list[tuple[int, ...]]
) -> None:
    opened = Opened(real, members, threshold)
    collective, single = check_openings(opened, subsets)
    print(f"largest error over largest sum: collective {collective:.2e}, single party {single:.2e}")
    assert collective < 2e-5
    kappa, lost = describe_error(opened, subsets[0])
    assert kappa > 9
    assert lost < 2
