"""Fitted starting weights: the derivative, the fit, and that they start far below the default weights."""

import numpy as np
import pytest

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    apply_metric,
    compute_patch_gradients,
    convert_weights,
    fold_output_bias,
)
from fusion_model.initial import build_initial_weights
from fusion_model.losses import LossTarget, build_patch_target, build_training_target
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.prepared import PairSettings
from fusion_model.pretrained import (
    _compute_normal,
    _differentiate,
    build_pretrained_weights,
    compute_mean_loss,
    fit_weights,
)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(),
        NetworkConfig(patch=9, kernels=(1, 3, 5), inputs=3, gradient_weight=4),
        NetworkConfig(patch=3, kernels=(1, 1, 3), second=1, inputs=2, gradient_weight=0),
    ],
)
def test_the_slope_is_the_gradient_of_the_circuits(config: NetworkConfig) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.uniform(0, 1, (40, config.inputs, config.patch, config.patch))
    target = build_training_target(config, inputs)
    weights = generator.normal(0, 0.3, config.parameters)
    gradients = compute_patch_gradients(config, weights, inputs, target.plane)
    expected = fold_output_bias(config, weights, gradients).mean(axis=0)
    _, slope = _compute_normal(config, weights, inputs, target.plane)
    np.testing.assert_allclose(-2 * slope, expected, atol=1e-12)


def test_the_fit_finds_the_network_that_made_the_targets() -> None:
    config = NetworkConfig(kernels=(3, 3), gradient_weight=2)
    generator = np.random.default_rng(1)
    inputs = generator.uniform(0, 1, (600, 2, 6, 6))
    truth = generator.normal(0, 0.3, config.parameters)
    # The mean loss of targets that a network reaches exactly is 0: R = M F', constant F' . M F'.
    change = _differentiate(config, truth, inputs)[0].reshape(-1, 2, 2)
    plane = apply_metric(config, change)
    exact = LossTarget(plane, (plane * change).sum(axis=(1, 2)))
    start = truth + generator.normal(0, 0.05, truth.shape)
    fitted = fit_weights(config, inputs, exact, start, rounds=30, ridge=0.0)
    units = tuple(int(value) for value in np.rint(fitted * 2**20))
    assert compute_mean_loss(config, units, inputs, exact) < 1e-9


def test_fitted_weights_start_far_below_the_default_ones() -> None:
    config, settings = NetworkConfig(gradient_weight=4), PairSettings(target="overlay")
    fitted = build_pretrained_weights(config, settings, 3)
    assert len(fitted) == config.parameters
    assert np.abs(convert_weights(fitted)).max() < 4
    patches = extract_patches(build_phantoms(9, 2), 500, 1, settings=settings, margin=config.margin)
    target = build_patch_target(config, patches, settings.levels)
    default = compute_mean_loss(config, build_initial_weights(config, 3), patches.inputs, target)
    assert compute_mean_loss(config, fitted, patches.inputs, target) < 0.02 * default


def test_settings_of_another_number_of_planes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 planes for a network of 2 inputs"):
        build_pretrained_weights(NetworkConfig(), PairSettings(planes=("saliency",)), 0)
