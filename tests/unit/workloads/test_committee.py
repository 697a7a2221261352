"""Noise bound to one question, conversion that is exact but for one rounding, implausible numbers refused."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.initial import build_initial_weights
from he.errors import ParameterError
from he.multiparty.opening import compute_sum
from he.params import get_params
from he.plan import Plan, build_plan, get_input_bounds
from he.spec import PolynomialSpec
from workloads.base import WorkloadError
from workloads.box import TensorNorms
from workloads.committee import (
    ImplausibleError,
    OpeningBinding,
    check_gradient,
    check_loss,
    compute_gradient_deviations,
    compute_gradient_limits,
    compute_loss_deviation,
    compute_loss_limits,
    compute_pass_bits,
    convert_gradient,
    convert_loss,
    draw_member_noise,
    get_gradient_factors,
)

BITS = 20
UNIT = 1 << BITS
PARAMS = get_params("ckks-16384-60x5")
SPECS = (
    PolynomialSpec(),
    PolynomialSpec(patch=2, kernels=(1, 1, 1, 1), second=1, gradient_weight=4),
    PolynomialSpec(patch=6, kernels=(1, 3, 5), second=1, inputs=3, gradient_weight=2),
)
NAMES = ("default", "pointwise", "inception")
PATCHES = 200
SECRET = bytes(range(32))
BINDING = OpeningBinding("gradient", bytes(32), (0, 2), 1, (b"\1" * 32, b"\2" * 32))


def get_config(spec: PolynomialSpec) -> NetworkConfig:
    return NetworkConfig(spec.patch, spec.kernels, spec.second, spec.inputs, spec.gradient_weight)


def get_weights(spec: PolynomialSpec) -> tuple[int, ...]:
    return build_initial_weights(get_config(spec), 0)


def draw_patches(spec: PolynomialSpec, count: int = PATCHES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    bounds = get_input_bounds(spec)
    inputs = generator.uniform(0, 1, (count, spec.inputs, spec.patch, spec.patch))
    target = generator.uniform(-bounds.target, bounds.target, (count, spec.output, spec.output))
    return inputs, target, generator.uniform(0, bounds.constant, count)


def compute_coefficients(plan: Plan, sums: np.ndarray) -> tuple[int, ...]:
    """What ciphertexts of sums over patches would hold, rounded to whole coefficients."""
    entries = zip(plan.get_gradient_forms(), get_gradient_factors(plan), sums.tolist(), strict=True)
    return tuple(
        round(Fraction(value) / factor * form.scale / plan.params.slots) for form, factor, value in entries
    )


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_opened_gradients_are_the_folded_sums(spec: PolynomialSpec) -> None:
    plan, weights, config = build_plan(PARAMS, spec), get_weights(spec), get_config(spec)
    inputs, target, _ = draw_patches(spec)
    flat = convert_weights(weights)
    sums = compute_patch_gradients(config, flat, inputs, target).sum(axis=0)
    opened = convert_gradient(plan, weights, compute_coefficients(plan, sums), BITS)
    expected = fold_output_bias(config, flat, sums) * UNIT
    # Half a unit of rounding, less than one for the coefficients that this test has rounded.
    assert np.abs(np.array(opened, dtype=np.float64) - expected).max() < 0.6


def test_the_fold_is_exact_in_integers() -> None:
    """By hand, with numbers far beyond a double: b = 1/2, v = 3 and the sum 2^70 of d."""
    spec = PolynomialSpec(patch=1, kernels=(1,), second=1, gradient_weight=0)
    plan = build_plan(PARAMS, spec)
    weights = (0, 0, UNIT // 2, 3 * UNIT)
    forms, factors = plan.get_gradient_forms(), get_gradient_factors(plan)
    assert factors == (4, 4, 4, 2, 2)
    coefficients = [0, 0, 0, 0, 2**100 + 1]
    exact = Fraction(coefficients[-1] * PARAMS.slots) / forms[-1].scale * 2 * UNIT
    opened = convert_gradient(plan, weights, coefficients, BITS)
    assert opened == (0, 0, round(-exact * 3), round(-exact / 4))
    assert convert_gradient(plan, weights, [-value for value in coefficients], BITS) == tuple(
        -value for value in opened
    )


def test_conversion_is_linear_up_to_rounding() -> None:
    """So noise alone can be turned into what it adds, as the clear twin needs it."""
    spec = SPECS[0]
    plan, weights = build_plan(PARAMS, spec), get_weights(spec)
    sums = compute_coefficients(plan, np.linspace(-900, 900, spec.gradients))
    noise = draw_member_noise(SECRET, BINDING, compute_gradient_deviations(plan, 16 * UNIT, BITS)).values
    both = convert_gradient(plan, weights, [a + b for a, b in zip(sums, noise, strict=True)], BITS)
    parts = [convert_gradient(plan, weights, part, BITS) for part in (sums, noise)]
    assert all(abs(a - b - c) <= 1 for a, b, c in zip(both, *parts, strict=True))


def test_wrong_counts_are_refused() -> None:
    plan, weights = build_plan(PARAMS, SPECS[0]), get_weights(SPECS[0])
    with pytest.raises(WorkloadError, match="113 coefficients"):
        convert_gradient(plan, weights, [0] * 112, BITS)
    with pytest.raises(ParameterError):
        convert_gradient(plan, weights[:-1], [0] * 113, BITS)
    with pytest.raises(WorkloadError, match="patch"):
        convert_loss(plan, 0, 0, BITS)
    with pytest.raises(WorkloadError, match="113 deviations"):
        compute_gradient_limits(plan, weights, 1, [1], 2)
    with pytest.raises(WorkloadError, match="at least one"):
        compute_gradient_limits(plan, weights, 0, [1] * 113, 2)
    with pytest.raises(WorkloadError, match="113 coefficients"):
        check_gradient([0], [1] * 113)


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_an_opened_loss_is_the_rounded_mean(spec: PolynomialSpec) -> None:
    plan, weights = build_plan(PARAMS, spec), get_weights(spec)
    inputs, target, constant = draw_patches(spec)
    total = compute_patch_losses(get_config(spec), convert_weights(weights), inputs, target, constant).sum()
    coefficient = round(Fraction(total * spec.output**2) * plan.loss.scale / PARAMS.slots)
    assert abs(convert_loss(plan, coefficient, PATCHES, BITS) - total / PATCHES * UNIT) <= 0.6
    assert convert_loss(plan, -coefficient, PATCHES, BITS) == 0
    # Halves go up, as with a single custodian.
    exact = compute_sum(PARAMS, 1, plan.loss.scale) / spec.output**2
    assert convert_loss(plan, math.ceil(Fraction(5, 2) / UNIT / exact), 1, BITS) == 3


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_deviations_of_coefficients_give_the_wanted_noise(spec: PolynomialSpec) -> None:
    plan = build_plan(PARAMS, spec)
    wanted = TensorNorms(3 * UNIT, 5 * UNIT, 700 * UNIT, 11 * UNIT)
    deviations = compute_gradient_deviations(plan, wanted, BITS)
    sides = (spec.first_weights, spec.channels, spec.parameters - spec.second_start, 1)
    expected = np.repeat(np.array(wanted), sides)
    for form, factor, deviation, value in zip(
        plan.get_gradient_forms(), get_gradient_factors(plan), deviations, expected.tolist(), strict=True
    ):
        one = compute_sum(PARAMS, 1, form.scale) * factor * UNIT
        assert value <= deviation * one < value + one
        assert one < Fraction(1, 50)
    assert compute_gradient_deviations(plan, TensorNorms(7, 7, 7, 7), BITS) == compute_gradient_deviations(
        plan, 7, BITS
    )
    loss = compute_loss_deviation(plan, 9 * UNIT, BITS)
    one = compute_sum(PARAMS, 1, plan.loss.scale) / spec.output**2 * UNIT
    assert 9 * UNIT <= loss * one < 9 * UNIT + one
    for call in (compute_gradient_deviations, compute_loss_deviation):
        with pytest.raises(WorkloadError, match="without noise"):
            call(plan, 0, BITS)


def test_noise_in_opened_units_has_the_wanted_deviation() -> None:
    spec = SPECS[1]
    plan, weights = build_plan(PARAMS, spec), (0,) * spec.parameters
    deviations = compute_gradient_deviations(plan, 1000, BITS)
    draws = []
    for number in range(400):
        binding = replace(BINDING, opening=number.to_bytes(32, "big"))
        noise = draw_member_noise(SECRET, binding, deviations)
        assert noise.deviations == deviations
        draws.append(convert_gradient(plan, weights, noise.values, BITS))
    flat = np.array(draws, dtype=np.float64).ravel()
    assert abs(flat.std() - 1000) < 40
    assert abs(flat.mean()) < 50


def test_noise_is_the_same_for_the_same_question_alone() -> None:
    deviations = [2**40] * 4
    noise = draw_member_noise(SECRET, BINDING, deviations).values
    assert draw_member_noise(SECRET, BINDING, deviations).values == noise
    others = [
        replace(BINDING, kind="loss"),
        replace(BINDING, opening=b"\1" + bytes(31)),
        replace(BINDING, subset=(0, 1)),
        replace(BINDING, subset=(0, 1, 2)),
        replace(BINDING, attempt=2),
        replace(BINDING, digests=BINDING.digests[::-1]),
        replace(BINDING, digests=BINDING.digests[:1]),
    ]
    found = {noise, *(draw_member_noise(SECRET, other, deviations).values for other in others)}
    found.add(draw_member_noise(SECRET[::-1], BINDING, deviations).values)
    assert len(found) == len(others) + 2
    assert len({value for row in found for value in row}) == 4 * len(found)


def test_bindings_that_could_be_read_in_two_ways_are_refused() -> None:
    for change in (
        {"kind": "test"},
        {"opening": b"short"},
        {"digests": ()},
        {"digests": (b"short",)},
        {"subset": ()},
        {"subset": (2, 0)},
        {"subset": (0, 0)},
        {"subset": (0, 64)},
        {"attempt": 0},
        {"attempt": 3},
    ):
        with pytest.raises(WorkloadError):
            replace(BINDING, **change)
    with pytest.raises(ParameterError):
        draw_member_noise(b"short", BINDING, [1])
    with pytest.raises(ParameterError):
        draw_member_noise(SECRET, BINDING, [0])


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_honest_openings_are_plausible_with_all_noise(spec: PolynomialSpec) -> None:
    plan, weights, config = build_plan(PARAMS, spec), get_weights(spec), get_config(spec)
    inputs, target, constant = draw_patches(spec)
    flat = convert_weights(weights)
    coefficients = list(
        compute_coefficients(plan, compute_patch_gradients(config, flat, inputs, target).sum(axis=0))
    )
    deviations = compute_gradient_deviations(plan, UNIT, BITS)
    loss_deviation = compute_loss_deviation(plan, UNIT, BITS)
    losses = compute_patch_losses(config, flat, inputs, target, constant)
    loss = round(Fraction(losses.sum() * spec.output**2) * plan.loss.scale / PARAMS.slots)
    for number in range(20):
        for place in (0, 2):
            binding = replace(BINDING, opening=bytes([number, place]) + bytes(30))
            noise = draw_member_noise(SECRET, binding, [*deviations, loss_deviation]).values
            if number == 0:
                coefficients = [a + b for a, b in zip(coefficients, noise[:-1], strict=True)]
                loss += noise[-1]
    check_gradient(coefficients, compute_gradient_limits(plan, weights, PATCHES, deviations, 2))
    check_loss(loss, compute_loss_limits(plan, weights, PATCHES, loss_deviation, 2))


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_wrong_share_is_implausible(spec: PolynomialSpec) -> None:
    """Uniform residues in every number; and how likely each one alone would pass."""
    plan, weights = build_plan(PARAMS, spec), get_weights(spec)
    deviations = compute_gradient_deviations(plan, 16 * UNIT, BITS)
    limits = compute_gradient_limits(plan, weights, 16384, deviations, 2)
    forms = plan.get_gradient_forms()
    generator = np.random.default_rng(1)
    for _ in range(20):
        residues = []
        for form in forms:
            modulus = PARAMS.compute_modulus(form.level)
            value = int.from_bytes(generator.bytes(32), "big") % modulus
            residues.append(value - modulus if value > modulus // 2 else value)
        with pytest.raises(ImplausibleError):
            check_gradient(residues, limits)
    bits = [compute_pass_bits(plan, form, 2 * limit + 1) for form, limit in zip(forms, limits, strict=True)]
    assert min(bits) > 8
    assert bits[-1] > 50
    low, high = compute_loss_limits(plan, weights, 16384, compute_loss_deviation(plan, UNIT, BITS), 2)
    assert compute_pass_bits(plan, plan.loss, high - low + 1) > 45
    for wrong in (low - 1, high + 1):
        with pytest.raises(ImplausibleError):
            check_loss(wrong, (low, high))
    check_loss(low, (low, high))
    if spec is SPECS[0]:
        # The figures of the module's text.
        places = (0, spec.first_weights, spec.second_start)
        assert [round(bits[place]) for place in places] == [15, 45, 11]
        assert sum(bits) > 1600


def test_one_deviation_too_far_is_implausible() -> None:
    spec = SPECS[1]
    plan, weights = build_plan(PARAMS, spec), (0,) * spec.parameters
    deviations = compute_gradient_deviations(plan, UNIT, BITS)
    limits = compute_gradient_limits(plan, weights, 1, deviations, 4)
    # Without weights no patch gives anything but to d: what is left is noise of four members.
    assert limits[0] == 24 * deviations[0]
    check_gradient(limits, limits)
    check_gradient([-limit for limit in limits], limits)
    with pytest.raises(ImplausibleError, match="entry 3"):
        check_gradient([0, 0, 0, -limits[3] - 1, *(0,) * (len(limits) - 4)], limits)
