"""What a federation's public blobs hold: the network's description, models and opened sums, in integers.

Each has one valid encoding and an exact length, so that everybody who makes a model makes the same bytes. A
weight is counted in units of 2^-unit_bits: with integers, adding an opened sum is exact on every machine.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from he.aggregate_plan import AggregatePlan, plan_aggregate
from he.errors import HeError
from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings

Integers = NDArray[np.int64]
Flat = NDArray[np.float32]

MAX_UNIT_BITS: Final = 28
_NETWORK_MAGIC: Final = b"BMIFFN1\0"
_MODEL_MAGIC: Final = b"BMIFFM1\0"
_OPENED_MAGIC: Final = b"BMIFFO1\0"
_NETWORK: Final = struct.Struct("<8s11I2B2I3dB2IBd2Qd")
_HEADER: Final = struct.Struct("<8s2I")
INT32: Final = np.iinfo(np.int32)
MAX_OPENED: Final = 2**62
"""Magnitude of an opened number, noise included; what is beyond is cut to it."""


@dataclass(frozen=True, slots=True)
class FederatedNetwork:
    """What all participants train and how, and all that the layout of their updates depends on."""

    config: CapsuleConfig
    settings: LocalSettings
    """Of a participant's training in a round."""
    unit_bits: int
    """k: weights and updates are counted in units of 2^-k."""
    clip: int
    """L2 bound of an update before its weight, in units."""
    weights: int
    """Sum of all participants' weights."""

    def __post_init__(self) -> None:
        if not 1 <= self.unit_bits <= MAX_UNIT_BITS:
            raise WorkloadError(f"unit_bits: expected 1 to {MAX_UNIT_BITS}, got {self.unit_bits}")
        if self.clip < 1 or self.weights < 1:
            raise WorkloadError(f"clip, weights: expected at least 1, got {self.clip} and {self.weights}")

    @property
    def parameters(self) -> int:
        return self.config.count_parameters()

    @property
    def model_bytes(self) -> int:
        """Exact length of a model."""
        return _HEADER.size + 4 * self.parameters

    def build_plan(self) -> AggregatePlan:
        """Of encrypted updates. Raises WorkloadError if clip and weights leave no room in any ring."""
        try:
            # No number is larger than the vector's length.
            return plan_aggregate(self.parameters, self.clip, self.weights)
        except HeError as error:
            raise WorkloadError(f"clip, weights: {error}; take a smaller clip, unit or weights") from error

    def encode(self) -> bytes:
        config, settings = self.config, self.settings
        return _NETWORK.pack(
            _NETWORK_MAGIC,
            config.side,
            *config.channels,
            *config.strides,
            config.primary_types,
            config.primary_size,
            config.class_size,
            config.classes,
            config.routing,
            config.shared,
            config.segmentation,
            settings.epochs,
            settings.batch,
            settings.rate,
            settings.decay,
            settings.proximal,
            settings.balanced,
            settings.shift,
            self.unit_bits,
            settings.mirror,
            settings.mask_weight,
            self.clip,
            self.weights,
            settings.contrast,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises WorkloadError on anything but the one encoding of a valid description."""
        if len(data) != _NETWORK.size or data[:8] != _NETWORK_MAGIC:
            raise WorkloadError(f"network: expected {_NETWORK.size} bytes of a description, got {len(data)}")
        numbers = _NETWORK.unpack(data)
        side, c1, c2, s1, s2, s3, types, size, class_size, classes, routing, shared, masks = numbers[1:14]
        epochs, batch, rate, decay, proximal, balanced, shift, unit_bits, mirror, mask_weight = numbers[14:24]
        clip, weights, contrast = numbers[24:]
        found = cls(
            CapsuleConfig(
                side,
                (c1, c2),
                (s1, s2, s3),
                types,
                size,
                class_size,
                classes,
                routing,
                shared == 1,
                masks == 1,
            ),
            LocalSettings(
                epochs, batch, rate, decay, proximal, balanced == 1, mask_weight, shift, mirror == 1, contrast
            ),
            unit_bits,
            clip,
            weights,
        )
        # Flags of neither 0 nor 1, and zeros with a sign.
        if found.encode() != data:
            raise WorkloadError("network: not the description's one encoding")
        return found


def read_network(path: Path) -> FederatedNetwork:
    """Raises WorkloadError naming the file."""
    try:
        with path.open("rb") as file:
            return FederatedNetwork.decode(file.read(_NETWORK.size + 1))
    except (OSError, WorkloadError) as error:
        raise WorkloadError(f"{path.name}: {error}") from error


# --- models and opened sums -------------------------------------------------------------------


def encode_model(network: FederatedNetwork, values: Integers) -> bytes:
    """Weights (P,) in units, each cut to what 32 bits hold: the stated rule where training runs away."""
    _check_shape("model", network, values)
    body = np.clip(values, INT32.min, INT32.max).astype("<i4").tobytes()
    return _HEADER.pack(_MODEL_MAGIC, network.unit_bits, network.parameters) + body


def decode_model(network: FederatedNetwork, data: bytes) -> Integers:
    """(P,) in units. Raises WorkloadError on another length, unit or number of weights."""
    expected = _HEADER.pack(_MODEL_MAGIC, network.unit_bits, network.parameters)
    if len(data) != network.model_bytes or data[: _HEADER.size] != expected:
        raise WorkloadError(f"model: expected {network.model_bytes} bytes of this network, got {len(data)}")
    return np.frombuffer(data, dtype="<i4", offset=_HEADER.size).astype(np.int64)


def encode_opened(network: FederatedNetwork, values: Integers) -> bytes:
    """An opened sum (P,) with its noise."""
    _check_shape("opened", network, values)
    body = np.clip(values, -MAX_OPENED, MAX_OPENED).astype("<i8").tobytes()
    return _HEADER.pack(_OPENED_MAGIC, network.unit_bits, network.parameters) + body


def decode_opened(network: FederatedNetwork, data: bytes) -> Integers:
    """(P,) in units. Raises WorkloadError on another length or number of weights, or what is out of range."""
    expected = _HEADER.pack(_OPENED_MAGIC, network.unit_bits, network.parameters)
    length = _HEADER.size + 8 * network.parameters
    if len(data) != length or data[: _HEADER.size] != expected:
        raise WorkloadError(f"opened: expected {length} bytes of this network, got {len(data)}")
    values = np.frombuffer(data, dtype="<i8", offset=_HEADER.size).astype(np.int64)
    if int(values.min()) < -MAX_OPENED or int(values.max()) > MAX_OPENED:
        raise WorkloadError(f"opened: a number lies outside +-{MAX_OPENED}")
    return values


def _check_shape(what: str, network: FederatedNetwork, values: Integers) -> None:
    if values.shape != (network.parameters,) or values.dtype != np.int64:
        raise WorkloadError(f"{what}: expected {network.parameters} int64, got {values.dtype} {values.shape}")


def convert_to_units(network: FederatedNetwork, flat: Flat) -> Integers:
    """Weights (P,), each rounded to the nearest unit."""
    return np.rint(np.ldexp(flat.astype(np.float64), network.unit_bits)).astype(np.int64)


def convert_to_weights(network: FederatedNetwork, values: Integers) -> Flat:
    """Units (P,) as weights, in single precision."""
    return np.ldexp(values.astype(np.float64), -network.unit_bits).astype(np.float32)


def add_opened(network: FederatedNetwork, model: bytes, opened: bytes, weights: int) -> bytes:
    """The model after a round: each number plus floor(opened / weights), cut to 32 bits.

    `weights`: sum of the listed participants'.
    """
    if not 1 <= weights <= network.weights:
        raise WorkloadError(f"weights: expected 1 to {network.weights}, got {weights}")
    change = decode_opened(network, opened) // weights
    return encode_model(network, decode_model(network, model) + change)
