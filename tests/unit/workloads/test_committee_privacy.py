"""Epsilon of a committee task: that of a single custodian where both apply; every attempt counts."""

import math
from fractions import Fraction

import pytest

from he.spec import PolynomialSpec
from workloads.base import WorkloadError
from workloads.box import compute_gradient_bound
from workloads.committee_privacy import (
    CommitteeOpening,
    build_opening,
    compute_committee_cost,
    compute_multiplier,
    sum_participations,
)
from workloads.privacy import OpeningPlan, compute_epsilon, compute_privacy_cost


def test_equal_openings_cost_what_a_single_custodian_s_do() -> None:
    plan = OpeningPlan(1000, 4000, 40, 500, 1000, 9, batches=4, batches_per_step=2)
    single = compute_privacy_cost(plan)
    gradients = sum_participations([build_opening(1000, 4000)] * 40, range(4), 2)
    cost = compute_committee_cost(gradients, [build_opening(500, 1000)] * 9, members=2)
    assert math.isclose(cost.training_epsilon, single.training_epsilon)
    assert math.isclose(cost.validation_epsilon, single.validation_epsilon)
    assert math.isclose(cost.combined_epsilon, single.combined_epsilon)


def test_different_sensitivities_compose_by_squares() -> None:
    openings = [build_opening(3, 10), build_opening(4, 10)]
    assert math.isclose(sum_participations(openings, [0], 1), 0.25)
    one = compute_committee_cost(0.25, [], members=1)
    assert math.isclose(one.training_epsilon, compute_epsilon(0.25, 1e-6))
    assert one.public_epsilon == one.combined_epsilon == one.training_epsilon


def test_noise_of_members_who_tell_nothing_counts_against_the_public_alone() -> None:
    alone, four = (compute_committee_cost(1.0, [build_opening(1, 2)], members=t) for t in (1, 4))
    assert four.combined_epsilon == alone.combined_epsilon
    assert math.isclose(four.public_epsilon, compute_epsilon(1.25 / 4, 1e-6))
    assert four.public_epsilon < four.combined_epsilon


def test_a_refused_attempt_counts() -> None:
    once, twice = build_opening(1, 4), build_opening(1, 4, attempts=2)
    assert twice.cost == 2 * once.cost
    assert sum_participations([twice], [0], 1) == sum_participations([once] * 2, [0], 1)
    for attempts in (0, 3):
        with pytest.raises(WorkloadError, match="attempts"):
            build_opening(1, 4, attempts)


def test_each_batch_counts_the_openings_it_is_in() -> None:
    # Steps 0 and 2 use batches 2 and 0, step 1 uses 1 and 3.
    openings = [CommitteeOpening(1.0), CommitteeOpening(10.0), CommitteeOpening(2.0)]
    assert sum_participations(openings, [2, 0, 1, 3], 2) == 10.0
    assert sum_participations(openings, [0, 1], 2) == 13.0
    with pytest.raises(WorkloadError, match="batches_per_step"):
        sum_participations(openings, [0, 1], 3)


def test_without_noise_there_is_no_epsilon() -> None:
    assert math.isinf(build_opening(1, 0).cost)
    assert build_opening(0, 0).cost == 0
    assert math.isinf(compute_committee_cost(math.inf, [], members=2).public_epsilon)
    with pytest.raises(WorkloadError):
        build_opening(-1, 1)
    with pytest.raises(WorkloadError):
        CommitteeOpening(math.nan)
    with pytest.raises(WorkloadError):
        compute_committee_cost(1.0, [], members=0)


def test_the_multiplier_gives_the_epsilon_that_was_asked_for() -> None:
    for epsilon in (0.1, 1.0, 8.0, 1000.0):
        multiplier = compute_multiplier(epsilon, 40)
        reached = compute_epsilon(40 / multiplier**2, 1e-6)
        assert 0.999 * epsilon <= reached <= epsilon
    with pytest.raises(WorkloadError):
        compute_multiplier(0.0, 40)


def test_noise_by_tensor_in_proportion_to_the_bound_has_a_constant_cost() -> None:
    """However the weights move: so composition needs no filter."""
    spec = PolynomialSpec(patch=2, kernels=(1, 1), second=1)
    multiplier = Fraction(compute_multiplier(4.0, 2))
    square = 0.0
    for scale in (1, 3):
        bound = compute_gradient_bound(spec, [scale << 18] * spec.parameters)
        square += float(bound.compute_ratio(bound.share_noise(multiplier, 20), 20))
    assert math.isclose(compute_epsilon(square, 1e-6), 4.0, rel_tol=1e-3)
    assert compute_epsilon(square, 1e-6) <= 4.0
