"""Extra planes and skips: ranges, black, the published formula, and errors."""

import numpy as np
import pytest
from scipy import ndimage

from fusion_model.backbone import BACKBONE_PLANES, compute_backbone_planes
from fusion_model.phantom import build_phantoms
from fusion_model.planes import PLANES, SKIPS, compute_plane, compute_skip


@pytest.mark.parametrize("name", PLANES)
def test_planes_stay_in_range_and_black_stays_black(name: str) -> None:
    pair = build_phantoms(1, 1, slices=1)[0]
    first, second = (np.pad(image, 24) for image in (pair.first, pair.second))
    plane = compute_plane(name, first, second)
    assert plane.shape == first.shape
    assert np.abs(plane).max() <= 1
    assert np.abs(plane).max() > 0.05
    assert not plane[:8].any()
    np.testing.assert_array_equal(compute_plane(name, np.zeros((9, 7)), np.zeros((9, 7))), 0)


@pytest.mark.parametrize("name", SKIPS)
def test_skips_lie_between_the_images(name: str) -> None:
    pair = build_phantoms(1, 1, slices=1)[0]
    skip = compute_skip(name, pair.first, pair.second)
    assert (skip >= np.minimum(pair.first, pair.second)).all()
    assert (skip <= np.maximum(pair.first, pair.second)).all()


def test_saliency_is_the_published_formula() -> None:
    first, second = np.random.default_rng(0).uniform(0, 1, (2, 20, 24))
    energies = []
    for image in (first, second):
        down, across = np.gradient(ndimage.gaussian_filter(image, 0.5))
        energies.append(ndimage.convolve(down**2 + across**2, np.full((5, 5), 1 / 25)))
    expected = (energies[0] - energies[1]) / (energies[0] + energies[1] + 1e-4)
    np.testing.assert_allclose(compute_plane("saliency", first, second), expected, atol=1e-12)
    np.testing.assert_allclose(compute_plane("saliency", second, first), -expected, atol=1e-12)


def test_saliency_points_to_the_image_with_structure() -> None:
    stripes = np.tile(np.repeat([0.0, 1.0], 3), (24, 4))
    flat = np.full(stripes.shape, 0.5)
    assert compute_plane("saliency", stripes, flat).min() > 0.9
    assert compute_plane("saliency", flat, stripes).max() < -0.9


def test_backbone_planes_are_those_of_the_pair_at_hand() -> None:
    pairs = build_phantoms(1, 1, slices=2, size=48)
    for pair in (pairs[0], pairs[1], pairs[0]):
        expected = compute_backbone_planes(pair.first, pair.second)
        for number in range(BACKBONE_PLANES):
            plane = compute_plane(f"backbone-{number}", pair.first, pair.second)
            np.testing.assert_array_equal(plane, expected[number])


def test_unknown_names_and_unequal_sizes_are_refused() -> None:
    image = np.zeros((8, 8))
    with pytest.raises(ValueError, match="plane 'depth' is unknown; known are saliency"):
        compute_plane("depth", image, image)
    with pytest.raises(ValueError, match="skip 'minimum' is unknown; known are mean"):
        compute_skip("minimum", image, image)
    with pytest.raises(ValueError, match=r"one shape .* \(8, 8\) and \(8, 9\)"):
        compute_plane("contrast", image, np.zeros((8, 9)))
