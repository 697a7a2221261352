"""How large values become: what the first prime must hold.

Estimates, not proofs: images beyond the sample or the intervals can give larger values, which then wrap and
spoil the results of their own request; nobody else's.
"""

import numpy as np

from he.network import (
    INPUT,
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
    evaluate_all,
)

SAMPLE_ROOM = 4.0
"""Other images may give values so many times larger than a sample's."""

INPUT_BOUND = 16.0
"""Largest magnitude of a pixel that is encrypted."""

_PIXEL = 1.0
_DEFAULT_INTERVAL = (-1.0, 1.0)


def compute_magnitudes(network: Network, sample: Floats | None = None) -> dict[str, float]:
    """Largest magnitude to expect of every layer's values: seen on a sample, or from pixels in [-1, 1], sums
    of weights' magnitudes, and the intervals of fitted polynomials."""
    if sample is not None:
        values = evaluate_all(network, sample)
        return {name: SAMPLE_ROOM * float(np.abs(value).max()) for name, value in values.items()}
    largest = {INPUT: _PIXEL}
    for layer in network.layers:
        largest[layer.name] = _compute(layer, largest)
    return largest


def _compute(layer: Layer, largest: dict[str, float]) -> float:
    source = largest[layer.source]
    match layer:
        case Convolution() | Dense():
            sums = np.abs(layer.weights).reshape(len(layer.weights), -1).sum(axis=1)
            return float((sums * source + np.abs(layer.bias)).max())
        case BatchNorm():
            return float((np.abs(layer.scale) * source + np.abs(layer.shift)).max())
        case Polynomial():
            low, high = -source, source
            if layer.error > 0.0 or layer.interval != _DEFAULT_INTERVAL:
                low, high = layer.interval
            points = np.linspace(low, high, 257)
            return float(np.abs(np.polynomial.polynomial.polyval(points, np.array(layer.coefficients))).max())
        case Add():
            return source + largest[layer.other]
        case AveragePool() | GlobalAveragePool():
            return source
