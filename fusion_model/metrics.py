"""Quality figures of a fused image against its two sources, as the fusion literature computes them.

All images are grey with whole values 0..255. Figures over sources are *sums* over the two sources, not means.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.metrics import structural_similarity

from fusion_model.gradients import Array

_similarity: Callable[..., float] = structural_similarity
"""The library's function with the type that it does not declare."""

_VIF_NOISE = 2.0
_TINY = 1e-10
_SSIM_WINDOW = 7
_LARGEST_VIF_WINDOW = 17
_SMALLEST_SIDE = 64
"""Below this the coarsest VIF scale has no pixels left."""


@dataclass(frozen=True, slots=True)
class FusionMetrics:
    """One fused image's figures; higher is better except where a method only adds noise (EN, SF, AG)."""

    EN: float
    """Entropy, bits."""
    SD: float
    """Standard deviation of grey values."""
    SF: float
    """Spatial frequency."""
    AG: float
    """Average gradient by central differences."""
    MI: float
    """Mutual information with both sources, nats."""
    SCD: float
    """Sum of the correlations of differences (Aslantas & Bendes 2015)."""
    VIF: float
    """Pixel visual information fidelity, four scales, noise variance 2."""
    Qabf: float
    """Edge preservation (Xydeas & Petrovic 2000), Sobel."""
    SSIM: float
    """Structural similarity, 7x7 uniform window, data range 255."""
    SSIM2: float
    """The same with data range 2, as published tables have it; it mostly tests that black stays 0."""


METRIC_NAMES = tuple(field.name for field in fields(FusionMetrics))


def compute_metrics(first: npt.ArrayLike, second: npt.ArrayLike, fused: npt.ArrayLike) -> FusionMetrics:
    """All figures of one fused image.

    Raises ValueError unless the three are grey images of one size, at least 64x64, of whole values 0..255.
    """
    a, b, f = (
        _check_image(name, image) for name, image in (("first", first), ("second", second), ("fused", fused))
    )
    if not a.shape == b.shape == f.shape:
        raise ValueError(f"expected three images of one size, got {a.shape}, {b.shape}, {f.shape}")
    return FusionMetrics(
        EN=compute_entropy(f),
        SD=float(f.std()),
        SF=compute_spatial_frequency(f),
        AG=compute_average_gradient(f),
        MI=compute_mutual_information(a, f) + compute_mutual_information(b, f),
        SCD=_compute_correlation(f - b, a) + _compute_correlation(f - a, b),
        VIF=compute_visual_fidelity(a, f) + compute_visual_fidelity(b, f),
        Qabf=compute_edge_preservation(a, b, f),
        SSIM=_compute_similarity(a, b, f, 255.0),
        SSIM2=_compute_similarity(a, b, f, 2.0),
    )


def compute_mean_metrics(figures: Sequence[FusionMetrics]) -> FusionMetrics:
    """The mean of each figure over images."""
    if not figures:
        raise ValueError("expected the figures of at least one image, got none")
    return FusionMetrics(*np.mean([astuple(entry) for entry in figures], axis=0).tolist())


