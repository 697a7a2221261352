"""How many operations of each kind the canonical circuits take, known before they run."""

from collections import Counter
from enum import StrEnum

from he.plan import Plan
from he.spec import PolynomialSpec


class Operation(StrEnum):
    """Kinds of operations; the number behind a name is of ciphertext components."""

    LOAD = "load"
    SAVE = "save"
    ADD_2 = "add-2"
    ADD_3 = "add-3"
    ADD_CONSTANT = "add-constant"
    CONSTANT_2 = "multiply-constant-2"
    CONSTANT_3 = "multiply-constant-3"
    MULTIPLY = "multiply"
    SQUARE = "square"
    VECTOR_2 = "multiply-vector-2"
    RELINEARIZE = "relinearize"
    ROTATE = "rotate"
    RESCALE_2 = "rescale-2"
    RESCALE_3 = "rescale-3"
    WINDOW_CELL = "window-cell"
    """Of the first layer's matrix product: one weight times one residue polynomial of one prime."""
    WINDOW_INPUT = "window-input"
    """Of the same: one residue polynomial of one prime that is cut into limbs."""
    WINDOW_OUTPUT = "window-output"
    """Of the same: one residue polynomial of one prime that is put together and reduced."""


Counts = Counter[tuple[Operation, int]]
"""By operation and the level at which it begins; window operations count at level 1, once a prime."""


def count_gradient(plan: Plan) -> Counts:
    """Of `compute_gradient_bundle`, without the gate."""
    spec = plan.spec
    middle, low = plan.output.level, plan.delta.level
    positions, outputs, taps = spec.channels * spec.hidden**2, spec.output**2, _count_taps(spec)
    counts = _count_forward(plan)
    counts[Operation.RELINEARIZE, low] += positions
    # G = M F' - R, and its sum.
    counts[Operation.LOAD, middle] += outputs
    counts[Operation.ADD_2, middle] += outputs
    counts[Operation.ADD_2, low] += outputs - 1
    counts[Operation.LOAD, low] += spec.inputs * spec.patch**2
    # The second layer: a sum over outputs for each of its weights.
    entries = spec.channels * spec.second**2
    counts[Operation.MULTIPLY, low] += taps
    counts[Operation.ADD_3, low] += taps - entries
    # delta = (v * G) z.
    counts[Operation.CONSTANT_2, middle] += taps
    counts[Operation.ADD_2, middle] += taps - positions
    counts[Operation.MULTIPLY, middle] += positions
    counts[Operation.RESCALE_3, middle] += positions
    counts[Operation.RELINEARIZE, low] += positions
    # The first layer: a sum over positions for each of its weights.
    counts[Operation.MULTIPLY, low] += spec.first_weights * spec.hidden**2
    counts[Operation.ADD_3, low] += spec.first_weights * (spec.hidden**2 - 1)
    counts[Operation.ADD_2, low] += positions - spec.channels
    entries += spec.first_weights
    counts[Operation.RESCALE_3, low] += entries
    counts[Operation.RELINEARIZE, low - 1] += entries
    counts[Operation.SAVE, low - 1] += entries
    counts[Operation.SAVE, low] += spec.channels + 1
    return +counts


def count_loss(plan: Plan) -> Counts:
    """Of `compute_loss_ciphertext`, without the gate."""
    middle, outputs = plan.output.level, plan.spec.output**2
    counts = _count_forward(plan)
    counts[Operation.LOAD, middle] += outputs + 1
    # The sum begins with the constant, in two components.
    counts[Operation.ADD_2, middle] += 2 * outputs + 1
    counts[Operation.MULTIPLY, middle] += outputs
    counts[Operation.ADD_3, middle] += outputs - 1
    counts[Operation.RELINEARIZE, middle] += 1
    counts[Operation.RESCALE_2, middle] += 1
    counts[Operation.SAVE, middle - 1] += 1
    return +counts


def _count_taps(spec: PolynomialSpec) -> int:
    """Pairs of an output and a weight of the second layer."""
    return spec.channels * spec.second**2 * spec.output**2


def _count_forward(plan: Plan) -> Counts:
    """From the batch to M F'."""
    spec, counts = plan.spec, Counts()
    top, middle = plan.input.level, plan.output.level
    positions, outputs, taps = spec.channels * spec.hidden**2, spec.output**2, _count_taps(spec)
    # Each row of hidden positions is one matrix product for each component and prime.
    columns = spec.kernel * spec.inputs * spec.patch
    counts[Operation.WINDOW_CELL, 1] += 2 * top * positions * columns
    counts[Operation.WINDOW_INPUT, 1] += 2 * top * spec.hidden * columns
    counts[Operation.WINDOW_OUTPUT, 1] += 2 * top * positions
    counts[Operation.LOAD, top] += positions
    counts[Operation.ADD_CONSTANT, top] += positions
    counts[Operation.SQUARE, top] += positions
    counts[Operation.RESCALE_3, top] += positions
    counts[Operation.CONSTANT_3, middle] += taps
    counts[Operation.ADD_3, middle] += taps - outputs
    counts[Operation.RELINEARIZE, middle] += outputs
    counts[Operation.ADD_CONSTANT, middle] += outputs
    counts[Operation.CONSTANT_2, middle] += outputs
    # Each of two neighbours adds itself and takes the other away.
    counts[Operation.ADD_2, middle] += 8 * spec.output * (spec.output - 1)
    return counts
