"""Which preset a network needs, why, and what its batches and steps will cost.

The smallest ring and the fewest primes are tried first. A preset fits if it is secure, deep enough, and no
message can wrap: at the weights to begin with, times what they are allowed to grow by, or at any weights in
a box. Everything here is computed from public numbers; nothing needs the encryption library.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from types import MappingProxyType
from typing import Final

from he.counts import Counts, Operation, count_gradient, count_loss
from he.errors import DepthError, HeError, ParameterError
from he.formats import (
    HEADER_BYTES,
    WORD_BYTES,
    build_batch_layout,
    build_bundle_layout,
    build_loss_layout,
)
from he.params import MAX_MODULUS_BITS, PRESETS, CkksParams
from he.plan import Bound, Plan, build_plan, compute_bounds, compute_box_bounds
from he.spec import MAX_WEIGHT, PolynomialSpec

GROWTH = 2
"""What weights may grow by over the starting ones before a message could wrap, unless told otherwise."""

_REFERENCE_RING = 16384


class PlanRefused(HeError):
    """No preset fits; `reasons` says for each why not."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)

    def __reduce__(self) -> tuple[type["PlanRefused"], tuple[tuple[str, ...]]]:
        return PlanRefused, (self.reasons,)


@dataclass(frozen=True, slots=True)
class OperationCost:
    """Milliseconds of one operation at a level: linear * level + square * level^2."""

    linear: float
    square: float = 0.0


@dataclass(frozen=True, slots=True)
class CostTable:
    """What operations cost on one core at ring degree 16384."""

    costs: Mapping[Operation, OperationCost]

    def compute_seconds(self, counts: Counts, ring: int) -> float:
        """Other rings by ring * log2(ring), as number-theoretic transforms grow."""
        scale = ring * log2(ring) / (_REFERENCE_RING * log2(_REFERENCE_RING))
        total = sum(
            count * (self.costs[operation].linear * level + self.costs[operation].square * level**2)
            for (operation, level), count in counts.items()
        )
        return scale * total / 1e3


DEFAULT_COSTS: Final = CostTable(
    MappingProxyType(
        {
            Operation.LOAD: OperationCost(0.12),
            Operation.SAVE: OperationCost(0.08),
            Operation.ADD_2: OperationCost(0.04),
            Operation.ADD_3: OperationCost(0.07),
            Operation.ADD_CONSTANT: OperationCost(0.025),
            Operation.CONSTANT_2: OperationCost(0.13),
            Operation.CONSTANT_3: OperationCost(0.2),
            Operation.MULTIPLY: OperationCost(0.35),
            Operation.SQUARE: OperationCost(0.2),
            Operation.RELINEARIZE: OperationCost(1.45, 0.2),
            Operation.RESCALE_2: OperationCost(0.6),
            Operation.RESCALE_3: OperationCost(0.9),
            Operation.WINDOW_CELL: OperationCost(0.0033),
            Operation.WINDOW_INPUT: OperationCost(0.087),
            Operation.WINDOW_OUTPUT: OperationCost(0.29),
        }
    )
)
"""Measured by `benchmarks/he_operations.py` on a 2-core EPYC under load, with what the cache costs in a whole
circuit added to products: predictions are good to about a third. Other machines differ, but not what is
done how often."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The preset that a network gets, and what follows from it."""

    preset: str
    reasons: tuple[str, ...]
    """Why no smaller preset, and why this one."""
    ring: int
    slots: int
    """Patches of a batch."""
    modulus_bits: int
    """Special prime included."""
    security_limit_bits: int
    """Most bits of the modulus at 128 bits of security; 0 for test rings."""
    parameters: int
    tightest: str
    """The value that is closest to wrapping."""
    room_bits: float
    """Bits between that value's worst case and where it wraps."""
    safe_box: int
    """Largest box of integer weights, in their units, inside which nothing can ever wrap."""
    training_batch_bytes: int
    validation_batch_bytes: int
    bundle_bytes: int
    loss_bytes: int
    public_key_bytes: int
    relin_keys_bytes: int
    gradient_s: float
    """Predicted seconds of one core for the gradients of one batch."""
    loss_s: float
    """Predicted seconds of one core for the loss of one validation batch."""

    def describe(self) -> tuple[str, ...]:
        """Lines for people."""
        limit = self.security_limit_bits
        security = f"at most {limit} for 128-bit security" if limit else "INSECURE, for tests only"
        return (
            f"preset            {self.preset}",
            *(f"                  {reason}" for reason in self.reasons),
            f"ring              {self.ring}, {self.slots} patches a batch",
            f"modulus           {self.modulus_bits} bits, {security}",
            f"weights           {self.parameters}; nothing wraps inside ±{self.safe_box / 2**20:.3g}",
            f"closest to wrap   {self.tightest}, {self.room_bits:.1f} bits away",
            f"training batch    {_format_bytes(self.training_batch_bytes)}",
            f"validation batch  {_format_bytes(self.validation_batch_bytes)}",
            f"gradient bundle   {_format_bytes(self.bundle_bytes)}",
            f"evaluation keys   {_format_bytes(self.relin_keys_bytes)}",
            f"gradient          about {self.gradient_s:.1f} s of one core a batch, "
            f"{self.slots / self.gradient_s:,.0f} patches a second",
            f"loss              about {self.loss_s:.1f} s of one core a batch",
        )