def compute_entropy(image: Array) -> float:
    """Shannon entropy of the grey values, bits."""
    counts = np.bincount(image.astype(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / image.size
    return float(-(shares * np.log2(shares)).sum())


def compute_spatial_frequency(image: Array) -> float:
    """Root of the summed mean squares of row and column differences."""
    return float(np.sqrt(np.mean(np.diff(image, axis=1) ** 2) + np.mean(np.diff(image, axis=0) ** 2)))


def compute_average_gradient(image: Array) -> float:
    """Mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border."""
    down, across = np.gradient(image)
    return float(np.sqrt((down**2 + across**2) / 2).mean())


def compute_mutual_information(source: Array, fused: Array) -> float:
    """Mutual information of grey values, nats."""
    pairs = source.astype(np.int64).ravel() * 256 + fused.astype(np.int64).ravel()
    joint = np.bincount(pairs, minlength=65536).reshape(256, 256) / source.size
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def compute_visual_fidelity(reference: Array, image: Array) -> float:
    """Pixel-domain VIF of `image` against `reference`; 1 when the reference carries no information."""
    gained = possible = 0.0
    for scale in range(4):
        size = (_LARGEST_VIF_WINDOW - 1) // 2**scale + 1
        kernel = _build_gaussian(size)
        if scale:
            reference = _filter_valid(reference, kernel)[::2, ::2]
            image = _filter_valid(image, kernel)[::2, ::2]
        mean_r, mean_i = _filter_valid(reference, kernel), _filter_valid(image, kernel)
        variance_r = np.maximum(_filter_valid(reference * reference, kernel) - mean_r * mean_r, 0)
        variance_i = np.maximum(_filter_valid(image * image, kernel) - mean_i * mean_i, 0)
        covariance = _filter_valid(reference * image, kernel) - mean_r * mean_i
        gain = covariance / (variance_r + _TINY)
        residual = variance_i - gain * covariance
        flat_r, flat_i = variance_r < _TINY, variance_i < _TINY
        gain[flat_r] = 0
        residual[flat_r] = variance_i[flat_r]
        variance_r[flat_r] = 0
        gain[flat_i] = 0
        residual[flat_i] = 0
        negative = gain < 0
        residual[negative] = variance_i[negative]
        gain[negative] = 0
        residual = np.maximum(residual, _TINY)
        gained += float(np.log1p(gain**2 * variance_r / (residual + _VIF_NOISE)).sum())
        possible += float(np.log1p(variance_r / _VIF_NOISE).sum())
    return gained / possible if possible > 0 else 1.0


def compute_edge_preservation(first: Array, second: Array, fused: Array) -> float:
    """Qabf: the share of the sources' edge strength and orientation that is kept, weighted by strength."""
    strength_f, angle_f = _compute_edges(fused)
    kept = total = 0.0
    for source in (first, second):
        strength, angle = _compute_edges(source)
        kept += float((_compare_edges(strength, angle, strength_f, angle_f) * strength).sum())
        total += float(strength.sum())
    return kept / total if total > 0 else 0.0


def _check_image(name: str, image: npt.ArrayLike) -> Array:
    result = np.asarray(image, dtype=np.float64)
    if result.ndim != 2 or min(result.shape) < _SMALLEST_SIDE:
        raise ValueError(f"expected {name} as a grey image of at least 64x64, got shape {result.shape}")
    if result.min() < 0 or result.max() > 255 or not np.array_equal(result, np.rint(result)):
        raise ValueError(f"expected {name} in whole values 0..255, got {result.min()}..{result.max()}")
    return result


def _compute_correlation(first: Array, second: Array) -> float:
    """Pearson correlation; 0 when either is constant."""
    x, y = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0


def _compute_similarity(first: Array, second: Array, fused: Array, data_range: float) -> float:
    of_first = _similarity(fused, first, win_size=_SSIM_WINDOW, data_range=data_range)
    of_second = _similarity(fused, second, win_size=_SSIM_WINDOW, data_range=data_range)
    return float(of_first + of_second)


def _build_gaussian(size: int) -> Array:
    """A one-dimensional Gaussian window of sigma size/5 and sum 1."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets**2) / (2 * (size / 5) ** 2))
    return np.asarray(window / window.sum(), dtype=np.float64)


def _filter_valid(image: Array, kernel: Array) -> Array:
    """Separable correlation without padding."""
    half = len(kernel) // 2
    rows = ndimage.correlate1d(image, kernel, axis=0)[half : image.shape[0] - half]
    return np.asarray(ndimage.correlate1d(rows, kernel, axis=1)[:, half : image.shape[1] - half])


def _compute_edges(image: Array) -> tuple[Array, Array]:
    """Sobel strength and orientation in [-pi/2, pi/2], the image continued by zeros."""
    # A convolution turns the kernel round; the sign cancels in the ratio and in the strength.
    x = ndimage.sobel(image, axis=1, mode="constant")
    y = ndimage.sobel(image, axis=0, mode="constant")
    angle = np.full(image.shape, np.pi / 2)
    np.divide(-y, x, out=angle, where=x != 0)
    np.arctan(angle, out=angle, where=x != 0)
    return np.sqrt(x * x + y * y), angle


def _compare_edges(strength: Array, angle: Array, strength_f: Array, angle_f: Array) -> Array:
    """Per-pixel preservation of strength times that of orientation."""
    # Equal strengths count with the strength itself, as in the authors' code: flat on flat preserves nothing.
    ratio = strength_f.copy()
    low, high = np.minimum(strength, strength_f), np.maximum(strength, strength_f)
    np.divide(low, high, out=ratio, where=strength != strength_f)
    alignment = 1 - np.abs(angle - angle_f) / (np.pi / 2)
    by_strength = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
    by_angle = 0.9879 / (1 + np.exp(-22 * (alignment - 0.8)))
    return np.asarray(by_strength * by_angle, dtype=np.float64)
