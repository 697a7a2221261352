"""Error statistics and tolerances."""

import math

import numpy as np
import pytest

from he.errors import ParameterError
from he.precision import Tolerance, compute_precision


def test_statistics_of_known_errors() -> None:
    expected = np.array([0.0, 8.0, -4.0])
    precision = compute_precision(expected + np.array([0.0, 0.5, -0.25]), expected)
    assert precision.max_error == 0.5
    assert precision.largest == 8.0
    assert precision.bits == 4.0
    assert math.isclose(precision.rms_error, math.sqrt((0.25 + 0.0625) / 3))
    assert compute_precision(expected, expected).bits == math.inf


def test_shapes_must_agree() -> None:
    for measured, expected in ((np.zeros(2), np.zeros(3)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(ParameterError):
            compute_precision(measured, expected)


def test_tolerance_is_absolute_plus_relative() -> None:
    tolerance = Tolerance(absolute=0.1, relative=0.01)
    expected = np.array([10.0, 0.0])
    assert tolerance.accepts(expected + 0.19, expected)
    assert not tolerance.accepts(expected + 0.21, expected)
    assert not tolerance.accepts(np.array([np.nan, 0.0]), expected)
