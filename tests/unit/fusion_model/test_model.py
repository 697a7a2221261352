"""The torch twin: black, borders, integer weights; the configuration's counts and refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_model.config import NetworkConfig
from fusion_model.fuse import build_figure, fuse_pair, fuse_planes, recolour, save_fusion_figure
from fusion_model.gradients import compute_output_bias, convert_weights, split_weights
from fusion_model.inference import fuse_image
from fusion_model.initial import build_initial_weights
from fusion_model.model import PolynomialFusion
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms


def test_the_default_network_has_112_parameters() -> None:
    config = NetworkConfig()
    assert (config.parameters, config.gradient_entries) == (112, 113)
    assert (config.hidden, config.output, config.margin) == (4, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": (3, 2)}, "odd"),
        ({"kernels": (3, -1)}, "positive"),
        ({"kernels": ()}, "empty"),
        ({"second": 4}, "odd"),
        ({"inputs": 1}, "at least 2 inputs"),
        ({"patch": 4}, "no output"),
        ({"gradient_weight": -1}, "negative"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**change)


@pytest.mark.parametrize("seed", range(5))
def test_black_stays_exactly_black_whatever_the_weights(seed: int) -> None:
    config = NetworkConfig()
    weights = np.random.default_rng(seed).normal(0, 2, config.parameters)
    with torch.no_grad():
        fused = PolynomialFusion(config, weights).fuse(torch.zeros(1, 2, 20, 20, dtype=torch.float64))
    assert fused.abs().max().item() == 0.0


def test_forward_is_the_tied_formula() -> None:
    config = NetworkConfig()
    generator = np.random.default_rng(5)
    weights = generator.normal(0, 0.5, config.parameters)
    inputs = torch.from_numpy(generator.uniform(0, 1, (2, 2, 9, 11)))
    network = PolynomialFusion(config, weights)
    with torch.no_grad():
        hidden = torch.nn.functional.conv2d(inputs, network.get_first(), network.bias) ** 2
        change = torch.nn.functional.conv2d(hidden, network.second[None])[:, 0]
        expected = inputs[:, :, 2:-2, 2:-2].mean(dim=1) + change + compute_output_bias(config, weights)
        torch.testing.assert_close(network(inputs), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(network.get_flat(), weights)


def test_whole_images_are_patches_inside_and_reflected_at_the_border() -> None:
    config = NetworkConfig()
    weights = build_initial_weights(config, 1)
    planes = np.random.default_rng(2).uniform(0, 1, (2, 10, 12))
    network = PolynomialFusion.from_integers(config, weights)
    with torch.no_grad():
        whole = network.fuse(torch.from_numpy(planes)[None])[0].numpy()
        patch = network(torch.from_numpy(planes[None, :, 3:9, 4:10].copy()))[0].numpy()
        padded = np.pad(planes, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        border = network(torch.from_numpy(padded)[None])[0].numpy()
    np.testing.assert_allclose(whole[5:7, 6:8], patch, atol=1e-13)
    np.testing.assert_allclose(whole, border, atol=1e-13)


def test_initial_weights_are_integers_near_the_plain_mean_and_follow_the_seed() -> None:
    config = NetworkConfig()
    weights = build_initial_weights(config, 7)
    assert len(weights) == 112
    assert all(type(weight) is int and abs(weight) < 2 << 20 for weight in weights)
    assert weights == build_initial_weights(config, 7)
    assert weights != build_initial_weights(config, 8)
    pair = build_phantoms(3, 1, slices=1, size=64)[0]
    mean = 255 * (pair.first + pair.second) / 2
    assert np.abs(fuse_planes(config, weights, pair.planes) - mean).mean() < 10
    assert convert_weights((1 << 20, -(1 << 19))).tolist() == [1.0, -0.5]


def test_initial_weights_of_equal_kernels_did_not_change_with_branches() -> None:
    digests = [
        hashlib.sha256(repr(build_initial_weights(NetworkConfig(), seed)).encode()).hexdigest()[:16]
        for seed in (0, 7)
    ]
    assert digests == ["f6b29032d9ea46c7", "f4ce3839e991174e"]


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(patch=8, kernels=(1, 1, 3, 3, 3, 3, 5, 5), inputs=3),
        NetworkConfig(kernels=(3,) * 8, inputs=16),
        NetworkConfig(patch=5, kernels=(1, 5), second=1),
    ],
)
def test_initial_weights_of_any_kernels_begin_near_the_plain_mean(config: NetworkConfig) -> None:
    weights = build_initial_weights(config, 3)
    assert len(weights) == config.parameters
    pair = build_phantoms(3, 1, slices=1, size=64)[0]
    planes = np.concatenate([pair.planes, np.zeros((config.inputs - 2, 64, 64))])
    fused = fuse_image(config, weights, planes)
    assert np.abs(fused - planes[:2].mean(axis=0)).mean() < 0.06


def test_only_a_channels_own_kernel_is_trained() -> None:
    config = NetworkConfig(patch=8, kernels=(1, 3, 5), inputs=3)
    weights = np.random.default_rng(1).normal(0, 0.3, config.parameters)
    network = PolynomialFusion(config, weights)
    assert sum(parameter.numel() for parameter in network.parameters()) == config.parameters
    network(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad
        first = network.get_first()
    assert not torch.equal(first, torch.from_numpy(split_weights(config, weights).first))
    assert not first[0, :, [0, 1, 3, 4]].any()
    assert not first[1, :, [0, 4]].any()
    assert bool((first[2] != 0).all())


def test_fused_images_are_clipped_bytes() -> None:
    config = NetworkConfig()
    weights = [0] * 112
    planes = np.stack([np.full((8, 8), 1.5), np.full((8, 8), 1.0)])
    fused = fuse_planes(config, weights, planes)
    assert fused.dtype == np.uint8
    assert (fused == 255).all()
    assert (fuse_planes(config, weights, -planes) == 0).all()
    with pytest.raises(ValueError, match="too small"):
        fuse_planes(config, weights, planes[:, :2])
    with pytest.raises(ValueError, match="expected planes of shape"):
        fuse_planes(config, weights, planes[0])


def test_colour_returns_after_fusion() -> None:
    grey = np.full((8, 8), 120, dtype=np.uint8)
    assert (recolour(grey, np.zeros((2, 8, 8))) == 120).all()
    red = recolour(grey, np.stack([np.zeros((8, 8)), np.full((8, 8), 0.2)]))
    assert (red[..., 0] > red[..., 1]).all()
    pair = ImagePair("p", 0, np.full((8, 8), 0.5), np.full((8, 8), 0.5), np.full((2, 8, 8), 0.1))
    assert fuse_pair(NetworkConfig(), [0] * 112, pair).shape == (8, 8, 3)


def test_the_figure_shows_sources_and_result_under_labels(tmp_path: Path) -> None:
    pair = build_phantoms(1, 1, slices=1, size=64)[0]
    config = NetworkConfig()
    path = tmp_path / "figure.png"
    save_fusion_figure(path, config, build_initial_weights(config, 0), pair, ("CT", "MR"))
    with Image.open(path) as figure:
        assert figure.format == "PNG"
        assert figure.width == 3 * 64 + 8
        pixels = np.asarray(figure)
    np.testing.assert_array_equal(pixels[-64:, :64, 0], np.rint(pair.first * 255))
    with pytest.raises(ValueError, match="different heights"):
        build_figure([("a", np.zeros((4, 4), np.uint8)), ("b", np.zeros((5, 4), np.uint8))])
    with pytest.raises(ValueError, match="at least one"):
        build_figure([])
