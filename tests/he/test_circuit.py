"""Decrypted gradients and losses are those of the network in clear."""

from dataclasses import replace

import numpy as np
import pytest

from he.context import PrivateContext, PublicContext
from he.errors import MagnitudeError, MissingKeyError, ParameterError
from he.formats import build_bundle_layout
from he.gate import check_batch
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.packing import decrypt_batch, decrypt_bundle, decrypt_loss, encrypt_batch
from he.plan import build_plan, check_magnitudes
from he.precision import (
    GRADIENT_TOLERANCE,
    GRADIENT_TOLERANCE_AT_SOURCE,
    INPUT_TOLERANCE,
    LOSS_TOLERANCE,
    LOSS_TOLERANCE_AT_SOURCE,
    Tolerance,
    compute_precision,
)
from he.primes import derive_primes
from he.spec import PolynomialSpec
from tests.he.conftest import World
from tests.he.reference import (
    Floats,
    compute_gradients,
    compute_gradients_at,
    compute_losses,
    compute_losses_at,
    compute_target,
    make_problem,
    make_weights,
    train,
)


def slice_tensors(spec: PolynomialSpec) -> dict[str, slice]:
    w, b = spec.first_weights, spec.second_start
    return {
        "w": slice(0, w),
        "b": slice(w, b),
        "v": slice(b, spec.parameters),
        "d": slice(spec.parameters, None),
    }


def assert_gradients(spec: PolynomialSpec, measured: Floats, expected: Floats, tolerance: Tolerance) -> None:
    for name, part in slice_tensors(spec).items():
        precision = compute_precision(measured[:, part], expected[:, part])
        assert tolerance.accepts(measured[:, part], expected[:, part]), (name, precision)


def test_gradients_of_every_patch_match_the_clear_network(real: World) -> None:
    measured = decrypt_bundle(real.private, real.spec, real.bundle)
    inputs, target, _ = decrypt_batch(real.private, real.spec, real.batch)
    source = compute_gradients(real.params, real.spec, real.weights, real.problem)
    assert measured.shape == (8192, 113)
    assert_gradients(real.spec, measured, source, GRADIENT_TOLERANCE_AT_SOURCE)
    decrypted = compute_gradients_at(real.params, real.spec, real.weights, inputs, target)
    assert_gradients(real.spec, measured, decrypted, GRADIENT_TOLERANCE)
    for part in slice_tensors(real.spec).values():
        mean, exact = measured[:, part].mean(axis=0), source[:, part].mean(axis=0)
        assert np.abs(mean - exact).max() < 2e-6 * np.abs(exact).max()


def test_gradients_stay_exact_after_forty_steps(real: World) -> None:
    start = make_problem(real.spec, 256, seed=9)
    weights = train(real.params, real.spec, real.weights, start, 40)
    losses = [
        compute_losses(real.params, real.spec, point, start).mean() for point in (real.weights, weights)
    ]
    assert losses[1] < losses[0] / 2
    bundle = compute_gradient_bundle(real.evaluator, real.spec, weights, real.batch, checked=True)
    measured = decrypt_bundle(real.private, real.spec, bundle)
    inputs, target, _ = decrypt_batch(real.private, real.spec, real.batch)
    source = compute_gradients(real.params, real.spec, weights, real.problem)
    assert_gradients(real.spec, measured, source, GRADIENT_TOLERANCE_AT_SOURCE)
    decrypted = compute_gradients_at(real.params, real.spec, weights, inputs, target)
    assert_gradients(real.spec, measured, decrypted, GRADIENT_TOLERANCE)


def test_loss_of_every_patch_matches_the_clear_network(real: World) -> None:
    measured = decrypt_loss(real.private, real.spec, real.loss)
    source = compute_losses(real.params, real.spec, real.weights, real.problem)
    assert LOSS_TOLERANCE_AT_SOURCE.accepts(measured, source)
    assert abs(measured.mean() - source.mean()) < 1e-6 * source.mean()
    inputs, target, constant = decrypt_batch(real.private, real.spec, real.batch)
    assert constant is not None
    decrypted = compute_losses_at(real.params, real.spec, real.weights, inputs, target, constant)
    assert LOSS_TOLERANCE.accepts(measured, decrypted)


def test_batch_decrypts_to_what_was_encrypted(real: World) -> None:
    inputs, target, constant = decrypt_batch(real.private, real.spec, real.batch)
    expected_target, expected_constant = compute_target(real.spec, real.problem)
    assert INPUT_TOLERANCE.accepts(inputs, real.problem.inputs)
    assert INPUT_TOLERANCE.accepts(target, expected_target)
    assert constant is not None
    assert INPUT_TOLERANCE.accepts(constant, expected_constant)


def test_unused_slots_are_black_and_keep_the_bias_gradient(small: World) -> None:
    measured = decrypt_bundle(small.private, small.spec, small.bundle)
    source = compute_gradients(small.params, small.spec, small.weights, small.problem)
    assert measured.shape == (small.params.slots, 113)
    assert_gradients(small.spec, measured[: small.count], source, GRADIENT_TOLERANCE_AT_SOURCE)
    # Black in, black out: F' = sum v b^2 + d = 0, so nothing pulls at the weights.
    assert np.abs(measured[small.count :]).max() < 1e-4
    assert np.abs(decrypt_loss(small.private, small.spec, small.loss)[small.count :]).max() < 1e-5


