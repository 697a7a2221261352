"""What the openings of a committee's task cost one patch in privacy, and against whom.

Opening i moves by at most s_i in L2 norm (`workloads.box`, at the weights of that opening) and gets Gaussian
noise of deviation n_i from *each* member of its subset. Gaussian mechanisms of different ratios s_i / n_i
compose exactly: together they are one with the root of the sum of the squared ratios.

- Against t - 1 members who pool what they know, the noise of the one other member of the subset is left: n_i.
- Against everybody who holds no share, the noise of all t: n_i times the root of t.
- An attempt whose opening was refused as implausible is an opening all the same: whoever spoiled it may know
  by what, and take it off again.
- Noise is a discrete Gaussian in units of coefficients (`he.multiparty.noise`), of deviations so large that
  it can't be told from the continuous one. The noise of others is independent: adding it is post-processing.

Adaptive weights. The weights, and with them s_i, follow from earlier openings. With n_i in proportion to s_i
the ratios are constants and composition is the plain one. With constant n_i they are chosen by earlier
answers: the account of what was *spent* then holds as a filter (Smith, Thakurta, "Fully adaptive composition
for Gaussian differential privacy", NeurIPS 2022), that is, for a bound of the sum that is fixed beforehand
and never passed: whoever opens must stop before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workloads.base import WorkloadError
from workloads.privacy import PrivacyCost, compute_epsilon

DELTA = 1e-6
MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class CommitteeOpening:
    """One opening of gradients or of a loss."""

    square: float
    """Squared ratio of sensitivity to one member's noise; infinite without noise."""
    attempts: int = 1

    def __post_init__(self) -> None:
        if not self.square >= 0 or not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise WorkloadError(
                f"expected a ratio of at least 0 and 1 to {MAX_ATTEMPTS} attempts, got {self.square} and "
                f"{self.attempts}"
            )

    @property
    def cost(self) -> float:
        return self.square * self.attempts


def build_opening(sensitivity: int, noise: int, attempts: int = 1) -> CommitteeOpening:
    """Of what one patch can change in L2 norm and one member's deviation on every entry, both in opened
    units. With noise by tensor, `GradientBound.compute_ratio` is the square."""
    if sensitivity < 0 or noise < 0:
        raise WorkloadError(f"sensitivity and noise must not be negative, got {sensitivity} and {noise}")
    if sensitivity == 0:
        return CommitteeOpening(0.0, attempts)
    return CommitteeOpening(math.inf if noise == 0 else (sensitivity / noise) ** 2, attempts)


@dataclass(frozen=True, slots=True)
class CommitteeCost:
    """Epsilon at `delta`, for neighbours by adding or removing one patch; infinite without noise."""

    delta: float
    training_epsilon: float
    """Against t - 1 members who pool what they know."""
    validation_epsilon: float
    combined_epsilon: float
    """For a patch (or a copy of it) in both a training and a validation batch."""
    public_epsilon: float
    """The combined one against everybody who holds no share and knows no member's noise."""


def sum_participations(
    openings: Sequence[CommitteeOpening], order: Sequence[int], batches_per_step: int
) -> float:
    """The largest sum of squared ratios over the openings that one batch takes part in.

    Step s uses the batches order[(s k + i) mod n], i < k. Raises WorkloadError if a batch would count twice
    in one step.
    """
    if not 1 <= batches_per_step <= len(order):
        raise WorkloadError(f"batches_per_step must lie in [1, {len(order)}], got {batches_per_step}")
    totals = dict.fromkeys(order, 0.0)
    for step, opening in enumerate(openings):
        for place in range(batches_per_step):
            totals[order[(step * batches_per_step + place) % len(order)]] += opening.cost
    return max(totals.values())


def compute_committee_cost(
    gradients: float, losses: Sequence[CommitteeOpening], members: int, delta: float = DELTA
) -> CommitteeCost:
    """Of sums of squared ratios of gradient openings (`sum_participations`) and of all openings of losses.

    `members` is t, how many open together. For neighbours by replacing a patch, give the sensitivities for
    that; all openings then count alike.
    """
    if members < 1 or not 0 < delta < 1:
        raise WorkloadError(f"expected members and a delta between 0 and 1, got {members} and {delta}")
    validation = math.fsum(opening.cost for opening in losses)
    return CommitteeCost(
        delta=delta,
        training_epsilon=compute_epsilon(gradients, delta),
        validation_epsilon=compute_epsilon(validation, delta),
        combined_epsilon=compute_epsilon(gradients + validation, delta),
        public_epsilon=compute_epsilon((gradients + validation) / members, delta),
    )


def compute_multiplier(epsilon: float, openings: int, delta: float = DELTA) -> float:
    """The least ratio of noise to sensitivity that keeps `openings` equal openings within `epsilon`."""
    if epsilon <= 0 or openings < 1:
        raise WorkloadError(f"expected a positive epsilon and openings, got {epsilon} and {openings}")
    low, high = 1e-9, 1e9
    for _ in range(100):
        middle = math.sqrt(low * high)
        if compute_epsilon(openings / middle**2, delta) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def build_committee_statement(
    cost: PrivacyCost, target_limit: float, members: int | None = None, threshold: int | None = None
) -> str:
    """The privacy statement that contributors of a committee's task sign."""
    who = "Members of a committee" if members is None else f"{threshold} of {members} members of a committee"
    promise = f" and every |R| of the loss cut off at {target_limit:g}" if target_limit else ""
    return (
        f"All openings of this task together, delta={cost.delta:g}, one patch added or removed, even if all "
        "but one of those who open pool what they know: "
        f"epsilon={_show(cost.training_epsilon)} for a training patch "
        f"({cost.participations} gradient openings each), "
        f"epsilon={_show(cost.validation_epsilon)} for a validation patch, "
        f"epsilon={_show(cost.combined_epsilon)} for one in both. Against others it is better. It holds for "
        f"batches as `bmif data encrypt` makes them: grey values in [0, 1]{promise}; no patch is clipped, "
        "and nobody can look into one. Per patient it is vacuous: a patient gives many patches that overlap. "
        f"{who} open sums together and no one of them can read an image; as many of them who conspire can."
    )


def _show(epsilon: float) -> str:
    return "unbounded (no noise)" if math.isinf(epsilon) else f"{epsilon:.2f}"
