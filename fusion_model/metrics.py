"""Quality figures of a fused image against its two sources, as the fusion literature computes them.

All images are grey with whole values 0..255. Figures over sources are *sums* over the two sources, not means.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusion_model.gradients import Array

_VIF_NOISE = 2.0
_VIF_SCALES = 4
_TINY = 1e-10
_SSIM_WINDOW = 7
_SSIM_CONSTANTS = (0.01, 0.03)
"""K1 and K2 of Wang et al. 2004."""
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
    similarity, published = compute_similarities(a, b, f)
    return FusionMetrics(
        EN=compute_entropy(f),
        SD=float(f.std()),
        SF=compute_spatial_frequency(f),
        AG=compute_average_gradient(f),
        MI=compute_mutual_information(a, f) + compute_mutual_information(b, f),
        SCD=_compute_correlation(f - b, a) + _compute_correlation(f - a, b),
        VIF=sum(compute_visual_fidelity((a, b), f)),
        Qabf=compute_edge_preservation(a, b, f),
        SSIM=similarity,
        SSIM2=published,
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


def compute_visual_fidelity(references: Sequence[Array], image: Array) -> list[float]:
    """Pixel-domain VIF of `image` against each reference; 1 where a reference carries no information.

    Source: Sheikh & Bovik 2006, in the pixel domain; the image's own moments are computed once for all.
    """
    gained, possible = [0.0] * len(references), [0.0] * len(references)
    planes = np.stack([image, *references])
    for scale in range(_VIF_SCALES):
        kernel = _build_gaussian((_LARGEST_VIF_WINDOW - 1) // 2**scale + 1)
        if scale:
            planes = np.ascontiguousarray(_filter_valid(planes, kernel)[:, ::2, ::2])
        means = _filter_valid(planes, kernel)
        variances = np.maximum(_filter_valid(planes * planes, kernel) - means * means, 0)
        covariances = _filter_valid(planes[0] * planes[1:], kernel) - means[0] * means[1:]
        for index, covariance in enumerate(covariances):
            more, most = _compare_information(variances[index + 1], variances[0], covariance)
            gained[index] += more
            possible[index] += most
    return [a / b if b > 0 else 1.0 for a, b in zip(gained, possible, strict=True)]


def compute_similarities(first: Array, second: Array, fused: Array) -> tuple[float, float]:
    """SSIM and SSIM2: structural similarity with both sources, for the data ranges 255 and 2.

    Uniform 7x7 windows inside the image, sample covariances. Source: Wang et al. 2004.
    """
    planes = np.stack([fused, first, second])
    means = _average_windows(planes)
    share = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
    variances = share * (_average_windows(planes * planes) - means * means)
    products = means[0] * means[1:]
    covariances = share * (_average_windows(planes[0] * planes[1:]) - products)
    powers, spreads = means[0] ** 2 + means[1:] ** 2, variances[0] + variances[1:]
    results: list[float] = []
    for data_range in (255.0, 2.0):
        c1, c2 = ((constant * data_range) ** 2 for constant in _SSIM_CONSTANTS)
        similarity = (2 * products + c1) * (2 * covariances + c2) / ((powers + c1) * (spreads + c2))
        results.append(float(similarity.mean(axis=(1, 2)).sum()))
    return results[0], results[1]


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


def _compare_information(variance_r: Array, variance_i: Array, covariance: Array) -> tuple[float, float]:
    """One scale's information that the image keeps of the reference, and that of the reference."""
    gain = covariance / (variance_r + _TINY)
    residual = variance_i - gain * covariance
    flat_r, flat_i = variance_r < _TINY, variance_i < _TINY
    # Without variance in the reference nothing is gained; without any in the image nothing is left over.
    gain[flat_r | flat_i] = 0
    negative = gain < 0
    kept = flat_r | negative
    residual[kept] = variance_i[kept]
    residual[flat_i] = 0
    gain[negative] = 0
    np.maximum(residual, _TINY, out=residual)
    gained = np.log1p(gain**2 * variance_r / (residual + _VIF_NOISE)).sum()
    return float(gained), float(np.log1p(np.where(flat_r, 0, variance_r) / _VIF_NOISE).sum())


def _average_windows(planes: Array) -> Array:
    """Means of all SSIM windows that lie inside planes (n, H, W)."""
    half = _SSIM_WINDOW // 2
    means = ndimage.uniform_filter(planes, (0, _SSIM_WINDOW, _SSIM_WINDOW))
    return np.asarray(means[:, half:-half, half:-half], dtype=np.float64)


def _build_gaussian(size: int) -> Array:
    """A one-dimensional Gaussian window of sigma size/5 and sum 1."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets**2) / (2 * (size / 5) ** 2))
    return np.asarray(window / window.sum(), dtype=np.float64)


def _filter_valid(planes: Array, kernel: Array) -> Array:
    """Separable correlation of planes (n, H, W) without padding."""
    half = len(kernel) // 2
    rows = ndimage.correlate1d(planes, kernel, axis=1)[:, half : planes.shape[1] - half]
    return np.asarray(ndimage.correlate1d(rows, kernel, axis=2)[:, :, half : planes.shape[2] - half])


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