@pytest.mark.parametrize(
    "spec",
    [
        PolynomialSpec(patch=5, kernels=(3, 3), gradient_weight=4),
        PolynomialSpec(patch=8, kernels=(3,), inputs=3, gradient_weight=2),
        PolynomialSpec(patch=6, kernels=(1, 1), second=1, gradient_weight=0),
    ],
)
def test_other_shapes_match_the_clear_network(small: World, spec: PolynomialSpec) -> None:
    problem = make_problem(spec, 200, seed=5)
    target, constant = compute_target(spec, problem)
    weights = make_weights(small.params, spec)
    batch = encrypt_batch(small.private, spec, problem.inputs, target, constant)
    bundle = compute_gradient_bundle(small.evaluator, spec, weights, batch)
    expected = compute_gradients(small.params, spec, weights, problem)
    assert_gradients(
        spec, decrypt_bundle(small.private, spec, bundle)[:200], expected, GRADIENT_TOLERANCE_AT_SOURCE
    )
    loss = compute_loss_ciphertext(small.evaluator, spec, weights, batch)
    losses = compute_losses(small.params, spec, weights, problem)
    assert LOSS_TOLERANCE_AT_SOURCE.accepts(decrypt_loss(small.private, spec, loss)[:200], losses)


def test_training_batch_has_no_loss(small: World) -> None:
    target, _ = compute_target(small.spec, small.problem)
    batch = encrypt_batch(small.private.public, small.spec, small.problem.inputs, target)
    assert check_batch(small.params, small.spec, batch) is False
    assert decrypt_batch(small.private, small.spec, batch)[2] is None
    with pytest.raises(ParameterError, match="constant"):
        compute_loss_ciphertext(small.evaluator, small.spec, small.weights, batch)


def test_zero_weights_are_multiplied_like_any_other(small: World) -> None:
    weights = (0,) * small.spec.parameters
    bundle = compute_gradient_bundle(small.evaluator, small.spec, weights, small.batch)
    measured = decrypt_bundle(small.private, small.spec, bundle)[: small.count]
    expected = compute_gradients(small.params, small.spec, weights, small.problem)
    assert_gradients(small.spec, measured, expected, GRADIENT_TOLERANCE_AT_SOURCE)
    assert np.abs(expected[:, -1]).max() > 0.01


def test_weights_that_could_wrap_are_refused(small: World) -> None:
    weights = tuple(16 * weight for weight in small.weights)
    with pytest.raises(MagnitudeError, match="gradient of w could reach"):
        compute_gradient_bundle(small.evaluator, small.spec, weights, small.batch)


def test_a_longer_chain_trains_weights_that_the_training_chain_refuses(small: World) -> None:
    params = replace(small.params, name="test-wide", primes=derive_primes(small.params.ring, (60,) * 6))
    spec, weights = small.spec, tuple(32 * weight for weight in small.weights)
    with pytest.raises(MagnitudeError):
        check_magnitudes(build_plan(small.params, spec), weights, loss=False)
    problem = make_problem(spec, 100, seed=6)
    target, constant = compute_target(spec, problem)
    private = PrivateContext.generate(params)
    batch = encrypt_batch(private, spec, problem.inputs, target, constant)
    bundle = compute_gradient_bundle(private.public, spec, weights, batch)
    assert len(bundle) == build_bundle_layout(build_plan(params, spec)).length
    expected = compute_gradients(params, spec, weights, problem)
    # The errors of encryption grow with the weights as the gradients do.
    assert np.abs(expected).max() > 2**20
    tolerance = Tolerance(0.0, GRADIENT_TOLERANCE_AT_SOURCE.relative)
    assert_gradients(spec, decrypt_bundle(private, spec, bundle)[:100], expected, tolerance)
    losses = compute_losses(params, spec, weights, problem)
    loss = compute_loss_ciphertext(private.public, spec, weights, batch)
    assert LOSS_TOLERANCE_AT_SOURCE.accepts(decrypt_loss(private, spec, loss)[:100], losses)


def test_wrong_number_of_weights_is_refused(small: World) -> None:
    with pytest.raises(ParameterError, match="expected 112 weights"):
        compute_gradient_bundle(small.evaluator, small.spec, small.weights[:-1], small.batch)


def test_circuits_need_relinearisation_keys(small: World) -> None:
    with pytest.raises(MissingKeyError):
        compute_gradient_bundle(PublicContext(small.params), small.spec, small.weights, small.batch)


def test_encryption_refuses_values_that_the_plan_does_not_cover(small: World) -> None:
    target, constant = compute_target(small.spec, small.problem)
    too_bright = small.problem.inputs + 1.0
    for inputs, planes in ((too_bright, target), (small.problem.inputs, target * np.nan)):
        with pytest.raises(MagnitudeError):
            encrypt_batch(small.private, small.spec, inputs, planes, constant)
    with pytest.raises(ParameterError, match="target"):
        encrypt_batch(small.private, small.spec, small.problem.inputs, target[:, :1], constant)
    with pytest.raises(ParameterError, match="patches"):
        encrypt_batch(small.private, small.spec, small.problem.inputs[:0], target[:0])


def test_a_saved_private_context_decrypts_after_loading(small: World) -> None:
    loaded = PrivateContext.load(small.params, small.private.save())
    assert np.array_equal(
        decrypt_bundle(loaded, small.spec, small.bundle),
        decrypt_bundle(small.private, small.spec, small.bundle),
    )
