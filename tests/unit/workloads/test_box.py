"""Bounds of one patch: exact where they can be, never exceeded, and not far above the worst patch found."""

import math
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from fusion_model.config import NetworkConfig
from fusion_model.initial import build_initial_weights
from he.errors import ParameterError
from he.spec import PolynomialSpec
from tests.unit.workloads.adversary import Network
from workloads.base import WorkloadError
from workloads.box import (
    LossBound,
    PatchLimits,
    TensorNorms,
    compute_box_gradient_bound,
    compute_box_loss_bound,
    compute_gradient_bound,
    compute_loss_bound,
    compute_replacement,
)

UNIT = 1 << 20
BITS = 20
DEFAULT = PolynomialSpec()
POINTWISE = PolynomialSpec(patch=2, kernels=(1, 1, 1, 1), second=1, gradient_weight=4)
INCEPTION = PolynomialSpec(patch=6, kernels=(1, 3, 5), second=1, inputs=3, gradient_weight=2)
WIDE = PolynomialSpec(patch=7, kernels=(3, 3), second=3, gradient_weight=1)
PLANES = PolynomialSpec(patch=4, kernels=(3, 3, 3, 3), second=1, inputs=6, gradient_weight=4)
SPECS = (DEFAULT, POINTWISE, INCEPTION, WIDE, PLANES)
NAMES = ("default", "pointwise", "inception", "wide", "planes")


def get_config(spec: PolynomialSpec) -> NetworkConfig:
    return NetworkConfig(spec.patch, spec.kernels, spec.second, spec.inputs, spec.gradient_weight)


def draw_weights(spec: PolynomialSpec, seed: int) -> tuple[int, ...]:
    """Fresh ones, and ones that training never sees."""
    if seed == 0:
        return build_initial_weights(get_config(spec), 0)
    generator = np.random.default_rng(seed)
    return tuple(int(value) for value in generator.normal(0, 0.3 * seed * UNIT, spec.parameters))


def build_limits(spec: PolynomialSpec, target: float | None) -> PatchLimits:
    declared = PatchLimits.build(spec)
    return declared if target is None else PatchLimits(Fraction(target), declared.constant)


def test_one_pixel_reaches_its_bounds() -> None:
    """F' = A^2 on one pixel: the patch A = B = 1, R = -2 has every entry at its bound."""
    spec = PolynomialSpec(patch=1, kernels=(1,), second=1, gradient_weight=0)
    weights = (UNIT, 0, 0, UNIT)
    bound = compute_gradient_bound(spec, weights)
    assert bound.get_entries() == (12, 12, 12, 6, 6)
    network = Network(get_config(spec), weights, 2.0)
    one = np.ones((1, 2, 1, 1)), np.full((1, 1, 1), -2.0)
    largest = network.compute_norms(*one)[0]
    assert math.isclose(largest, math.sqrt(504))
    assert bound.compute_norm(BITS) == math.isqrt(504 << 2 * BITS) + 1
    assert compute_replacement(bound.compute_norm(BITS)) == 2 * bound.compute_norm(BITS)
    loss = compute_loss_bound(spec, weights)
    assert loss == LossBound(Fraction(-3), Fraction(9))
    assert network.compute_losses(*one, 4.0)[0] == 9.0
    assert network.compute_losses(one[0], -one[1], 0.0)[0] == -3.0
    assert loss.compute_sensitivity(4) == 9 << 4
    assert loss.compute_replacement(4) == 12 << 4


def test_norms_by_tensor_make_up_the_joint_one() -> None:
    bound = compute_gradient_bound(DEFAULT, draw_weights(DEFAULT, 0))
    entries = bound.get_entries()
    assert len(entries) == DEFAULT.gradients
    norms, joint = bound.compute_norms(BITS), bound.compute_norm(BITS)
    exact = math.sqrt(float(sum(entry**2 for entry in entries))) * UNIT
    assert exact <= joint <= exact + 2
    assert (joint - 1) ** 2 <= sum(norm**2 for norm in norms) <= (joint + 8) ** 2


