"""The smallest sequence network of every kind of layer, and frames to ask it about, as files."""

from pathlib import Path

import numpy as np

from he.network import INPUT, Convolution, Dense, GlobalAveragePool, Network, Polynomial
from tests.he.test_sequences import make_cell
from workloads.sequence import ClearModel

SIDE, WINDOW = 4, 2
LENGTHS = {"left": 3, "right": 2}


def make_model(seed: int = 1) -> ClearModel:
    draw = np.random.default_rng(3)
    frames = Network(
        (1, SIDE, SIDE),
        (
            Convolution("first", INPUT, draw.normal(0, 0.3, (1, 1, 3, 3)), np.zeros(1), 2, 1),
            Polynomial("square", "first", (0.375, 0.5, 0.117), (-4.0, 4.0), 0.38),
            GlobalAveragePool("pool", "square"),
            Dense("features", "pool", draw.normal(0, 1, (1, 1)), np.zeros(1)),
        ),
    )
    return ClearModel(frames, make_cell(1, 1, seed=seed), WINDOW)


def write_sequences(path: Path, side: int = 2 * SIDE, lengths: dict[str, int] = LENGTHS) -> None:
    """Rows in no order: they say where they belong."""
    rows = [(case, place) for case, count in lengths.items() for place in range(count)]
    draw = np.random.default_rng(5)
    images = draw.integers(0, 256, (len(rows), side, side)).astype(np.uint8)
    chosen = draw.permutation(len(rows))
    np.savez(
        path,
        images=images[chosen],
        case=np.array([case for case, _ in rows])[chosen],
        order=np.array([place for _, place in rows])[chosen],
    )
