"""The arithmetic around a committee's opening: a member's noise, opened integers, what is plausible.

No key share is here. `he.multiparty` combines partial openings into exact signed integers, one a ciphertext:
coefficient 0 of the sum over a step's batches, with the noise of all members of the subset. A coefficient c
at scale s is the sum over all slots of a value, c * slots / s, exactly; the gradient of an entry is that
times the factor of differentiation that circuits leave out. Everything here is exact integers and fractions
of public numbers, rounded where it is said, so that everybody comes to the same opened integers.

*Noise* is added in units of coefficients, to every untied entry, before anything is rounded: opened integers
are post-processing. The deviation of coefficients is the least integer that gives at least the wanted one in
opened units; it exceeds that by less than one coefficient is worth, far below an opened unit.

*The tied output bias* is folded in after opening, d = -sum v b^2:

    g_b[c] -= g_d * 2 b[c] * sum_k v[c, k],    g_v[c, k] -= g_d * b[c]^2,

exactly, at the public integer weights; then each number is rounded once, half to even. That equals
`fusion_model.fold_output_bias` up to half an opened unit and its own floating point. Noise of d so also
enters b and v.

*Plausible* is a sum within what so many patches inside their limits could add up to (`workloads.box`) and 12
deviations of the noise of all members; noise leaves that range with probability 2^-107 a number. A wrong
share makes a coefficient a uniform residue modulo the product q of its ciphertext's primes, which stays in
range with probability (2 * limit + 1) / q (`compute_pass_bits`). With the default network at its first
weights, 16384 patches and noise 16, that is 2^-15 for one number of w, 2^-45 of b, 2^-11 of v, 2^-52 of d
and 2^-52 of a loss: w and v are opened modulo one prime only. A share of another key makes all of them wrong
at once, which passes with less than 2^-1600. Who spoils few numbers, or by less than the range, passes: that
is a shift which the member could also have put into its own data, and shows in the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from he.multiparty.noise import draw_noise
from he.multiparty.opening import Noise, compute_deviation, compute_sum
from he.plan import Form, Plan
from workloads.base import WorkloadError
from workloads.box import PatchLimits, TensorNorms, compute_gradient_bound, compute_loss_bound
from workloads.committee_privacy import MAX_ATTEMPTS
from workloads.hashing import HASH_BYTES, hash_domain

PLAUSIBLE_DEVIATIONS = 12
MAX_PLACE = 63


class ImplausibleError(WorkloadError):
    """Numbers that no patches within their limits could give; some share was wrong."""


@dataclass(frozen=True, slots=True)
class OpeningBinding:
    """Everything that makes one question to a member another one. The same question has the same noise, any
    other one independent noise."""

    kind: str
    """`gradient` or `loss`."""
    opening: bytes
    """32 bytes that name chain, task, step, previous opening, weights and confirmed bundles."""
    subset: tuple[int, ...]
    """Places of the members that open, ascending."""
    attempt: int
    """1 or 2."""
    digests: tuple[bytes, ...]
    """Of the ciphertexts (or of one question of several), 32 bytes each, in order."""

    def __post_init__(self) -> None:
        if self.kind not in ("gradient", "loss"):
            raise WorkloadError(f"kind: expected gradient or loss, got {self.kind!r}")
        if any(len(name) != HASH_BYTES for name in (self.opening, *self.digests)) or not self.digests:
            raise WorkloadError(f"expected {HASH_BYTES} bytes for the opening and each of the ciphertexts")
        places = self.subset
        if not places or list(places) != sorted(set(places)) or not 0 <= places[0] <= places[-1] <= MAX_PLACE:
            raise WorkloadError(f"a subset is of ascending places of at most {MAX_PLACE}, got {places}")
        if not 1 <= self.attempt <= MAX_ATTEMPTS:
            raise WorkloadError(f"attempt: expected 1 to {MAX_ATTEMPTS}, got {self.attempt}")

    def encode(self) -> bytes:
        """32 bytes: a hash of all of it, injectively written."""
        parts = bytes([self.kind == "loss", self.attempt, len(self.subset), *self.subset])
        return hash_domain("committee-noise", parts + self.opening + b"".join(self.digests))


def draw_member_noise(secret: bytes, binding: OpeningBinding, deviations: Sequence[int]) -> Noise:
    """A member's draw for each ciphertext, in units of coefficients; add it after the Lagrange factor.

    `secret` is the member's own, 32 bytes, for noise alone. Raises: he.errors.ParameterError on a secret of
    another length or a deviation below 1.
    """
    return draw_noise(secret, binding.encode(), deviations)


def get_gradient_factors(plan: Plan) -> tuple[Fraction, ...]:
    """Of each entry: what the circuit leaves out of the derivative of a patch's loss."""
    spec = plan.spec
    factor = Fraction(2, spec.output**2)
    first = (2 * factor,) * spec.second_start
    return first + (factor,) * (spec.gradients - spec.second_start)


