"""Training in clear with exactly the steps that the encrypted task takes: the encrypted task's twin.

Clipping and integers are here; a task's own integer optimiser and noise are passed in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    Array,
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.losses import LossTarget, build_training_target

Integers = tuple[int, ...]

Update = Callable[[Integers, Integers, Integers, int], tuple[Integers, Integers]]
"""(weights, momentum, opened gradient sum, learning rate of the step) -> next weights and momentum."""

Noise = Callable[[int, int], Sequence[int]]
"""(step, count) -> the integers that are added to the step's gradient sum."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Patches with their loss target, in clear."""

    inputs: Array
    """(n, inputs, P, P)."""
    target: LossTarget


@dataclass(frozen=True, slots=True)
class Clipping:
    """Bounds of one patch's influence, in the units of the opened numbers."""

    gradient_clip: int
    """L2 bound of a patch's joint gradient over all trained parameters, in 2^-gradient_scale_bits."""
    gradient_scale_bits: int
    loss_clip: int
    """Upper bound of a patch's loss, in 2^-loss_scale_bits."""
    loss_scale_bits: int


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """The state before step `step`; the validation loss where the schedule asks for it."""

    step: int
    weights: Integers
    momentum: Integers
    loss: float | None


def build_training_batch(config: NetworkConfig, inputs: Array) -> TrainingBatch:
    """Patches with the default targets."""
    return TrainingBatch(inputs, build_training_target(config, inputs))


def clip_gradients(
    config: NetworkConfig, weights: Array, gradients: Array, clipping: Clipping
) -> npt.NDArray[np.int64]:
    """Per-patch gradients (n, 113) as clipped integers (n, 112): what each patch adds to an opened sum.

    The tie of d is folded in first, so that the joint norm is over what is really trained; truncation toward
    zero keeps every integer row's L2 norm within `gradient_clip`.
    """
    scaled = fold_output_bias(config, weights, gradients) * 2.0**clipping.gradient_scale_bits
    norms = np.sqrt(np.einsum("np,np->n", scaled, scaled))
    # A hair below the bound, so that rounding in this division can not carry a row over it.
    bound = clipping.gradient_clip * (1 - 1e-12)
    scaled *= np.minimum(1.0, bound / np.maximum(norms, 1e-300))[:, None]
    return np.trunc(scaled).astype(np.int64)


def compute_clipped_sum(
    config: NetworkConfig, weights: Sequence[int], batch: TrainingBatch, clipping: Clipping
) -> npt.NDArray[np.int64]:
    """The integer sum over a batch of every patch's clipped gradient, before noise."""
    flat = convert_weights(weights)
    gradients = compute_patch_gradients(config, flat, batch.inputs, batch.target.plane)
    return np.asarray(clip_gradients(config, flat, gradients, clipping).sum(axis=0), dtype=np.int64)


def compute_mean_loss(
    config: NetworkConfig, weights: Sequence[int], validation: Sequence[TrainingBatch], clipping: Clipping
) -> float:
    """The mean over all validation patches of the clipped loss, before noise."""
    bound = clipping.loss_clip * 2.0**-clipping.loss_scale_bits
    flat = convert_weights(weights)
    losses = [
        compute_patch_losses(config, flat, batch.inputs, batch.target.plane, batch.target.constant)
        for batch in validation
    ]
    return float(np.minimum(np.concatenate(losses), bound).mean())


def train_twin(
    config: NetworkConfig,
    initial_weights: Sequence[int],
    batches: Sequence[TrainingBatch],
    validation: Sequence[TrainingBatch],
    *,
    clipping: Clipping,
    learning_rates: Sequence[int],
    batches_per_step: int,
    update: Update,
    noise: Noise,
    loss_schedule: Sequence[int],
    order: Sequence[int] | None = None,
) -> Iterator[TrainingStep]:
    """Yields the state before each step and after the last: len(learning_rates) + 1 states.

    Step s uses batches order[(s k + i) mod len], i < k. The momentum starts at zero and is never reset.
    """
    sequence = tuple(range(len(batches))) if order is None else tuple(order)
    if sorted(sequence) != list(range(len(batches))):
        raise ValueError(f"order must be a permutation of {len(batches)} batches, got {sequence}")
    weights: Integers = tuple(initial_weights)
    momentum: Integers = (0,) * config.parameters
    scheduled = frozenset(loss_schedule)
    for step in range(len(learning_rates) + 1):
        loss = compute_mean_loss(config, weights, validation, clipping) if step in scheduled else None
        yield TrainingStep(step, weights, momentum, loss)
        if step == len(learning_rates):
            return
        total = np.zeros(config.parameters, dtype=np.int64)
        for place in range(batches_per_step):
            index = sequence[(step * batches_per_step + place) % len(sequence)]
            total += compute_clipped_sum(config, weights, batches[index], clipping)
        added = noise(step, config.parameters)
        opened = tuple(int(value) + extra for value, extra in zip(total.tolist(), added, strict=True))
        weights, momentum = update(weights, momentum, opened, learning_rates[step])
