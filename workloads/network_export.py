"""From a torch module to the clear description that encrypted inference compiles, and nothing lost.

Importing this imports torch; never in a process that encrypts.
"""

import numpy as np
from torch import Tensor, nn

from he.errors import ParameterError
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
    Shape,
)
from workloads.base import WorkloadError
from workloads.diagnosis_network import PolynomialActivation, Residual


def export_network(module: nn.Module, shape: Shape) -> Network:
    """The module in evaluation mode as a graph of layers; batch norms use their running statistics.

    Known are convolutions, batch norms, polynomial activations, average pools, flattening, linear layers,
    sequences of these and `Residual`. Raises WorkloadError naming what it can't translate.
    """
    layers: list[Layer] = []
    _translate(module, "network", INPUT, layers)
    try:
        return Network(shape, tuple(layers))
    except ParameterError as error:
        raise WorkloadError(f"network: {error}") from error


def _translate(module: nn.Module, place: str, source: str, layers: list[Layer]) -> str:
    """Appends the module's layers; the name of its result."""
    name = f"{type(module).__name__.lower()}{len(layers)}"
    match module:
        case nn.Sequential():
            for index, part in enumerate(module):
                source = _translate(part, f"{place}.{index}", source, layers)
            return source
        case Residual():
            result = _translate(module.body, f"{place}.body", source, layers)
            layers.append(Add(f"add{len(layers)}", result, source))
        case nn.Flatten() if module.start_dim == 1:
            return source  # a dense layer flattens in the same order
        case nn.Conv2d():
            stride, padding = _check_convolution(module, place)
            weights = _convert(module.weight)
            layers.append(
                Convolution(name, source, weights, _get_bias(module.bias, len(weights)), stride, padding)
            )
        case nn.BatchNorm2d():
            layers.append(BatchNorm(name, source, *_freeze(module, place)))
        case PolynomialActivation():
            fitted = module.fitted
            layers.append(Polynomial(name, source, fitted.coefficients, fitted.interval, fitted.error))
        case nn.AvgPool2d():
            size = _get_one(module.kernel_size, place, "kernel size")
            if _get_one(module.stride, place, "stride") != size or module.padding != 0 or module.ceil_mode:
                raise WorkloadError(f"{place}: average pools must lie beside each other, without padding")
            layers.append(AveragePool(name, source, size))
        case nn.AdaptiveAvgPool2d() if module.output_size in (1, (1, 1)):
            layers.append(GlobalAveragePool(name, source))
        case nn.Linear():
            weights = _convert(module.weight)
            layers.append(Dense(name, source, weights, _get_bias(module.bias, len(weights))))
        case _:
            raise WorkloadError(f"{place}: {type(module).__name__} has no encrypted form here")
    return layers[-1].name


def _check_convolution(module: nn.Conv2d, place: str) -> tuple[int, int]:
    """Stride and padding. Raises WorkloadError for what the description has no word for."""
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        raise WorkloadError(
            f"{place}: convolutions must have zero padding in numbers, one group, no dilation"
        )
    return _get_one(module.stride, place, "stride"), _get_one(module.padding, place, "padding")


def _freeze(module: nn.BatchNorm2d, place: str) -> tuple[Floats, Floats]:
    """Scale and shift (C,) of a batch norm at inference, in double precision."""
    if module.running_mean is None or module.running_var is None:
        raise WorkloadError(f"{place}: a batch norm must track running statistics")
    mean = _convert(module.running_mean)
    scale = 1 / np.sqrt(_convert(module.running_var) + module.eps)
    if module.affine:
        scale = scale * _convert(module.weight)
        return scale, _convert(module.bias) - mean * scale
    return scale, -mean * scale


def _get_one(value: int | tuple[int, ...] | None, place: str, what: str) -> int:
    """The one number of a setting that torch has by axis."""
    numbers = {value} if isinstance(value, int) else set(value or ())
    if len(numbers) != 1:
        raise WorkloadError(f"{place}: {what} must be the same along both sides, not {value}")
    return numbers.pop()


def _get_bias(bias: Tensor | None, count: int) -> Floats:
    return np.zeros(count) if bias is None else _convert(bias)


def _convert(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().numpy().astype(np.float64)
