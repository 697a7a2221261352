"""Channels of unequal kernels: the encrypted circuit, the clear twin and automatic differentiation agree."""

import numpy as np
import pytest
import torch

from fusion_model.config import NetworkConfig
from fusion_model.gradients import (
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.model import PolynomialFusion
from he.context import PublicContext
from he.formats import HEADER_BYTES, build_bundle_layout
from he.gate import check_bundle, check_loss
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.packing import decrypt_bundle, decrypt_loss, encrypt_batch
from he.params import get_params
from he.plan import build_plan
from he.precision import GRADIENT_TOLERANCE_AT_SOURCE, LOSS_TOLERANCE_AT_SOURCE
from he.spec import PolynomialSpec
from tests.he.conftest import World
from tests.he.reference import (
    Floats,
    compute_gradients,
    compute_losses,
    compute_target,
    make_problem,
    make_weights,
)
from tests.he.synthetic import make_batch, make_relin_keys
from tests.he.test_circuit import assert_gradients

INCEPTION = PolynomialSpec(patch=8, kernels=(1, 3, 5), second=3, inputs=3, gradient_weight=4)
COUNT = 100


def get_config(spec: PolynomialSpec) -> NetworkConfig:
    return NetworkConfig(spec.patch, spec.kernels, spec.second, spec.inputs, spec.gradient_weight)


def differentiate(spec: PolynomialSpec, weights: Floats, inputs: Floats, target: Floats) -> Floats:
    """(n, parameters): torch's gradient of F'.(M F' - 2 R) / O^2, with the output bias tied."""
    network = PolynomialFusion(get_config(spec), weights)
    change = network(torch.from_numpy(inputs), torch.zeros(len(inputs), spec.patch, spec.patch))
    loss = (change**2 - 2 * change * torch.from_numpy(target)).sum(dim=(1, 2))
    loss = loss + spec.gradient_weight * (
        (change.diff(dim=1) ** 2).sum(dim=(1, 2)) + (change.diff(dim=2) ** 2).sum(dim=(1, 2))
    )
    rows = []
    for patch in range(len(inputs)):
        grads = torch.autograd.grad(
            loss[patch] / spec.output**2, list(network.parameters()), retain_graph=True
        )
        rows.append(np.concatenate([grad.numpy().ravel() for grad in grads]))
    return np.stack(rows)


@pytest.mark.parametrize(
    "spec",
    [
        INCEPTION,
        PolynomialSpec(patch=6, kernels=(3, 1), second=3, inputs=4),
        PolynomialSpec(patch=6, kernels=(5, 1), second=1, gradient_weight=0),
        PolynomialSpec(patch=7, kernels=(1,), second=5, inputs=16, gradient_weight=2),
    ],
    ids=["inception", "mixed", "single", "many-inputs"],
)
def test_encrypted_clear_and_automatic_gradients_agree(small: World, spec: PolynomialSpec) -> None:
    problem = make_problem(spec, COUNT, seed=11)
    assert spec.inputs == 2 or problem.inputs[:, 2:].min() < -0.5
    target, constant = compute_target(spec, problem)
    integers = make_weights(small.params, spec, seed=4)
    weights = convert_weights(integers)
    config = get_config(spec)
    assert (config.parameters, config.margin, config.output) == (spec.parameters, spec.margin, spec.output)

    twin = compute_patch_gradients(config, weights, problem.inputs, target)
    np.testing.assert_allclose(
        twin, compute_gradients(small.params, spec, integers, problem), rtol=0, atol=1e-10
    )
    automatic = differentiate(spec, weights, problem.inputs, target)
    np.testing.assert_allclose(fold_output_bias(config, weights, twin), automatic, rtol=0, atol=1e-10)

    batch = encrypt_batch(small.private, spec, problem.inputs, target, constant)
    bundle = compute_gradient_bundle(small.evaluator, spec, integers, batch)
    check_bundle(small.params, spec, bundle)
    measured = decrypt_bundle(small.private, spec, bundle)
    assert measured.shape == (small.params.slots, spec.gradients)
    assert_gradients(spec, measured[:COUNT], twin, GRADIENT_TOLERANCE_AT_SOURCE)

    loss = compute_loss_ciphertext(small.evaluator, spec, integers, batch)
    check_loss(small.params, spec, loss)
    losses = compute_patch_losses(config, weights, problem.inputs, target, constant)
    np.testing.assert_allclose(losses, compute_losses(small.params, spec, integers, problem), atol=1e-10)
    assert LOSS_TOLERANCE_AT_SOURCE.accepts(decrypt_loss(small.private, spec, loss)[:COUNT], losses)


def test_a_small_kernel_is_a_large_one_with_zeros_around_it() -> None:
    """Bit for bit: each body of the branched network is that of the one whose kernels are all largest."""
    params = get_params("test-4096-60x5", allow_insecure=True)
    context = PublicContext(params, relin_keys=make_relin_keys(params))
    spec = PolynomialSpec(patch=6, kernels=(1, 5, 3), second=1)
    full = PolynomialSpec(patch=6, kernels=(5, 5, 5), second=1)
    integers = make_weights(params, spec, seed=8)
    tensors = spec.split(integers)
    padded = [int(value) for part in (tensors.w, tensors.b, tensors.v) for value in part.flat]
    places = [
        place
        for place, (c, _, k, m) in enumerate(np.ndindex(3, 2, 5, 5))
        if max(abs(k - 2), abs(m - 2)) <= spec.kernels[c] // 2
    ]
    places += range(full.first_weights, full.gradients)
    assert [padded[place] for place in places[:-1]] == list(integers)

    batch = make_batch(params, spec, validation=True)
    assert batch == make_batch(params, full, validation=True)
    bundles = [
        compute_gradient_bundle(context, shape, weights, batch)
        for shape, weights in ((spec, integers), (full, padded))
    ]
    layouts = [build_bundle_layout(build_plan(params, shape)) for shape in (spec, full)]
    assert len(layouts[0].bodies) == len(places)
    for body, place in zip(layouts[0].bodies, places, strict=True):
        other, length = layouts[1].bodies[place], body.get_length(params)
        assert (
            bundles[0][body.offset : body.offset + length]
            == (bundles[1][other.offset : other.offset + length])
        )
    losses = [
        compute_loss_ciphertext(context, shape, weights, batch)
        for shape, weights in ((spec, integers), (full, padded))
    ]
    assert losses[0][HEADER_BYTES:] == losses[1][HEADER_BYTES:]
    assert losses[0] != losses[1]
