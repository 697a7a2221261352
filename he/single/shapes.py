"""What planning sees of a network: shapes and the coefficients of activations, never a weight.

Means that only a dense layer reads become part of that layer's weights: they cost nothing then.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from he.errors import ParameterError
from he.network import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    Floats,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    Shape,
    compute_shapes,
)

LayerShape = tuple[str, str, str, tuple[int, ...], tuple[float, ...]]
"""Kind, name, source, whole numbers and coefficients of a layer; an addition's kind names its other."""
NetworkShape = tuple[Shape, tuple[LayerShape, ...]]


def describe(network: Network) -> NetworkShape:
    """All that planning sees; equal for networks that differ in weights alone."""
    return network.shape, tuple(_describe(layer) for layer in network.layers)


def _describe(layer: Layer) -> LayerShape:
    kind, numbers, coefficients = type(layer).__name__, tuple[int, ...](), tuple[float, ...]()
    match layer:
        case Convolution():
            numbers = (*layer.weights.shape, layer.stride, layer.padding)
        case BatchNorm():
            numbers = layer.scale.shape
        case Dense():
            numbers = layer.weights.shape
        case AveragePool():
            numbers = (layer.size,)
        case Polynomial():
            coefficients = layer.coefficients
        case Add():
            kind = f"Add {layer.other}"
        case GlobalAveragePool():
            pass
    return kind, layer.name, layer.source, numbers, coefficients


def build_blank(shape: NetworkShape) -> Network:
    """The network that `describe` saw, with zeros for weights."""
    return Network(shape[0], tuple(_build_blank(*layer) for layer in shape[1]))


def _build_blank(
    kind: str, name: str, source: str, numbers: tuple[int, ...], coefficients: tuple[float, ...]
) -> Layer:
    if coefficients:
        return Polynomial(name, source, coefficients)
    match kind, numbers:
        case "Convolution", (outputs, _, _, _, stride, padding):
            return Convolution(name, source, _zeros(numbers[:4]), _zeros((outputs,)), stride, padding)
        case "BatchNorm", _:
            return BatchNorm(name, source, _zeros(numbers), _zeros(numbers))
        case "Dense", (outputs, _):
            return Dense(name, source, _zeros(numbers), _zeros((outputs,)))
        case "AveragePool", (size,):
            return AveragePool(name, source, size)
        case "GlobalAveragePool", _:
            return GlobalAveragePool(name, source)
        case _:
            return Add(name, source, kind.removeprefix("Add "))


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Without taking memory."""
    return np.broadcast_to(np.zeros(1), shape)


def count_means(network: Network) -> dict[str, int]:
    """By linear layer that takes means itself: of how many values. Its weights are as many times smaller."""
    shapes = compute_shapes(network)
    prepared = {layer.name for layer in prepare(network).layers}
    found: dict[str, int] = {}
    for layer in network.layers:
        if not isinstance(layer, AveragePool | GlobalAveragePool):
            continue
        _, height, width = shapes[layer.source]
        size = layer.size**2 if isinstance(layer, AveragePool) else height * width
        name = layer.name
        while name not in prepared:
            name = network.get_consumers(name)[0].name
        found[name] = found.get(name, 1) * size
    return found


def prepare(network: Network) -> Network:
    """The same function with means that only a dense layer reads in that layer's weights.

    Raises: ParameterError on layers that nothing reads and constant activations.
    """
    for layer in network.layers:
        if layer is not network.layers[-1] and not network.get_consumers(layer.name):
            raise ParameterError(f"layer {layer.name!r}: nothing reads it, and it is not the output")
    shapes = compute_shapes(network)
    kept = {layer.name: layer for layer in network.layers}
    for pool in reversed(network.layers):
        consumers = Network(network.shape, tuple(kept.values())).get_consumers(pool.name)
        if not isinstance(pool, AveragePool | GlobalAveragePool) or len(consumers) != 1:
            continue
        dense = consumers[0]
        if not isinstance(dense, Dense):
            continue
        kept[dense.name] = replace(
            dense, source=pool.source, weights=_spread(dense.weights, pool, shapes[pool.source])
        )
        del kept[pool.name]
    return Network(network.shape, tuple(kept.values()))


def _spread(
    weights: Floats,
    pool: AveragePool | GlobalAveragePool,
    shape: Shape,
) -> Floats:
    """(O, C H W): weights of what the pool reads."""
    channels, height, width = shape
    side_y, side_x = (pool.size, pool.size) if isinstance(pool, AveragePool) else (height, width)
    rows, columns = height // side_y, width // side_x
    means = weights.reshape(-1, channels, rows, columns) / (side_y * side_x)
    means = means.repeat(side_y, axis=2).repeat(side_x, axis=3)
    full = np.zeros((len(weights), channels, height, width))
    full[:, :, : rows * side_y, : columns * side_x] = means
    return full.reshape(len(weights), -1)


def strip(layer: Polynomial) -> tuple[Fraction, ...]:
    """Exact coefficients without zeros at the end.

    Raises: ParameterError if a constant is left.
    """
    kept = [Fraction(value) for value in layer.coefficients]
    while kept and not kept[-1]:
        kept.pop()
    if len(kept) < 2:
        raise ParameterError(f"layer {layer.name!r}: a constant is not evaluated on ciphertexts")
    return tuple(kept)


def is_square(layer: Layer) -> bool:
    """Whether it is +-(x + d)^2 + e, for one level."""
    if not isinstance(layer, Polynomial):
        return False
    kept = strip(layer)
    return len(kept) == 3 and abs(kept[2]) == 1
