"""Networks on ciphertexts in batch packing against their evaluation in clear."""

import numpy as np
import pytest

from he.compiler import compile_network
from he.context import PrivateContext, PublicContext
from he.diagnosis import (
    compute_result,
    decrypt_result,
    encode_model,
    encrypt_images,
    encrypt_model,
    get_rounding_bits,
)
from he.envelope import open_model
from he.network import INPUT, Add, Network, Polynomial, evaluate
from he.program import Program
from tests.unit.he.networks import Builder

RING = 1024
COUNT = 5


def make_network(*, residual: bool = True) -> Network:
    """Every kind of layer on 6 x 6 pixels: padded and strided convolutions, batch norm with one reader,
    pools behind squares, a branch, dense layers."""
    builder = Builder((1, 6, 6), 7)
    first = builder.add("conv", INPUT)
    norm = builder.add("norm", first)
    builder.layers.append(Polynomial("p", norm, (0.1, 0.5, -0.25), (-3.0, 3.0), 0.1))
    last = builder.add("conv", "p")
    if residual and builder.get_shape(last) == builder.get_shape("p"):
        builder.layers.append(Add("sum", last, "p"))
        last = "sum"
    last = builder.add("square", last)
    last = builder.add("pool", last)
    builder.add("dense", last)
    return Network(builder.shape, tuple(builder.layers))


def run(network: Network, program: Program, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Results by way of every blob's bytes, and in clear."""
    private = PrivateContext.generate(program.params)
    images = np.random.default_rng(9).uniform(0, 1, size=(count, *network.shape))
    model = (
        encode_model(program)
        if program.options.weights == "clear"
        else encrypt_model(private.public, program)
    )
    assert len(model) == program.sizes.model
    request = encrypt_images(private.public, program, images)
    assert len(request) == program.sizes.request
    keys = private.public.relin_keys
    assert keys is not None
    assert len(keys.encode()) == program.sizes.keys
    peer = PublicContext(program.params, relin_keys=keys)
    seen = open_model(model, allow_insecure=True)
    result = compute_result(peer, seen, model, request)
    assert not peer.engine.has_secret
    assert len(result) == program.sizes.result
    assert result == compute_result(peer, seen, model, request)
    return decrypt_result(private, program, result, count), evaluate(network, images)


@pytest.mark.parametrize("weights", ["clear", "encrypted"])
@pytest.mark.parametrize("rewritten", [True, False])
def test_every_layer(weights: str, rewritten: bool) -> None:
    network = make_network()
    sample = np.random.default_rng(1).uniform(0, 1, size=(20, *network.shape))
    program = compile_network(
        network,
        weights="clear" if weights == "clear" else "encrypted",
        fold=rewritten,
        absorb=rewritten,
        sample=sample,
        insecure_ring=RING,
    )
    got, expected = run(network, program)
    assert np.abs(got - expected).max() < 2.0 ** -get_rounding_bits(program)
