"""How many operations a network takes in batch packing, known before it runs."""

from collections.abc import Mapping

from he.counts import Counts, Operation
from he.layers.plan import Step, get_powers, is_monic, strip
from he.network import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Polynomial,
    Shape,
)
from he.program import Options


def count_batch(steps: tuple[Step, ...], shapes: Mapping[str, Shape], options: Options) -> Counts:
    """Of one evaluation, without the gate; borders are counted as if they were padded with values."""
    counts = Counts()
    for step in steps:
        _count_step(counts, step, shapes, options)
    return +counts


def _count_step(counts: Counts, step: Step, shapes: Mapping[str, Shape], options: Options) -> None:
    layer = step.layer
    source, shape = shapes[layer.source], shapes[layer.name]
    inputs, outputs = source[0] * source[1] * source[2], shape[0] * shape[1] * shape[2]
    level = step.product.level
    parts = 3 if step.sources[0].raw else 2
    match layer:
        case Convolution() if options.weights == "clear":
            kernel = layer.weights.shape[2]
            columns = source[0] * kernel * source[2]
            _count_products(counts, level * parts, shape[1], shape[0] * shape[2], columns)
        case Dense() if options.weights == "clear":
            _count_products(counts, level * parts, 1, outputs, inputs)
        case AveragePool() | GlobalAveragePool():
            rows = shape[1]
            _count_products(counts, level * parts, rows, outputs // rows, inputs // rows)
        case BatchNorm() if options.weights == "clear":
            counts[Operation.LOAD, level] += outputs
            counts[Operation.CONSTANT_2, level] += outputs
        case Convolution() | Dense() | BatchNorm():
            taps = 1 if isinstance(layer, BatchNorm) else layer.weights[0].size
            weights = taps * shape[0]
            counts[Operation.LOAD, level] += weights * shape[1] + inputs
            counts[Operation.MULTIPLY, level] += taps * outputs
            counts[Operation.ADD_3, level] += (taps - 1) * outputs
            counts[Operation.RELINEARIZE, level] += outputs
        case Polynomial() if is_monic(layer):
            counts[Operation.LOAD, level] += outputs
            counts[Operation.SQUARE, level] += outputs
        case Polynomial():
            before = step.sources[0].form.level
            counts[Operation.LOAD, before] += outputs
            for _ in get_powers(layer):
                counts[Operation.MULTIPLY, before] += outputs
                counts[Operation.RELINEARIZE, before] += outputs
                counts[Operation.RESCALE_2, before] += outputs
            terms = sum(value != 0.0 for value in strip(layer)[1:])
            counts[Operation.CONSTANT_2, level] += terms * outputs
            counts[Operation.ADD_2, level] += (terms - 1) * outputs
        case Add():
            counts[Operation.ADD_2, level] += outputs
            if step.evened is not None:
                before = step.sources[step.evened].form.level
                counts[Operation.CONSTANT_2, before] += outputs
                counts[Operation.RESCALE_2, before] += outputs
    if step.relinearises:
        counts[Operation.RELINEARIZE, level] += outputs
    if not isinstance(layer, Add):
        for index in range(step.rescales):
            counts[Operation.RESCALE_2, level - index] += outputs
        if step.rescales:
            counts[Operation.SAVE, step.value.form.level] += outputs


def _count_products(counts: Counts, parts: int, groups: int, rows: int, columns: int) -> None:
    """Of `groups` matrix products of (rows, columns), for each component and prime."""
    counts[Operation.WINDOW_CELL, 1] += parts * groups * rows * columns
    counts[Operation.WINDOW_INPUT, 1] += parts * groups * columns
    counts[Operation.WINDOW_OUTPUT, 1] += parts * groups * rows