def test_no_weights_leave_the_targets_alone() -> None:
    """Without weights F' is 0, and only d feels the targets."""
    bound = compute_gradient_bound(DEFAULT, (0,) * DEFAULT.parameters)
    assert set(bound.get_entries()[:-1]) == {0}
    assert bound.bias == 28
    loss = compute_loss_bound(DEFAULT, (0,) * DEFAULT.parameters)
    assert loss == LossBound(Fraction(0), Fraction(13))


def test_an_unused_slot_weighs_nothing() -> None:
    for spec in SPECS:
        config = get_config(spec)
        black = np.zeros((1, spec.inputs, spec.patch, spec.patch)), np.zeros((1, spec.output, spec.output))
        network = Network(config, draw_weights(spec, 1), 1.0)
        assert network.compute_norms(*black)[0] == 0
        assert network.compute_losses(*black, 0.0)[0] == 0


@pytest.mark.parametrize("target", [None, 0.25])
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_no_patch_exceeds_the_bounds(spec: PolynomialSpec, seed: int, target: float | None) -> None:
    weights, limits = draw_weights(spec, seed), build_limits(spec, target)
    bound = compute_gradient_bound(spec, weights, limits)
    network = Network(get_config(spec), weights, float(limits.target))
    generator = np.random.default_rng([seed, 17])
    found = [network.draw(512, generator), network.ascend("norm", seed, starts=16, steps=30)]
    largest = max(float(network.compute_norms(*patches).max()) for patches in found)
    norm = bound.compute_norm(BITS) / UNIT
    assert largest <= norm
    loss = compute_loss_bound(spec, weights, limits)
    found += [network.ascend(kind, seed, starts=16, steps=30) for kind in ("loss", "-loss")]
    constant = float(limits.constant)
    assert max(network.compute_losses(*patches, constant).max() for patches in found) <= loss.high
    assert min(network.compute_losses(*patches, 0.0).min() for patches in found) >= loss.low


