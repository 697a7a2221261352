"""Targets: what a federation's public blobs decode from: the network's description, models, opened sums."""

from collections.abc import Iterable

import numpy as np

from tests.fuzz.target import Target, require
from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.federated_blobs import (
    MAX_OPENED,
    FederatedNetwork,
    decode_model,
    decode_opened,
    encode_model,
    encode_opened,
)

CONFIG = CapsuleConfig(
    side=8, channels=(4, 4), strides=(2, 2, 2), primary_types=1, primary_size=2, class_size=2, shared=True
)
NETWORK = FederatedNetwork(CONFIG, LocalSettings(), 20, 1 << 20, 7)


def build_values(top: int) -> Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for value in (0, 1, -1, top, -top):
        yield np.full(NETWORK.parameters, value, dtype=np.int64)


def run_network(data: bytes) -> None:
    """What passes has this one encoding, so no number in it is outside its range or not finite."""
    require(FederatedNetwork.decode(data).encode() == data, "another encoding")


def run_model(data: bytes) -> None:
    """What passes has this one encoding."""
    require(encode_model(NETWORK, decode_model(NETWORK, data)) == data, "another encoding")


def run_opened(data: bytes) -> None:
    """What passes has this one encoding."""
    require(encode_opened(NETWORK, decode_opened(NETWORK, data)) == data, "another encoding")


def build_networks() -> Iterable[bytes]:
    yield NETWORK.encode()
    yield FederatedNetwork(CapsuleConfig(segmentation=True), LocalSettings(balanced=False), 24, 9, 9).encode()


def build_models() -> Iterable[bytes]:
    return [encode_model(NETWORK, values) for values in build_values(2**31)]


def build_opened() -> Iterable[bytes]:
    return [encode_opened(NETWORK, values) for values in build_values(MAX_OPENED)]


def build_targets() -> list[Target]:
    return [
        Target("federation.network", run_network, (WorkloadError,), build_networks),
        Target("federation.model", run_model, (WorkloadError,), build_models),
        Target("federation.opened", run_opened, (WorkloadError,), build_opened),
    ]
