"""The clear twin: clipping in integers, order of batches, and what 40 steps reach on phantoms."""

from functools import partial

import numpy as np
import pytest

from benchmarks.clear_training import SHIFT, WEIGHT_BOX, Data, Settings, compute_linear_loss, run_training
from consensus.optimizer import apply_opening
from fusion_model.config import NetworkConfig
from fusion_model.gradients import compute_patch_gradients, convert_weights, fold_output_bias
from fusion_model.initial import build_initial_weights
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.train import (
    Clipping,
    TrainingBatch,
    build_training_batch,
    clip_gradients,
    compute_clipped_sum,
    compute_mean_loss,
    train_twin,
)

CONFIG = NetworkConfig()
CLIPPING = Clipping(1 << 19, 20, 1 << 18, 20)


def build_batches(count: int, patches: int) -> list[TrainingBatch]:
    inputs = extract_patches(build_phantoms(1, 2, slices=2, size=96), count * patches, seed=1).inputs
    return [build_training_batch(CONFIG, inputs[i * patches : (i + 1) * patches]) for i in range(count)]


def no_noise(step: int, count: int) -> list[int]:
    return [0] * count


def test_no_patch_moves_the_sum_by_more_than_the_clip() -> None:
    weights = convert_weights(build_initial_weights(CONFIG, 0))
    batch = build_batches(1, 600)[0]
    gradients = compute_patch_gradients(CONFIG, weights, batch.inputs, batch.target.plane)
    clipped = clip_gradients(CONFIG, weights, gradients, CLIPPING)
    squares = [sum(value * value for value in row) for row in clipped.tolist()]
    assert max(squares) <= CLIPPING.gradient_clip**2
    folded = fold_output_bias(CONFIG, weights, gradients) * 2.0**20
    small = np.linalg.norm(folded, axis=1) < CLIPPING.gradient_clip * 0.999
    assert small.any()
    assert not small.all()
    np.testing.assert_array_equal(clipped[small], np.trunc(folded[small]).astype(np.int64))
    total = compute_clipped_sum(CONFIG, build_initial_weights(CONFIG, 0), batch, CLIPPING)
    np.testing.assert_array_equal(total, clipped.sum(axis=0))


def test_losses_are_clipped_by_patch() -> None:
    weights = build_initial_weights(CONFIG, 0)
    batches = build_batches(2, 300)
    open_wide = compute_mean_loss(CONFIG, weights, batches, Clipping(1, 20, 1 << 30, 20))
    tight = compute_mean_loss(CONFIG, weights, batches, Clipping(1, 20, 1 << 10, 20))
    assert tight < 2.0**-10 < open_wide


def test_steps_are_the_integer_optimisers_and_take_batches_in_order() -> None:
    batches = build_batches(3, 100)
    initial = build_initial_weights(CONFIG, 0)
    rates = (9000, 8000, 7000)
    update = partial(apply_opening, shift=22, box=WEIGHT_BOX)
    steps = list(
        train_twin(
            CONFIG,
            initial,
            batches,
            batches[:1],
            clipping=CLIPPING,
            learning_rates=rates,
            batches_per_step=2,
            update=update,
            noise=lambda step, count: [step + 1] * count,
            loss_schedule=(0, 2),
            order=(2, 0, 1),
        )
    )
    assert [step.loss is not None for step in steps] == [True, False, True, False]
    weights, momentum = tuple(initial), tuple([0] * 112)
    for step, used in enumerate(((2, 0), (1, 2), (0, 1))):
        assert (steps[step].weights, steps[step].momentum) == (weights, momentum)
        sums = [compute_clipped_sum(CONFIG, weights, batches[i], CLIPPING) for i in used]
        total = np.sum(sums, axis=0) + step + 1
        weights, momentum = update(weights, momentum, tuple(total.tolist()), rates[step])
    assert (steps[3].weights, steps[3].momentum) == (weights, momentum)


def test_an_order_that_is_no_permutation_is_refused() -> None:
    batches = build_batches(2, 10)
    with pytest.raises(ValueError, match="permutation of 2"):
        next(
            train_twin(
                CONFIG,
                build_initial_weights(CONFIG, 0),
                batches,
                batches,
                clipping=CLIPPING,
                learning_rates=(1,),
                batches_per_step=1,
                update=partial(apply_opening, shift=SHIFT, box=WEIGHT_BOX),
                noise=no_noise,
                loss_schedule=(),
                order=(0, 0),
            )
        )


def test_forty_steps_on_phantoms_fall_fivefold_and_leave_the_best_linear_filter_behind() -> None:
    training = extract_patches(build_phantoms(1, 4), 4096, seed=1).inputs
    held = build_phantoms(1, 2, first_patient=100)
    batches = [build_training_batch(CONFIG, training[i::2]) for i in range(2)]
    validation = [build_training_batch(CONFIG, extract_patches(held, 4096, seed=2).inputs)]
    data = Data("phantoms", batches, validation, held)
    # A quarter of a full step's patches: four times the rate on the sum, a quarter of the noise.
    settings = Settings(rate=4 * Settings().rate, noise=Settings().noise / 4)
    losses = [step.loss for step in run_training(CONFIG, settings, data, every=40) if step.loss is not None]
    assert losses[0] / losses[-1] > 6
    assert compute_linear_loss(CONFIG, data) > 2.5 * losses[-1]
