"""What the fused image should be: training targets made in clear by whoever holds the images.

The loss weighs two of them: an intensity target T with weight 1 and a signed image-gradient target g with
weight `NetworkConfig.gradient_weight`. That weight is one number under two names: lambda where the loss is
described over images, mu where the circuits and patches are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fusion_model.backbone import compute_teacher_image
from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array
from fusion_model.planes import check_pair, compute_energy

SHADE = 0.15
"""How much of the darker image `shaded` adds where the brighter one is dark."""

OVERLAY_FIRST, OVERLAY_SECOND = 1.06, 0.12
"""Weights of the two images in `overlay`; see docs/ABLATION.md for why."""


TINT_FIRST, TINT_PRODUCT, TINT_SQUARE = 1.05, 0.1, 0.07
"""Weights of A, A B and B^2 in `tinted`; see docs/ABLATION.md for why."""

BLEND_SHADE = 0.25
"""How much of the darker image is added to the half of `blended` that is not the teacher's."""


class ImageTargets(NamedTuple):
    """Targets of a whole registered pair."""

    intensity: Array
    """T, (H, W)."""
    gradient_x: Array
    """Wanted F[:, j+1] - F[:, j], (H, W-1)."""
    gradient_y: Array
    """Wanted F[i+1, :] - F[i, :], (H-1, W)."""


class FusionTargets(NamedTuple):
    """Targets on the output window of n patches."""

    intensity: Array
    """T, (n, O, O)."""
    gradient_x: Array
    """Wanted F[:, :, j+1] - F[:, :, j], (n, O, O-1)."""
    gradient_y: Array
    """Wanted F[:, i+1, :] - F[:, i, :], (n, O-1, O)."""


def compute_maximum_intensity(inputs: Array) -> Array:
    """The brightest input at each pixel; inputs (n, inputs, H, W)."""
    return np.asarray(inputs.max(axis=1), dtype=np.float64)


def compute_strongest_difference(inputs: Array, axis: int) -> Array:
    """The signed difference along image axis 0 (rows) or 1 (columns) of largest magnitude among the inputs.

    Equal magnitudes take the earlier input.
    """
    differences = np.diff(inputs, axis=axis + 2)
    choice = np.abs(differences).argmax(axis=1, keepdims=True)
    return np.asarray(np.take_along_axis(differences, choice, axis=1)[:, 0], dtype=np.float64)


def build_targets(config: NetworkConfig, inputs: Array) -> FusionTargets:
    """Maximum intensity and the stronger signed gradient, cut to the network's output window.

    `inputs` is (n, inputs, P, P) of any P larger than twice the margin, so whole images serve too.
    """
    m = config.margin
    inner = inputs[:, :, m : inputs.shape[2] - m, m : inputs.shape[3] - m]
    return FusionTargets(
        compute_maximum_intensity(inner),
        compute_strongest_difference(inner, axis=1),
        compute_strongest_difference(inner, axis=0),
    )


def _build_maximum(first: Array, second: Array) -> ImageTargets:
    """The brighter pixel and, pixel by pixel, the signed difference of larger magnitude."""
    pair = np.stack([first, second])[None]
    return ImageTargets(
        np.maximum(first, second),
        compute_strongest_difference(pair, axis=1)[0],
        compute_strongest_difference(pair, axis=0)[0],
    )


def _build_energy(first: Array, second: Array) -> ImageTargets:
    """The brighter pixel and the differences of the image that has more structure around them.

    Structure is the 5x5 energy of `planes.compute_energy` at both pixels of a difference; a choice by region
    keeps edges whole where single pixels would flicker between the images.
    """
    lead = compute_energy(first) - compute_energy(second)
    differences = []
    for axis in (1, 0):
        a, b = np.diff(first, axis=axis), np.diff(second, axis=axis)
        low = lead[:, :-1] if axis else lead[:-1]
        high = lead[:, 1:] if axis else lead[1:]
        differences.append(np.where(low + high >= 0, a, b))
    return ImageTargets(np.maximum(first, second), differences[0], differences[1])


def _compute_shaded(first: Array, second: Array, shade: float) -> Array:
    """max + shade min (1 - max), (H, W)."""
    high, low = np.maximum(first, second), np.minimum(first, second)
    return np.asarray(high + shade * low * (1 - high), dtype=np.float64)


def _build_shaded(first: Array, second: Array) -> ImageTargets:
    """The brighter pixel, lifted a little by the darker one, and the differences of that image.

    T = max + 0.15 min (1 - max): where one image saturates nothing is added, elsewhere the image that loses
    stays visible. Close to pixel maximum, whose mutual information and fidelity are hard to improve upon.
    """
    return _take_image(_compute_shaded(first, second, SHADE))


def _build_overlay(first: Array, second: Array) -> ImageTargets:
    """The first image, brightened, with a trace of the second, and the differences of that image.

    For pairs whose second image is shown by its colour (PET, SPECT): luminance is then left to anatomy. The
    intensity is cut off at 1 and the differences are not, so that bright regions keep their detail.
    """
    return _take_image(OVERLAY_FIRST * first + OVERLAY_SECOND * second)


def _build_tinted(first: Array, second: Array) -> ImageTargets:
    """The first image, brighter where the second is bright, T = 1.05 A + 0.1 A B + 0.07 B^2.

    For pairs whose second image is shown by its colour, like `overlay`. The square keeps what is faint in the
    second image, and its noise, out of the luminance. A network of 1x1 kernels can be exactly this.
    """
    return _take_image(TINT_FIRST * first + TINT_PRODUCT * first * second + TINT_SQUARE * second**2)


def _build_teacher(first: Array, second: Array) -> ImageTargets:
    """What the public teacher network fuses, and the differences of that image."""
    return _take_image(compute_teacher_image(first, second))


def _build_blended(first: Array, second: Array) -> ImageTargets:
    """Half the public teacher's image, half pixel maximum with a quarter of the darker image's shade.

    The teacher adds edges and local contrast, the other half keeps what tells each source from the other.
    """
    shaded = _compute_shaded(first, second, BLEND_SHADE)
    return _take_image((compute_teacher_image(first, second) + shaded) / 2)


def _take_image(image: Array) -> ImageTargets:
    """An image, cut off at 1, and its differences, which are not: bright regions keep their detail."""
    return ImageTargets(
        np.minimum(image, 1.0),
        np.clip(np.diff(image, axis=1), -1.0, 1.0),
        np.clip(np.diff(image, axis=0), -1.0, 1.0),
    )


_TARGETS: dict[str, Callable[[Array, Array], ImageTargets]] = {
    "maximum": _build_maximum,
    "energy": _build_energy,
    "shaded": _build_shaded,
    "overlay": _build_overlay,
    "tinted": _build_tinted,
    "teacher": _build_teacher,
    "blended": _build_blended,
}

TARGETS: tuple[str, ...] = tuple(_TARGETS)
"""Known targets of whole pairs."""


def build_image_targets(name: str, first: Array, second: Array) -> ImageTargets:
    """The targets `name` of a whole registered pair of images (H, W) in [0, 1].

    Raises ValueError for an unknown name and for images of different shapes.
    """
    if name not in _TARGETS:
        raise ValueError(f"target {name!r} is unknown; known are {', '.join(TARGETS)}")
    check_pair(first, second)
    return _TARGETS[name](first, second)