def choose_preset(
    spec: PolynomialSpec,
    *,
    weights: Sequence[int] | None = None,
    growth: int = GROWTH,
    box: int | None = None,
    candidates: Iterable[CkksParams] | None = None,
    costs: CostTable = DEFAULT_COSTS,
) -> PlanReport:
    """The report of the smallest preset that fits.

    With `weights`, what begins training must leave room for `growth` times as large ones. With `box`, no
    weights in [-box, box] may be able to wrap. With neither, depth and scales alone decide, and a task can
    still be refused at its weights. `candidates` are all secure presets unless given.

    Raises: PlanRefused with each preset's reason; ParameterError on impossible arguments.
    """
    if growth < 1 or (box is not None and not 1 <= box <= MAX_WEIGHT):
        raise ParameterError(f"growth and box must be at least 1, box at most {MAX_WEIGHT}")
    known = [params for params in PRESETS.values() if not params.insecure]
    tried = sorted(known if candidates is None else candidates, key=_get_size)
    grown = None if weights is None else [growth * weight for weight in weights]
    reasons: list[str] = []
    for params in tried:
        try:
            plan = build_plan(params, spec)
        except HeError as error:
            reasons.append(_explain(params, error))
            continue
        bounds = () if grown is None else compute_bounds(plan, grown)
        bounds += () if box is None else compute_box_bounds(plan, box)
        worst = min(bounds, key=lambda bound: _compute_room_bits(params, bound), default=None)
        if worst is not None and _compute_room_bits(params, worst) < 0:
            missing = -_compute_room_bits(params, worst)
            reasons.append(f"{params.name}: the {worst.name} could wrap, by {missing:.1f} bits")
            continue
        return _build_report(plan, reasons, worst, grown is not None, box, growth, costs)
    raise PlanRefused(reasons or ["there is no preset to choose from"])


def compute_safe_box(plan: Plan) -> int:
    """The largest box of integer weights inside which no message can wrap; 0 if there is none."""
    low, high = 0, MAX_WEIGHT
    while low < high:
        middle = (low + high + 1) // 2
        bounds = compute_box_bounds(plan, middle)
        if all(bound.magnitude <= bound.compute_room(plan.params) for bound in bounds):
            low = middle
        else:
            high = middle - 1
    return low


def _get_size(params: CkksParams) -> tuple[int, int, str]:
    return params.ring, len(params.primes), params.name


def _compute_room_bits(params: CkksParams, bound: Bound) -> float:
    if bound.magnitude == 0:
        return log2(bound.compute_room(params))
    ratio = bound.compute_room(params) / bound.magnitude
    return log2(ratio.numerator) - log2(ratio.denominator)


def _explain(params: CkksParams, error: HeError) -> str:
    """The plan's reason, and whether another chain in this ring could help."""
    text = str(error)
    reason = text if params.name in text else f"{params.name}: {text}"
    limit = MAX_MODULUS_BITS.get(params.ring)
    if isinstance(error, DepthError) and limit is not None:
        needed = compute_least_modulus_bits(params.data_scale_bits, params.weight_scale_bits)
        if needed > limit:
            reason += (
                f"; no chain in ring degree {params.ring} would do: data primes of {needed} bits are needed,"
                f" and {limit} bits are all that 128-bit security allows"
            )
    return reason


def compute_least_modulus_bits(data_scale_bits: int, weight_scale_bits: int) -> int:
    """Bits that the data primes must have together, whatever their number, for gradients to come out right.

    From input to gradient a message is multiplied by the scales of four inputs and five weights. What
    rescaling takes of that and what is left at the end add up to the data primes' modulus, with 20 bits for
    the magnitude and the noise.
    """
    return 4 * data_scale_bits + 5 * weight_scale_bits + 20


def _build_report(
    plan: Plan,
    reasons: Sequence[str],
    worst: Bound | None,
    weighed: bool,
    box: int | None,
    growth: int,
    costs: CostTable,
) -> PlanReport:
    params, spec = plan.params, plan.spec
    fits = f"{params.name}: {params.levels} levels, {sum(params.prime_bits)} bits"
    if weighed:
        fits += f", nothing wraps at {growth} times the weights"
    if box is not None:
        fits += f", nothing wraps in the box ±{box}"
    if worst is None:
        worst = min(compute_box_bounds(plan, 1), key=lambda bound: _compute_room_bits(params, bound))
    words = 2 * len(params.primes) * params.ring
    return PlanReport(
        preset=params.name,
        reasons=(*reasons, fits),
        ring=params.ring,
        slots=params.slots,
        modulus_bits=sum(params.prime_bits),
        security_limit_bits=0 if params.insecure else MAX_MODULUS_BITS[params.ring],
        parameters=spec.parameters,
        tightest=worst.name,
        room_bits=_compute_room_bits(params, worst),
        safe_box=compute_safe_box(plan),
        training_batch_bytes=build_batch_layout(plan, validation=False).length,
        validation_batch_bytes=build_batch_layout(plan, validation=True).length,
        bundle_bytes=build_bundle_layout(plan).length,
        loss_bytes=build_loss_layout(plan).length,
        public_key_bytes=HEADER_BYTES + words * WORD_BYTES,
        relin_keys_bytes=HEADER_BYTES + params.levels * words * WORD_BYTES,
        gradient_s=costs.compute_seconds(count_gradient(plan), params.ring),
        loss_s=costs.compute_seconds(count_loss(plan), params.ring),
    )


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
