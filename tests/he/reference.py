"""The network in plain numpy: forward pass, loss and per-patch gradients of the textbook formulas."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he.params import CkksParams
from he.spec import PolynomialSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """Patches with targets: everything a contributor knows."""

    inputs: Floats
    image: Floats
    gradient_x: Floats
    gradient_y: Floats


def make_problem(spec: PolynomialSpec, count: int, seed: int = 1) -> Problem:
    """Smooth random patches with maximum targets and the larger of both gradients; planes behind the
    two images are of both signs."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(size=(count, spec.inputs, spec.patch, spec.patch))
    level = rng.uniform(size=(count, spec.inputs, 1, 1))
    inputs = np.clip(level + 0.3 * (raw - 0.5), 0, 1)
    inputs[:, 2:] = 2 * inputs[:, 2:] - 1
    margin = spec.margin
    window = inputs[:, :2, margin : spec.patch - margin, margin : spec.patch - margin]
    image = window.max(axis=1)
    steps_x, steps_y = np.diff(window, axis=3), np.diff(window, axis=2)
    return Problem(inputs, image, pick_larger(steps_x), pick_larger(steps_y))


def pick_larger(steps: Floats) -> Floats:
    return np.where(np.abs(steps[:, 0]) > np.abs(steps[:, 1]), steps[:, 0], steps[:, 1])


def compute_skip(spec: PolynomialSpec, inputs: Floats) -> Floats:
    margin = spec.margin
    end = spec.patch - margin
    skip: Floats = inputs[:, :2, margin:end, margin:end].mean(axis=1)
    return skip


def apply_transposed_difference(x: Floats, y: Floats, side: int) -> Floats:
    """D'(x, y) for differences along columns and rows."""
    result = np.zeros((len(x), side, side))
    result[:, :, 1:] += x
    result[:, :, :-1] -= x
    result[:, 1:] += y
    result[:, :-1] -= y
    return result


def compute_target(spec: PolynomialSpec, problem: Problem) -> tuple[Floats, Floats]:
    """R = T + mu D'g - M S and K = |S - T|^2 + mu |DS - g|^2."""
    mu, skip = spec.gradient_weight, compute_skip(spec, problem.inputs)
    steps_x, steps_y = np.diff(skip, axis=2), np.diff(skip, axis=1)
    rest_x, rest_y = problem.gradient_x - steps_x, problem.gradient_y - steps_y
    target = problem.image - skip + mu * apply_transposed_difference(rest_x, rest_y, spec.output)
    constant = ((skip - problem.image) ** 2).sum((1, 2)) + mu * (
        (rest_x**2).sum((1, 2)) + (rest_y**2).sum((1, 2))
    )
    return target, constant


def compute_forward(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...], inputs: Floats
) -> tuple[Floats, Floats]:
    """z (n, C, Z, Z) and F' (n, O, O), with the tied output bias."""
    w, b, v = split(params, spec, weights)
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (spec.kernel, spec.kernel), axis=(2, 3))
    z = np.einsum("naijkl,cakl->ncij", windows, w, optimize=True) + b[None, :, None, None]
    windows = np.lib.stride_tricks.sliding_window_view(z**2, (spec.second, spec.second), axis=(2, 3))
    return z, np.einsum("ncijkl,ckl->nij", windows, v, optimize=True) - (v.sum((1, 2)) * b**2).sum()


def split(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...]
) -> tuple[Floats, Floats, Floats]:
    """w (C, A, K, K) with zeros around smaller kernels, b and v."""
    flat = np.array(weights, dtype=np.float64) / 2.0**params.weight_scale_bits
    w = np.zeros((spec.channels, spec.inputs, spec.kernel, spec.kernel))
    first = spec.channels * (1 + spec.second**2)
    w[mark_trained(spec)] = flat[:-first]
    b, v = flat[-first : len(flat) - first + spec.channels], flat[len(flat) - first + spec.channels :]
    return w, b, v.reshape(spec.channels, spec.second, spec.second)


