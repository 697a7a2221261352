"""Rewriting a network so that it costs fewer levels and is the same function.

Both are the depth optimisations of Ran and Li (JIIM 2025): batch normalisation goes into the convolution
before it, and the coefficient of a square goes into neighbours, which leaves (x + d)^2 + e: the compiler
evaluates that with one multiplication. Factors of average pools need no rewriting: with absorption the
compiler keeps them in the exact scale, and so in the weights of the next linear layer.
"""

from dataclasses import replace
from math import sqrt

from he.network import (
    INPUT,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
)

_FACTORS = (2.0**-20, 2.0**20)
"""Coefficients outside are left alone: numbers would grow or vanish beyond what a scale can hold."""

Linear = Convolution | Dense | BatchNorm


def fold_batch_norms(network: Network) -> Network:
    """The same function with every batch norm in the convolution or dense layer that it follows, where
    that layer has no other consumer. The folded layer takes the place and the name of the batch norm."""
    layers = list(network.layers)
    for norm in network.layers:
        if not isinstance(norm, BatchNorm):
            continue
        current = Network(network.shape, tuple(layers))
        before = _find(current, norm.source)
        if not isinstance(before, Convolution | Dense) or len(current.get_consumers(before.name)) != 1:
            continue
        layers[layers.index(norm)] = replace(
            before,
            name=norm.name,
            weights=before.weights * norm.scale.reshape(-1, *(1,) * (before.weights.ndim - 1)),
            bias=before.bias * norm.scale + norm.shift,
        )
        layers.remove(before)
    return Network(network.shape, tuple(layers))


def absorb_activations(network: Network) -> Network:
    """The same function with every quadratic's leading coefficient c2 in its neighbours, so that it is 1 or
    -1: as a factor c2 in the weights of all layers behind it, through pools, or where one of them is not
    linear, as sqrt|c2| in the layer before it, if nothing else reads that."""
    for name in [layer.name for layer in network.layers if isinstance(layer, Polynomial)]:
        network = _absorb(network, name)
    return network


def _absorb(network: Network, name: str) -> Network:
    layer = _find(network, name)
    if not isinstance(layer, Polynomial) or len(layer.coefficients) != 3:
        return network
    c0, c1, c2 = layer.coefficients
    if abs(c2) == 1.0 or not _FACTORS[0] <= abs(c2) <= _FACTORS[1]:
        return network
    behind = _find_linear_behind(network, name)
    if behind is not None:
        changed: dict[str, Layer] = {item.name: _scale_input(item, c2) for item in behind}
        changed[name] = replace(layer, coefficients=(c0 / c2, c1 / c2, 1.0), error=layer.error / abs(c2))
        return _replace_layers(network, changed)
    before = _find_linear_before(network, layer.source)
    if before is not None:
        factor = sqrt(abs(c2))
        interval = (layer.interval[0] * factor, layer.interval[1] * factor)
        sign = 1.0 if c2 > 0 else -1.0
        # factor**2 is c2 but for the last bit of a double, like every other product of weights.
        return _replace_layers(
            network,
            {
                before.name: _scale_output(before, factor),
                name: replace(layer, coefficients=(c0, c1 / factor, sign), interval=interval),
            },
        )
    return network


def _find_linear_behind(network: Network, name: str) -> list[Linear] | None:
    """Every layer that reads `name`, directly or through pools; None if one is not linear, or if `name`
    reaches the output."""
    consumers = network.get_consumers(name)
    if not consumers or name == network.layers[-1].name:
        return None
    found: list[Linear] = []
    for layer in consumers:
        if isinstance(layer, AveragePool | GlobalAveragePool):
            inner = _find_linear_behind(network, layer.name)
            if inner is None:
                return None
            found += inner
        elif isinstance(layer, Convolution | Dense | BatchNorm):
            found.append(layer)
        else:
            return None
    return found


def _find_linear_before(network: Network, name: str) -> Linear | None:
    """The layer whose output `name` is, but for pools; None if it is not linear or has other readers."""
    while name != INPUT and len(network.get_consumers(name)) == 1:
        layer = _find(network, name)
        if isinstance(layer, Convolution | Dense | BatchNorm):
            return layer
        if not isinstance(layer, AveragePool | GlobalAveragePool):
            return None
        name = layer.source
    return None


def _scale_input(layer: Linear, factor: float) -> Linear:
    if isinstance(layer, BatchNorm):
        return replace(layer, scale=layer.scale * factor)
    return replace(layer, weights=layer.weights * factor)


def _scale_output(layer: Linear, factor: float) -> Linear:
    if isinstance(layer, BatchNorm):
        return replace(layer, scale=layer.scale * factor, shift=layer.shift * factor)
    return replace(layer, weights=layer.weights * factor, bias=layer.bias * factor)


def _find(network: Network, name: str) -> Layer | None:
    return next((layer for layer in network.layers if layer.name == name), None)


def _replace_layers(network: Network, changed: dict[str, Layer]) -> Network:
    return Network(network.shape, tuple(changed.get(layer.name, layer) for layer in network.layers))
