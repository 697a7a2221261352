"""Closed-form losses and gradients of the polynomial network, patch by patch, in float64.

These are the numbers that the encrypted circuits compute and that a custody compares them with, so nothing
here needs a training library. Shapes: inputs (n, inputs, P, P), loss target R (n, O, O), constant (n,).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusion_model.config import WEIGHT_UNIT, NetworkConfig

Array = npt.NDArray[np.float64]

_CHUNK = 512
"""Patches worked on at once: their windows stay in the processor's cache."""


class Layers(NamedTuple):
    """The flat parameters as tensors."""

    first: Array
    """w, (channels, inputs, kernel, kernel): smaller kernels have zeros around them."""
    bias: Array
    """b, (channels,)."""
    second: Array
    """v, (channels, second, second)."""


@lru_cache(maxsize=32)
def compute_first_places(config: NetworkConfig) -> npt.NDArray[np.intp]:
    """Where each weight of w stands in the flattened (channels, inputs, kernel, kernel); read-only."""
    grid = np.arange(config.channels * config.inputs * config.kernel**2).reshape(
        config.channels, config.inputs, config.kernel, config.kernel
    )
    parts = []
    for plane, side in zip(grid, config.kernels, strict=True):
        low = (config.kernel - side) // 2
        parts.append(plane[:, low : low + side, low : low + side].ravel())
    places = np.concatenate(parts)
    places.flags.writeable = False
    return places


def split_weights(config: NetworkConfig, weights: npt.ArrayLike) -> Layers:
    """The tensors w, b, v of a flat float vector.

    Raises ValueError when its length is not `config.parameters`.
    """
    flat = np.asarray(weights, dtype=np.float64)
    if flat.shape != (config.parameters,):
        raise ValueError(f"expected {config.parameters} weights, got shape {flat.shape}")
    c, k, cut, end = config.channels, config.kernel, config.first_weights, config.second_start
    first = np.zeros(c * config.inputs * k * k)
    first[compute_first_places(config)] = flat[:cut]
    return Layers(
        first.reshape(c, config.inputs, k, k),
        flat[cut:end],
        flat[end:].reshape(c, config.second, config.second),
    )


def convert_weights(weights: Sequence[int]) -> Array:
    """Integer weights (units of 2^-20) as exact float64 values."""
    return np.array(weights, dtype=np.float64) * WEIGHT_UNIT


def compute_output_bias(config: NetworkConfig, weights: npt.ArrayLike) -> float:
    """The tied output bias d = -sum v b^2."""
    layers = split_weights(config, weights)
    return -float(np.dot(layers.second.sum(axis=(1, 2)), layers.bias**2))


def apply_metric(config: NetworkConfig, planes: Array) -> Array:
    """M U = (I + mu D'D) U of planes (n, O, O): identity plus the weighted 5-point stencil."""
    result = planes.copy()
    mu = config.gradient_weight
    for axis in (1, 2):
        step = mu * np.diff(planes, axis=axis)
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        result[high] += step
        result[low] -= step
    return result


