"""What one patch can change of what a committee opens: bounds for every patch that the declared limits admit.

A committee can't clip by patch. It opens exact sums over patches, so one patch's weight is whatever its
gradient and loss can be at the public weights. The bounds here hold for images in [0, 1], planes in [-1, 1],
every |R| at most `PatchLimits.target` and the constant in [0, `PatchLimits.constant`], each pixel free of the
others; nothing is assumed of how R belongs to the images.

Derivation, for one patch, at given weights. Indices: o outputs (O x O of them), p hidden places, k taps.

- z_c(p) lies in [low_c, high_c] by interval arithmetic, the same at every place since all pixels have one
  range. Z_c = max |z_c|, and q_c = z_c^2 lies in [l_c, h_c], h_c = Z_c^2. T_c = sum |v_c|.
- F'(o) = sum v_c (z_c^2 - b_c^2) lies in an interval of length s = sum T_c (h_c - l_c) that holds 0 (a black
  patch gives it); f = the largest |F'|.
- r(o) = dL/dF(o) = (2 / O^2) (M F' - R)(o), M = I + mu D'D. A row of M F' is F'(o) plus mu times a difference
  F'(o) - F'(o') for each neighbour, each at most s; there are 4 O (O - 1) such pairs in all. Hence
      P = sum_o |r(o)| <= (2 / O^2) (O^2 (f + t) + 4 O (O - 1) mu s),      t the target's limit.
  Columns of D'D add up to 0, so  |sum_o r(o)| = (2 / O^2) |sum (F' - R)| <= S = 2 (f + t).
- d:  dL/dd = sum_o r(o), at most S.
- v:  dL/dv_c[k] = sum_o r(o) q_c(o+k). With m = (l + h) / 2 it is m sum r + sum r (q - m), at most
      V_c = m_c S + P (h_c - l_c) / 2.
- b:  dL/db_c = sum_p 2 z_c(p) sum_k v_c[k] r(p-k), at most B_c = 2 Z_c T_c P: each r(o) meets each tap once.
- w:  dL/dw_c[a,k] has a pixel, at most 1, as another factor in each term: at most B_c.
- The norm is at most the root of the sum of the squares of these, over all entries.
- L = [F'.M F' - 2 F'.R + K] / O^2, and F'.M F' is sum F'^2 plus mu times 2 O (O - 1) squared differences of
  at most s, so L lies between min(F'^2 - 2 |F'| t) over |F'| <= f, and
  f^2 + 2 f t + (2 O (O - 1) mu s^2 + K) / O^2.

For all weights in [-B, B]: |z_c| <= (inputs side_c^2 + 1) B, T_c <= second^2 B, l = 0, and both f and s are
at most sum T_c Z_c^2 (b_c^2 lies between l_c and h_c: a black patch has z = b). Everything grows with B.

Neighbours. *Add or remove one patch*: an unused slot holds zeros, which give a gradient of exactly 0 and a
loss of K / O^2 = 0, so the bound is the largest norm of one patch. *Replace one*: twice that for gradients,
the length of the interval for losses.

All numbers are exact fractions of public integers, rounded upwards at the end: everybody gets the same ones.
What ciphertexts compute differs from this by the scheme's error, which is no property of one patch;
`he.multiparty.opening` says how well noise hides it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, repeat
from typing import NamedTuple, Self

from fusion_model.config import WEIGHT_SCALE_BITS
from he.plan import get_input_bounds
from he.spec import IntegerWeights, PolynomialSpec
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec

_UNIT = Fraction(1, 1 << WEIGHT_SCALE_BITS)


@dataclass(frozen=True, slots=True)
class PatchLimits:
    """What contributors promise of each patch beside grey values in [0, 1] and planes in [-1, 1]."""

    target: Fraction
    """Of every |R|."""
    constant: Fraction
    """Of the constant, which is O^2 times the loss of the skip image alone; at least 0."""

    def __post_init__(self) -> None:
        if self.target < 0 or self.constant < 0:
            raise WorkloadError(f"limits must not be negative, got {self.target} and {self.constant}")

    @classmethod
    def declare(cls, spec: FusionSpec) -> Self:
        """What a task's contributors are told to keep to; without a limit, what encryption lets in."""
        if not spec.target_limit:
            return cls.build(spec.circuit)
        limit = Fraction(spec.target_limit, 2 * spec.levels)
        return cls(limit, spec.circuit.output**2 * limit**2)

    @classmethod
    def build(cls, spec: PolynomialSpec) -> Self:
        """What encryption lets in of any images and targets: no contributor has to promise more."""
        bounds = get_input_bounds(spec)
        return cls(Fraction(bounds.target), Fraction(bounds.constant))


