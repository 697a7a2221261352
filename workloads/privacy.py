"""What all planned and spent openings of a task cost one patch in privacy, computed off-chain.

Adding or removing one patch changes an opened gradient sum by at most the clip in L2 norm and an
opened sum of losses by at most the loss clip; both get Gaussian noise. Repeated openings compose
exactly: Gaussian mechanisms with noise multipliers z_i together are one with 1/z² = sum of 1/z_i².
"""

import math
from dataclasses import dataclass

import dp_accounting


@dataclass(frozen=True, slots=True)
class OpeningPlan:
    """The numbers of a draft and its publication that decide the cost of one patch."""

    gradient_clip: int
    gradient_noise: int
    gradient_openings: int
    """Openings of gradients, planned or spent."""
    loss_clip: int
    loss_noise: int
    loss_openings: int
    batches: int
    """Training batches of the task."""
    batches_per_step: int


@dataclass(frozen=True, slots=True)
class PrivacyCost:
    """Epsilon at `delta`, for neighbours by adding or removing one patch; infinite without noise."""

    delta: float
    participations: int
    """Gradient openings that one training patch takes part in, at most."""
    training_epsilon: float
    validation_epsilon: float
    combined_epsilon: float
    """For a patch (or a copy of it) in both a training and a validation batch."""


def compute_participations(plan: OpeningPlan) -> int:
    """The most openings that any one batch takes part in: batches are used in turn.

    Raises ValueError if a batch would count twice in one step (the clip would not bound it).
    """
    if not 1 <= plan.batches_per_step <= plan.batches:
        raise ValueError(
            f"batches_per_step must lie in [1, {plan.batches}] (the task's batches), "
            f"got {plan.batches_per_step}"
        )
    return -(-plan.gradient_openings * plan.batches_per_step // plan.batches)


def _compute_inverse_square(clip: int, noise: int, openings: int) -> float:
    """Sum of 1/z² over openings with noise multiplier z = noise / clip."""
    if clip < 1:
        raise ValueError(f"a clip is at least one unit, got {clip}")
    if openings < 0 or noise < 0:
        raise ValueError(f"openings and noise must not be negative, got {openings} and {noise}")
    if openings == 0:
        return 0.0
    return math.inf if noise == 0 else openings * (clip / noise) ** 2


def compute_epsilon(inverse_square: float, delta: float) -> float:
    """Epsilon at `delta` of Gaussian mechanisms whose 1/z² add up to this."""
    if inverse_square == 0.0:
        return 0.0
    if math.isinf(inverse_square):
        return math.inf
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(inverse_square), delta))


def compute_privacy_cost(plan: OpeningPlan, delta: float = 1e-6) -> PrivacyCost:
    """Epsilon of one training patch, one validation patch, and one that is in both."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    participations = compute_participations(plan)
    gradient = _compute_inverse_square(plan.gradient_clip, plan.gradient_noise, participations)
    loss = _compute_inverse_square(plan.loss_clip, plan.loss_noise, plan.loss_openings)
    return PrivacyCost(
        delta=delta,
        participations=participations,
        training_epsilon=compute_epsilon(gradient, delta),
        validation_epsilon=compute_epsilon(loss, delta),
        combined_epsilon=compute_epsilon(gradient + loss, delta),
    )


def build_statement(cost: PrivacyCost) -> str:
    """The privacy statement that contributors sign: what holds, for whom, and what does not."""

    def show(epsilon: float) -> str:
        return "unbounded (no noise)" if math.isinf(epsilon) else f"{epsilon:.2f}"

    return (
        f"All openings of this task together, delta={cost.delta:g}, one patch added or removed: "
        f"epsilon={show(cost.training_epsilon)} for a training patch "
        f"({cost.participations} gradient openings each), "
        f"epsilon={show(cost.validation_epsilon)} for a validation patch, "
        f"epsilon={show(cost.combined_epsilon)} for one in both. "
        "Per patient this is vacuous: clipping is by patch, and a patient gives many patches that "
        "overlap. The custodian holds the key and can read every contributed image."
    )


def compute_hidden_bits(sum_tolerance: float, noise: float, entries: int, openings: int) -> float:
    """Most bits that crafted bundles could carry out under the custody's tolerance, to first order.

    Each of `entries` numbers of each opening may be off by `sum_tolerance` beneath Gaussian noise of
    standard deviation `noise` (same unit): the capacity of as many Gaussian channels. The scheme's own
    error is smaller than the tolerance, so this also bounds what it tells of the key.
    """
    if noise <= 0:
        return math.inf
    return entries * openings * 0.5 * math.log2(1 + (sum_tolerance / noise) ** 2)
