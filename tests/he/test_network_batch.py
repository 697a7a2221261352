"""Networks on ciphertexts in batch packing against their evaluation in clear."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
from he.envelope import check_model, check_request, open_model
from he.errors import GateError, HeError, MagnitudeError, ParameterError
from he.network import INPUT, Add, Network, Polynomial, evaluate
from he.program import Program
from tests.unit.he.networks import KINDS, Builder, build_networks

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


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    build_networks(kinds=(*KINDS, "cubic"), most=6), st.booleans(), st.sampled_from(["clear", "encrypted"])
)
def test_random_networks(network: Network, rewritten: bool, weights: str) -> None:
    sample = np.random.default_rng(1).uniform(0, 1, size=(20, *network.shape))
    try:
        program = compile_network(
            network,
            weights="clear" if weights == "clear" else "encrypted",
            fold=rewritten,
            absorb=rewritten,
            sample=sample,
            insecure_ring=RING,
        )
    except HeError:
        assume(False)
        return
    got, expected = run(network, program, 2)
    limit = 2.0 ** -get_rounding_bits(program) * max(1.0, float(np.abs(expected).max()))
    assert np.abs(got - expected).max() < 4 * limit


def test_wrong_blobs_are_refused() -> None:
    network = make_network(residual=False)
    program = compile_network(network, insecure_ring=RING)
    other = compile_network(make_network(), insecure_ring=RING)
    private = PrivateContext.generate(program.params)
    images = np.zeros((1, *network.shape))
    request, model = encrypt_images(private, program, images), encode_model(program)
    check_request(program, request)
    with pytest.raises(GateError, match="header"):
        check_request(program, request[:8] + b"x" + request[9:])
    with pytest.raises(GateError, match="length"):
        check_request(program, request[:-8])
    with pytest.raises(GateError, match="residue"):
        check_request(program, request[:-8] + b"\xff" * 8)
    with pytest.raises(GateError, match=r"length|header"):
        check_model(other, model)
    with pytest.raises(GateError):
        open_model(model)
    with pytest.raises(GateError):
        open_model(model + bytes(8), allow_insecure=True)
    with pytest.raises(ParameterError, match="images: expected shape"):
        encrypt_images(private, program, np.zeros((1, 1, 3, 3)))
    with pytest.raises(MagnitudeError, match="finite"):
        encrypt_images(private, program, images + 100)


def test_results_are_rounded() -> None:
    """What leaves the key holder has no trace of the scheme's error below the step."""
    network = make_network(residual=False)
    program = compile_network(network, insecure_ring=RING)
    got, _ = run(network, program, 2)
    steps = got * 2.0 ** get_rounding_bits(program)
    assert np.array_equal(steps, np.rint(steps))
