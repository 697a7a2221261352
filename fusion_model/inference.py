"""Whole images through the polynomial network, fast and without a training library."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array, convert_weights, split_weights

Floats32 = npt.NDArray[np.float32]

FADE_SLOPE = 32.0
"""At fusing, what the network adds fades where both images are darker than 1/32 (8 grey levels of 255)."""

_BLOCK_NUMBERS = 2**18
"""Numbers of windows, channels and products that are worked on at once: they stay in the cache."""

_LEAST_ROWS = 4
"""Rows of a block at least: its windows overlap those of the next."""


def fuse_image(
    config: NetworkConfig, weights: Sequence[int], planes: Array, skip: Array | None = None
) -> Array:
    """The fused image (H, W) of planes (inputs, H, W), borders continued by reflection; not clipped.

    `weights` are integers in units of 2^-20; `skip` (H, W) is the image that the network adds to, the mean
    of the first two planes if None. The network's part is computed in 32-bit floats, to within 1e-5 of its
    largest value; it fades at black (`compute_fade`), which stays exactly the skip. Raises ValueError on
    wrong shapes and on an image too small to reflect.
    """
    if planes.ndim != 3 or len(planes) != config.inputs:
        raise ValueError(f"expected planes of shape ({config.inputs}, H, W), got {planes.shape}")
    height, width = planes.shape[1:]
    if min(height, width) <= config.margin:
        raise ValueError(f"an image of {height}x{width} is too small for a margin of {config.margin}")
    base = np.asarray(planes[:2].mean(axis=0) if skip is None else skip, dtype=np.float64)
    if base.shape != (height, width):
        raise ValueError(f"expected a skip image of {height}x{width}, got {base.shape}")
    m = config.margin
    padded = np.pad(planes.astype(np.float32), ((0, 0), (m, m), (m, m)), mode="reflect")
    change = compute_change(config, convert_weights(weights), padded)
    return np.asarray(base + compute_fade(config, planes[0], planes[1]) * change, dtype=np.float64)


def compute_fade(config: NetworkConfig, first: Array, second: Array) -> Array:
    """What F - S is multiplied with at fusing, (H, W): min(1, 32 max(A, B)); 1 for a network of 1x1 kernels.

    The network's window reaches from an edge into the background beside it. What it adds there is small but
    counts as structure where there is none. Training does not know of it: its patches are hardly ever dark.
    A network without a margin sees no neighbours, and what it adds where both images are 0 is exactly 0.
    """
    if not config.margin:
        return np.ones(first.shape)
    return np.asarray(np.minimum(1.0, FADE_SLOPE * np.maximum(first, second)), dtype=np.float64)


def compute_change(config: NetworkConfig, weights: npt.ArrayLike, planes: Floats32) -> Floats32:
    """F - S without padding, (H - 2m, W - 2m), at float weights; planes (inputs, H, W).

    A plane is one long row, in which the window's entry (k, l) is the same row from k W + l on: both layers
    are products of small matrices with long rows. Only the side shifts l are copied; the first layer is one
    product for each k, with those channels whose kernels reach it. What wraps around a border is cut off
    at the end.
    """
    layers = split_weights(config, weights)
    side, second, m = config.kernel, config.second, config.margin
    _, height, width = planes.shape
    # Largest kernels first, so that the channels which reach a row of the window are the first ones.
    order = sorted(range(config.channels), key=lambda channel: -config.kernels[channel])
    first = _cut_rows(config, layers.first[order])
    twice = (2 * layers.bias[order]).astype(np.float32)[:, None]
    taps = layers.second[order].reshape(config.channels, -1).T.astype(np.float32)
    rows = height - 2 * m
    # Room behind the last row for windows that begin in it.
    flat = np.zeros((config.inputs, height * width + side + second), dtype=np.float32)
    flat[:, : height * width] = planes.reshape(config.inputs, -1)
    result = np.empty((rows, width - 2 * m), dtype=np.float32)
    per_row = (config.inputs * side + 2 * config.channels + second**2) * width
    step = max(_LEAST_ROWS, min(rows, _BLOCK_NUMBERS // per_row))
    length = (step + second + side - 2) * width + second - 1
    columns = np.empty((config.inputs, side, length), dtype=np.float32)
    for start in range(0, rows, step):
        block = min(step, rows - start)
        count = (block + second - 1) * width + second - 1
        room = count + (side - 1) * width
        for column in range(side):
            begin = start * width + column
            columns[:, column, :room] = flat[:, begin : begin + room]
        lines = columns.reshape(config.inputs * side, length)
        linear = np.zeros((config.channels, count), dtype=np.float32)
        for row, part in enumerate(first):
            linear[: len(part)] += part @ lines[:, row * width : row * width + count]
        # z^2 - b^2, so that the tied output bias cancels exactly.
        linear *= linear + twice
        spread = taps @ linear
        total = np.zeros(block * width, dtype=np.float32)
        for index, line in enumerate(spread):
            offset = index // second * width + index % second
            total += line[offset : offset + block * width]
        result[start : start + block] = total.reshape(block, width)[:, : width - 2 * m]
    return result


def _cut_rows(config: NetworkConfig, kernels: Array) -> list[Floats32]:
    """Each window row's weights (channels that reach it, inputs x kernel) of w, largest kernels first."""
    middle = config.kernel // 2
    sides = config.kernels
    reaching = [sum(side // 2 >= abs(row - middle) for side in sides) for row in range(config.kernel)]
    return [
        np.ascontiguousarray(kernels[:count, :, row], dtype=np.float32).reshape(count, -1)
        for row, count in enumerate(reaching)
    ]
