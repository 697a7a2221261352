"""The choice of a preset, its reasons and refusals; primes; what is predicted."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from he.autoplan import (
    DEFAULT_COSTS,
    CostTable,
    OperationCost,
    PlanRefused,
    choose_preset,
    compute_safe_box,
)
from he.counts import Operation, count_gradient, count_loss
from he.errors import MagnitudeError, ParameterError
from he.params import MAX_MODULUS_BITS, PRESETS, CkksParams, get_params
from he.plan import build_plan, check_magnitudes, compute_bounds, compute_box_bounds
from he.primes import derive_primes, is_prime
from he.spec import MAX_WEIGHT, PolynomialSpec

TRAINING = get_params("ckks-16384-60x5")
WIDE = get_params("ckks-16384-60x6")
UNIT = 2**20
INCEPTION = PolynomialSpec(8, (1, 1, 3, 3, 3, 3, 5, 5), inputs=3, gradient_weight=16)


def draw_weights(spec: PolynomialSpec, largest: int, seed: int = 0) -> list[int]:
    values = np.random.default_rng(seed).integers(-largest, largest + 1, spec.parameters)
    return [int(value) for value in values]


@pytest.mark.parametrize("params", list(PRESETS.values()), ids=list(PRESETS))
def test_presets_are_secure_and_their_primes_derived(params: CkksParams) -> None:
    params.check_security()
    assert derive_primes(params.ring, params.prime_bits) == params.primes
    assert params.insecure == params.name.startswith("test-")
    if not params.insecure:
        assert sum(params.prime_bits) <= MAX_MODULUS_BITS[params.ring]


def test_primes_are_exact_and_run_out() -> None:
    found = [number for number in range(2000) if is_prime(number)]
    assert (len(found), found[:4], found[-1]) == (303, [2, 3, 5, 7], 1999)
    # Strong pseudoprimes to many small bases, and a square of a prime.
    assert not any(is_prime(number) for number in (3215031751, 3825123056546413051, 1000003**2))
    mixed = derive_primes(4096, (60, 40, 40, 60))
    assert [prime.bit_length() for prime in mixed] == [60, 40, 40, 60]
    assert all(is_prime(prime) and prime % 8192 == 1 for prime in mixed)
    assert mixed[0] < mixed[3]
    assert mixed[1] < mixed[2]
    with pytest.raises(ParameterError, match="fewer than 3 primes of 14 bits"):
        derive_primes(4096, (14, 14, 14))
    with pytest.raises(ParameterError, match="2 to 60 bits"):
        derive_primes(4096, (61,))


def test_the_smallest_preset_that_fits_is_chosen_with_reasons() -> None:
    report = choose_preset(PolynomialSpec())
    assert report.preset == "ckks-16384-60x5"
    assert (report.ring, report.slots, report.modulus_bits) == (16384, 8192, 300)
    assert (report.parameters, report.security_limit_bits) == (112, 430)
    refused, fits = report.reasons
    assert "ckks-8192-60x3 has 2 levels" in refused
    assert "240 bits are needed, and 214 bits" in refused
    assert fits == "ckks-16384-60x5: 4 levels, 300 bits"
    assert (report.training_batch_bytes, report.bundle_bytes) == (78_643_264, 30_933_056)
    assert report.training_batch_bytes < report.validation_batch_bytes
    lines = report.describe()
    assert any("78.6 MB" in line for line in lines)
    assert any("patches a second" in line for line in lines)


def test_weights_decide_between_chains() -> None:
    small = choose_preset(INCEPTION, weights=draw_weights(INCEPTION, UNIT // 50))
    assert small.preset == TRAINING.name
    assert small.room_bits > 0
    assert small.reasons[-1].endswith("nothing wraps at 2 times the weights")
    large = choose_preset(INCEPTION, weights=draw_weights(INCEPTION, UNIT))
    assert large.preset == WIDE.name
    assert any(
        reason.startswith("ckks-16384-60x5: the gradient of") and "could wrap, by" in reason
        for reason in large.reasons
    )
    assert large.bundle_bytes > small.bundle_bytes
    assert large.gradient_s > small.gradient_s


def test_a_box_is_safe_at_every_weight_inside() -> None:
    spec = PolynomialSpec(inputs=3, gradient_weight=4)
    plan = build_plan(TRAINING, spec)
    box = compute_safe_box(plan)
    assert 0 < box < MAX_WEIGHT
    for seed in range(5):
        weights = [box if seed == 4 else value for value in draw_weights(spec, box, seed)]
        check_magnitudes(plan, weights, loss=False)
        check_magnitudes(plan, weights, loss=True)
    assert choose_preset(spec, box=box).preset == TRAINING.name
    assert choose_preset(spec, box=box + 1).preset == WIDE.name
    assert choose_preset(spec, box=4 * UNIT).preset == WIDE.name


@pytest.mark.parametrize("spec", [PolynomialSpec(), INCEPTION, PolynomialSpec(8, (1, 5), 3, 16, 0)])
@pytest.mark.parametrize("box", [1, UNIT // 10, 4 * UNIT])
def test_box_bounds_cover_the_bounds_of_weights_in_the_box(spec: PolynomialSpec, box: int) -> None:
    plan = build_plan(WIDE, spec)
    covering = {bound.name: bound.magnitude for bound in compute_box_bounds(plan, box)}
    corners = [[box] * spec.parameters, [-box] * spec.parameters]
    for weights in [*corners, *(draw_weights(spec, box, seed) for seed in range(5))]:
        for bound in compute_bounds(plan, weights):
            assert bound.magnitude <= covering[bound.name], bound.name
    # Not idle: all weights at the border come close.
    ones = {bound.name: bound.magnitude for bound in compute_bounds(plan, corners[0])}
    assert covering["square"] <= 2.5 * ones["square"] * spec.inputs


def test_what_does_not_fit_is_refused_with_every_reason() -> None:
    with pytest.raises(PlanRefused) as caught:
        choose_preset(INCEPTION, box=MAX_WEIGHT)
    assert len(caught.value.reasons) == 3
    text = str(caught.value)
    for part in (
        "ckks-8192-60x3 has 2 levels; forward and backward pass need 4",
        "ckks-16384-60x5: the gradient of",
        "ckks-16384-60x6: the gradient of",
        "could wrap",
    ):
        assert part in text
    assert pickle.loads(pickle.dumps(caught.value)).reasons == caught.value.reasons
    unsafe = replace(TRAINING, name="unsafe", ring=8192)
    with pytest.raises(PlanRefused, match="300 bits, at most 214 give 128-bit security"):
        choose_preset(PolynomialSpec(), candidates=[unsafe])
    shrunk = replace(TRAINING, name="shrunk", data_scale_bits=45)
    with pytest.raises(PlanRefused, match="shrunk: the gradient of w would end at scale"):
        choose_preset(PolynomialSpec(), candidates=[shrunk])
    with pytest.raises(PlanRefused, match="no preset"):
        choose_preset(PolynomialSpec(), candidates=[])
    for arguments in ({"growth": 0}, {"box": 0}, {"box": MAX_WEIGHT + 1}):
        with pytest.raises(ParameterError, match="at least 1"):
            choose_preset(PolynomialSpec(), **arguments)
    with pytest.raises(ParameterError, match="expected 112 weights"):
        choose_preset(PolynomialSpec(), weights=[0])


def test_the_wide_preset_admits_what_the_training_preset_refuses() -> None:
    weights = draw_weights(INCEPTION, UNIT)
    with pytest.raises(MagnitudeError, match="level 1"):
        check_magnitudes(build_plan(TRAINING, INCEPTION), weights, loss=False)
    check_magnitudes(build_plan(WIDE, INCEPTION), weights, loss=False)
    check_magnitudes(build_plan(WIDE, INCEPTION), weights, loss=True)


def test_seconds_grow_with_network_ring_and_chain() -> None:
    assert set(DEFAULT_COSTS.costs) == set(Operation) - {Operation.VECTOR_2, Operation.ROTATE}
    base = build_plan(TRAINING, PolynomialSpec())
    larger = build_plan(TRAINING, PolynomialSpec(kernels=(3,) * 8, inputs=3))
    wide = build_plan(WIDE, PolynomialSpec())
    seconds = [
        DEFAULT_COSTS.compute_seconds(count_gradient(plan), plan.params.ring) for plan in (base, wide, larger)
    ]
    assert seconds == sorted(seconds)
    assert 1 < seconds[0] < 5
    assert DEFAULT_COSTS.compute_seconds(count_loss(base), 16384) < seconds[0] / 2
    assert 2 < seconds[0] / DEFAULT_COSTS.compute_seconds(count_gradient(base), 8192) < 2.3
    flat = CostTable(dict.fromkeys(Operation, OperationCost(0.0, 1.0)))
    counts = count_loss(base)
    expected = sum(count * level**2 for (_, level), count in counts.items()) / 1e3
    assert flat.compute_seconds(counts, 16384) == pytest.approx(expected)