def spread_tensors(plan: Plan, values: TensorNorms) -> tuple[int, ...]:
    """The tensor's number for each entry, in the order of the bundle."""
    spec = plan.spec
    counts = (spec.first_weights, spec.channels, spec.parameters - spec.second_start, 1)
    return tuple(value for value, count in zip(values, counts, strict=True) for _ in range(count))


def compute_gradient_deviations(plan: Plan, noise: int | TensorNorms, scale_bits: int) -> tuple[int, ...]:
    """Of each entry in units of coefficients, for a member's `noise` in opened units, of all or by tensor.

    Raises WorkloadError on noise below 1.
    """
    by_tensor = noise if isinstance(noise, TensorNorms) else TensorNorms(noise, noise, noise, noise)
    _require_noise(min(by_tensor))
    entries = zip(
        plan.get_gradient_forms(), get_gradient_factors(plan), spread_tensors(plan, by_tensor), strict=True
    )
    return tuple(
        compute_deviation(plan.params, value, form.scale, scale_bits, factor)
        for form, factor, value in entries
    )


def compute_loss_deviation(plan: Plan, noise: int, scale_bits: int) -> int:
    """Of the sum of losses in units of coefficients, for a member's `noise` of that sum in opened units."""
    _require_noise(noise)
    return compute_deviation(plan.params, noise, plan.loss.scale, scale_bits, _get_loss_factor(plan))


def convert_gradient(
    plan: Plan, weights: Sequence[int], coefficients: Sequence[int], scale_bits: int
) -> tuple[int, ...]:
    """The opened integers of the trained parameters, in units of 2^-scale_bits, of untied coefficients.

    Linear in the coefficients but for the one rounding, so it also turns noise alone into what it adds.
    Raises WorkloadError on another number of coefficients; he.errors.ParameterError on wrong weights.
    """
    spec, unit = plan.spec, Fraction(1 << scale_bits)
    values = [value * unit for value in _compute_entries(plan, coefficients)]
    tensors = spec.split(weights)
    folded, output = values[:-1], values[-1]
    side = spec.second**2
    for channel, bias in enumerate(tensors.b.tolist()):
        b = bias / plan.weight_scale
        taps = int(tensors.v[channel].sum()) / plan.weight_scale
        folded[spec.first_weights + channel] -= output * 2 * b * taps
        start = spec.second_start + channel * side
        for index in range(start, start + side):
            folded[index] -= output * b**2
    return tuple(round(value) for value in folded)


def convert_loss(plan: Plan, coefficient: int, patches: int, scale_bits: int) -> int:
    """The opened mean over `patches` of a sum of losses, in units of 2^-scale_bits: rounded, halves upwards,
    and at least 0, as a single custodian's."""
    if patches < 1:
        raise WorkloadError("a mean loss needs at least one patch")
    total = compute_sum(plan.params, coefficient, plan.loss.scale) * _get_loss_factor(plan)
    return max(0, math.floor(total * (1 << scale_bits) / patches + Fraction(1, 2)))


