"""Simulated pairs of two modalities from photographs that scikit-image carries: data that may be shipped.

A network that only saw phantoms knows ellipses. Here one photograph's structure is seen twice as two scanners
would: through different grey-level curves (also falling and non-monotone ones, as a colour map's luminance
has), blurred, masked, with regions that one of the two does not see, in a head with bone, fat and black
around it. Nothing of a patient's is in it.

Source of the photographs: the files in scikit-image's own wheel that its documentation calls CC0 or public
domain; `PICTURES` lists them.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage import data

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair

PICTURES: dict[str, str] = {
    "astronaut": "NASA, public domain",
    "brick": "CC0Textures, CC0",
    "camera": "Lav Varshney, CC0",
    "cell": "Paul Mueller et al., CC0",
    "chelsea": "Stefan van der Walt, CC0",
    "clock": "Stefan van der Walt, public domain",
    "coffee": "Rachel Michetti, CC0",
    "grass": "linolafett, CC0",
    "gravel": "CC0Textures, CC0",
    "hubble_deep_field": "NASA, public domain",
    "retina": "Mikael Haggstrom, CC0",
    "rocket": "SpaceX, public domain",
}
"""Photographs used, with author and licence as scikit-image states them."""

SIMULATED_SIZE = 96

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_MIN_SIDE = 2 * SIMULATED_SIZE
_CURVE_KNOTS = 6


def build_simulated_pairs(seed: int, count: int, size: int = SIMULATED_SIZE) -> list[ImagePair]:
    """`count` pairs of size x size, numbered as patients; a pair depends on seed, its number and size alone.

    Raises ValueError for a size larger than the smallest photograph allows.
    """
    pictures = [_load_picture(name) for name in PICTURES]
    if size > min(min(picture.shape) for picture in pictures):
        raise ValueError(f"size {size} is larger than the smallest photograph; use {_MIN_SIDE} or less")
    return [_build_pair(np.random.default_rng([seed, n]), n, pictures, size) for n in range(count)]


def _load_picture(name: str) -> Array:
    """Grey picture in [0, 1], not larger than about 500 pixels."""
    loader: Callable[[], Array] = getattr(data, name)
    image = np.asarray(loader(), dtype=np.float64) / 255
    if image.ndim == 3:
        image = image @ _LUMINANCE
    factor = max(1, min(image.shape) // 450)
    rows, columns = (side // factor * factor for side in image.shape)
    blocks = image[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float64)


def _build_pair(generator: np.random.Generator, number: int, pictures: list[Array], size: int) -> ImagePair:
    def draw_structure() -> Array:
        return _cut(generator, pictures[int(generator.integers(len(pictures)))], size)

    structure, other = draw_structure(), draw_structure()
    soft = _apply_curve(generator, structure)
    kind = ("bone", "function", "mixed")[int(generator.choice(3, p=(0.3, 0.4, 0.3)))]
    head, skull, brain = _build_head(generator, size)
    if kind == "mixed":
        # Two views of one structure, each blind in some regions.
        blind = _build_regions(generator, other)
        first = soft * np.where(blind > 0.5, generator.uniform(0, 0.5), 1.0)
        second = _apply_curve(generator, structure if generator.random() < 0.6 else other)
        second = ndimage.gaussian_filter(second, generator.uniform(0, 1.5))
        second *= np.where(blind < 0.5, generator.uniform(0, 0.5), 1.0)
        if generator.random() < 0.5:
            first, second = first * head, second * head
    else:
        fat = generator.uniform(0.3, 1.0)
        first = fat * (head - skull) + generator.uniform(0, 0.12) * (skull - brain) + soft * brain
        if kind == "bone":
            tissue = generator.uniform(0, 0.4) + generator.uniform(0, 0.25) * ndimage.gaussian_filter(
                _apply_curve(generator, structure), generator.uniform(0.5, 2)
            )
            spots = _build_regions(generator, other, share=generator.uniform(0.01, 0.08))
            second = generator.uniform(0.7, 1.0) * (skull - brain) + np.maximum(tissue, 0.9 * spots) * brain
            second += generator.uniform(0, 0.15) * (head - skull)
        else:
            source = structure if generator.random() < 0.4 else other
            blurred = ndimage.gaussian_filter(source, generator.uniform(1.5, 5))
            second = _apply_curve(generator, _stretch(blurred)) * brain
            second = ndimage.gaussian_filter(second, generator.uniform(0.3, 1.0))
    first = first * generator.uniform(0.5, 1.0)
    second = second * generator.uniform(0.4, 1.0)
    seen = np.maximum(first, second) > 0.02
    first = first + seen * generator.normal(0, generator.uniform(0, 0.015), first.shape)
    second = second + seen * generator.normal(0, generator.uniform(0, 0.015), second.shape)
    if generator.random() < 0.5:
        first, second = second, first
    return ImagePair(f"simulated-{number}", number, _quantise(first), _quantise(second))


def _cut(generator: np.random.Generator, picture: Array, size: int) -> Array:
    """A random square of the picture at full or half resolution, turned, its grey values stretched."""
    factor = 2 if generator.random() < 0.5 and min(picture.shape) >= 2 * size else 1
    side = size * factor
    row = int(generator.integers(picture.shape[0] - side + 1))
    column = int(generator.integers(picture.shape[1] - side + 1))
    cut = picture[row : row + side, column : column + side]
    cut = cut.reshape(size, factor, size, factor).mean(axis=(1, 3))
    return _stretch(np.rot90(cut, int(generator.integers(4))))


def _stretch(image: Array) -> Array:
    low, high = np.quantile(image, (0.01, 0.99))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-3), 0, 1), dtype=np.float64)


def _apply_curve(generator: np.random.Generator, image: Array) -> Array:
    """The image through a grey-level curve: rising, falling, or with random knots."""
    kind = generator.random()
    if kind < 0.4:
        return np.asarray(image ** generator.uniform(0.5, 2.0), dtype=np.float64)
    if kind < 0.7:
        return np.asarray((1 - image) ** generator.uniform(0.5, 2.0), dtype=np.float64)
    knots = generator.uniform(0, 1, _CURVE_KNOTS)
    return np.interp(image, np.linspace(0, 1, _CURVE_KNOTS), knots)


def _build_regions(generator: np.random.Generator, image: Array, share: float = 0.5) -> Array:
    """Smooth-edged regions that cover about `share`: where the blurred picture is bright."""
    blurred = ndimage.gaussian_filter(image, generator.uniform(2, 6))
    mask = (blurred > np.quantile(blurred, 1 - share)).astype(np.float64)
    return np.asarray(ndimage.gaussian_filter(mask, 0.7), dtype=np.float64)


def _build_head(generator: np.random.Generator, size: int) -> tuple[Array, Array, Array]:
    """Soft masks of a head, of what is within its fat and of what is within its bone; partly out of view."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    centre = generator.uniform(-0.5, 0.5, 2)
    width, height = generator.uniform(0.7, 1.3, 2)
    tilt = generator.uniform(0, np.pi)
    u = (x - centre[0]) * np.cos(tilt) + (y - centre[1]) * np.sin(tilt)
    v = (y - centre[1]) * np.cos(tilt) - (x - centre[0]) * np.sin(tilt)
    radius = np.sqrt((u / width) ** 2 + (v / height) ** 2)
    fat, bone = generator.uniform(0.03, 0.15), generator.uniform(0.03, 0.18)

    def fill(edge: float) -> Array:
        return np.asarray(1 / (1 + np.exp(np.clip((radius - edge) * size / 1.5, -40, 40))), dtype=np.float64)

    return fill(1.0), fill(1.0 - fat), fill(1.0 - fat - bone)


def _quantise(image: Array) -> Array:
    """What an 8-bit file would hold."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255) / 255, dtype=np.float64)
