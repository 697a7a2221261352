"""Epsilon: agrees with a second accountant, and grows with every opening."""

import math
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant

from workloads.privacy import (
    OpeningPlan,
    build_statement,
    compute_hidden_bits,
    compute_participations,
    compute_privacy_cost,
)

PLAN = OpeningPlan(
    gradient_clip=1000,
    gradient_noise=4000,
    gradient_openings=40,
    loss_clip=500,
    loss_noise=1000,
    loss_openings=9,
    batches=4,
    batches_per_step=2,
)


def test_it_agrees_with_the_renyi_accountant() -> None:
    cost = compute_privacy_cost(PLAN, delta=1e-6)
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 20)
    bound = accountant.get_epsilon(1e-6)
    # Renyi accounting is an upper bound, a few percent loose.
    assert cost.training_epsilon <= bound <= 1.1 * cost.training_epsilon
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(2.0), 9)
    bound = accountant.get_epsilon(1e-6)
    assert cost.validation_epsilon <= bound <= 1.1 * cost.validation_epsilon


@pytest.mark.parametrize(
    ("openings", "per_step", "batches", "expected"),
    [(40, 2, 4, 20), (40, 2, 3, 27), (1, 1, 9, 1), (0, 1, 1, 0)],
)
def test_participations(openings: int, per_step: int, batches: int, expected: int) -> None:
    plan = replace(PLAN, gradient_openings=openings, batches_per_step=per_step, batches=batches)
    used = [0] * batches
    for position in range(openings * per_step):
        used[position % batches] += 1
    assert compute_participations(plan) == max(used) == expected


def test_every_opening_counts() -> None:
    cost = compute_privacy_cost(PLAN)
    more_gradients = compute_privacy_cost(replace(PLAN, gradient_openings=42))
    more_losses = compute_privacy_cost(replace(PLAN, loss_openings=10))
    assert more_gradients.training_epsilon > cost.training_epsilon
    assert more_losses.validation_epsilon > cost.validation_epsilon
    assert cost.combined_epsilon > max(cost.training_epsilon, cost.validation_epsilon)


def test_no_noise_is_unbounded_and_no_opening_is_free() -> None:
    assert math.isinf(compute_privacy_cost(replace(PLAN, gradient_noise=0)).training_epsilon)
    assert compute_privacy_cost(replace(PLAN, loss_openings=0)).validation_epsilon == 0.0


def test_a_batch_twice_in_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="batches_per_step"):
        compute_privacy_cost(replace(PLAN, batches_per_step=5))


def test_the_statement_says_what_does_not_hold() -> None:
    text = build_statement(compute_privacy_cost(PLAN))
    assert "vacuous" in text
    assert "custodian" in text
    assert "unbounded" in build_statement(compute_privacy_cost(replace(PLAN, loss_noise=0)))


def test_what_hides_under_the_tolerance_is_nothing() -> None:
    # A real task: two batches with a tolerance of 5e-4 each under a noise of 16, 112 entries, 40 steps.
    assert compute_hidden_bits(1e-3, 16.0, 112, 40) < 1e-3
    assert compute_hidden_bits(1.0, 1.0, 2, 1) == pytest.approx(1.0)
    assert math.isinf(compute_hidden_bits(1e-9, 0.0, 1, 1))
