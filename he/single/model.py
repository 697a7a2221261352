"""The model's side: weights as exact plaintext polynomials or as ciphertexts of the same vectors.

With encrypted weights, model and image must be under one key pair: whoever holds its secret key reads both,
so that the one who asks and the one who owns the model trust its holder (as Ran and Li do, JIIM 2025).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from he.context import PublicContext
from he.errors import ParameterError
from he.formats import compute_body_bytes
from he.gate import Source
from he.network import BatchNorm, Convolution, Dense, GlobalAveragePool, Network
from he.single.blobs import (
    SingleMagic,
    WeightBody,
    build_single_header,
    check_model,
    get_factor_bits,
    get_model_bodies,
)
from he.single.layout import SinglePlan
from he.single.matrices import Floats, LinearLayer, build_vectors, get_bias
from he.single.shapes import prepare
from he.single.steps import LinearStep
from he.tensor import CiphertextTensor, PlainVector
from he.vectors import round_coefficients

Weight = PlainVector | CiphertextTensor


@dataclass(frozen=True, slots=True)
class StepWeights:
    """What one linear step multiplies and adds, in the order of its matrix."""

    vectors: tuple[Weight, ...]
    biases: tuple[Weight, ...]
    """By ciphertext."""


@dataclass(frozen=True, slots=True, repr=False)
class SingleModel:
    """Weights as the engine takes them, checked and loaded once for any number of images."""

    plan: SinglePlan
    steps: dict[str, StepWeights]


def encode_model(plan: SinglePlan, network: Network) -> bytes:
    """The weights in clear. Rounded here, once: two machines may differ in a last bit, so what travels are
    these bytes.

    Raises: ParameterError if the network is not the plan's; MagnitudeError on weights that are too large.
    """
    if plan.weights != "clear":
        raise ParameterError("this plan is for encrypted weights")
    blob = bytearray(plan.model_bytes)
    header = build_single_header(plan, SingleMagic.MODEL)
    blob[: len(header)] = header
    for part, values in _iterate_weights(plan, network):
        scale = part.form.scale / 2 ** (get_factor_bits(part.form) if part.bias else 0)
        data = round_coefficients(values, scale).astype("<i8").tobytes()
        blob[part.offset : part.offset + len(data)] = data
    return bytes(blob)


def encrypt_model(context: PublicContext, plan: SinglePlan, network: Network) -> bytes:
    """The weights under the public key of `context`, which is the key that images are encrypted under.

    Raises: ParameterError if the network or the key is not the plan's; MissingKeyError; MagnitudeError.
    """
    if plan.weights != "encrypted":
        raise ParameterError("this plan is for clear weights")
    if context.params != plan.params:
        raise ParameterError(f"{context!r} does not belong to {plan.params.name}")
    blob = bytearray(plan.model_bytes)
    header = build_single_header(plan, SingleMagic.MODEL)
    blob[: len(header)] = header
    for part, values in _iterate_weights(plan, network):
        repeated = np.tile(values, plan.params.slots // len(values))
        data = context.engine.save(context.encrypt(repeated, part.form)).tobytes()
        blob[part.offset : part.offset + len(data)] = data
    return bytes(blob)


def _iterate_weights(plan: SinglePlan, network: Network) -> Iterator[tuple[WeightBody, Floats]]:
    """Each body of the model with its values (P,)."""
    layers = {layer.name: layer for layer in prepare(network).layers}
    bodies = get_model_bodies(plan)
    for step in plan.get_linear_steps():
        layer = layers.get(step.name)
        if not isinstance(layer, Convolution | BatchNorm | Dense | GlobalAveragePool):
            raise ParameterError(f"the network has no linear layer {step.name!r}")
        yield from zip(bodies[step.name], _iterate_values(layer, step), strict=True)


def _iterate_values(layer: LinearLayer, step: LinearStep) -> Iterator[Floats]:
    try:
        yield from build_vectors(layer, step.matrix)
        biases = get_bias(layer, step.layout)
        ciphertexts, slots = step.layout.get_places()
        for index in range(step.layout.count):
            values = np.zeros(step.layout.period)
            values[slots[ciphertexts == index]] = biases[ciphertexts == index]
            yield values
    except (IndexError, KeyError, ValueError) as error:
        raise ParameterError(f"layer {step.name!r} has other shapes than the plan") from error


def load_model(context: PublicContext, plan: SinglePlan, source: Source) -> SingleModel:
    """Weights ready to be multiplied; the same ones everywhere.

    Raises: GateError on malformed bytes; ParameterError if `context` is not the plan's.
    """
    if context.params != plan.params:
        raise ParameterError(f"{context!r} does not belong to {plan.params.name}")
    view = check_model(plan, source)
    steps: dict[str, StepWeights] = {}
    for name, parts in get_model_bodies(plan).items():
        loaded = [_load(context, plan, view, part) for part in parts]
        biases = sum(part.bias for part in parts)
        steps[name] = StepWeights(tuple(loaded[:-biases]), tuple(loaded[-biases:]))
    return SingleModel(plan, steps)


def _load(context: PublicContext, plan: SinglePlan, view: memoryview, part: WeightBody) -> Weight:
    if plan.weights == "encrypted":
        size = compute_body_bytes(plan.params, part.form.level)
        return context.engine.load(view[part.offset : part.offset + size], part.form)
    words = np.frombuffer(view, dtype="<i8", offset=part.offset, count=part.period)
    factor = get_factor_bits(part.form) if part.bias else 0
    return context.engine.load_vector(words.astype(np.int64), part.form, factor_bits=factor)
