"""Losses for training in clear that are not of degree 2 in the fused image, so no ciphertext can train them.

All take fused images (N, H, W) and pairs (N, 2, H, W) in [0, 1]; all return a scalar tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_VIF_NOISE = 2.0
_VIF_WINDOW = 17
_TINY = 1e-6
_FLAT = 1e-4
"""Variance of a crop that is nearly constant."""

_SMOOTH = 0.1
"""Difference below which the intensity term is quadratic."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What each term counts; 0 leaves it out."""

    intensity: float = 1.0
    """Mean absolute difference from the pixel maximum, smooth near 0."""
    gradient: float = 12.0
    """Mean absolute difference of the signed Sobel gradients from the stronger source's."""
    similarity: float = 0.15
    """2 minus the structural similarities with both sources."""
    fidelity: float = 0.7
    """2 minus the visual information fidelities with both sources."""
    correlation: float = 0.1
    """2 minus the sum of the correlations of differences."""


def compute_teacher_loss(fused: Tensor, pairs: Tensor, weights: LossWeights) -> Tensor:
    """The weighted sum of the terms."""
    total = fused.new_zeros(())
    if weights.intensity:
        total = total + weights.intensity * compute_intensity_loss(fused, pairs)
    if weights.gradient:
        total = total + weights.gradient * compute_gradient_loss(fused, pairs)
    if weights.similarity:
        total = total + weights.similarity * (2 - compute_similarity(fused, pairs))
    if weights.fidelity:
        total = total + weights.fidelity * (2 - compute_fidelity(fused, pairs))
    if weights.correlation:
        total = total + weights.correlation * (2 - compute_difference_correlation(fused, pairs))
    return total


def compute_intensity_loss(fused: Tensor, pairs: Tensor) -> Tensor:
    """mean |F - max(A, B)|, quadratic below a difference of 1/10."""
    # With a kink at 0 the pixel maximum itself is a local optimum that no other term can leave.
    return functional.smooth_l1_loss(fused, pairs.amax(dim=1), beta=_SMOOTH)


def compute_difference_correlation(fused: Tensor, pairs: Tensor) -> Tensor:
    """SCD, corr(F - B, A) + corr(F - A, B), the mean over images (Aslantas & Bendes 2015)."""
    differences = fused[:, None] - pairs.flip(1)
    x = differences - differences.mean(dim=(2, 3), keepdim=True)
    y = pairs - pairs.mean(dim=(2, 3), keepdim=True)
    # A crop in which a source is nearly constant says nothing: its correlation is drawn to 0.
    variances = (x.square().mean(dim=(2, 3)) + _FLAT) * (y.square().mean(dim=(2, 3)) + _FLAT)
    return ((x * y).mean(dim=(2, 3)) / variances.sqrt()).sum(dim=1).mean()


def compute_gradient_loss(fused: Tensor, pairs: Tensor) -> Tensor:
    """Mean absolute difference of F's Sobel gradients from those of the locally stronger source."""
    wanted = torch.stack([compute_sobel(pairs[:, :1]), compute_sobel(pairs[:, 1:])], dim=1)
    strength = wanted.square().sum(dim=2)
    stronger = (strength[:, 0] >= strength[:, 1])[:, None]
    target = torch.where(stronger, wanted[:, 0], wanted[:, 1])
    return (compute_sobel(fused[:, None]) - target).abs().mean()


def compute_sobel(images: Tensor) -> Tensor:
    """Sobel derivatives (N, 2, H-2, W-2) along columns, rows of images (N, 1, H, W); a unit slope gives 1."""
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    return functional.conv2d(images, torch.stack([across, across.T])[:, None])


def compute_similarity(fused: Tensor, pairs: Tensor) -> Tensor:
    """SSIM(A, F) + SSIM(B, F), 7x7 uniform window, data range 1 (Wang et al. 2004)."""
    images = torch.cat([fused[:, None], pairs], dim=1)
    mean = functional.avg_pool2d(images, 7, 1)
    square = functional.avg_pool2d(images.square(), 7, 1)
    cross = functional.avg_pool2d(images[:, 1:] * images[:, :1], 7, 1)
    unbias = 49 / 48
    variance = unbias * (square - mean.square())
    covariance = unbias * (cross - mean[:, 1:] * mean[:, :1])
    c1, c2 = 0.01**2, 0.03**2
    ratio = ((2 * mean[:, 1:] * mean[:, :1] + c1) * (2 * covariance + c2)) / (
        (mean[:, 1:].square() + mean[:, :1].square() + c1) * (variance[:, 1:] + variance[:, :1] + c2)
    )
    return ratio.mean() * 2


def compute_fidelity(fused: Tensor, pairs: Tensor) -> Tensor:
    """VIF(A, F) + VIF(B, F), pixel domain, four scales; images of at least 64x64 (Sheikh & Bovik 2006)."""
    count = len(fused)
    references = 255 * pairs.transpose(0, 1).flatten(0, 1)[:, None]
    images = 255 * fused.repeat(2, 1, 1)[:, None]
    gained = references.new_zeros(2 * count)
    possible = references.new_zeros(2 * count)
    for scale in range(4):
        window = (_VIF_WINDOW - 1) // 2**scale + 1
        if scale:
            references = _blur(references, window)[..., ::2, ::2]
            images = _blur(images, window)[..., ::2, ::2]
        mean_r, mean_i = _blur(references, window), _blur(images, window)
        variance_r = (_blur(references.square(), window) - mean_r.square()).clamp(min=0)
        variance_i = (_blur(images.square(), window) - mean_i.square()).clamp(min=0)
        covariance = _blur(references * images, window) - mean_r * mean_i
        gain = (covariance / (variance_r + _TINY)).clamp(min=0)
        gain = torch.where(variance_r < _TINY, torch.zeros_like(gain), gain)
        residual = (variance_i - gain * covariance).clamp(min=_TINY)
        gained = gained + torch.log1p(gain.square() * variance_r / (residual + _VIF_NOISE)).sum(dim=(1, 2, 3))
        possible = possible + torch.log1p(variance_r / _VIF_NOISE).sum(dim=(1, 2, 3))
    # Summed over the batch before the quotient: a crop that is nearly flat must not dominate.
    return gained[:count].sum() / (possible[:count].sum() + 1) + gained[count:].sum() / (
        possible[count:].sum() + 1
    )


def _blur(images: Tensor, window: int) -> Tensor:
    """Gaussian of sigma window/5, separable, without padding."""
    offsets = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    kernel = torch.exp(-offsets.square() / (2 * (window / 5) ** 2))
    kernel = kernel / kernel.sum()
    return functional.conv2d(functional.conv2d(images, kernel[None, None, :, None]), kernel[None, None, None])
