"""Fast inference against the torch network in 64-bit floats."""

import numpy as np
import pytest
import torch

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array
from fusion_model.inference import compute_change, fuse_image
from fusion_model.model import PolynomialFusion

CONFIGS = [
    NetworkConfig(),
    NetworkConfig(kernels=(3,) * 8, inputs=3),
    NetworkConfig(patch=8, kernels=(1, 3, 5, 1), inputs=4),
    NetworkConfig(patch=8, kernels=(1, 5), second=1),
    NetworkConfig(patch=8, kernels=(1,), second=5),
    NetworkConfig(patch=4, kernels=(1,), second=1),
]


def draw(config: NetworkConfig, height: int, width: int, seed: int = 1) -> tuple[list[int], Array]:
    generator = np.random.default_rng(seed)
    weights = [int(value) for value in generator.normal(0, 0.2 * 2**20, config.parameters)]
    planes = generator.uniform(0, 1, (config.inputs, height, width))
    planes[2:] = 2 * planes[2:] - 1
    return weights, planes


@pytest.mark.parametrize("config", CONFIGS, ids=[str(config.kernels) for config in CONFIGS])
@pytest.mark.parametrize("size", [(40, 33), (7, 300), (300, 7), (256, 256)])
@pytest.mark.parametrize("with_skip", [False, True])
def test_whole_images_are_those_of_the_exact_network(
    config: NetworkConfig, size: tuple[int, int], with_skip: bool
) -> None:
    weights, planes = draw(config, *size)
    skip = np.random.default_rng(2).uniform(0, 1, size) if with_skip else None
    with torch.no_grad():
        exact = PolynomialFusion.from_integers(config, weights).fuse(
            torch.from_numpy(planes)[None], None if skip is None else torch.from_numpy(skip)[None]
        )[0]
    fused = fuse_image(config, weights, planes, skip)
    assert fused.shape == size
    assert fused.dtype == np.float64
    np.testing.assert_allclose(fused, exact.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[5]])
def test_black_stays_exactly_black_on_any_skip(config: NetworkConfig) -> None:
    weights, planes = draw(config, 30, 30)
    skip = np.random.default_rng(3).uniform(0, 1, (30, 30))
    assert not fuse_image(config, weights, 0 * planes).any()
    np.testing.assert_array_equal(fuse_image(config, weights, 0 * planes, skip), skip)


def test_only_a_network_with_a_margin_fades() -> None:
    for config, fades in ((CONFIGS[0], True), (CONFIGS[5], False)):
        weights, planes = draw(config, 30, 30)
        dark = planes / 64
        change = compute_change(config, np.array(weights) / 2**20, dark.astype(np.float32))
        m = config.margin
        added = (fuse_image(config, weights, dark) - dark.mean(axis=0))[m : 30 - m, m : 30 - m]
        assert (np.abs(added).sum() < 0.6 * np.abs(change).sum()) == fades


def test_wrong_shapes_are_named() -> None:
    config = NetworkConfig()
    weights, planes = draw(config, 20, 20)
    with pytest.raises(ValueError, match=r"expected planes of shape \(2, H, W\)"):
        fuse_image(config, weights, planes[:1])
    with pytest.raises(ValueError, match="2x20 is too small for a margin of 2"):
        fuse_image(config, weights, planes[:, :2])
    with pytest.raises(ValueError, match=r"a skip image of 20x20, got \(1, 20, 20\)"):
        fuse_image(config, weights, planes, planes[:1])
    with pytest.raises(ValueError, match="expected 112 weights"):
        fuse_image(config, weights[1:], planes)
