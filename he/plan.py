"""Levels, exact scales and magnitude bounds of the canonical circuit, known before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from he.errors import DepthError, MagnitudeError
from he.params import CkksParams
from he.spec import IntegerWeights, PolynomialSpec

REQUIRED_LEVELS = 4
"""Three rescalings (after the square, after delta, at the end) and a level to decrypt at."""


@dataclass(frozen=True, slots=True)
class Form:
    """Where a value lives: its level and the exact factor between message and coefficients."""

    level: int
    scale: Fraction


@dataclass(frozen=True, slots=True)
class Plan:
    """The form of every value of the canonical circuit."""

    params: CkksParams
    spec: PolynomialSpec
    weight_scale: Fraction
    input: Form
    hidden: Form
    """z = w * X + b; the bias is added at this scale."""
    square: Form
    """h = z^2 after its rescaling, in three components."""
    output: Form
    """F', R and G = M F' - R."""
    output_gradient: Form
    """v * G, the gradient at the squares."""
    delta: Form
    """(v * G) z after its rescaling."""
    gradient_w: Form
    gradient_b: Form
    gradient_v: Form
    gradient_d: Form
    loss_sum: Form
    """The loss before its rescaling; the encrypted constant of a validation batch."""
    loss: Form

    def get_gradient_forms(self) -> tuple[Form, ...]:
        """The form of each gradient entry, in the order of the bundle."""
        spec = self.spec
        return (
            (self.gradient_w,) * spec.first_weights
            + (self.gradient_b,) * spec.channels
            + (self.gradient_v,) * (spec.parameters - spec.second_start)
            + (self.gradient_d,)
        )

    def compute_output_bias(self, tied_bias: int) -> int:
        """The integer that is added for d: floor(d * output scale), toward minus infinity.

        `tied_bias` is d in units of the cube of a weight's unit. This rounding is part of the
        canonical circuit.
        """
        exact = Fraction(tied_bias) / self.weight_scale**3 * self.output.scale
        return exact.numerator // exact.denominator


@lru_cache(maxsize=16)
def build_plan(params: CkksParams, spec: PolynomialSpec) -> Plan:
    """The plan of `spec` under `params`.

    Raises: DepthError if the preset has too few levels or too small primes; ParameterError if the
    preset is not secure.
    """
    params.check_security()
    if params.levels < REQUIRED_LEVELS:
        raise DepthError(
            f"{params.name} has {params.levels} levels; forward and backward pass need {REQUIRED_LEVELS}"
        )

    def rescale(level: int, scale: Fraction) -> Form:
        return Form(level - 1, scale / params.primes[level - 1])

    top = params.levels
    weight = Fraction(2**params.weight_scale_bits)
    data = Form(top, Fraction(2**params.data_scale_bits))
    hidden = Form(top, data.scale * weight)
    square = rescale(top, hidden.scale**2)
    output = Form(square.level, square.scale * weight)
    output_gradient = Form(output.level, output.scale * weight)
    delta = rescale(output.level, output_gradient.scale * hidden.scale)
    gradient_v = rescale(delta.level, output.scale * square.scale)
    gradient_w = rescale(delta.level, delta.scale * data.scale)
    loss_sum = Form(output.level, output.scale**2)
    plan = Plan(
        params=params,
        spec=spec,
        weight_scale=weight,
        input=data,
        hidden=hidden,
        square=square,
        output=output,
        output_gradient=output_gradient,
        delta=delta,
        gradient_w=gradient_w,
        gradient_b=delta,
        gradient_v=gradient_v,
        gradient_d=Form(delta.level, output.scale),
        loss_sum=loss_sum,
        loss=rescale(loss_sum.level, loss_sum.scale),
    )
    for name, form in (("gradient of w", gradient_w), ("gradient of v", gradient_v), ("loss", plan.loss)):
        if form.scale < 2**20 or form.scale * 2**8 > params.compute_modulus(form.level):
            raise DepthError(
                f"{params.name}: the {name} would end at scale 2^{_bits(form.scale)} modulo"
                f" 2^{_bits(params.compute_modulus(form.level))}, which keeps too little of it"
            )
    return plan


@dataclass(frozen=True, slots=True)
class InputBounds:
    """Largest magnitudes that encryption lets in."""

    data: int
    """Of every plane. The two images are also not negative: a custody refuses other batches before
    anything is computed from them, and the bounds below rest on it."""
    target: int
    constant: int


def get_input_bounds(spec: PolynomialSpec) -> InputBounds:
    """Bounds of inputs in [-1, 1], R = T + mu D'g - M S and K = |S-T|^2 + mu |DS-g|^2.

    They hold for images, targets and target gradients in [-1, 1].
    """
    pairs = 2 * spec.output * (spec.output - 1)
    return InputBounds(
        data=1,
        target=2 + 12 * spec.gradient_weight,
        constant=4 * spec.output**2 + 9 * spec.gradient_weight * pairs,
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """The largest magnitude a value can have, and the form in which it must not wrap."""

    name: str
    form: Form
    magnitude: Fraction

    def compute_room(self, params: CkksParams) -> Fraction:
        """The largest magnitude that does not wrap; half of the modulus is kept for noise."""
        return Fraction(params.compute_modulus(self.form.level), 4) / self.form.scale


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """What one channel can hold, for weights in integers: all in powers of their unit."""

    hidden: int
    """Largest |z|."""
    taps: int
    """sum |v|."""
    low: int
    """Least sum v (z^2 - b^2) over independent z."""
    high: int
    """Largest sum v (z^2 - b^2)."""


def compute_ranges(spec: PolynomialSpec, weights: IntegerWeights) -> list[ChannelRange]:
    """Interval arithmetic, exact: images lie in [0, 1], the planes behind them in [-1, 1]."""
    ranges = []
    for w, bias, taps in zip(weights.w, weights.b, weights.v, strict=True):
        b = int(bias)
        images = [int(value) for value in w[:2].flat]
        planes = sum(abs(int(value)) for value in w[2:].flat)
        low = b - planes + sum(value for value in images if value < 0)
        high = b + planes + sum(value for value in images if value > 0)
        largest = max(abs(low), abs(high))
        least = 0 if low <= 0 <= high else min(abs(low), abs(high))
        squares = (least**2 - b**2, largest**2 - b**2)
        positive = sum(int(value) for value in taps.flat if value > 0)
        negative = sum(int(value) for value in taps.flat if value < 0)
        ranges.append(
            ChannelRange(
                hidden=largest,
                taps=positive - negative,
                low=positive * squares[0] + negative * squares[1],
                high=positive * squares[1] + negative * squares[0],
            )
        )
    return ranges


def compute_bounds(plan: Plan, weights: Sequence[int]) -> tuple[Bound, ...]:
    """Worst-case magnitudes of every value for these weights and any admitted inputs; exact."""
    unit = plan.weight_scale
    ranges = compute_ranges(plan.spec, plan.spec.split(weights))
    # A black patch is admitted, and gives 0: low and high lie on both sides of it.
    low = sum(item.low for item in ranges) / unit**3
    high = sum(item.high for item in ranges) / unit**3
    return _build_bounds(
        plan,
        hidden=max(item.hidden for item in ranges) / unit,
        taps=max(item.taps for item in ranges) / unit,
        steepest=max(item.hidden * item.taps for item in ranges) / unit**2,
        output=max(-low, high),
        spread=high - low,
    )


def compute_box_bounds(plan: Plan, box: int) -> tuple[Bound, ...]:
    """As `compute_bounds` for any weights in [-box, box]: no weights inside reach further."""
    spec, unit = plan.spec, plan.weight_scale
    taps = Fraction(spec.second**2 * box) / unit
    hidden = [Fraction((spec.inputs * side**2 + 1) * box) / unit for side in spec.kernels]
    output = taps * sum(value**2 for value in hidden)
    return _build_bounds(
        plan,
        hidden=max(hidden),
        taps=taps,
        steepest=max(hidden) * taps,
        output=output,
        spread=output + taps * spec.channels * (box / unit) ** 2,
    )


def _build_bounds(
    plan: Plan, *, hidden: Fraction, taps: Fraction, steepest: Fraction, output: Fraction, spread: Fraction
) -> tuple[Bound, ...]:
    """From the largest |z|, sum |v|, |z| sum |v| and |F'|, and the distance between two F'."""
    spec = plan.spec
    inputs = get_input_bounds(spec)
    outputs = spec.output**2
    neighbours = min(4, 2 * (spec.output - 1))
    residual = output + spec.gradient_weight * neighbours * spread + inputs.target
    # Each output reaches each tap's position once, so the sum over positions is one over outputs.
    deltas = steepest * residual * outputs
    product = Form(plan.input.level, plan.hidden.scale**2)
    delta_product = Form(plan.output.level, plan.output_gradient.scale * plan.hidden.scale)
    loss = output * (residual + inputs.target) * outputs + inputs.constant
    return (
        Bound("hidden", plan.hidden, hidden),
        Bound("square before rescaling", product, hidden**2),
        Bound("square", plan.square, hidden**2),
        Bound("output", plan.output, output),
        Bound("residual", plan.output, residual),
        Bound("residual at the gradient's level", plan.gradient_d, residual * outputs),
        Bound("gradient at the squares", plan.output_gradient, taps * residual),
        Bound("delta before rescaling", delta_product, steepest * residual),
        Bound("gradient of b", plan.gradient_b, deltas),
        Bound("gradient of w", plan.gradient_w, deltas * inputs.data),
        Bound("gradient of v", plan.gradient_v, residual * hidden**2 * outputs),
        Bound("loss before rescaling", plan.loss_sum, loss),
        Bound("loss", plan.loss, loss),
    )


FORWARD_BOUNDS = frozenset({"hidden", "square before rescaling", "square", "output", "residual"})
LOSS_BOUNDS = FORWARD_BOUNDS | {"loss before rescaling", "loss"}


def check_magnitudes(plan: Plan, weights: Sequence[int], *, loss: bool) -> None:
    """Returns only if no message of the loss (or else gradient) circuit can wrap at these weights.

    A message wraps in coefficients, and no coefficient exceeds the largest slot, so slot bounds
    suffice. Sums wrap and come back: what counts is what is rescaled or decrypted. Depends on public
    numbers alone, so everyone comes to the same answer.

    Raises: MagnitudeError naming the value and how many bits are missing.
    """
    for bound in compute_bounds(plan, weights):
        if (bound.name in LOSS_BOUNDS) if loss else not bound.name.startswith("loss"):
            room = bound.compute_room(plan.params)
            if bound.magnitude > room:
                raise MagnitudeError(
                    f"{bound.name} could reach {float(bound.magnitude):.4g}, but wraps at {float(room):.4g}"
                    f" (level {bound.form.level})"
                )


def _bits(value: Fraction | int) -> int:
    return max(int(value), 1).bit_length() - 1
