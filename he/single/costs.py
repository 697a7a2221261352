"""What a plan's steps cost: operations by kind and level, and seconds."""

from collections import Counter

from he.counts import Counts, Operation
from he.program import WeightKind
from he.single.steps import (
    AddStep,
    LinearStep,
    PolynomialStep,
    PoolStep,
    SquareStep,
    Step,
    list_pool_rotations,
)


def estimate_seconds(counts: Counts, ring: int) -> float:
    """By costs measured at ring degree 8192 (DESIGN.md, section 7; benchmarks/single_image.py)."""
    total = 0.0
    for (operation, level), count in counts.items():
        match operation:
            case Operation.ROTATE | Operation.RELINEARIZE:
                cost = 0.13 * level**2 + 0.25 * level
            case Operation.VECTOR_2 | Operation.RESCALE_2:
                cost = 0.06 * level
            case Operation.MULTIPLY | Operation.SQUARE:
                cost = 0.09 * level
            case _:
                cost = 0.02 * level
        total += count * cost
    return total * 1e-3 * ring / 8192


def count_operations(steps: tuple[Step, ...], weights: WeightKind) -> Counts:
    """By operation and the level at which it begins."""
    counts: Counts = Counter()
    for step in steps:
        number = step.layout.count
        match step:
            case LinearStep():
                level, matrix = step.read.level, step.matrix
                encrypted = weights == "encrypted"
                counts[Operation.ROTATE, level] += matrix.count_rotations()
                counts[Operation.MULTIPLY if encrypted else Operation.VECTOR_2, level] += matrix.vectors
                counts[Operation.ADD_3 if encrypted else Operation.ADD_2, level] += matrix.vectors
                counts[Operation.RELINEARIZE, level] += matrix.relinearisations if encrypted else 0
                counts[Operation.RESCALE_2, level] += number if step.rescaled else 0
                counts[Operation.ADD_CONSTANT, step.result.level] += number
            case SquareStep():
                for operation in (Operation.SQUARE, Operation.RELINEARIZE, Operation.RESCALE_2):
                    counts[operation, step.read.level] += number
            case PolynomialStep():
                _count_polynomial(step, counts)
            case PoolStep():
                rotations = number * len(list_pool_rotations(step))
                counts[Operation.ROTATE, step.read.level] += rotations
                counts[Operation.ADD_2, step.read.level] += rotations
            case AddStep():
                counts[Operation.ADD_2, step.result.level] += number
                if step.evened is not None:
                    counts[Operation.CONSTANT_2, step.result.level + 1] += number
                    counts[Operation.RESCALE_2, step.result.level + 1] += number
    return +counts


def _count_polynomial(step: PolynomialStep, counts: Counts) -> None:
    number, level = step.layout.count, step.read.level
    degree = len(step.coefficients) - 1
    powers = degree.bit_length() - 1
    products = degree // 2 - powers if degree > 2 else 0
    for operation in (Operation.SQUARE, Operation.RELINEARIZE, Operation.RESCALE_2):
        counts[operation, level] += number * powers
    for operation in (Operation.MULTIPLY, Operation.RELINEARIZE, Operation.RESCALE_2):
        counts[operation, level - 1] += number * max(0, products)
    counts[Operation.CONSTANT_2, level] += number * sum(map(bool, step.coefficients[1:]))
