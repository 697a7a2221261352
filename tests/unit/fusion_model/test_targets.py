"""Targets: the brighter pixel and the stronger signed difference, on the network's output window."""

import numpy as np
import pytest

from fusion_model.config import NetworkConfig
from fusion_model.gradients import apply_metric
from fusion_model.losses import build_loss_target
from fusion_model.phantom import build_phantoms
from fusion_model.targets import TARGETS, build_image_targets, build_targets, compute_strongest_difference


def test_the_stronger_difference_keeps_its_sign_and_ties_go_to_the_first() -> None:
    first = np.array([[0.0, 0.5, 0.5, 0.2]])
    second = np.array([[0.3, 0.2, 0.9, 0.5]])
    chosen = compute_strongest_difference(np.stack([first, second])[None], axis=1)
    np.testing.assert_allclose(chosen, [[[0.5, 0.7, -0.4]]])
    tie = np.array([[[[0.0, 0.5]], [[0.5, 0.0]]]])
    assert compute_strongest_difference(tie, axis=1)[0, 0, 0] == 0.5


def test_targets_cover_the_output_window() -> None:
    config = NetworkConfig()
    inputs = np.random.default_rng(0).uniform(0, 1, (3, 2, 6, 6))
    targets = build_targets(config, inputs)
    assert targets.intensity.shape == (3, 2, 2)
    assert targets.gradient_x.shape == (3, 2, 1)
    assert targets.gradient_y.shape == (3, 1, 2)
    np.testing.assert_array_equal(targets.intensity, np.maximum(inputs[:, 0], inputs[:, 1])[:, 2:4, 2:4])
    down = np.diff(inputs, axis=2)[:, :, 2:3, 2:4]
    chosen = np.where(np.abs(down[:, 1]) > np.abs(down[:, 0]), down[:, 1], down[:, 0])
    np.testing.assert_array_equal(targets.gradient_y, chosen)


@pytest.mark.parametrize("weight", [0, 1, 4])
def test_the_loss_target_is_the_published_formula(weight: int) -> None:
    config = NetworkConfig(gradient_weight=weight)
    inputs = np.random.default_rng(1).uniform(0, 1, (4, 2, 6, 6))
    targets = build_targets(config, inputs)
    # D maps the 2x2 window, in reading order, to its two row and two column differences.
    across = np.array([[-1, 1, 0, 0], [0, 0, -1, 1]], dtype=np.float64)
    down = np.array([[-1, 0, 1, 0], [0, -1, 0, 1]], dtype=np.float64)
    metric = np.eye(4) + weight * (across.T @ across + down.T @ down)
    skip = inputs[:, :, 2:4, 2:4].mean(axis=1)
    wanted = targets.gradient_x.reshape(4, 2) @ across + targets.gradient_y.reshape(4, 2) @ down
    expected = targets.intensity.reshape(4, 4) + weight * wanted - skip.reshape(4, 4) @ metric
    np.testing.assert_allclose(
        build_loss_target(config, inputs, targets).plane.reshape(4, 4), expected, atol=1e-14
    )
    np.testing.assert_allclose(
        apply_metric(config, skip).reshape(4, 4), skip.reshape(4, 4) @ metric, atol=1e-14
    )


def test_image_targets_of_the_maximum_agree_with_those_of_patches() -> None:
    config = NetworkConfig(patch=12)
    pair = np.random.default_rng(2).uniform(0, 1, (2, 12, 12))
    whole, patch = build_image_targets("maximum", pair[0], pair[1]), build_targets(config, pair[None])
    np.testing.assert_array_equal(whole.intensity[2:-2, 2:-2], patch.intensity[0])
    np.testing.assert_array_equal(whole.gradient_x[2:-2, 2:-2], patch.gradient_x[0])
    np.testing.assert_array_equal(whole.gradient_y[2:-2, 2:-2], patch.gradient_y[0])


def test_energy_takes_the_differences_of_the_image_with_structure() -> None:
    busy = np.tile(np.repeat([0.0, 0.5], 2), (24, 6))
    flat = np.full(busy.shape, 0.4)
    flat[12, 12] = 0.41
    for first, second in ((busy, flat), (flat, busy)):
        targets = build_image_targets("energy", first, second)
        np.testing.assert_array_equal(targets.gradient_x, np.diff(busy, axis=1))
        np.testing.assert_array_equal(targets.gradient_y, np.diff(busy, axis=0))
        np.testing.assert_array_equal(targets.intensity, np.maximum(busy, flat))


@pytest.mark.parametrize("name", TARGETS)
def test_image_targets_fit_the_image_and_black_is_wanted_black(name: str) -> None:
    pair = build_phantoms(1, 1, slices=1)[0]
    first, second = (np.pad(image, 24) for image in (pair.first, pair.second))
    targets = build_image_targets(name, first, second)
    assert targets.intensity.shape == first.shape
    assert targets.gradient_x.shape == (first.shape[0], first.shape[1] - 1)
    assert targets.gradient_y.shape == (first.shape[0] - 1, first.shape[1])
    for plane in targets:
        assert np.isfinite(plane).all()
        assert not plane[:8].any()


def test_shaded_lies_between_maximum_and_white() -> None:
    first, second = np.random.default_rng(3).uniform(0, 1, (2, 16, 16))
    image = build_image_targets("shaded", first, second).intensity
    high = np.maximum(first, second)
    assert (image >= high).all()
    assert (image <= 1).all()
    np.testing.assert_allclose(image, high + 0.15 * np.minimum(first, second) * (1 - high))


def test_overlay_is_linear_but_for_the_cut_at_white() -> None:
    first, second = np.random.default_rng(4).uniform(0, 1, (2, 16, 16))
    targets = build_image_targets("overlay", first, second)
    image = 1.06 * first + 0.12 * second
    np.testing.assert_allclose(targets.intensity, np.minimum(image, 1))
    np.testing.assert_allclose(targets.gradient_x, np.clip(np.diff(image, axis=1), -1, 1))
    np.testing.assert_allclose(targets.gradient_y, np.clip(np.diff(image, axis=0), -1, 1))


def test_tinted_is_a_quadratic_function_of_the_pixel() -> None:
    first, second = np.random.default_rng(5).uniform(0, 1, (2, 16, 16))
    targets = build_image_targets("tinted", first, second)
    image = 1.05 * first + 0.1 * first * second + 0.07 * second**2
    np.testing.assert_allclose(targets.intensity, np.minimum(image, 1))
    np.testing.assert_allclose(targets.gradient_x, np.clip(np.diff(image, axis=1), -1, 1))


def test_blended_is_half_the_teacher() -> None:
    pair = build_phantoms(1, 1, slices=1)[0]
    teacher = build_image_targets("teacher", pair.first, pair.second).intensity
    high, low = np.maximum(pair.first, pair.second), np.minimum(pair.first, pair.second)
    blended = build_image_targets("blended", pair.first, pair.second).intensity
    np.testing.assert_allclose(2 * blended - teacher, high + 0.25 * low * (1 - high), atol=1e-12)


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="target 'best' is unknown; known are maximum, energy"):
        build_image_targets("best", np.zeros((8, 8)), np.zeros((8, 8)))
