"""Folding and absorbing change no value; they leave alone what has other readers."""

import numpy as np
from hypothesis import given, settings

from he.fold import absorb_activations, fold_batch_norms
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    Network,
    Polynomial,
    decode,
    encode,
    evaluate,
)
from tests.unit.he.networks import Builder, build_networks


def check_same(before: Network, after: Network) -> None:
    images = np.random.default_rng(5).uniform(-1, 1, size=(3, *before.shape))
    expected, got = evaluate(before, images), evaluate(after, images)
    assert np.allclose(got, expected, rtol=1e-8, atol=1e-8 * max(1.0, float(np.abs(expected).max())))


@settings(max_examples=60, deadline=None)
@given(build_networks())
def test_folding_keeps_the_function(network: Network) -> None:
    folded = fold_batch_norms(network)
    check_same(network, folded)
    for layer in folded.layers:
        if isinstance(layer, BatchNorm):
            before = next((item for item in folded.layers if item.name == layer.source), None)
            alone = len(folded.get_consumers(layer.source)) == 1
            assert not (isinstance(before, Convolution | Dense) and alone)


@settings(max_examples=60, deadline=None)
@given(build_networks())
def test_absorbing_keeps_the_function(network: Network) -> None:
    check_same(network, absorb_activations(network))
    both = absorb_activations(fold_batch_norms(network))
    check_same(network, both)
    assert encode(decode(encode(both))) == encode(both)


def make_block(*, residual: bool) -> Network:
    builder = Builder((1, 6, 6), 3)
    first = builder.add("conv", INPUT)
    norm = builder.add("norm", first)
    square = builder.add("quadratic", norm)
    pool = builder.add("pool", square)
    if residual:
        builder.layers.append(Add("sum", square, first))
        builder.add("dense", "sum")
    builder.add("dense", pool)
    return Network(builder.shape, tuple(builder.layers))


def test_a_block_is_left_with_a_monic_square() -> None:
    network = absorb_activations(fold_batch_norms(make_block(residual=False)))
    assert [type(layer) for layer in network.layers] == [Convolution, Polynomial, AveragePool, Dense]
    assert isinstance(network.layers[1], Polynomial)
    assert network.layers[1].coefficients[2] == 1.0
    check_same(make_block(residual=False), network)


def test_a_convolution_with_two_readers_is_not_folded() -> None:
    network = make_block(residual=True)
    folded = fold_batch_norms(network)
    assert any(isinstance(layer, BatchNorm) for layer in folded.layers)
    # What is behind the square is a sum as well as a pool, so the factor goes into the norm before it.
    absorbed = absorb_activations(folded)
    polynomial = next(layer for layer in absorbed.layers if isinstance(layer, Polynomial))
    assert abs(polynomial.coefficients[2]) == 1.0
    check_same(network, absorbed)
