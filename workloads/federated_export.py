"""A federation's model as a file of arrays with their names, for other tools and without pickle."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.federated import read_model
from workloads.federated_blobs import FederatedNetwork, convert_to_weights, read_network

PROVENANCE = "provenance"
NETWORK = "network"


def write_model(network: Path, model: Path, provenance: str, output: Path) -> None:
    """Arrays by the names of the network's weights, in single precision; `network` holds the description's
    bytes, `provenance` a JSON text in UTF-8 bytes. Whole or not at all."""
    found = read_network(network)
    arrays = name_weights(found, convert_to_weights(found, read_model(found, model)))
    arrays[NETWORK] = np.array(list(found.encode()), dtype=np.uint8)
    arrays[PROVENANCE] = np.array(list(provenance.encode()), dtype=np.uint8)
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def name_weights(
    network: FederatedNetwork, flat: NDArray[np.float32]
) -> dict[str, NDArray[np.float32] | NDArray[np.uint8]]:
    """Loads the training library."""
    from workloads.capsnet import build_network, set_flat

    built = build_network(network.config, 0)
    set_flat(built, flat)
    return {name: weight.detach().numpy() for name, weight in built.named_parameters()}
