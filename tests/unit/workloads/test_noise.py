"""Noise: repeatable, bound, and Gaussian."""

import math
from statistics import NormalDist

import pytest

from workloads.noise import compute_keystream, draw_gaussian

SECRET = bytes(range(32))


def test_the_same_arguments_give_the_same_draws() -> None:
    assert draw_gaussian(SECRET, b"step 1", 112, 1000) == draw_gaussian(SECRET, b"step 1", 112, 1000)


def test_a_golden_keystream() -> None:
    # ChaCha20 under SHA-256(secret || binding), zero nonce and counter.
    assert compute_keystream(SECRET, b"golden", 16).hex() == GOLDEN_KEYSTREAM


def test_secret_and_binding_both_decide() -> None:
    draws = draw_gaussian(SECRET, b"step 1", 50, 10**6)
    assert draws != draw_gaussian(SECRET, b"step 2", 50, 10**6)
    assert draws != draw_gaussian(bytes(32), b"step 1", 50, 10**6)


def test_fewer_draws_are_a_prefix() -> None:
    assert draw_gaussian(SECRET, b"x", 10, 99) == draw_gaussian(SECRET, b"x", 20, 99)[:10]


def test_the_distribution_is_normal() -> None:
    std, count = 10**6, 40_000
    draws = sorted(draw_gaussian(SECRET, b"distribution", count, std))
    mean = sum(draws) / count
    variance = sum(value**2 for value in draws) / count
    assert abs(mean) < 5 * std / math.sqrt(count)
    assert abs(variance / std**2 - 1) < 5 * math.sqrt(2 / count)
    normal = NormalDist(0, std)
    distance = max(abs((index + 0.5) / count - normal.cdf(value)) for index, value in enumerate(draws))
    assert distance < 1.63 / math.sqrt(count)  # Kolmogorov-Smirnov at 1 %


def test_no_noise_is_zero() -> None:
    assert draw_gaussian(SECRET, b"x", 3, 0) == (0, 0, 0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        draw_gaussian(b"short", b"x", 1, 1)
    with pytest.raises(ValueError, match="bound"):
        draw_gaussian(SECRET, b"", 1, 1)
    with pytest.raises(ValueError, match="negative"):
        draw_gaussian(SECRET, b"x", 1, -1)


GOLDEN_KEYSTREAM = "714bc560fd1b609d6168bc9518014a50"