@pytest.mark.parametrize(
    ("spec", "factor"), list(zip(SPECS, (1.5, 1.3, 2.5, 1.5, 2.0), strict=True)), ids=NAMES
)
def test_some_patch_comes_close(spec: PolynomialSpec, factor: float) -> None:
    """At fresh weights and the limits that encryption has."""
    weights = draw_weights(spec, 0)
    network = Network(get_config(spec), weights, float(PatchLimits.build(spec).target))
    largest = float(network.compute_norms(*network.ascend("norm", 1)).max())
    assert compute_gradient_bound(spec, weights).compute_norm(BITS) <= factor * largest * UNIT
    loss = compute_loss_bound(spec, weights)
    constant = float(PatchLimits.build(spec).constant)
    worst = float(network.compute_losses(*network.ascend("loss", 1), constant).max())
    assert loss.compute_sensitivity(BITS) <= 1.5 * worst * UNIT


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_bounds_grow_with_weights_and_limits(spec: PolynomialSpec) -> None:
    weights = draw_weights(spec, 1)
    limits = PatchLimits.build(spec)
    bounds = [
        (
            compute_gradient_bound(spec, tuple(factor * weight for weight in weights)),
            compute_loss_bound(spec, tuple(factor * weight for weight in weights)),
        )
        for factor in (1, 2, 3)
    ]
    for (less, less_loss), (more, more_loss) in pairwise(bounds):
        assert all(a <= b for a, b in zip(less.get_entries(), more.get_entries(), strict=True))
        assert less_loss.high <= more_loss.high
        assert less_loss.low >= more_loss.low
    tight = PatchLimits(limits.target / 8, limits.constant / 8)
    gradient, loss = compute_gradient_bound(spec, weights, tight), compute_loss_bound(spec, weights, tight)
    assert gradient.compute_norm(BITS) < bounds[0][0].compute_norm(BITS)
    assert loss.compute_sensitivity(BITS) < bounds[0][1].compute_sensitivity(BITS)
    # A longer tap of v reaches further in every entry.
    longer = (*weights[:-1], 2 * weights[-1])
    assert all(
        a <= b
        for a, b in zip(
            bounds[0][0].get_entries(), compute_gradient_bound(spec, longer).get_entries(), strict=True
        )
    )


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_the_box_covers_all_weights_inside(spec: PolynomialSpec) -> None:
    generator = np.random.default_rng(3)
    box = UNIT // 2
    gradient, loss = compute_box_gradient_bound(spec, box), compute_box_loss_bound(spec, box)
    for corners in (False, True) * 10:
        values = generator.integers(-box, box + 1, spec.parameters)
        weights = [int(value) for value in (box * np.sign(values) if corners else values)]
        inside = compute_gradient_bound(spec, weights)
        assert all(a <= b for a, b in zip(inside.get_entries(), gradient.get_entries(), strict=True))
        own = compute_loss_bound(spec, weights)
        assert own.high <= loss.high
        assert own.low >= loss.low
    larger = compute_box_gradient_bound(spec, 2 * box)
    assert larger.compute_norm(BITS) > gradient.compute_norm(BITS)
    # Weights that are all at the box on a patch that is all white reach |z| of the box exactly, where the
    # planes are images.
    if spec.inputs == 2:
        full = compute_gradient_bound(spec, (box,) * spec.parameters)
        assert full.first[0] * 2 >= gradient.first[0]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_noise_shared_out_by_tensor_hides_as_much_with_less(spec: PolynomialSpec) -> None:
    bound = compute_gradient_bound(spec, draw_weights(spec, 0))
    joint = bound.compute_norm(BITS)
    deviations = bound.share_noise(Fraction(4), BITS)
    assert math.isclose(bound.compute_ratio(deviations, BITS), 1 / 16, rel_tol=1e-4)
    assert bound.compute_ratio(deviations, BITS) <= Fraction(1, 16)
    even = TensorNorms(*(4 * joint,) * 4)
    assert math.isclose(bound.compute_ratio(even, BITS), 1 / 16, rel_tol=1e-4)
    counts = (spec.first_weights, spec.channels, spec.channels * spec.second**2, 1)

    def add_variances(noise: TensorNorms) -> int:
        return sum(count * deviation**2 for count, deviation in zip(counts, noise, strict=True))

    assert add_variances(deviations) < add_variances(even)
    # No other division of as much noise is better.
    for index in range(4):
        for factor in (Fraction(9, 10), Fraction(11, 10)):
            moved = [factor * d if place == index else Fraction(d) for place, d in enumerate(deviations)]
            # Scaled back to the same ratio.
            ratio = sum((n / d) ** 2 for n, d in zip(bound.compute_norms(BITS), moved, strict=True))
            assert sum(c * d**2 for c, d in zip(counts, moved, strict=True)) * ratio * 16 >= (
                add_variances(deviations) * Fraction(999, 1000)
            )


def test_deviations_are_never_zero() -> None:
    bound = compute_gradient_bound(DEFAULT, (0,) * DEFAULT.parameters)
    assert bound.share_noise(Fraction(2), BITS)[:3] == (1, 1, 1)
    with pytest.raises(WorkloadError, match="without noise"):
        bound.compute_ratio(TensorNorms(1, 1, 1, 0), BITS)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ParameterError, match="112 weights"):
        compute_gradient_bound(DEFAULT, (1, 2))
    with pytest.raises(WorkloadError, match="box"):
        compute_box_gradient_bound(DEFAULT, 0)
    with pytest.raises(WorkloadError, match="limits"):
        PatchLimits(Fraction(-1), Fraction(1))


def test_a_bound_takes_no_time() -> None:
    weights = draw_weights(DEFAULT, 0)
    begun = time.process_time()
    for _ in range(10):
        compute_gradient_bound(DEFAULT, weights).compute_norm(BITS)
        compute_loss_bound(DEFAULT, weights).compute_sensitivity(BITS)
    assert (time.process_time() - begun) / 10 < 0.1
