"""Fusion rules without training, to measure a network against."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusion_model.gradients import Array

GreyImage = npt.NDArray[np.uint8]

_KERNEL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def fuse_average(first: GreyImage, second: GreyImage) -> GreyImage:
    """The pixel mean, rounded down."""
    return ((first.astype(np.uint16) + second) // 2).astype(np.uint8)


def fuse_maximum(first: GreyImage, second: GreyImage) -> GreyImage:
    """The brighter pixel: often better than networks by figures, though it loses soft tissue under bone."""
    return np.maximum(first, second)


def fuse_laplacian(first: GreyImage, second: GreyImage, levels: int = 4) -> GreyImage:
    """Laplacian pyramid: the detail of larger magnitude, the brighter base (Burt & Adelson 1983)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    details: list[Array] = []
    for _ in range(levels):
        if min(a.shape) < 2 * len(_KERNEL):
            break
        low_a, low_b = _reduce(a), _reduce(b)
        detail_a, detail_b = a - _expand(low_a, a.shape), b - _expand(low_b, b.shape)
        details.append(np.where(np.abs(detail_a) >= np.abs(detail_b), detail_a, detail_b))
        a, b = low_a, low_b
    fused = np.maximum(a, b)
    for detail in reversed(details):
        fused = _expand(fused, detail.shape) + detail
    return np.clip(np.rint(fused), 0, 255).astype(np.uint8)


BASELINES: dict[str, Callable[[GreyImage, GreyImage], GreyImage]] = {
    "average": fuse_average,
    "maximum": fuse_maximum,
    "laplacian": fuse_laplacian,
}
"""The methods that a model is always shown beside, by name."""


def _blur(image: Array) -> Array:
    rows = ndimage.correlate1d(image, _KERNEL, axis=0, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows, _KERNEL, axis=1, mode="mirror"), dtype=np.float64)


def _reduce(image: Array) -> Array:
    return _blur(image)[::2, ::2]


def _expand(image: Array, shape: tuple[int, ...]) -> Array:
    wide = np.zeros(shape)
    wide[::2, ::2] = image
    return 4 * _blur(wide)