def compute_gradient_limits(
    plan: Plan,
    weights: Sequence[int],
    patches: int,
    deviations: Sequence[int],
    members: int,
    limits: PatchLimits | None = None,
) -> tuple[int, ...]:
    """The largest plausible magnitude of each coefficient.

    For `patches` patches in all batches of the step, and `deviations` of each of `members` members.
    """
    _require_counts(patches, members)
    entries = compute_gradient_bound(plan.spec, weights, limits).get_entries()
    forms, factors = plan.get_gradient_forms(), get_gradient_factors(plan)
    if len(deviations) != len(entries):
        raise WorkloadError(f"expected {len(entries)} deviations, got {len(deviations)}")
    return tuple(
        _count_coefficients(plan, form, patches * bound / factor) + _reach(deviation, members)
        for form, factor, bound, deviation in zip(forms, factors, entries, deviations, strict=True)
    )


def compute_loss_limits(
    plan: Plan,
    weights: Sequence[int],
    patches: int,
    deviation: int,
    members: int,
    limits: PatchLimits | None = None,
) -> tuple[int, int]:
    """The least and the largest plausible coefficient of a sum of losses."""
    _require_counts(patches, members)
    bound, factor = compute_loss_bound(plan.spec, weights, limits), _get_loss_factor(plan)
    reach = _reach(deviation, members)
    return (
        -_count_coefficients(plan, plan.loss, -patches * bound.low / factor) - reach,
        _count_coefficients(plan, plan.loss, patches * bound.high / factor) + reach,
    )


def check_gradient(coefficients: Sequence[int], limits: Sequence[int]) -> None:
    """Raises ImplausibleError, naming the first entry that is beyond its limit and no number."""
    if len(coefficients) != len(limits):
        raise WorkloadError(f"expected {len(limits)} coefficients, got {len(coefficients)}")
    for index, (coefficient, limit) in enumerate(zip(coefficients, limits, strict=True)):
        if abs(coefficient) > limit:
            raise ImplausibleError(f"gradient entry {index} is more than all patches and noise can add up to")


def check_loss(coefficient: int, limits: tuple[int, int]) -> None:
    """Raises ImplausibleError."""
    if not limits[0] <= coefficient <= limits[1]:
        raise ImplausibleError("the loss is not what patches and noise can add up to")


def compute_pass_bits(plan: Plan, form: Form, width: int) -> float:
    """-log2 of the probability that a uniform residue is one of `width` plausible coefficients."""
    modulus = plan.params.compute_modulus(form.level)
    return max(0.0, math.log2(modulus) - math.log2(width))


def _compute_entries(plan: Plan, coefficients: Sequence[int]) -> list[Fraction]:
    forms = plan.get_gradient_forms()
    if len(coefficients) != len(forms):
        raise WorkloadError(f"expected {len(forms)} coefficients, got {len(coefficients)}")
    return [
        compute_sum(plan.params, coefficient, form.scale) * factor
        for coefficient, form, factor in zip(coefficients, forms, get_gradient_factors(plan), strict=True)
    ]


def _get_loss_factor(plan: Plan) -> Fraction:
    return Fraction(1, plan.spec.output**2)


def _count_coefficients(plan: Plan, form: Form, total: Fraction) -> int:
    """A sum over slots in units of coefficients, rounded up."""
    return math.ceil(total * form.scale / plan.params.slots)


def _reach(deviation: int, members: int) -> int:
    """PLAUSIBLE_DEVIATIONS of the noise of all members, rounded up."""
    square = PLAUSIBLE_DEVIATIONS**2 * deviation**2 * members
    root = math.isqrt(square)
    return root if root**2 == square else root + 1


def _require_noise(noise: int) -> None:
    if noise < 1:
        raise WorkloadError(f"a committee opens nothing without noise, got a deviation of {noise}")


def _require_counts(patches: int, members: int) -> None:
    if patches < 1 or members < 1:
        raise WorkloadError(f"expected at least one patch and one member, got {patches} and {members}")
