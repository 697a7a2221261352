"""Fits: known formulas, stated errors, refusals."""

import numpy as np
import pytest

from workloads.base import WorkloadError
from workloads.polynomials import Floats, fit_polynomial, relu, sigmoid


def test_the_least_squares_parabola_of_relu_is_the_known_one():
    """Closed form of min over [-r, r] of the integral: 3r/32 + x/2 + 15 x^2 / (32 r)."""
    fitted = fit_polynomial(relu, 2, (-4.0, 4.0))
    assert fitted.coefficients == pytest.approx((12 / 32, 0.5, 15 / 128), abs=2e-3)
    assert fitted.error == pytest.approx(12 / 32, abs=2e-3)


@pytest.mark.parametrize("method", ["least-squares", "chebyshev"])
def test_a_polynomial_is_found_again(method):
    def cubic(x: Floats) -> Floats:
        return 1 - 2 * x + 0.5 * x**3

    fitted = fit_polynomial(cubic, 4, (-3.0, 5.0), method)
    assert fitted.coefficients == pytest.approx((1, -2, 0, 0.5, 0), abs=1e-10)
    assert fitted.error < 1e-10


def test_the_stated_error_bounds_every_point_and_falls_with_the_degree():
    errors = []
    for degree in (3, 7):
        fitted = fit_polynomial(sigmoid, degree, (-6.0, 6.0), "chebyshev")
        points = np.random.default_rng(1).uniform(-6, 6, 1000)
        distance = np.abs(np.polynomial.polynomial.polyval(points, fitted.coefficients) - sigmoid(points))
        assert distance.max() <= fitted.error * 1.001
        errors.append(fitted.error)
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("degree", "interval"), [(2, (1.0, 1.0)), (2, (0.0, float("inf"))), (-1, (0.0, 1.0)), (16, (0.0, 1.0))]
)
def test_what_can_not_be_fitted_is_refused(degree, interval):
    with pytest.raises(WorkloadError, match="expected"):
        fit_polynomial(relu, degree, interval)


def test_a_function_that_is_not_finite_is_refused():
    with pytest.raises(WorkloadError, match="finite"):
        fit_polynomial(lambda x: x * float("nan"), 2, (0.0, 1.0))