def compute_patch_gradients(
    config: NetworkConfig, weights: npt.ArrayLike, inputs: Array, target: Array
) -> Array:
    """Each patch's gradient of its own loss, (n, 113) for the default network; the last column is dL/dd.

    The columns of b and v hold d fixed; `fold_output_bias` adds what the tie contributes.
    """
    check_patches(config, inputs, target)
    layers = split_weights(config, weights)
    spread = _build_spread(config, layers.second)
    result = np.empty((len(inputs), config.gradient_entries))
    for start in range(0, len(inputs), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        _write_gradients(config, layers, spread, inputs[chunk], target[chunk], result[chunk])
    return result


def compute_patch_losses(
    config: NetworkConfig, weights: npt.ArrayLike, inputs: Array, target: Array, constant: Array
) -> Array:
    """Each patch's loss [sum (F-T)^2 + mu sum |grad F - g|^2] / O^2, shape (n,).

    `target` and `constant` come from `build_loss_target`; the constant is not yet divided by O^2.
    """
    check_patches(config, inputs, target)
    layers = split_weights(config, weights)
    spread = _build_spread(config, layers.second)
    result = np.empty(len(inputs))
    for start in range(0, len(inputs), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        _, _, change = _compute_forward(config, layers, spread, inputs[chunk])
        weighted = apply_metric(config, change)
        result[chunk] = ((weighted - 2 * target[chunk]) * change).sum(axis=(1, 2))
    return (result + constant) / config.output**2


def fold_output_bias(config: NetworkConfig, weights: npt.ArrayLike, gradients: Array) -> Array:
    """Gradients (..., 113) turned into those of the trained parameters (..., 112), d tied to v and b."""
    if gradients.shape[-1] != config.gradient_entries:
        raise ValueError(f"expected {config.gradient_entries} gradient entries, got {gradients.shape[-1]}")
    layers = split_weights(config, weights)
    folded = gradients[..., :-1].copy()
    output_bias = gradients[..., -1:]
    cut, end = config.first_weights, config.second_start
    folded[..., cut:end] -= output_bias * (2 * layers.bias * layers.second.sum(axis=(1, 2)))
    folded[..., end:] -= output_bias * np.repeat(layers.bias**2, config.second**2)
    return folded


def check_patches(config: NetworkConfig, inputs: Array, target: Array) -> None:
    """Raises ValueError unless inputs and loss target have the network's shapes and the same count."""
    n, p, o = len(inputs), config.patch, config.output
    if inputs.shape != (n, config.inputs, p, p):
        raise ValueError(f"expected inputs of shape (n, {config.inputs}, {p}, {p}), got {inputs.shape}")
    if target.shape != (n, o, o):
        raise ValueError(f"expected a loss target of shape ({n}, {o}, {o}), got {target.shape}")


def _build_spread(config: NetworkConfig, second: Array) -> Array:
    """The second convolution as a matrix (hidden positions x channels, output positions)."""
    z, o, k = config.hidden, config.output, config.second
    spread = np.zeros((z, z, config.channels, o, o))
    for row in range(o):
        for column in range(o):
            spread[row : row + k, column : column + k, :, row, column] = second.transpose(1, 2, 0)
    return spread.reshape(z * z * config.channels, o * o)


def _compute_forward(
    config: NetworkConfig, layers: Layers, spread: Array, inputs: Array
) -> tuple[Array, Array, Array]:
    """Windows (n, Z^2, inputs k^2), pre-activations (n, Z^2, channels) and the change F - S (n, O, O)."""
    n, k = len(inputs), config.kernel
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (k, k), axis=(2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, config.hidden**2, config.inputs * k * k)
    linear = columns @ layers.first.reshape(config.channels, -1).T
    # z^2 - b^2, so that the tied output bias cancels exactly and black stays exactly black.
    centred = linear * (linear + 2 * layers.bias)
    change = centred.reshape(n, -1) @ spread
    return columns, linear + layers.bias, change.reshape(n, config.output, config.output)


def _write_gradients(
    config: NetworkConfig, layers: Layers, spread: Array, inputs: Array, target: Array, out: Array
) -> None:
    n, k, c, z, o = len(inputs), config.second, config.channels, config.hidden, config.output
    columns, activation, change = _compute_forward(config, layers, spread, inputs)
    residual = apply_metric(config, change)
    residual -= target
    residual *= 2 / o**2
    cut, end = config.first_weights, config.second_start
    delta = (residual.reshape(n, -1) @ spread.T).reshape(n, z * z, c)
    delta *= activation
    delta *= 2
    first = (delta.transpose(0, 2, 1) @ columns).reshape(n, -1)
    out[:, :cut] = first[:, compute_first_places(config)]
    out[:, cut:end] = delta.sum(axis=1)
    squares = (activation**2).reshape(n, z, z, c)
    second = np.zeros((n, k, k, c))
    for row in range(o):
        for column in range(o):
            second += (
                residual[:, row, column, None, None, None] * squares[:, row : row + k, column : column + k]
            )
    out[:, end:-1] = second.transpose(0, 3, 1, 2).reshape(n, -1)
    out[:, -1] = residual.sum(axis=(1, 2))
