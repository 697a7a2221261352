import math

import dp_accounting
import pytest

from workloads.base import WorkloadError
from workloads.federated_privacy import (
    build_statement,
    compute_epsilon,
    compute_privacy,
    find_noise_std,
)


def test_openings_compose_as_the_library_s_accountant_says() -> None:
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.GaussianDpEvent(12.0), 9)
    found = compute_epsilon(1.0, 12.0, 9)
    assert found == pytest.approx(accountant.get_epsilon(1e-6), rel=2e-2)


def test_the_largest_weight_and_twice_the_clip_decide() -> None:
    found = compute_privacy(
        clip=10, max_weight=3, weights=5, noise_std=120, openings=4, own_noise_std=20, rounds=5
    )
    assert found.epsilon == compute_epsilon(60, 120, 4)
    assert found.worst_epsilon == compute_epsilon(100, 120, 4)
    assert found.own_epsilon == compute_epsilon(20, 20, 5)
    assert "epsilon=" in build_statement(found)


def test_no_noise_is_no_privacy() -> None:
    found = compute_privacy(clip=10, max_weight=1, weights=2, noise_std=0, openings=4)
    assert math.isinf(found.epsilon)
    assert build_statement(found).count("unbounded (no noise)") == 3
    assert compute_epsilon(1, 0, 0) == 0


def test_noise_is_found_for_an_epsilon() -> None:
    std = find_noise_std(clip=1 << 20, max_weight=4, openings=20, epsilon=8.0)
    assert compute_epsilon(2.0 * (1 << 22), std, 20) <= 8.0 < compute_epsilon(2.0 * (1 << 22), 0.99 * std, 20)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_bad_numbers_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(WorkloadError):
        compute_epsilon(*numbers)
    with pytest.raises(WorkloadError, match="delta"):
        compute_epsilon(1, 1, 1, 0)
    with pytest.raises(WorkloadError, match="epsilon"):
        find_noise_std(clip=1, max_weight=1, openings=1, epsilon=0)