class TensorNorms(NamedTuple):
    """L2 norms, or deviations of noise, by tensor, in opened units."""

    w: int
    b: int
    v: int
    d: int


@dataclass(frozen=True, slots=True)
class GradientBound:
    """Largest magnitude of each untied gradient entry of one patch, exact."""

    spec: PolynomialSpec
    first: tuple[Fraction, ...]
    """Of every w and of b, by channel."""
    second: tuple[Fraction, ...]
    """Of every v, by channel."""
    bias: Fraction
    """Of d."""

    def get_entries(self) -> tuple[Fraction, ...]:
        """In the order of the bundle: w, b, v, d."""
        spec = self.spec
        return (
            *chain.from_iterable(
                repeat(value, spec.inputs * side**2)
                for side, value in zip(spec.kernels, self.first, strict=True)
            ),
            *self.first,
            *chain.from_iterable(repeat(value, spec.second**2) for value in self.second),
            self.bias,
        )

    def compute_norm(self, scale_bits: int) -> int:
        """L2 bound of one patch's gradient over all untied entries, in units of 2^-scale_bits, rounded up."""
        return _ceil_root(sum(self._get_squares(), Fraction(0)), scale_bits)

    def compute_norms(self, scale_bits: int) -> TensorNorms:
        """The same by tensor; their squares add up to at least the joint norm's."""
        return TensorNorms(*(_ceil_root(square, scale_bits) for square in self._get_squares()))

    def share_noise(self, multiplier: Fraction, scale_bits: int) -> TensorNorms:
        """Deviations by tensor, in opened units, that together hide a patch as well as noise of `multiplier`
        times the joint norm on every entry would, with the least total variance; rounded up.

        Minimal sum n_i d_i^2 under sum (s_i / d_i)^2 = 1 / multiplier^2, for tensors of n_i entries and norm
        s_i: d_i^2 is in proportion to s_i / n_i^(1/2). At least 1, so that nothing is opened bare.
        """
        spec, norms = self.spec, self.compute_norms(scale_bits)
        counts = (spec.first_weights, spec.channels, spec.parameters - spec.second_start, 1)
        # Roots of integers in 64 more bits, rounded up: the same everywhere.
        roots = [math.isqrt(count << 128) + 1 for count in counts]
        total = sum(norm * root for norm, root in zip(norms, roots, strict=True))
        return TensorNorms(
            *(
                max(1, _ceil_root(multiplier**2 * total * Fraction(norm, root), 0))
                for norm, root in zip(norms, roots, strict=True)
            )
        )

    def compute_ratio(self, deviations: TensorNorms, scale_bits: int) -> Fraction:
        """The sum over tensors of squared norm over deviation: what one opening with that noise costs.

        Raises WorkloadError on a deviation below 1.
        """
        if min(deviations) < 1:
            raise WorkloadError(f"nothing is opened without noise, got deviations {tuple(deviations)}")
        squares = (square * (1 << 2 * scale_bits) for square in self._get_squares())
        return sum((square / d**2 for square, d in zip(squares, deviations, strict=True)), Fraction(0))

    def _get_squares(self) -> tuple[Fraction, Fraction, Fraction, Fraction]:
        spec = self.spec
        b = [value**2 for value in self.first]
        w = [spec.inputs * side**2 * square for side, square in zip(spec.kernels, b, strict=True)]
        v = [spec.second**2 * value**2 for value in self.second]
        zero = Fraction(0)
        return sum(w, zero), sum(b, zero), sum(v, zero), self.bias**2


@dataclass(frozen=True, slots=True)
class LossBound:
    """The interval of one patch's loss, exact."""

    low: Fraction
    """Negative: limits alone do not tie the constant to the target."""
    high: Fraction

    def compute_sensitivity(self, scale_bits: int) -> int:
        """What adding or removing a patch changes of a sum, in units of 2^-scale_bits, rounded up."""
        return math.ceil(max(self.high, -self.low) * (1 << scale_bits))

    def compute_replacement(self, scale_bits: int) -> int:
        """What replacing a patch changes of a sum."""
        return math.ceil((self.high - self.low) * (1 << scale_bits))


@dataclass(frozen=True, slots=True)
class _Ranges:
    """By channel: Z, T, l, h; and f, s of all together."""

    hidden: tuple[Fraction, ...]
    taps: tuple[Fraction, ...]
    least: tuple[Fraction, ...]
    largest: tuple[Fraction, ...]
    output: Fraction
    spread: Fraction


def compute_gradient_bound(
    spec: PolynomialSpec, weights: Sequence[int], limits: PatchLimits | None = None
) -> GradientBound:
    """Of any patch within the limits (by default all that encryption lets in) at these weights.

    Weights are integers in units of 2^-20, flat. Raises: he.errors.ParameterError on wrong ones.
    """
    return _bound_gradient(spec, _measure(spec, spec.split(weights)), limits)


