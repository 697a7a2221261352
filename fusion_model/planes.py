"""Extra input planes and skip images: pure functions of a whole registered pair, computed in clear.

A contributor computes them before patches are cut. Planes are encrypted beside the two images; a skip S is
what the network corrects, F = S + F', and is folded into the loss target, so that it costs no ciphertext.
All of them are 0 where both images are black in the neighbourhood that they look at.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from fusion_model.backbone import BACKBONE_PLANES, compute_backbone_planes
from fusion_model.gradients import Array

PairFunction = Callable[[Array, Array], Array]

SMOOTHING_PX = 0.5
"""Standard deviation of the blur before gradients are squared: single noisy pixels count for less."""

WINDOW_PX = 5
"""Side of the window over which squared gradients are averaged."""

SALIENCY_FLOOR = 1e-4
"""Keeps the saliency of flat regions near 0 whatever their noise."""


def compute_energy(image: Array) -> Array:
    """The 5x5 mean of squared central differences of the slightly smoothed image, (H, W)."""
    # Every node and worker loads this module for its names; the filters would cost each a third of its start.
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), SMOOTHING_PX)
    down, across = np.gradient(smooth)
    mean = ndimage.uniform_filter(down**2 + across**2, WINDOW_PX)
    # The running sums of the filter leave rounding errors of either sign where there is nothing.
    return np.asarray(np.where(mean > 1e-15, mean, 0.0), dtype=np.float64)


def _compute_saliency(first: Array, second: Array) -> Array:
    """(E_A - E_B) / (E_A + E_B + 1e-4): +1 where only the first image has structure, -1 the second."""
    energy_a, energy_b = compute_energy(first), compute_energy(second)
    return np.asarray((energy_a - energy_b) / (energy_a + energy_b + SALIENCY_FLOOR), dtype=np.float64)


def _compute_contrast(first: Array, second: Array) -> Array:
    """|A - B|: twice the distance of the brighter pixel from the mean."""
    return np.abs(first - second)


def _compute_mean(first: Array, second: Array) -> Array:
    return np.asarray((first + second) / 2, dtype=np.float64)


def _compute_maximum(first: Array, second: Array) -> Array:
    return np.maximum(first, second)


@lru_cache(maxsize=1)
def _compute_features(first: bytes, second: bytes, shape: tuple[int, int]) -> Array:
    """All backbone planes of the pair that was asked for last: a task takes several of them."""
    images = [np.frombuffer(data, dtype=np.float64).reshape(shape) for data in (first, second)]
    planes = compute_backbone_planes(images[0], images[1])
    planes.flags.writeable = False
    return planes


def _compute_feature(number: int, first: Array, second: Array) -> Array:
    """One plane of the frozen public backbone."""
    a, b = (np.ascontiguousarray(image, dtype=np.float64) for image in (first, second))
    planes = _compute_features(a.tobytes(), b.tobytes(), (a.shape[0], a.shape[1]))
    return np.asarray(planes[number], dtype=np.float64)


_PLANES: dict[str, PairFunction] = {
    "saliency": _compute_saliency,
    "contrast": _compute_contrast,
    **{f"backbone-{number}": partial(_compute_feature, number) for number in range(BACKBONE_PLANES)},
}
_SKIPS: dict[str, PairFunction] = {"mean": _compute_mean, "maximum": _compute_maximum}

PLANES: tuple[str, ...] = tuple(_PLANES)
"""Known extra planes."""

SKIPS: tuple[str, ...] = tuple(_SKIPS)
"""Known skips."""


def compute_plane(name: str, first: Array, second: Array) -> Array:
    """The extra input plane `name` of a whole pair (H, W) in [0, 1]; values in [-1, 1].

    Raises ValueError for an unknown name and for images of different shapes.
    """
    if name not in _PLANES:
        raise ValueError(f"plane {name!r} is unknown; known are {', '.join(PLANES)}")
    check_pair(first, second)
    return np.clip(_PLANES[name](first, second), -1.0, 1.0)


def compute_skip(name: str, first: Array, second: Array) -> Array:
    """The skip `name` of a whole pair (H, W) in [0, 1]; values in [0, 1].

    Raises ValueError for an unknown name and for images of different shapes.
    """
    if name not in _SKIPS:
        raise ValueError(f"skip {name!r} is unknown; known are {', '.join(SKIPS)}")
    check_pair(first, second)
    return _SKIPS[name](first, second)


def check_pair(first: Array, second: Array) -> None:
    """Raises ValueError unless both are images (H, W) of one shape, at least 2x2."""
    if first.ndim != 2 or first.shape != second.shape or min(first.shape) < 2:
        raise ValueError(f"expected two images of one shape (H, W), got {first.shape} and {second.shape}")
