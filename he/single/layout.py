"""A network planned for one image: slots, levels, exact scales, parameters, keys and costs, or a refusal.

Planning sees shapes and the coefficients of activations, which are public, and never a weight, so that
clear and encrypted weights have one plan and a model's holder alone knows its numbers.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from he.counts import Counts
from he.errors import DepthError, ParameterError
from he.formats import HEADER_BYTES, WORD_BYTES, compute_body_bytes
from he.gate import compute_galois_bytes
from he.network import Network
from he.params import MAX_MODULUS_BITS, CkksParams
from he.plan import Form
from he.program import WeightKind
from he.single.costs import count_operations, estimate_seconds
from he.single.planner import Planned, Planner, Precision
from he.single.shapes import NetworkShape, build_blank, count_means, describe, prepare
from he.single.slots import Layout
from he.single.steps import LinearStep, PoolStep, Step, list_pool_rotations

PRECISION: Final[dict[WeightKind, Precision]] = {
    "clear": Precision(scale=27, weight=20, spend=8),
    "encrypted": Precision(scale=29, weight=30, spend=8),
}


@dataclass(frozen=True, slots=True)
class SinglePlan:
    """A program for one image."""

    params: CkksParams
    precision: Precision
    """What was asked for, and what the ring had to spare."""
    weights: WeightKind
    input: Form
    image: Layout
    steps: tuple[Step, ...]
    rotations: tuple[int, ...]
    """Steps that keys are needed for, ascending."""
    counts: Counts
    """Operations by kind and level."""
    reasons: tuple[str, ...]
    """Why no smaller ring."""
    digest: bytes
    """SHA-256 of everything that decides the bytes."""

    @property
    def levels(self) -> int:
        return self.params.levels

    @property
    def output(self) -> Step:
        return self.steps[-1]

    @property
    def image_ciphertexts(self) -> int:
        return self.image.count

    @property
    def result_ciphertexts(self) -> int:
        return self.output.layout.count

    @property
    def model_ciphertexts(self) -> int:
        """0 with clear weights."""
        if self.weights == "clear":
            return 0
        return sum(step.matrix.vectors + step.layout.count for step in self.get_linear_steps())

    @property
    def request_bytes(self) -> int:
        return HEADER_BYTES + self.image.count * compute_body_bytes(self.params, self.input.level)

    @property
    def result_bytes(self) -> int:
        return HEADER_BYTES + self.result_ciphertexts * compute_body_bytes(
            self.params, self.output.result.level
        )

    @property
    def keys_bytes(self) -> int:
        """Relinearisation keys, then Galois keys."""
        words = self.params.levels * 2 * len(self.params.primes) * self.params.ring
        return HEADER_BYTES + words * WORD_BYTES + compute_galois_bytes(self.params, self.rotations)

    @property
    def model_bytes(self) -> int:
        total = HEADER_BYTES
        for step in self.get_linear_steps():
            if self.weights == "encrypted":
                total += step.matrix.vectors * compute_body_bytes(self.params, step.weight.level)
                bias = step.result if step.rescaled else step.product
                total += step.layout.count * compute_body_bytes(self.params, bias.level)
            else:
                total += step.matrix.vectors * step.matrix.frame.period * WORD_BYTES
                total += step.layout.count * step.layout.period * WORD_BYTES
        return total

    def get_linear_steps(self) -> tuple[LinearStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, LinearStep))

    @property
    def seconds(self) -> float:
        """Predicted, of one core."""
        return estimate_seconds(self.counts, self.params.ring)


def plan_single(
    network: Network,
    *,
    weights: WeightKind = "clear",
    precision: Precision | None = None,
    ring: int | None = None,
    insecure: bool = False,
) -> SinglePlan:
    """The plan on the smallest ring that fits, or on `ring`; `insecure` allows small rings, for tests.

    Raises: ParameterError, DepthError with the reasons if no ring fits.
    """
    wanted = PRECISION[weights] if precision is None else precision
    return _plan(describe(network), weights, wanted, ring, insecure)


@lru_cache(maxsize=16)
def _plan(
    shape: NetworkShape, weights: WeightKind, precision: Precision, ring: int | None, insecure: bool
) -> SinglePlan:
    network = build_blank(shape)
    prepared, means = prepare(network), count_means(network)
    reasons: list[str] = []
    for degree in (ring,) if ring is not None else tuple(MAX_MODULUS_BITS):
        try:
            planned = Planner(prepared, means, weights, precision, degree, insecure).run()
        except (ParameterError, DepthError) as error:
            reasons.append(f"ring {degree}: {error}")
            continue
        return _build_plan(planned, weights, tuple(reasons))
    raise DepthError("no ring fits: " + "; ".join(reasons))


def _build_plan(planned: Planned, weights: WeightKind, reasons: tuple[str, ...]) -> SinglePlan:
    rotations: set[int] = set()
    for step in planned.steps:
        if isinstance(step, LinearStep):
            rotations |= step.matrix.get_rotations()
        elif isinstance(step, PoolStep):
            rotations |= {distance for distance, _ in list_pool_rotations(step)}
    ordered = tuple(sorted(rotations))
    # Fields are numbers, names and tuples of them: one text for one program.
    digest = hashlib.sha256(repr((planned, weights, ordered)).encode()).digest()
    return SinglePlan(
        params=planned.params,
        precision=planned.precision,
        weights=weights,
        input=planned.input,
        image=planned.image,
        steps=planned.steps,
        rotations=ordered,
        counts=count_operations(planned.steps, weights),
        reasons=reasons,
        digest=digest,
    )
