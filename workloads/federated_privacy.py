"""What all openings of a federation cost one participant in privacy, and what noise of its own buys it.

Who takes part is public, so neighbours differ in one participant's data, not in whether it is there: its
update of a round may be any other within the clip, which moves the opened sum by at most 2 x clip x weight in
L2. The largest weight decides. Openings compose exactly: n Gaussian mechanisms of noise multiplier z are one
of z / sqrt(n), also where each is chosen by what the earlier ones gave. Probation opens overlapping lists in
further rounds; each of these openings counts.

Ciphertexts are malleable: a participant may add multiples of another's to its own, so that the other's counts
more than once. The custody clips a sum to clip x the listed weights before its noise, so that even then two
sums are no further apart than 2 x clip x all weights; that is the second epsilon.
"""

import math
from dataclasses import dataclass

import dp_accounting

from workloads.base import WorkloadError

DELTA = 1e-6


@dataclass(frozen=True, slots=True)
class FederationPrivacy:
    """Epsilon at `delta`, for all data of one participant exchanged; infinite without noise."""

    delta: float
    openings: int
    epsilon: float
    """Against everybody who sees what was opened, other participants included, but not the custody."""
    worst_epsilon: float
    """The same against participants that add others' ciphertexts to their own."""
    own_epsilon: float
    """Against the custody too, even with all other participants: by the participant's own noise alone."""


def compute_epsilon(sensitivity: float, noise_std: float, releases: int, delta: float = DELTA) -> float:
    """Of `releases` Gaussian mechanisms together."""
    if not 0 < delta < 1:
        raise WorkloadError(f"delta: expected between 0 and 1, got {delta}")
    if sensitivity <= 0 or noise_std < 0 or releases < 0:
        raise WorkloadError("sensitivity, noise_std, releases: expected above 0, not negative, not negative")
    if releases == 0:
        return 0.0
    if noise_std == 0:
        return math.inf
    return float(dp_accounting.get_epsilon_gaussian(noise_std / (sensitivity * math.sqrt(releases)), delta))


def compute_privacy(
    *,
    clip: int,
    max_weight: int,
    weights: int,
    noise_std: int,
    openings: int,
    own_noise_std: int = 0,
    rounds: int = 0,
) -> FederationPrivacy:
    """Units as the federation's; `weights` is the sum of all participants'.

    `own_noise_std` is of each number of an update before its weight, and `rounds` is how many updates the
    participant sends, opened or not: the custody could open each.
    """
    return FederationPrivacy(
        DELTA,
        openings,
        compute_epsilon(2.0 * clip * max_weight, noise_std, openings),
        compute_epsilon(2.0 * clip * weights, noise_std, openings),
        compute_epsilon(2.0 * clip, own_noise_std, rounds or openings),
    )


def find_noise_std(*, clip: int, max_weight: int, openings: int, epsilon: float, delta: float = DELTA) -> int:
    """The least noise of an opened number, to 1 part in 1000, that keeps all openings within epsilon."""
    if not epsilon > 0:
        raise WorkloadError(f"epsilon: expected above 0, got {epsilon}")
    low, high = 0.0, 2.0 * clip * max_weight
    while compute_epsilon(2.0 * clip * max_weight, high, openings, delta) > epsilon:
        low, high = high, 2 * high
    while high - low > high / 1000:
        middle = (low + high) / 2
        if compute_epsilon(2.0 * clip * max_weight, middle, openings, delta) > epsilon:
            low = middle
        else:
            high = middle
    return math.ceil(high)


def build_statement(privacy: FederationPrivacy) -> str:
    """What participants agree to: what holds, for whom, and what does not."""

    def show(epsilon: float) -> str:
        return "unbounded (no noise)" if math.isinf(epsilon) else f"{epsilon:.3g}"

    return (
        f"All {privacy.openings} openings together, delta={privacy.delta:g}, all data of one participant"
        f" exchanged for any other: epsilon={show(privacy.epsilon)} against everybody but the custody, also"
        f" against all other participants together, and epsilon={show(privacy.worst_epsilon)} if these add"
        f" others' ciphertexts to their own; epsilon={show(privacy.own_epsilon)} against the custody,"
        " which holds the secret key, by the participant's own noise. The custody opens the noised sum of"
        " each round's list once, and by the rules nothing else. Per patient the same numbers hold."
    )
