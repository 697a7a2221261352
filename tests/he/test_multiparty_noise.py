"""Noise of a member: exactly the discrete Gaussian, bound to its question, in every bit."""

import math
from collections import Counter

import numpy as np
import pytest

from he.errors import ParameterError
from he.multiparty.noise import draw_noise

SECRET = bytes(range(32))


@pytest.mark.parametrize("deviation", [1, 3])
def test_draws_have_the_probabilities_of_the_definition(deviation: int) -> None:
    """Chi squared against exp(-x^2 / 2 deviation^2), normalised."""
    count = 20000
    found = Counter(draw_noise(SECRET, b"counts", [deviation] * count).values)
    weights = {x: math.exp(-(x**2) / (2 * deviation**2)) for x in range(-12 * deviation, 12 * deviation + 1)}
    total, cells = sum(weights.values()), 0
    statistic = 0.0
    for value, weight in weights.items():
        expected = count * weight / total
        if expected >= 10:
            statistic += (found[value] - expected) ** 2 / expected
            cells += 1
    assert statistic < cells + 5 * (2 * cells) ** 0.5


@pytest.mark.parametrize("bits", [10, 31, 61, 86, 120])
def test_large_deviations_are_gaussian_down_to_the_last_bit(bits: int) -> None:
    """Noise in doubles would end in zeros from 2^53 on."""
    values = draw_noise(SECRET, b"large", [1 << bits] * 4000).values
    scaled = np.array([value / (1 << bits) for value in values])
    assert abs(float(scaled.mean())) < 5 / 4000**0.5
    assert float(scaled.std()) == pytest.approx(1, abs=0.06)
    assert float((np.abs(scaled) < 1).mean()) == pytest.approx(0.6827, abs=0.04)
    assert float((np.abs(scaled) > 2).mean()) == pytest.approx(0.0455, abs=0.02)
    low = Counter(value % 16 for value in values)
    assert all(150 < low[bit] < 350 for bit in range(16))


def test_noise_is_a_function_of_secret_and_binding() -> None:
    deviations = [2**40, 2**70, 5]
    noise = draw_noise(SECRET, b"question", deviations)
    assert noise == draw_noise(SECRET, b"question", deviations)
    assert noise.deviations == tuple(deviations)
    others = [
        draw_noise(SECRET, b"question 2", deviations),
        draw_noise(bytes(32), b"question", deviations),
    ]
    assert all(other.values[:2] != noise.values[:2] for other in others)


def test_draws_are_pinned() -> None:
    """A member that is restarted with another version still gives one answer to one question."""
    drawn = draw_noise(SECRET, b"pinned", [2**31, 2**61]).values
    assert drawn == (-1336527661, -1696581686415781745)


def test_noise_that_is_none_is_refused() -> None:
    for secret, binding, deviations in (
        (SECRET[1:], b"x", [1]),
        (SECRET, b"", [1]),
        (SECRET, b"x", [0]),
        (SECRET, b"x", [1, -1]),
    ):
        with pytest.raises(ParameterError):
            draw_noise(secret, binding, deviations)
