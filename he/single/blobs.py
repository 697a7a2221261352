"""Byte layout and gate of what travels for one image: the model's weights, the request, the result.

Each is a 64-byte header and bodies of exact length. Header: magic (8), parameters' name (32, padded with
zeros), 1 for encrypted weights as uint16, 22 bytes of the plan's digest: there is one valid header for each
plan, so it is compared, never parsed. Weights come in the order of the plan's linear steps: each step's
vectors, then its bias by ciphertext. A clear vector is its period's count of int64 coefficients (see
`he.vectors`), whatever level it is used at; an encrypted one is a ciphertext.
"""

import struct
from dataclasses import dataclass
from enum import Enum

import numpy as np

from he.errors import GateError, GateReason
from he.formats import HEADER_BYTES, WORD_BYTES, Body, compute_body_bytes
from he.gate import Source, check_bodies, check_header, check_length, open_source
from he.plan import Form
from he.single.layout import SinglePlan
from he.vectors import MAX_COEFFICIENT

_HEADER = struct.Struct("<8s32sH22s")


class SingleMagic(bytes, Enum):
    MODEL = b"BMIFSMO1"
    REQUEST = b"BMIFSRQ1"
    RESULT = b"BMIFSRS1"


@dataclass(frozen=True, slots=True)
class WeightBody:
    """One vector's place in a model."""

    offset: int
    form: Form
    period: int
    bias: bool


def build_single_header(plan: SinglePlan, magic: SingleMagic) -> bytes:
    """The one valid header."""
    name = plan.params.name.encode("ascii")
    return _HEADER.pack(magic.value, name, int(plan.weights == "encrypted"), plan.digest[:22])


def get_request_bodies(plan: SinglePlan) -> tuple[Body, ...]:
    return _lay_out(plan, plan.input, plan.image.count)


def get_result_bodies(plan: SinglePlan) -> tuple[Body, ...]:
    return _lay_out(plan, plan.output.result, plan.result_ciphertexts)


def _lay_out(plan: SinglePlan, form: Form, count: int) -> tuple[Body, ...]:
    size = compute_body_bytes(plan.params, form.level)
    return tuple(Body(HEADER_BYTES + index * size, form) for index in range(count))


def get_model_bodies(plan: SinglePlan) -> dict[str, tuple[WeightBody, ...]]:
    """By linear step: its vectors, then its biases."""
    offset, bodies = HEADER_BYTES, {}
    for step in plan.get_linear_steps():
        parts: list[WeightBody] = []
        bias = step.result if step.rescaled else step.product
        forms = [(step.weight, step.matrix.frame.period, False)] * step.matrix.vectors
        forms += [(bias, step.layout.period, True)] * step.layout.count
        for form, period, is_bias in forms:
            parts.append(WeightBody(offset, form, period, is_bias))
            if plan.weights == "encrypted":
                offset += compute_body_bytes(plan.params, form.level)
            else:
                offset += period * WORD_BYTES
        bodies[step.name] = tuple(parts)
    return bodies


def get_factor_bits(form: Form) -> int:
    """Powers of two that a clear vector's integers leave out, where the scale is more than they can hold."""
    return max(0, form.scale.__floor__().bit_length() - 31)


def check_request(plan: SinglePlan, source: Source) -> memoryview:
    """The whole of a well-formed encrypted image for this very plan.

    Raises: GateError.
    """
    return _check(plan, source, SingleMagic.REQUEST, get_request_bodies(plan), plan.request_bytes)


def check_result(plan: SinglePlan, source: Source) -> memoryview:
    """The whole of a well-formed result of this very plan.

    Raises: GateError.
    """
    return _check(plan, source, SingleMagic.RESULT, get_result_bodies(plan), plan.result_bytes)


def _check(
    plan: SinglePlan, source: Source, magic: SingleMagic, bodies: tuple[Body, ...], length: int
) -> memoryview:
    view = open_source(source)
    check_length(view, length)
    check_header(view, build_single_header(plan, magic))
    check_bodies(plan.params, view, bodies)
    return view


def check_model(plan: SinglePlan, source: Source) -> memoryview:
    """The whole of well-formed weights for this very plan.

    Raises: GateError.
    """
    view = open_source(source)
    check_length(view, plan.model_bytes)
    check_header(view, build_single_header(plan, SingleMagic.MODEL))
    for name, parts in get_model_bodies(plan).items():
        if plan.weights == "encrypted":
            check_bodies(plan.params, view, tuple(Body(part.offset, part.form) for part in parts))
            continue
        for part in parts:
            words = np.frombuffer(view, dtype="<i8", offset=part.offset, count=part.period)
            if int(words.min()) < -MAX_COEFFICIENT or int(words.max()) > MAX_COEFFICIENT:
                raise GateError(GateReason.RESIDUE, f"a coefficient of layer {name!r} is too large")
    return view
