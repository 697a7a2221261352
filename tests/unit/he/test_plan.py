"""Levels, exact scales, budgets and bounds, without touching the library."""

from dataclasses import replace
from fractions import Fraction

import pytest

from he.errors import DepthError, MagnitudeError, ParameterError
from he.formats import HEADER_BYTES, build_batch_layout, build_bundle_layout, build_loss_layout
from he.params import MAX_MODULUS_BITS, PRESETS, CkksParams, get_params
from he.plan import Form, build_plan, check_magnitudes, compute_bounds
from he.spec import MAX_WEIGHT, PolynomialSpec

PARAMS = get_params("ckks-16384-60x5")
SPEC = PolynomialSpec()
UNIT = 2**20


def is_prime(number: int) -> bool:
    """Deterministic Miller-Rabin below 2^64."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        value = pow(base, odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


@pytest.mark.parametrize("params", list(PRESETS.values()), ids=list(PRESETS))
def test_presets_have_distinct_primes_that_split_the_ring(params: CkksParams) -> None:
    assert len(set(params.primes)) == len(params.primes) >= 3
    for prime in params.primes:
        assert is_prime(prime)
        assert prime % (2 * params.ring) == 1
        assert prime.bit_length() == 60


def test_training_preset_is_within_the_security_limit() -> None:
    PARAMS.check_security()
    assert not PARAMS.insecure
    assert sum(PARAMS.prime_bits) == 300
    assert (PARAMS.slots, PARAMS.levels) == (8192, 4)


@pytest.mark.parametrize(("ring", "limit"), list(MAX_MODULUS_BITS.items()))
def test_moduli_beyond_128_bits_are_refused(ring: int, limit: int) -> None:
    fitting = CkksParams("fitting", ring, (2**limit - 1,), 30, 20)
    fitting.check_security()
    with pytest.raises(ParameterError, match=f"{limit + 1} bits, at most {limit}"):
        replace(fitting, primes=(2 ** (limit + 1) - 1,)).check_security()
    with pytest.raises(ParameterError, match="no security limit"):
        replace(fitting, ring=512).check_security()
    with pytest.raises(ParameterError):
        build_plan(replace(PARAMS, ring=8192), SPEC)


def test_scales_and_levels_are_the_circuits() -> None:
    plan = build_plan(PARAMS, SPEC)
    q = PARAMS.primes
    assert plan.input == Form(4, Fraction(2**30))
    assert plan.hidden == Form(4, Fraction(2**50))
    assert plan.square == Form(3, Fraction(2**100, q[3]))
    assert plan.output == Form(3, Fraction(2**120, q[3]))
    assert plan.output_gradient == Form(3, Fraction(2**140, q[3]))
    assert plan.delta == plan.gradient_b == Form(2, Fraction(2**190, q[3] * q[2]))
    assert plan.gradient_w == Form(1, Fraction(2**220, q[3] * q[2] * q[1]))
    assert plan.gradient_v == Form(1, Fraction(2**220, q[3] ** 2 * q[1]))
    assert plan.gradient_d == Form(2, plan.output.scale)
    assert plan.loss_sum == Form(3, plan.output.scale**2)
    assert plan.loss == Form(2, plan.output.scale**2 / q[2])


def test_layouts_have_the_designed_sizes() -> None:
    plan = build_plan(PARAMS, SPEC)
    prime_bytes = 2 * PARAMS.ring * 8
    training = build_batch_layout(plan, validation=False)
    assert (len(training.inputs), len(training.targets), training.constant) == (72, 4, None)
    assert training.length == HEADER_BYTES + (72 * 4 + 4 * 3) * prime_bytes
    validation = build_batch_layout(plan, validation=True)
    assert validation.length == training.length + 3 * prime_bytes
    bundle = build_bundle_layout(plan)
    assert len(bundle.bodies) == 113
    assert bundle.length == HEADER_BYTES + (108 + 5 * 2) * prime_bytes
    assert build_loss_layout(plan).length == HEADER_BYTES + 2 * prime_bytes


def test_too_shallow_presets_are_refused_with_the_reason() -> None:
    with pytest.raises(DepthError, match="has 3 levels; forward and backward pass need 4"):
        build_plan(replace(PARAMS, primes=PARAMS.primes[:4]), SPEC)
    with pytest.raises(DepthError, match="keeps too little"):
        build_plan(replace(PARAMS, data_scale_bits=45), SPEC)
    with pytest.raises(ParameterError, match="levels are 1 to 4"):
        PARAMS.compute_modulus(5)


def test_output_bias_is_the_floor_of_the_exact_product() -> None:
    plan = build_plan(PARAMS, SPEC)
    weights = [0] * SPEC.parameters
    weights[72], weights[76], weights[77] = 3, 5, -12
    tied = SPEC.split(weights).compute_tied_bias()
    assert tied == -(5 - 12) * 9
    numerator = tied * 2**60
    assert plan.compute_output_bias(tied) == numerator // PARAMS.primes[3]
    assert plan.compute_output_bias(-tied) == -numerator // PARAMS.primes[3]
    assert plan.compute_output_bias(0) == 0


def test_bounds_hold_for_a_network_at_its_extremes() -> None:
    """One channel, all weights one: z = 18 + 1 at white and 1 at black, so squares and sums are known."""
    spec = PolynomialSpec(kernels=(3,))
    bounds = {
        bound.name: bound.magnitude
        for bound in compute_bounds(build_plan(PARAMS, spec), [UNIT] * spec.parameters)
    }
    assert bounds["hidden"] == 19
    assert bounds["square"] == 361
    assert bounds["output"] == 9 * 361 - 9
    assert bounds["residual"] == 3 * bounds["output"] + 14
    assert bounds["gradient of w"] == bounds["residual"] * 4 * 9 * 19
    assert bounds["gradient of v"] == bounds["residual"] * 4 * 361


def test_planes_behind_the_images_may_be_negative() -> None:
    images, mixed = PolynomialSpec(kernels=(1,), second=1), PolynomialSpec(kernels=(1,), second=1, inputs=3)
    plan = build_plan(PARAMS, images)
    difference = {bound.name: bound.magnitude for bound in compute_bounds(plan, [UNIT, -UNIT, 0, UNIT])}
    assert difference["hidden"] == 1
    plan = build_plan(PARAMS, mixed)
    bounds = {bound.name: bound.magnitude for bound in compute_bounds(plan, [UNIT, -UNIT, UNIT, 0, UNIT])}
    assert bounds["hidden"] == 2
    assert bounds["output"] == 4


def test_magnitudes_are_checked_by_circuit() -> None:
    plan = build_plan(PARAMS, SPEC)
    fair = [UNIT // 10] * SPEC.parameters
    check_magnitudes(plan, fair, loss=False)
    large = [4 * UNIT // 5] * SPEC.parameters
    check_magnitudes(plan, large, loss=True)
    with pytest.raises(MagnitudeError, match=r"gradient of w .*level 1"):
        check_magnitudes(plan, large, loss=False)
    with pytest.raises(MagnitudeError):
        check_magnitudes(plan, [1000 * UNIT] * SPEC.parameters, loss=True)


def test_specs_have_one_encoding() -> None:
    spec = PolynomialSpec(patch=8, kernels=(1, 5, 3), second=3, inputs=3, gradient_weight=4)
    assert PolynomialSpec.decode(spec.encode()) == spec
    assert (SPEC.parameters, SPEC.gradients, SPEC.hidden, SPEC.output) == (112, 113, 4, 2)
    with pytest.raises(ParameterError, match="bytes"):
        PolynomialSpec.decode(spec.encode() + b"\0")


@pytest.mark.parametrize(
    "fields",
    [
        {"patch": 4},
        {"patch": 65},
        {"kernels": ()},
        {"kernels": (1,) * 65},
        {"kernels": (3, 2)},
        {"kernels": (3, 17), "patch": 40},
        {"kernels": (3, -1)},
        {"second": 2},
        {"inputs": 1},
        {"inputs": 17},
        {"gradient_weight": -1},
    ],
)
def test_impossible_specs_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        replace(SPEC, **fields)  # type: ignore[arg-type]


def test_weights_are_split_in_order() -> None:
    tensors = SPEC.split(range(112))
    assert tensors.w.shape == (4, 2, 3, 3)
    assert tensors.w[1, 0, 2, 1] == 18 + 7
    assert list(tensors.b) == [72, 73, 74, 75]
    assert tensors.v[3, 2, 2] == 111
    with pytest.raises(ParameterError, match="must lie"):
        SPEC.split([MAX_WEIGHT + 1] + [0] * 111)