def mark_trained(spec: PolynomialSpec) -> NDArray[np.bool_]:
    """True at the entries of (C, A, K, K) that lie in their channel's own kernel."""
    away = np.abs(np.arange(spec.kernel) - spec.kernel // 2)
    reach = np.array([side // 2 for side in spec.kernels])
    inside = away <= reach[:, None]
    mask = inside[:, None, :, None] & inside[:, None, None, :]
    return np.broadcast_to(mask, (spec.channels, spec.inputs, spec.kernel, spec.kernel)).copy()


def compute_losses(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...], problem: Problem
) -> Floats:
    """[sum (F - T)^2 + mu sum |grad F - g|^2] / O^2 by patch, straight from the images."""
    fused = compute_forward(params, spec, weights, problem.inputs)[1] + compute_skip(spec, problem.inputs)
    total = ((fused - problem.image) ** 2).sum((1, 2))
    total += spec.gradient_weight * ((np.diff(fused, axis=2) - problem.gradient_x) ** 2).sum((1, 2))
    total += spec.gradient_weight * ((np.diff(fused, axis=1) - problem.gradient_y) ** 2).sum((1, 2))
    losses: Floats = total / spec.output**2
    return losses


def compute_gradients(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...], problem: Problem
) -> Floats:
    """(n, gradients) straight from the images, with d an independent parameter."""
    z, network = compute_forward(params, spec, weights, problem.inputs)
    fused = network + compute_skip(spec, problem.inputs)
    steps_x = np.diff(fused, axis=2) - problem.gradient_x
    steps_y = np.diff(fused, axis=1) - problem.gradient_y
    outer = fused - problem.image
    outer = outer + spec.gradient_weight * apply_transposed_difference(steps_x, steps_y, spec.output)
    return propagate_back(params, spec, weights, problem.inputs, z, outer)


def compute_gradients_at(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...], inputs: Floats, target: Floats
) -> Floats:
    """(n, gradients) from inputs and R, as the key holder knows them after decryption."""
    z, network = compute_forward(params, spec, weights, inputs)
    return propagate_back(params, spec, weights, inputs, z, apply_stencil(spec, network) - target)


def compute_losses_at(
    params: CkksParams,
    spec: PolynomialSpec,
    weights: tuple[int, ...],
    inputs: Floats,
    target: Floats,
    constant: Floats,
) -> Floats:
    """Losses by patch from inputs, R and K."""
    network = compute_forward(params, spec, weights, inputs)[1]
    total = (network * (apply_stencil(spec, network) - 2 * target)).sum((1, 2)) + constant
    losses: Floats = total / spec.output**2
    return losses


def apply_stencil(spec: PolynomialSpec, network: Floats) -> Floats:
    """(I + mu D'D) F'."""
    steps_x, steps_y = np.diff(network, axis=2), np.diff(network, axis=1)
    return network + spec.gradient_weight * apply_transposed_difference(steps_x, steps_y, spec.output)


def propagate_back(
    params: CkksParams,
    spec: PolynomialSpec,
    weights: tuple[int, ...],
    inputs: Floats,
    z: Floats,
    outer: Floats,
) -> Floats:
    """Back-propagation of dL/dF = 2 outer / O^2."""
    _, _, v = split(params, spec, weights)
    outer = outer * 2 / spec.output**2
    count, side = len(z), spec.output
    back = np.zeros_like(z)
    grad_v = np.empty((count, spec.channels, spec.second, spec.second))
    for k in range(spec.second):
        for m in range(spec.second):
            back[:, :, k : k + side, m : m + side] += v[None, :, k, m, None, None] * outer[:, None]
            grad_v[:, :, k, m] = np.einsum("nij,ncij->nc", outer, z[:, :, k : k + side, m : m + side] ** 2)
    delta = 2 * back * z
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (spec.hidden, spec.hidden), axis=(2, 3))
    grad_w = np.einsum("naklij,ncij->ncakl", windows, delta, optimize=True)
    parts = (grad_w[:, mark_trained(spec)], delta.sum((2, 3)), grad_v, outer.sum((1, 2)))
    return np.concatenate([part.reshape(count, -1) for part in parts], axis=1)


def make_weights(
    params: CkksParams, spec: PolynomialSpec, seed: int = 0, beta: float = 0.3
) -> tuple[int, ...]:
    """Half the channels start at the difference of the inputs; second layer four times the usual."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(spec.channels, spec.inputs, spec.kernel, spec.kernel)) * 0.15
    centre, half = spec.kernel // 2, spec.channels // 2
    w[:half, 0, centre, centre] += 0.6
    w[:half, 1, centre, centre] -= 0.6
    b = np.zeros(spec.channels)
    b[half:] = beta
    v = rng.normal(size=(spec.channels, spec.second, spec.second)) * 0.12
    flat = np.concatenate([w[mark_trained(spec)], b, v.ravel()]) * 2.0**params.weight_scale_bits
    return tuple(int(value) for value in np.rint(flat))


def train(
    params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...], problem: Problem, steps: int
) -> tuple[int, ...]:
    """Momentum descent in clear with the bias tied: weights like those after `steps` steps."""
    unit = 2.0**params.weight_scale_bits
    current, momentum = np.array(weights) / unit, np.zeros(spec.parameters)
    for _ in range(steps):
        integers = tuple(int(value) for value in np.rint(current * unit))
        _, b, v = split(params, spec, integers)
        mean = compute_gradients(params, spec, integers, problem).mean(axis=0)
        first, second = spec.first_weights, spec.second_start
        mean[first:second] -= 2 * b * v.sum((1, 2)) * mean[-1]
        mean[second:-1] -= np.repeat(b**2, spec.second**2) * mean[-1]
        momentum = 0.9 * momentum + mean[:-1]
        current = current - 0.05 * momentum
    return tuple(int(value) for value in np.rint(current * unit))
