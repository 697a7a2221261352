"""The clear description of a network: shapes, values against direct sums, its only encoding."""

import numpy as np
import pytest

from he.errors import ParameterError
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Network,
    Polynomial,
    compute_shapes,
    decode,
    encode,
    evaluate,
)


def build(seed: int = 1) -> Network:
    rng = np.random.default_rng(seed)
    return Network(
        (2, 7, 8),
        (
            Convolution("c1", INPUT, rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3), 2, 1),
            BatchNorm("n1", "c1", rng.normal(size=3), rng.normal(size=3)),
            Polynomial("p1", "n1", (0.5, -1.0, 0.25), (-4.0, 4.0), 0.1),
            Convolution("c2", "p1", rng.normal(size=(3, 3, 1, 1)), rng.normal(size=3)),
            Add("a", "c2", "p1"),
            AveragePool("pool", "a", 2),
            GlobalAveragePool("mean", "pool"),
            Dense("d", "mean", rng.normal(size=(4, 3)), rng.normal(size=4)),
        ),
    )


def test_shapes() -> None:
    shapes = compute_shapes(build())
    assert shapes["c1"] == (3, 4, 4)
    assert shapes["pool"] == (3, 2, 2)
    assert shapes["d"] == (4, 1, 1)
    assert build().outputs == 4


def test_values_are_the_direct_sums() -> None:
    network, rng = build(), np.random.default_rng(2)
    image = rng.normal(size=(2, 7, 8))
    first, norm, _, second, _, _, _, dense = network.layers
    assert isinstance(first, Convolution)
    assert isinstance(norm, BatchNorm)
    assert isinstance(second, Convolution)
    assert isinstance(dense, Dense)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    x = np.array(
        [
            [
                [
                    (first.weights[o] * padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum() + first.bias[o]
                    for j in range(4)
                ]
                for i in range(4)
            ]
            for o in range(3)
        ]
    )
    x = x * norm.scale[:, None, None] + norm.shift[:, None, None]
    x = 0.5 - x + 0.25 * x**2
    y = np.einsum("oi,ihw->ohw", second.weights[:, :, 0, 0], x) + second.bias[:, None, None] + x
    expected = dense.weights @ y.mean(axis=(1, 2)) + dense.bias
    assert np.allclose(evaluate(network, image[None]), expected, rtol=1e-12)


def test_encoding_is_the_only_one() -> None:
    data = encode(build())
    assert encode(decode(data)) == data
    for broken in (data[:-1], data + b"\0", b"X" + data[1:], data[:20] + b"\xff" + data[21:]):
        with pytest.raises(ParameterError):
            decode(broken)


def test_what_does_not_fit_is_named() -> None:
    weights, bias = np.zeros((1, 1, 3, 3)), np.zeros(1)
    with pytest.raises(ParameterError, match="'c': its source 'x'"):
        Network((1, 4, 4), (Convolution("c", "x", weights, bias),))
    with pytest.raises(ParameterError, match="'c': a kernel of 3"):
        Network((1, 2, 2), (Convolution("c", INPUT, weights, bias),))
    with pytest.raises(ParameterError, match="'d': weights must be float64 of shape"):
        Network((1, 2, 2), (Dense("d", INPUT, np.zeros((2, 5)), np.zeros(2)),))
    with pytest.raises(ParameterError, match="finite"):
        Network((1, 2, 2), (Dense("d", INPUT, np.full((2, 4), np.nan), np.zeros(2)),))
