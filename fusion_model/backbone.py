"""The public backbone: a small frozen CNN with Inception blocks, evaluated in numpy without torch.

Its last features are extra input planes that a contributor computes in clear on whole images and encrypts
beside them ("private fine-tuning": the mined polynomial network is the head). The same file holds a public
head, so that backbone and head together are a teacher whose image can be a training target.

Everything maps black to black: no layer has a free bias, an activation is relu(x + b) - relu(b), and borders
are continued by 0. The weights are trained on data that may be shipped (see the file's own provenance, and
`simulated`), never on a patient's images.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from fusion_model.gradients import Array

Array32 = npt.NDArray[np.float32]

BACKBONE_PLANES = 4
"""How many planes the shipped backbone has: "backbone-0" to "backbone-3"."""

_FORMAT = 1
_FILE = "backbone.json"
GATE_SLOPE = 32.0
"""Planes and the change of a pixel are multiplied by min(1, 32 max(A, B)): below 8/255 there is only noise,
which every measure wants left as it is."""

_ROWS = 32
"""Rows of an image that one matrix product covers: what fits a cache."""


class _StoredArray(TypedDict):
    shape: list[int]
    data: str


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Sizes: stem 3x3, `blocks` Inception blocks of `width` channels, planes, quadratic head."""

    width: int = 24
    """Channels of the trunk; a block gives half of them to 3x3, a quarter each to 1x1 and 5x5."""
    blocks: int = 2
    planes: int = BACKBONE_PLANES
    head: int = 4
    """Squared channels of the head."""

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a positive multiple of 4; got {self.width}")
        if min(self.blocks, self.planes, self.head) < 1:
            raise ValueError(
                f"blocks, planes and head must be positive; got {self.blocks}, {self.planes}, {self.head}"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array, in the order of the computation."""
        half, quarter = self.width // 2, self.width // 4
        shapes: dict[str, tuple[int, ...]] = {
            "stem.weight": (self.width, 2, 3, 3),
            "stem.bias": (self.width,),
        }
        for block in range(self.blocks):
            shapes |= {
                f"block{block}.one": (quarter, self.width, 1, 1),
                f"block{block}.reduce3": (half, self.width, 1, 1),
                f"block{block}.three": (half, half, 3, 3),
                f"block{block}.reduce5": (quarter, self.width, 1, 1),
                f"block{block}.five": (quarter, quarter, 5, 5),
                f"block{block}.bias": (self.width,),
            }
        return shapes | {
            "planes.weight": (self.planes, self.width, 3, 3),
            "head.first": (self.head, 2 + self.planes, 3, 3),
            "head.bias": (self.head,),
            "head.second": (1, self.head, 3, 3),
        }

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network's weights, and in words what they were trained on."""

    config: BackboneConfig
    arrays: Mapping[str, Array32]
    provenance: str

    def __post_init__(self) -> None:
        for name, shape in self.config.shapes.items():
            if name not in self.arrays or self.arrays[name].shape != shape:
                found = self.arrays[name].shape if name in self.arrays else "nothing"
                raise ValueError(f"backbone weights {name}: expected shape {shape}, got {found}")


def compute_backbone_planes(first: Array, second: Array, backbone: Backbone | None = None) -> Array:
    """The last features (planes, H, W) in [-1, 1] of a whole pair in [0, 1]; 0 where both are black around.

    A plane of another backbone than the shipped one is got by passing it. Raises ValueError for images of
    different shapes.
    """
    network = load_backbone() if backbone is None else backbone
    return _compute_planes(network, _stack_pair(first, second)).astype(np.float64)


def compute_teacher_image(first: Array, second: Array, backbone: Backbone | None = None) -> Array:
    """The image (H, W) in [0, 1] that backbone and public head fuse: pixel maximum plus the head's change."""
    network = load_backbone() if backbone is None else backbone
    pair = _stack_pair(first, second)
    arrays = network.arrays
    inputs = np.concatenate([pair, _compute_planes(network, pair)])
    linear = _convolve(inputs, arrays["head.first"])
    # z^2 - b^2 instead of z^2 with an output bias: black stays exactly black.
    squares = linear * (linear + 2 * arrays["head.bias"][:, None, None])
    change = _compute_gate(pair) * _convolve(squares, arrays["head.second"])[0]
    return np.asarray(np.clip(pair.max(axis=0) + change, 0, 1), dtype=np.float64)


@cache
def load_backbone() -> Backbone:
    """The backbone that is shipped with the package."""
    text = resources.files("fusion_model.weights").joinpath(_FILE).read_text(encoding="utf-8")
    return decode_backbone(text, _FILE)


def decode_backbone(text: str, name: str) -> Backbone:
    """The backbone of a weights file's text; raises ValueError, naming the file, for what does not fit."""
    try:
        fields = json.loads(text)
        if fields["format"] != _FORMAT:
            raise ValueError(f"has format {fields['format']}, expected {_FORMAT}")
        config = BackboneConfig(**fields["config"])
        stored: dict[str, _StoredArray] = fields["arrays"]
        arrays = {
            key: np.frombuffer(base64.b64decode(entry["data"], validate=True), dtype="<f2")
            .reshape(entry["shape"])
            .astype(np.float32)
            for key, entry in stored.items()
        }
        return Backbone(config, arrays, str(fields["provenance"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"weights file {name} can not be used: {error}") from error


def encode_backbone(backbone: Backbone) -> str:
    """The text of a weights file: JSON with half-precision numbers, so weights are rounded to 11 bits."""
    arrays: dict[str, _StoredArray] = {
        name: {
            "shape": list(shape),
            "data": base64.b64encode(backbone.arrays[name].astype("<f2").tobytes()).decode("ascii"),
        }
        for name, shape in backbone.config.shapes.items()
    }
    config = backbone.config
    sizes = {
        "width": config.width,
        "blocks": config.blocks,
        "planes": config.planes,
        "head": config.head,
    }
    fields = {"format": _FORMAT, "provenance": backbone.provenance, "config": sizes, "arrays": arrays}
    return json.dumps(fields, indent=1) + "\n"


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Writes a weights file."""
    path.write_text(encode_backbone(backbone), encoding="utf-8")


def _stack_pair(first: Array, second: Array) -> Array32:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"expected two grey images of one size, got {first.shape} and {second.shape}")
    return np.stack([first, second]).astype(np.float32)


def _compute_planes(network: Backbone, pair: Array32) -> Array32:
    arrays = network.arrays
    trunk = _rise(_convolve(pair, arrays["stem.weight"]), arrays["stem.bias"])
    for block in range(network.config.blocks):
        name = f"block{block}"
        branches = [
            _convolve(trunk, arrays[f"{name}.one"]),
            _convolve(_convolve(trunk, arrays[f"{name}.reduce3"]), arrays[f"{name}.three"]),
            _convolve(_convolve(trunk, arrays[f"{name}.reduce5"]), arrays[f"{name}.five"]),
        ]
        trunk = trunk + _rise(np.concatenate(branches), arrays[f"{name}.bias"])
    return _compute_gate(pair) * np.tanh(_convolve(trunk, arrays["planes.weight"]))


def _compute_gate(pair: Array32) -> Array32:
    """1 where either image is bright enough to matter, falling to 0 at black."""
    return np.asarray(np.minimum(GATE_SLOPE * pair.max(axis=0), 1), dtype=np.float32)


def _rise(values: Array32, bias: Array32) -> Array32:
    """relu(x + b) - relu(b): an activation with a threshold that leaves 0 at 0."""
    shift = bias[:, None, None]
    return np.asarray(np.maximum(values + shift, 0) - np.maximum(shift, 0), dtype=np.float32)


def _convolve(planes: Array32, kernels: Array32) -> Array32:
    """Correlation of planes (inputs, H, W), continued by 0, with kernels (channels, inputs, k, k)."""
    channels, inputs, side, _ = kernels.shape
    _, height, width = planes.shape
    flat = np.ascontiguousarray(kernels.reshape(channels, -1))
    if side == 1:
        return np.asarray((flat @ planes.reshape(inputs, -1)).reshape(channels, height, width))
    margin = side // 2
    padded = np.pad(planes, ((0, 0), (margin, margin), (margin, margin)))
    result = np.empty((channels, height, width), dtype=np.float32)
    for start in range(0, height, _ROWS):
        rows = min(_ROWS, height - start)
        columns = np.empty((inputs, side, side, rows, width), dtype=np.float32)
        for k in range(side):
            for m in range(side):
                columns[:, k, m] = padded[:, start + k : start + k + rows, m : m + width]
        product = flat @ columns.reshape(flat.shape[1], -1)
        result[:, start : start + rows] = product.reshape(channels, rows, width)
    return result
