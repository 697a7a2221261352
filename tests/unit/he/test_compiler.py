"""Plans: levels by switch, parameters, sizes, refusals with reasons; nothing is encrypted here."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings

from he.autoplan import PlanRefused
from he.compiler import build_program, compile_network, plan_program
from he.errors import HeError, ParameterError
from he.layers.plan import get_powers, is_monic
from he.magnitudes import compute_magnitudes
from he.network import (
    INPUT,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    evaluate,
)
from he.params import MAX_MODULUS_BITS
from tests.unit.he.networks import build_networks


def make_blocks(blocks: int, side: int = 28) -> Network:
    """Convolution, batch norm, fitted square and pool, so many times; then mean and dense."""
    rng = np.random.default_rng(1)
    layers: list[Layer] = []
    source, channels = INPUT, 1
    for index in range(blocks):
        outputs = 4 * (index + 1)
        weights = rng.normal(size=(outputs, channels, 3, 3)) / (3 * channels**0.5)
        layers += [
            Convolution(f"conv{index}", source, weights, np.zeros(outputs), 1, 1),
            BatchNorm(f"norm{index}", f"conv{index}", np.ones(outputs), np.zeros(outputs)),
            Polynomial(f"square{index}", f"norm{index}", (0.1, 0.5, 0.2), (-3.0, 3.0), 0.1),
            AveragePool(f"pool{index}", f"square{index}", 2),
        ]
        source, channels = f"pool{index}", outputs
    layers += [
        GlobalAveragePool("mean", source),
        Dense("dense", "mean", rng.normal(size=(1, channels)), np.zeros(1)),
    ]
    return Network((1, side, side), tuple(layers))


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_each_optimisation_saves_its_levels(blocks: int) -> None:
    """A block takes convolution 1, norm 1, polynomial 2, pool 1; the end takes mean 1, dense 1."""
    depths = {
        (fold, absorb): compile_network(make_blocks(blocks), fold=fold, absorb=absorb).depth
        for fold in (False, True)
        for absorb in (False, True)
    }
    assert depths == {
        (False, False): 5 * blocks + 2,
        (True, False): 4 * blocks + 2,
        (False, True): 3 * blocks + 1,
        (True, True): 2 * blocks + 1,
    }


def test_the_smallest_ring_is_taken_and_reasons_given() -> None:
    program = compile_network(make_blocks(3))
    assert program.params.ring == 16384
    assert sum(program.params.prime_bits) <= MAX_MODULUS_BITS[16384]
    assert [reason.partition(":")[0] for reason in program.reasons] == ["ring 4096", "ring 8192"]
    text = "\n".join(program.describe())
    for word in (program.params.name, "fold on", "absorb on", "128-bit", "ciphertexts", "predicted"):
        assert word in text


def test_what_does_not_fit_is_refused_with_reasons() -> None:
    with pytest.raises(PlanRefused, match="ring 32768: 32 levels at a scale of 29 bits need") as refused:
        compile_network(make_blocks(6, 64), fold=False, absorb=False)
    assert len(refused.value.reasons) == 4
    # The same network fits with both.
    assert compile_network(make_blocks(4), fold=True, absorb=True).params.ring == 16384


def test_an_evaluator_makes_the_same_plan_from_public_numbers() -> None:
    for weights in ("clear", "encrypted"):
        program = compile_network(make_blocks(2), weights="clear" if weights == "clear" else "encrypted")
        again = build_program(program.network, program.options, program.params, program.scale_bits)
        assert plan_program(again) == plan_program(program)
        assert again.sizes == program.sizes


def test_encrypted_weights_count_as_ciphertexts() -> None:
    program = compile_network(make_blocks(2), weights="encrypted")
    assert program.sizes.model_ciphertexts == (4 * 9 + 4) + (8 * 4 * 9 + 8) + (8 + 1)
    assert compile_network(make_blocks(2)).sizes.model_ciphertexts == 0


def test_linear_layers_bring_back_the_scale_exactly() -> None:
    program = compile_network(make_blocks(3))
    for step in plan_program(program):
        if isinstance(step.layer, Convolution | Dense):
            assert step.value.form.scale == Fraction(2**program.scale_bits)


@settings(max_examples=40, deadline=None)
@given(build_networks())
def test_every_network_is_planned_or_refused(network: Network) -> None:
    try:
        program = compile_network(network, insecure_ring=1024)
    except HeError:
        return
    steps = plan_program(program)
    assert steps[-1].value.form.level == 1
    for step in steps:
        assert step.value.form.level >= 1
        assert step.product.level <= program.params.levels
    images = np.random.default_rng(0).uniform(0, 1, size=(2, *network.shape))
    assert np.allclose(evaluate(program.network, images), evaluate(network, images), atol=1e-6, rtol=1e-6)


def test_powers_take_least_depth() -> None:
    def layer(*coefficients: float) -> Polynomial:
        return Polynomial("p", INPUT, coefficients)

    assert get_powers(layer(0, 1, 0, 1)) == ((2, 1, 1), (3, 2, 1))
    assert get_powers(layer(0, 0, 0, 0, 1)) == ((2, 1, 1), (4, 2, 2))
    assert is_monic(layer(0.5, 2, -1, 0))
    assert not is_monic(layer(0, 0, 2))


def test_squares_upon_squares_are_refused() -> None:
    layers = [Polynomial(f"p{i}", INPUT if i == 0 else f"p{i - 1}", (0.0, 0.0, 1.0)) for i in range(30)]
    with pytest.raises(ParameterError, match="too many products in a row"):
        compile_network(Network((1, 2, 2), tuple(layers)), insecure_ring=1024)


def test_layers_that_nothing_reads_are_refused() -> None:
    weights = np.ones((1, 1, 1, 1))
    layers = (
        Convolution("a", INPUT, weights, np.zeros(1)),
        Convolution("b", INPUT, weights, np.zeros(1)),
    )
    with pytest.raises(ParameterError, match="'a': nothing reads it"):
        compile_network(Network((1, 2, 2), layers))


def test_magnitudes_hold_for_pixels_in_range() -> None:
    network = make_blocks(2)
    largest = compute_magnitudes(network)
    images = np.random.default_rng(4).uniform(-1, 1, size=(20, 1, 28, 28))
    assert np.abs(evaluate(network, images)).max() <= largest["dense"]
