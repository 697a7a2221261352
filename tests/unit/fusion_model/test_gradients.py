"""The closed form against automatic differentiation of the torch twin, and against the loss's definition."""

import time

import numpy as np
import pytest
import torch

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    Array,
    compute_first_places,
    compute_output_bias,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
    split_weights,
)
from fusion_model.initial import build_initial_weights
from fusion_model.losses import build_loss_target, compute_full_losses
from fusion_model.model import PolynomialFusion
from fusion_model.targets import FusionTargets, build_targets

CONFIGS = [
    NetworkConfig(),
    NetworkConfig(gradient_weight=4),
    NetworkConfig(patch=8, kernels=(3, 3, 3), gradient_weight=2),
    NetworkConfig(patch=7, kernels=(3,) * 5, inputs=3, gradient_weight=0),
    NetworkConfig(patch=9, kernels=(1, 3, 5, 1), inputs=4, gradient_weight=16),
    NetworkConfig(patch=6, kernels=(5, 1), second=1),
]


def draw(config: NetworkConfig, count: int) -> tuple[Array, Array]:
    """Random weights of every sign and random patches."""
    generator = np.random.default_rng(3)
    weights = generator.normal(0, 0.5, config.parameters)
    inputs = generator.uniform(0, 1, (count, config.inputs, config.patch, config.patch))
    inputs[:, 2:] = 2 * inputs[:, 2:] - 1
    return weights, inputs


def compute_torch_losses(fused: torch.Tensor, targets: FusionTargets, config: NetworkConfig) -> torch.Tensor:
    intensity, across, down = (torch.from_numpy(plane) for plane in targets)
    total = ((fused - intensity) ** 2).sum(dim=(1, 2))
    gradients = ((fused.diff(dim=2) - across) ** 2).sum(dim=(1, 2)) + ((fused.diff(dim=1) - down) ** 2).sum(
        dim=(1, 2)
    )
    return (total + config.gradient_weight * gradients) / config.output**2


@pytest.mark.parametrize("config", CONFIGS)
def test_tied_gradients_equal_automatic_differentiation(config: NetworkConfig) -> None:
    weights, inputs = draw(config, 7)
    targets = build_targets(config, inputs)
    plane, _ = build_loss_target(config, inputs, targets)
    folded = fold_output_bias(config, weights, compute_patch_gradients(config, weights, inputs, plane))
    network = PolynomialFusion(config, weights)
    losses = compute_torch_losses(network(torch.from_numpy(inputs)), targets, config)
    for patch in range(len(inputs)):
        grads = torch.autograd.grad(losses[patch], list(network.parameters()), retain_graph=True)
        expected = np.concatenate([grad.numpy().ravel() for grad in grads])
        np.testing.assert_allclose(folded[patch], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_untied_gradients_treat_the_output_bias_as_free(config: NetworkConfig) -> None:
    weights, inputs = draw(config, 5)
    targets = build_targets(config, inputs)
    plane, _ = build_loss_target(config, inputs, targets)
    gradients = compute_patch_gradients(config, weights, inputs, plane)
    assert gradients.shape == (5, config.parameters + 1)
    tensors = [torch.from_numpy(layer.copy()).requires_grad_() for layer in split_weights(config, weights)]
    bias = torch.tensor(compute_output_bias(config, weights), dtype=torch.float64, requires_grad=True)
    x = torch.from_numpy(inputs)
    m = config.margin
    hidden = torch.nn.functional.conv2d(x, tensors[0], tensors[1]) ** 2
    fused = (
        torch.nn.functional.conv2d(hidden, tensors[2][None])[:, 0] + bias + x[:, :2, m:-m, m:-m].mean(dim=1)
    )
    losses = compute_torch_losses(fused, targets, config)
    for patch in range(len(inputs)):
        grads = torch.autograd.grad(losses[patch], [*tensors, bias], retain_graph=True)
        first, *rest = (grad.numpy().ravel() for grad in grads)
        expected = np.concatenate([first[compute_first_places(config)], *rest])
        np.testing.assert_allclose(gradients[patch], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_losses_equal_the_definition(config: NetworkConfig) -> None:
    weights, inputs = draw(config, 600)
    targets = build_targets(config, inputs)
    plane, constant = build_loss_target(config, inputs, targets)
    with torch.no_grad():
        fused = PolynomialFusion(config, weights)(torch.from_numpy(inputs))
    expected = compute_full_losses(config, fused.numpy(), targets)
    np.testing.assert_allclose(expected, compute_torch_losses(fused, targets, config).numpy(), rtol=1e-12)
    losses = compute_patch_losses(config, weights, inputs, plane, constant)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-11)


def test_the_constant_is_the_plain_means_loss_times_the_area() -> None:
    config = NetworkConfig()
    _, inputs = draw(config, 50)
    targets = build_targets(config, inputs)
    plane, constant = build_loss_target(config, inputs, targets)
    still = compute_patch_losses(config, np.zeros(config.parameters), inputs, plane, constant)
    np.testing.assert_allclose(still, constant / config.output**2)
    mean = inputs[:, :, 2:-2, 2:-2].mean(axis=1)
    np.testing.assert_allclose(still, compute_full_losses(config, mean, targets))


def test_the_result_does_not_depend_on_how_many_patches_are_given() -> None:
    config = NetworkConfig()
    weights, inputs = draw(config, 1300)
    plane, constant = build_loss_target(config, inputs, build_targets(config, inputs))
    whole = compute_patch_gradients(config, weights, inputs, plane)
    part = compute_patch_gradients(config, weights, inputs[700:710], plane[700:710])
    np.testing.assert_allclose(whole[700:710], part, rtol=0, atol=1e-12)
    assert compute_patch_losses(config, weights, inputs[:0], plane[:0], constant[:0]).shape == (0,)


def test_wrong_shapes_are_named() -> None:
    config = NetworkConfig()
    weights, inputs = draw(config, 3)
    plane = np.zeros((3, 2, 2))
    with pytest.raises(ValueError, match="expected 112 weights"):
        compute_patch_gradients(config, weights[:-1], inputs, plane)
    with pytest.raises(ValueError, match=r"expected inputs of shape \(n, 2, 6, 6\)"):
        compute_patch_gradients(config, weights, inputs[:, :1], plane)
    with pytest.raises(ValueError, match=r"loss target of shape \(3, 2, 2\)"):
        compute_patch_losses(config, weights, inputs, plane[:2], np.zeros(3))
    with pytest.raises(ValueError, match="expected 113 gradient entries"):
        fold_output_bias(config, weights, np.zeros((3, 112)))


def test_a_full_batch_takes_a_fraction_of_a_second() -> None:
    config = NetworkConfig()
    _, inputs = draw(config, 8192)
    plane, constant = build_loss_target(config, inputs, build_targets(config, inputs))
    weights = convert_weights(build_initial_weights(config, 0))
    spent: list[float] = []
    for _ in range(3):
        started = time.process_time()
        compute_patch_gradients(config, weights, inputs, plane)
        compute_patch_losses(config, weights, inputs, plane, constant)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.3
