"""A whole registered pair made ready for training: inputs, skip and targets on a grid of grey values.

Planes, skips and targets look at more of the images than a patch holds, so they are computed here, pair by
pair, and patches are cut afterwards. Everything lies on a grid, since that is what lets a custody tell
honest data from ciphertexts that were crafted to carry something else.
"""

from typing import NamedTuple

import numpy as np

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair
from fusion_model.planes import compute_plane, compute_skip
from fusion_model.targets import ImageTargets, build_image_targets


class PairSettings(NamedTuple):
    """What a task asks of a pair beyond its two images."""

    planes: tuple[str, ...] = ()
    """Names of the extra input planes, in the order of the network's inputs."""
    skip: str = "mean"
    target: str = "maximum"
    levels: int = 255
    """Values are multiples of 1/levels; those of the skip of 1/(2 levels), since a mean has halves."""


class PreparedPair(NamedTuple):
    """A pair on the grid; (H, W) are the images' sizes."""

    inputs: Array
    """Both images in [0, 1], then the extra planes in [-1, 1]; (2 + planes, H, W)."""
    skip: Array
    """S, (H, W), in [0, 1]."""
    targets: ImageTargets
    """Intensity in [0, 1] and signed differences in [-1, 1]."""


def round_to_grid(values: Array, levels: int) -> Array:
    """The nearest multiples of 1/levels, ties to even."""
    return np.asarray(np.rint(values * levels) / levels, dtype=np.float64)


def prepare_inputs(settings: PairSettings, pair: ImagePair) -> tuple[Array, Array]:
    """The inputs (2 + planes, H, W) and the skip (H, W) of one pair: all that fusing it takes.

    Each is computed from the images as they are on the grid; rounding errors beyond a range are cut off.
    Raises ValueError naming the pair for an unknown name or a number that is not finite.
    """
    levels, name = settings.levels, f"pair {pair.name}:"
    first, second = images = _limit(pair.planes, 0.0, levels, f"{name} image")
    try:
        planes = [compute_plane(plane, first, second) for plane in settings.planes]
        skip = compute_skip(settings.skip, first, second)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    rounded = [
        _limit(values, -1.0, levels, f"{name} plane {plane!r}")
        for plane, values in zip(settings.planes, planes, strict=True)
    ]
    return np.stack([*images, *rounded]), _limit(skip, 0.0, 2 * levels, f"{name} skip {settings.skip!r}")


def prepare_pair(settings: PairSettings, pair: ImagePair) -> PreparedPair:
    """`prepare_inputs`, and the targets that the pair is trained towards, from the same images.

    Raises what `prepare_inputs` does.
    """
    inputs, skip = prepare_inputs(settings, pair)
    try:
        targets = build_image_targets(settings.target, inputs[0], inputs[1])
    except ValueError as error:
        raise ValueError(f"pair {pair.name}: {error}") from error
    levels, name = settings.levels, f"pair {pair.name}: target {settings.target!r}"
    return PreparedPair(
        inputs,
        skip,
        ImageTargets(
            _limit(targets.intensity, 0.0, levels, name),
            _limit(targets.gradient_x, -1.0, levels, name),
            _limit(targets.gradient_y, -1.0, levels, name),
        ),
    )


def _limit(values: Array, least: float, levels: int, name: str) -> Array:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a number that is not finite")
    return round_to_grid(np.clip(values, least, 1.0), levels)
