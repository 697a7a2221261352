"""Networks of random kernels: both specifications agree, orders are one, and no value leaves its bounds."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_model.config import WEIGHT_UNIT, NetworkConfig
from fusion_model.gradients import (
    Array,
    apply_metric,
    compute_first_places,
    compute_output_bias,
    compute_patch_gradients,
    compute_patch_losses,
    split_weights,
)
from he.formats import Magic, build_batch_layout, build_bundle_layout, build_header
from he.params import get_params
from he.plan import build_plan, compute_bounds, get_input_bounds
from he.spec import PolynomialSpec

PARAMS = get_params("ckks-16384-60x5")
ODD = st.integers(0, 2).map(lambda half: 2 * half + 1)


@st.composite
def draw_specs(draw: st.DrawFn, largest_output: int = 3) -> PolynomialSpec:
    kernels = tuple(draw(st.lists(ODD, min_size=1, max_size=5)))
    second, output = draw(ODD), draw(st.integers(1, largest_output))
    patch = output + max(kernels) + second - 2
    return PolynomialSpec(patch, kernels, second, draw(st.integers(2, 4)), draw(st.integers(0, 20)))


def get_config(spec: PolynomialSpec) -> NetworkConfig:
    return NetworkConfig(spec.patch, spec.kernels, spec.second, spec.inputs, spec.gradient_weight)


@given(draw_specs())
def test_both_specifications_count_alike(spec: PolynomialSpec) -> None:
    config = get_config(spec)
    for name in ("channels", "kernel", "hidden", "output", "margin", "first_weights", "second_start"):
        assert getattr(spec, name) == getattr(config, name), name
    assert (spec.parameters, spec.gradients) == (config.parameters, config.gradient_entries)
    assert spec.patch == spec.output + 2 * spec.margin
    plan = build_plan(PARAMS, spec)
    assert len(build_bundle_layout(plan).bodies) == len(plan.get_gradient_forms()) == spec.gradients
    assert len(build_batch_layout(plan, validation=False).targets) == spec.output**2


@given(draw_specs(), draw_specs())
def test_encodings_and_headers_tell_specifications_apart(a: PolynomialSpec, b: PolynomialSpec) -> None:
    assert PolynomialSpec.decode(a.encode()) == a
    assert (a == b) == (a.encode() == b.encode())
    for magic in (Magic.BUNDLE, Magic.LOSS):
        assert (a == b) == (build_header(magic, PARAMS, a) == build_header(magic, PARAMS, b))


@given(draw_specs())
def test_every_weight_has_one_name_and_one_place(spec: PolynomialSpec) -> None:
    config = get_config(spec)
    names = [config.get_entry_name(index) for index in range(config.gradient_entries)]
    assert len(set(names)) == len(names)
    assert names[-1] == "d"
    tensors = spec.split(range(1, spec.parameters + 1))
    layers = split_weights(config, np.arange(1, spec.parameters + 1))
    for exact, floats in ((tensors.w, layers.first), (tensors.b, layers.bias), (tensors.v, layers.second)):
        np.testing.assert_array_equal(exact, floats)
    np.testing.assert_array_equal(
        tensors.w.ravel()[compute_first_places(config)], np.arange(1, spec.first_weights + 1)
    )
    for index, name in enumerate(names[:-1]):
        place = tuple(int(part) for part in name[2:-1].split(","))
        match name[0]:
            case "w":
                inset = spec.get_inset(place[0])
                value = tensors.w[place[0], place[1], place[2] + inset, place[3] + inset]
            case "b":
                value = tensors.b[place]
            case _:
                value = tensors.v[place]
        assert value == index + 1
    assert names.index("b[0]") == spec.first_weights
    assert names.index("v[0,0,0]") == spec.second_start
    for channel in range(spec.channels):
        assert names.index(f"w[{channel},0,0,0]") == spec.get_first_start(channel)


@given(draw_specs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_gradients_are_those_of_the_losses(spec: PolynomialSpec, seed: int) -> None:
    """Central differences of the loss, which is of degree 4 in a step: exact up to a cubic term."""
    config, generator = get_config(spec), np.random.default_rng(seed)
    weights = generator.normal(0, 0.3, config.parameters)
    inputs = generator.uniform(-1, 1, (1, spec.inputs, spec.patch, spec.patch))
    target = generator.uniform(-1, 1, (1, spec.output, spec.output))
    folded = compute_patch_gradients(config, weights, inputs, target)[0]
    direction, step = generator.normal(0, 1, config.parameters), 1e-4

    def compute_loss(point: Array) -> float:
        return float(compute_patch_losses(config, point, inputs, target, np.zeros(1))[0])

    ahead, back = weights + step * direction, weights - step * direction
    slope = (compute_loss(ahead) - compute_loss(back)) / (2 * step)
    # The loss ties d to the weights: its own column is worth what d changes by.
    tied = (compute_output_bias(config, ahead) - compute_output_bias(config, back)) / (2 * step)
    expected = float(folded[:-1] @ direction + folded[-1] * tied)
    scale = float(np.abs(folded).sum())
    assert abs(slope - expected) <= 1e-5 * (1 + scale)


@given(draw_specs(), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60)
def test_no_value_leaves_its_bounds(spec: PolynomialSpec, seed: int, extreme: bool) -> None:
    """At corners of the admitted inputs, aimed at the largest z, and at random ones."""
    generator = np.random.default_rng(seed)
    config = get_config(spec)
    integers = [int(value) for value in generator.integers(-(2**20), 2**20 + 1, spec.parameters)]
    weights = np.array(integers) * WEIGHT_UNIT
    inputs = generator.uniform(-1, 1, (40, spec.inputs, spec.patch, spec.patch))
    if extreme:
        inputs = np.sign(inputs)
        layers = split_weights(config, weights)
        for patch, channel in enumerate(range(spec.channels)):
            window = np.sign(layers.first[channel])
            for sign in (1, -1):
                inputs[2 * patch + (sign < 0), :, : config.kernel, : config.kernel] = sign * window
    inputs[:, :2] = np.maximum(inputs[:, :2], 0)
    bound = get_input_bounds(spec)
    target = bound.target * np.sign(generator.uniform(-1, 1, (40, spec.output, spec.output)))
    limits = {item.name: item.magnitude for item in compute_bounds(build_plan(PARAMS, spec), integers)}

    def check(name: str, values: Array) -> None:
        largest = Fraction(float(np.abs(values).max()))
        assert largest <= limits[name] * (1 + Fraction(1, 10**9)), name

    layers = split_weights(config, weights)
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (config.kernel,) * 2, axis=(2, 3))
    hidden = np.einsum("naijkl,cakl->ncij", windows, layers.first, optimize=True)
    hidden = hidden + layers.bias[:, None, None]
    check("hidden", hidden)
    check("square", hidden**2)
    squares = np.lib.stride_tricks.sliding_window_view(hidden**2, (config.second,) * 2, axis=(2, 3))
    output = np.einsum("ncijkl,ckl->nij", squares, layers.second, optimize=True)
    output = output + compute_output_bias(config, weights)
    check("output", output)
    residual = apply_metric(config, output) - target
    check("residual", residual)
    check("residual at the gradient's level", residual.sum(axis=(1, 2)))
    # The circuits leave out the factors of differentiation.
    gradients = compute_patch_gradients(config, weights, inputs, target) * config.output**2 / 2
    check("gradient of w", gradients[:, : spec.first_weights] / 2)
    check("gradient of b", gradients[:, spec.first_weights : spec.second_start] / 2)
    check("gradient of v", gradients[:, spec.second_start : -1])
    constant = np.full(40, float(bound.constant))
    check("loss", compute_patch_losses(config, weights, inputs, target, constant) * config.output**2)