def compute_box_gradient_bound(
    spec: PolynomialSpec, box: int, limits: PatchLimits | None = None
) -> GradientBound:
    """Of any patch within the limits at any weights in [-box, box], in units of 2^-20."""
    return _bound_gradient(spec, _measure_box(spec, box), limits)


def compute_loss_bound(
    spec: PolynomialSpec, weights: Sequence[int], limits: PatchLimits | None = None
) -> LossBound:
    """Of any patch within the limits at these weights."""
    return _bound_loss(spec, _measure(spec, spec.split(weights)), limits)


def compute_box_loss_bound(spec: PolynomialSpec, box: int, limits: PatchLimits | None = None) -> LossBound:
    """Of any patch within the limits at any weights in [-box, box]."""
    return _bound_loss(spec, _measure_box(spec, box), limits)


def compute_replacement(norm: int) -> int:
    """What replacing a patch changes of a gradient sum, from what adding or removing one does."""
    return 2 * norm


def _measure(spec: PolynomialSpec, weights: IntegerWeights) -> _Ranges:
    hidden, taps, least, largest = [], [], [], []
    bottom = top = Fraction(0)
    for w, bias, plane in zip(weights.w.tolist(), weights.b.tolist(), weights.v.tolist(), strict=True):
        images = [value for table in w[:2] for row in table for value in row]
        planes = sum(abs(value) for table in w[2:] for row in table for value in row)
        low = bias - planes + sum(value for value in images if value < 0)
        high = bias + planes + sum(value for value in images if value > 0)
        far = max(abs(low), abs(high))
        near = 0 if low <= 0 <= high else min(abs(low), abs(high))
        positive = sum(value for row in plane for value in row if value > 0)
        negative = sum(value for row in plane for value in row if value < 0)
        below, above = near**2 - bias**2, far**2 - bias**2
        bottom += (positive * below + negative * above) * _UNIT**3
        top += (positive * above + negative * below) * _UNIT**3
        hidden.append(far * _UNIT)
        taps.append((positive - negative) * _UNIT)
        least.append((near * _UNIT) ** 2)
        largest.append((far * _UNIT) ** 2)
    return _Ranges(tuple(hidden), tuple(taps), tuple(least), tuple(largest), max(-bottom, top), top - bottom)


def _measure_box(spec: PolynomialSpec, box: int) -> _Ranges:
    if box < 1:
        raise WorkloadError(f"a box is at least 1, got {box}")
    side = box * _UNIT
    hidden = tuple((spec.inputs * kernel**2 + 1) * side for kernel in spec.kernels)
    taps = spec.second**2 * side
    output = taps * sum(value**2 for value in hidden)
    return _Ranges(
        hidden,
        (taps,) * spec.channels,
        (Fraction(0),) * spec.channels,
        tuple(value**2 for value in hidden),
        output,
        output,
    )


def _count_pairs(spec: PolynomialSpec) -> int:
    """Neighbours among the outputs, each pair once."""
    return 2 * spec.output * (spec.output - 1)


def _bound_gradient(spec: PolynomialSpec, ranges: _Ranges, limits: PatchLimits | None) -> GradientBound:
    target = (limits or PatchLimits.build(spec)).target
    area = spec.output**2
    total = 2 * (ranges.output + target)
    stencil = 2 * _count_pairs(spec) * spec.gradient_weight * ranges.spread
    absolute = total + Fraction(2, area) * stencil
    first = tuple(2 * z * taps * absolute for z, taps in zip(ranges.hidden, ranges.taps, strict=True))
    second = tuple(
        (low + high) / 2 * total + (high - low) / 2 * absolute
        for low, high in zip(ranges.least, ranges.largest, strict=True)
    )
    return GradientBound(spec, first, second, total)


def _bound_loss(spec: PolynomialSpec, ranges: _Ranges, limits: PatchLimits | None) -> LossBound:
    limits = limits or PatchLimits.build(spec)
    output, target, area = ranges.output, limits.target, spec.output**2
    nearest = min(output, target)
    stencil = _count_pairs(spec) * spec.gradient_weight * ranges.spread**2
    return LossBound(
        low=nearest**2 - 2 * nearest * target,
        high=output**2 + 2 * output * target + (stencil + limits.constant) / area,
    )


def _ceil_root(square: Fraction, scale_bits: int) -> int:
    """The least integer whose square is at least `square` in units of 2^-scale_bits."""
    scaled = math.ceil(square * (1 << 2 * scale_bits))
    root = math.isqrt(scaled)
    return root if root**2 == scaled else root + 1
