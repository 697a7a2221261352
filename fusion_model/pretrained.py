"""Starting weights fitted in clear to data that anyone may have: phantoms and simulated pairs.

Who publishes a task needs no patient's image for them, and mining then starts close to where it ends. The
loss is a sum of squares of F' = sum v (w * X + b)^2 - sum v b^2, so Gauss-Newton steps with damping
(Levenberg 1944, Marquardt 1963) reach its minimum in about ten rounds where gradient steps take thousands.
The weights are data of a task: they need not be the same to the last bit on every machine.
"""

from collections.abc import Sequence

import numpy as np

from fusion_model.config import WEIGHT_UNIT, NetworkConfig
from fusion_model.gradients import (
    Array,
    apply_metric,
    compute_first_places,
    compute_patch_losses,
    convert_weights,
    split_weights,
)
from fusion_model.initial import build_initial_weights
from fusion_model.losses import LossTarget, build_patch_target
from fusion_model.pairs import ImagePair
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.prepared import PairSettings
from fusion_model.simulated import build_simulated_pairs

PATCHES = 4096
ROUNDS = 12
RIDGE = 1e-6
"""Weight of the sum of squared weights: keeps them near 1, where integers and ciphertexts are exact."""

_PHANTOM_PATIENTS, _SIMULATED_PAIRS = 4, 32
_CHUNK = 512
_LEAST_GAIN = 1e-4
"""A round that lowers the loss by a smaller share is the last."""

_TRIES = 8


def build_public_pairs(seed: int) -> list[ImagePair]:
    """What the weights are fitted to: slices of four phantoms and 32 simulated pairs, no patient's image."""
    phantoms = build_phantoms(seed, _PHANTOM_PATIENTS)
    simulated = [
        ImagePair(pair.name, _PHANTOM_PATIENTS + pair.patient, pair.first, pair.second)
        for pair in build_simulated_pairs(seed, _SIMULATED_PAIRS)
    ]
    return phantoms + simulated


def build_pretrained_weights(config: NetworkConfig, settings: PairSettings, seed: int) -> tuple[int, ...]:
    """Integer weights in units of 2^-20, fitted to `build_public_pairs` under the task's own settings.

    Takes seconds. Raises ValueError where the settings have another number of planes than the network.
    """
    if config.inputs != 2 + len(settings.planes):
        raise ValueError(f"{len(settings.planes)} planes for a network of {config.inputs} inputs")
    patches = extract_patches(
        build_public_pairs(seed), PATCHES, seed, config.patch, settings=settings, margin=config.margin
    )
    target = build_patch_target(config, patches, settings.levels)
    initial = convert_weights(build_initial_weights(config, seed))
    fitted = fit_weights(config, patches.inputs, target, initial)
    return tuple(int(value) for value in np.rint(fitted / WEIGHT_UNIT))


def fit_weights(
    config: NetworkConfig,
    inputs: Array,
    target: LossTarget,
    initial: Array,
    rounds: int = ROUNDS,
    ridge: float = RIDGE,
) -> Array:
    """Flat float weights near the minimum of the patches' mean loss plus `ridge` times their squares."""

    def compute_objective(at: Array) -> float:
        losses = compute_patch_losses(config, at, inputs, target.plane, target.constant)
        return float(losses.mean() + ridge * (at @ at))

    weights, damping = np.asarray(initial, dtype=np.float64), 1e-2
    current = compute_objective(weights)
    for _ in range(rounds):
        normal, slope = _compute_normal(config, weights, inputs, target.plane)
        normal[np.diag_indices_from(normal)] += ridge
        slope -= ridge * weights
        for _ in range(_TRIES):
            damped = normal + damping * np.diag(np.diag(normal))
            step = np.linalg.solve(damped, slope)
            reached = compute_objective(weights + step)
            if reached < current:
                break
            damping *= 6
        else:
            return weights
        gain = (current - reached) / current
        weights, current, damping = weights + step, reached, max(damping / 5, 1e-7)
        if gain < _LEAST_GAIN:
            break
    return weights


def compute_mean_loss(
    config: NetworkConfig, weights: Sequence[int], inputs: Array, target: LossTarget
) -> float:
    """The mean loss of integer weights over patches, neither clipped nor noisy."""
    flat = convert_weights(weights)
    return float(compute_patch_losses(config, flat, inputs, target.plane, target.constant).mean())


def _compute_normal(
    config: NetworkConfig, weights: Array, inputs: Array, plane: Array
) -> tuple[Array, Array]:
    """Means over patches and output pixels of J'MJ and J'(R - MF'), J the derivative of F'."""
    area = config.output**2
    metric = apply_metric(config, np.eye(area).reshape(area, config.output, config.output))
    metric = metric.reshape(area, area)
    normal = np.zeros((config.parameters, config.parameters))
    slope = np.zeros(config.parameters)
    for start in range(0, len(inputs), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        change, derivative = _differentiate(config, weights, inputs[chunk])
        rows = derivative.reshape(-1, config.parameters)
        weighted = (metric @ derivative).reshape(-1, config.parameters)
        normal += rows.T @ weighted
        residual = plane[chunk].reshape(len(change), area) - change @ metric
        slope += rows.T @ residual.ravel()
    count = len(inputs) * area
    return normal / count, slope / count


def _differentiate(config: NetworkConfig, weights: Array, inputs: Array) -> tuple[Array, Array]:
    """F' (n, O^2) and its derivative (n, O^2, parameters), d tied."""
    layers = split_weights(config, weights)
    n, k, z, o = len(inputs), config.kernel, config.hidden, config.output
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (k, k), axis=(2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, z, z, -1)
    linear = columns @ layers.first.reshape(config.channels, -1).T
    centred = linear * (linear + 2 * layers.bias)
    outer = 2 * (linear + layers.bias)
    places = compute_first_places(config)
    channel = places // columns.shape[-1]
    cut, end = config.first_weights, config.second_start
    result = np.zeros((n, o, o, config.parameters))
    for row in range(config.second):
        for column in range(config.second):
            seen = (slice(None), slice(row, row + o), slice(column, column + o))
            tap = layers.second[:, row, column]
            result[..., :cut] += (tap * outer[seen])[..., channel] * columns[seen][
                ..., places % columns.shape[-1]
            ]
            result[..., cut:end] += 2 * tap * linear[seen]
            entry = end + row * config.second + column
            result[..., entry :: config.second**2] = centred[seen]
    # F' is linear in v, so its own derivative gives it back.
    change = result[..., end:] @ weights[end:]
    return change.reshape(n, o * o), result.reshape(n, o * o, -1)
