"""Integer momentum SGD, repeatable bit for bit by anyone (design 3.6)."""

from collections.abc import Sequence

from consensus.task import Optimizer

MOMENTUM_NUMERATOR = 9
MOMENTUM_DENOMINATOR = 10


def apply_opening(
    weights: Sequence[int], momentum: Sequence[int], gradient: Sequence[int], lr: int, shift: int, box: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(weights, momentum) after one opened gradient; every weight in [-box, box].

    m <- floor(9 m / 10) + g; w <- w - floor(lr m / 2^shift), saturating at the box.

    Raises: ValueError if the lengths differ.
    """
    if not len(weights) == len(momentum) == len(gradient):
        raise ValueError(f"Expected equal lengths. Got {len(weights)}, {len(momentum)}, {len(gradient)}.")
    new_momentum = tuple(
        (m * MOMENTUM_NUMERATOR) // MOMENTUM_DENOMINATOR + g for m, g in zip(momentum, gradient, strict=True)
    )
    new_weights = tuple(
        max(-box, min(box, w - ((lr * m) >> shift))) for w, m in zip(weights, new_momentum, strict=True)
    )
    return new_weights, new_momentum


def compute_weights(
    initial: Sequence[int], gradients: Sequence[Sequence[int]], optimizer: Optimizer, box: int
) -> tuple[int, ...]:
    """Weights after the given opened gradients of steps 0, 1, ..."""
    weights, momentum = tuple(initial), (0,) * len(initial)
    for step, gradient in enumerate(gradients):
        lr = optimizer.learning_rates[step]
        weights, momentum = apply_opening(weights, momentum, gradient, lr, optimizer.shift, box)
    return weights
