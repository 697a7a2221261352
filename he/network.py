"""A trained network's clear description: a graph of layers that encrypted inference knows, in order.

Numbers are float64 and shapes (C, H, W); what a dense layer gives is (O, 1, 1). Nothing here needs the
encryption or the training library: exporters write this, the compiler reads it, tests evaluate it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Floats = NDArray[np.float64]
Shape = tuple[int, int, int]
"""(C, H, W)."""

INPUT = "input"
"""The name of the image as a source."""

MAGIC = b"BMIFNET1"
MAX_LAYERS = 128
MAX_SIDE = 1024
MAX_CHANNELS = 4096
MAX_DEGREE = 15
MAX_WEIGHTS = 1 << 26
"""Of one array: bounds what decoding asks for."""
_MAX_NAME = 48


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """y = w * x + b with zero padding, as `torch.nn.Conv2d` without dilation and groups."""

    name: str
    source: str
    weights: Floats
    """(O, I, k, k)."""
    bias: Floats
    """(O,)."""
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BatchNorm:
    """y = scale x + shift by channel: batch normalisation as it is at inference."""

    name: str
    source: str
    scale: Floats
    """(C,)."""
    shift: Floats
    """(C,)."""


@dataclass(frozen=True, slots=True, eq=False)
class AveragePool:
    """Means of size x size windows beside each other; what is left over at the border is dropped."""

    name: str
    source: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class GlobalAveragePool:
    """The mean of each channel, (C, 1, 1)."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """y = w x + b of the source flattened in C order."""

    name: str
    source: str
    weights: Floats
    """(O, I)."""
    bias: Floats
    """(O,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Polynomial:
    """y = c0 + c1 x + .. + cd x^d, fitted on an interval to some other function with some error."""

    name: str
    source: str
    coefficients: tuple[float, ...]
    """Lowest first."""
    interval: tuple[float, float] = (-1.0, 1.0)
    """Where x is expected; what lies outside is computed all the same."""
    error: float = 0.0
    """Largest distance on the interval to the function that it stands for; 0 if it stands for none."""


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """y = source + other, of equal shapes."""

    name: str
    source: str
    other: str


Layer = Convolution | BatchNorm | AveragePool | GlobalAveragePool | Dense | Polynomial | Add
_KINDS: tuple[type[Layer], ...] = (
    Convolution,
    BatchNorm,
    AveragePool,
    GlobalAveragePool,
    Dense,
    Polynomial,
    Add,
)
"""A layer's kind in bytes is its place here."""


def get_sources(layer: Layer) -> tuple[str, ...]:
    """Names that the layer reads."""
    return (layer.source, layer.other) if isinstance(layer, Add) else (layer.source,)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Layers in an order in which each reads only what is before it; the last one is the output."""

    shape: Shape
    """Of one image."""
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        compute_shapes(self)

    @property
    def outputs(self) -> int:
        """Numbers that come out for an image."""
        channels, height, width = compute_shapes(self)[self.layers[-1].name]
        return channels * height * width

    def get_consumers(self, name: str) -> tuple[Layer, ...]:
        """The layers that read `name`, one entry a reading."""
        return tuple(layer for layer in self.layers for source in get_sources(layer) if source == name)


def compute_shapes(network: Network) -> dict[str, Shape]:
    """(C, H, W) of the input and of every layer.

    Raises: ParameterError naming the layer and what does not fit.
    """
    if not 1 <= len(network.layers) <= MAX_LAYERS:
        raise ParameterError(f"a network has 1 to {MAX_LAYERS} layers, not {len(network.layers)}")
    _check_range("input: channels", network.shape[0], 1, MAX_CHANNELS)
    for side in network.shape[1:]:
        _check_range("input: side", side, 1, MAX_SIDE)
    shapes: dict[str, Shape] = {INPUT: network.shape}
    for layer in network.layers:
        name = layer.name
        if not (name.isascii() and name.isprintable() and 1 <= len(name) <= _MAX_NAME):
            raise ParameterError(f"layer {name!r}: names are 1 to {_MAX_NAME} printable ASCII characters")
        if name in shapes:
            raise ParameterError(f"layer {name!r}: there is another of this name before it")
        for source in get_sources(layer):
            if source not in shapes:
                raise ParameterError(f"layer {name!r}: its source {source!r} is not before it")
        shapes[name] = _compute_shape(layer, shapes)
    return shapes


def _compute_shape(layer: Layer, shapes: dict[str, Shape]) -> Shape:
    channels, height, width = shapes[layer.source]
    where = f"layer {layer.name!r}"
    match layer:
        case Convolution():
            if layer.weights.ndim != 4 or layer.weights.shape[2] != layer.weights.shape[3]:
                raise ParameterError(f"{where}: weights of shape {layer.weights.shape}, not (O, I, k, k)")
            outputs, _, kernel, _ = layer.weights.shape
            _check_array(where, "weights", layer.weights, (outputs, channels, kernel, kernel))
            _check_array(where, "bias", layer.bias, (outputs,))
            _check_range(f"{where}: channels", outputs, 1, MAX_CHANNELS)
            _check_range(f"{where}: stride", layer.stride, 1, MAX_SIDE)
            _check_range(f"{where}: padding", layer.padding, 0, kernel - 1)
            sides = [(side + 2 * layer.padding - kernel) // layer.stride + 1 for side in (height, width)]
            if min(height, width) + 2 * layer.padding < kernel:
                raise ParameterError(f"{where}: a kernel of {kernel} does not fit into {height}x{width}")
            return outputs, sides[0], sides[1]
        case BatchNorm():
            _check_array(where, "scale", layer.scale, (channels,))
            _check_array(where, "shift", layer.shift, (channels,))
            return channels, height, width
        case AveragePool():
            _check_range(f"{where}: size", layer.size, 1, min(height, width))
            return channels, height // layer.size, width // layer.size
        case GlobalAveragePool():
            return channels, 1, 1
        case Dense():
            if layer.weights.ndim != 2:
                raise ParameterError(f"{where}: weights of shape {layer.weights.shape}, not (O, I)")
            outputs = len(layer.weights)
            _check_array(where, "weights", layer.weights, (outputs, channels * height * width))
            _check_array(where, "bias", layer.bias, (outputs,))
            _check_range(f"{where}: outputs", outputs, 1, MAX_CHANNELS)
            return outputs, 1, 1
        case Polynomial():
            _check_range(f"{where}: degree", len(layer.coefficients) - 1, 0, MAX_DEGREE)
            numbers = (*layer.coefficients, *layer.interval, layer.error)
            if not bool(np.isfinite(numbers).all()):
                raise ParameterError(f"{where}: coefficients, interval and error must be finite")
            if not layer.interval[0] < layer.interval[1] or layer.error < 0:
                raise ParameterError(f"{where}: the interval is empty, or the error is negative")
            return channels, height, width
        case Add():
            if shapes[layer.other] != (channels, height, width):
                raise ParameterError(
                    f"{where}: {layer.source!r} and {layer.other!r} have shapes"
                    f" {(channels, height, width)} and {shapes[layer.other]}"
                )
            return channels, height, width


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ParameterError(f"{what} must lie in [{low}, {high}], not {value}")


def _check_array(where: str, what: str, array: Floats, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float64 or array.shape != shape:
        raise ParameterError(
            f"{where}: {what} must be float64 of shape {shape}, not {array.dtype} {array.shape}"
        )
    if array.size > MAX_WEIGHTS or not bool(np.isfinite(array).all()):
        raise ParameterError(f"{where}: {what} must be at most {MAX_WEIGHTS} finite numbers")


# --- in clear ---------------------------------------------------------------------------------


def evaluate(network: Network, images: Floats) -> Floats:
    """(B, outputs) of images (B, C, H, W), in clear.

    Raises: ParameterError on a wrong shape.
    """
    values = evaluate_all(network, images)[network.layers[-1].name]
    return np.ascontiguousarray(values.reshape(len(values), -1))


def evaluate_all(network: Network, images: Floats) -> dict[str, Floats]:
    """(B, C, H, W) of the input and of every layer.

    Raises: ParameterError on a wrong shape.
    """
    if images.ndim != 4 or images.shape[1:] != network.shape:
        raise ParameterError(f"images: expected shape (B, {network.shape}), got {images.shape}")
    values: dict[str, Floats] = {INPUT: np.asarray(images, dtype=np.float64)}
    for layer in network.layers:
        values[layer.name] = _evaluate_layer(layer, values)
    return values


def _evaluate_layer(layer: Layer, values: dict[str, Floats]) -> Floats:
    x = values[layer.source]
    match layer:
        case Convolution():
            border = (layer.padding, layer.padding)
            padded = np.pad(x, ((0, 0), (0, 0), border, border))
            side = layer.weights.shape[2]
            windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
            windows = windows[:, :, :: layer.stride, :: layer.stride]
            sums = np.tensordot(windows, layer.weights, axes=([1, 4, 5], [1, 2, 3]))
            return np.ascontiguousarray(sums.transpose(0, 3, 1, 2)) + layer.bias[:, None, None]
        case BatchNorm():
            return x * layer.scale[:, None, None] + layer.shift[:, None, None]
        case AveragePool():
            size = layer.size
            height, width = (side // size for side in x.shape[2:])
            kept = x[:, :, : height * size, : width * size]
            return np.asarray(kept.reshape(*x.shape[:2], height, size, width, size).mean(axis=(3, 5)))
        case GlobalAveragePool():
            return np.asarray(x.mean(axis=(2, 3), keepdims=True))
        case Dense():
            return (x.reshape(len(x), -1) @ layer.weights.T + layer.bias)[:, :, None, None]
        case Polynomial():
            return np.asarray(np.polynomial.polynomial.polyval(x, np.array(layer.coefficients)))
        case Add():
            return x + values[layer.other]


# --- bytes ------------------------------------------------------------------------------------


def encode(network: Network) -> bytes:
    """The network's only encoding: magic, C, H, W and number of layers as little-endian 32-bit numbers;
    then each layer's kind, name, source and contents, arrays as float64 behind their lengths by axis."""
    parts = [MAGIC, struct.pack("<4I", *network.shape, len(network.layers))]
    for layer in network.layers:
        parts.append(bytes([_KINDS.index(type(layer))]))
        parts += [_encode_name(layer.name), _encode_name(layer.source)]
        match layer:
            case Convolution():
                parts.append(struct.pack("<2I", layer.stride, layer.padding))
                parts += [_encode_array(layer.weights), _encode_array(layer.bias)]
            case BatchNorm():
                parts += [_encode_array(layer.scale), _encode_array(layer.shift)]
            case AveragePool():
                parts.append(struct.pack("<I", layer.size))
            case GlobalAveragePool():
                pass
            case Dense():
                parts += [_encode_array(layer.weights), _encode_array(layer.bias)]
            case Polynomial():
                parts.append(_encode_array(np.array(layer.coefficients, dtype=np.float64)))
                parts.append(struct.pack("<3d", *layer.interval, layer.error))
            case Add():
                parts.append(_encode_name(layer.other))
    return b"".join(parts)


def _encode_name(name: str) -> bytes:
    data = name.encode("ascii")
    return bytes([len(data)]) + data


def _encode_array(array: Floats) -> bytes:
    head = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return head + np.ascontiguousarray(array, dtype="<f8").tobytes()


def decode(data: bytes) -> Network:
    """What `encode` gave, and nothing else.

    Raises: ParameterError on anything that is not a network's one encoding.
    """
    reader = _Reader(data)
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise ParameterError("not a network: it begins with other bytes")
    channels, height, width, count = reader.unpack("<4I")
    if count > MAX_LAYERS:
        raise ParameterError(f"a network has 1 to {MAX_LAYERS} layers, not {count}")
    layers = tuple(_read_layers(reader, count))
    if reader.left:
        raise ParameterError(f"{reader.left} bytes follow the network")
    network = Network((channels, height, width), layers)
    if encode(network) != data:
        raise ParameterError("not a network's canonical encoding")
    return network


def _read_layers(reader: "_Reader", count: int) -> Iterator[Layer]:
    for _ in range(count):
        kind = reader.take(1)[0]
        if kind >= len(_KINDS):
            raise ParameterError(f"layer kind {kind} is unknown")
        name, source = reader.take_name(), reader.take_name()
        match _KINDS[kind].__name__:
            case "Convolution":
                stride, padding = reader.unpack("<2I")
                weights, bias = reader.take_array(4), reader.take_array(1)
                yield Convolution(name, source, weights, bias, stride, padding)
            case "BatchNorm":
                yield BatchNorm(name, source, reader.take_array(1), reader.take_array(1))
            case "AveragePool":
                yield AveragePool(name, source, reader.unpack("<I")[0])
            case "GlobalAveragePool":
                yield GlobalAveragePool(name, source)
            case "Dense":
                yield Dense(name, source, reader.take_array(2), reader.take_array(1))
            case "Polynomial":
                coefficients = tuple(float(value) for value in reader.take_array(1))
                low, high, error = struct.unpack("<3d", reader.take(24))
                yield Polynomial(name, source, coefficients, (low, high), error)
            case _:
                yield Add(name, source, reader.take_name())


class _Reader:
    """Takes bytes from the front, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    @property
    def left(self) -> int:
        return len(self._view)

    def take(self, count: int) -> memoryview:
        if count > len(self._view):
            raise ParameterError(f"a network of {count - len(self._view)} bytes too few")
        head, self._view = self._view[:count], self._view[count:]
        return head

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def take_name(self) -> str:
        data = bytes(self.take(self.take(1)[0]))
        if not data.isascii():
            raise ParameterError("a layer's name is ASCII")
        return data.decode("ascii")

    def take_array(self, axes: int) -> Floats:
        if self.take(1)[0] != axes:
            raise ParameterError(f"an array must have {axes} axes here")
        shape = self.unpack(f"<{axes}I")
        size = 1
        for length in shape:
            size *= length
        if size > MAX_WEIGHTS:
            raise ParameterError(f"an array of {size} numbers; at most {MAX_WEIGHTS} are allowed")
        return np.frombuffer(self.take(8 * size), dtype="<f8").astype(np.float64).reshape(shape)
