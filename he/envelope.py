"""Bytes of a diagnosis: model, keys, request and result, each of exact length, and their gate.

A model is a header, the network's encoding, zeros up to a multiple of 8, and what the packing keeps of its
weights. With encrypted weights, and in single packing, the encoding is of the *skeleton*: shapes and
coefficients of polynomials, which are public, and zeros for weights. Header: magic (8), parameters' name
(32, padded with zeros), packing, kind of weights, switches and bits of the scale as a byte each, length of
the encoding (4), 16 bytes of its SHA-256. Requests and results in batch packing begin with the same header
under their own magic: there is one valid header for each program, so it is compared, never parsed; only a
model's is read. What one image in single packing travels as is `he.single.blobs`' business.

Nothing here needs the encryption library.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from he.compiler import build_program, compute_model_start, get_weight_forms, plan_program
from he.errors import GateError, GateReason, ParameterError
from he.formats import HEADER_BYTES, Body, compute_body_bytes
from he.gate import (
    Source,
    check_bodies,
    check_galois_keys,
    check_header,
    check_length,
    check_relin_keys,
    open_source,
)
from he.network import BatchNorm, Convolution, Dense, Layer, Network, decode, encode
from he.params import get_params
from he.plan import Form
from he.program import PACKINGS, WEIGHT_KINDS, Options, Program

if TYPE_CHECKING:
    from he.single.layout import SinglePlan

_HEADER = struct.Struct("<8s32s4BI16s")

MAX_NETWORK_BYTES = 1 << 28
"""Of an encoding: bounds what opening a model asks for."""


class DiagnosisMagic(bytes, Enum):
    MODEL = b"BMIFDGM1"
    REQUEST = b"BMIFDGQ1"
    RESULT = b"BMIFDGR1"


def build_skeleton(network: Network) -> Network:
    """Without its weights."""
    return Network(network.shape, tuple(_strip(layer) for layer in network.layers))


def _strip(layer: Layer) -> Layer:
    match layer:
        case Convolution() | Dense():
            return replace(layer, weights=np.zeros_like(layer.weights), bias=np.zeros_like(layer.bias))
        case BatchNorm():
            return replace(layer, scale=np.zeros_like(layer.scale), shift=np.zeros_like(layer.shift))
        case _:
            return layer


def encode_public(program: Program) -> bytes:
    """The encoding that goes into the model: with weights only where they are clear and in no other place."""
    clear = program.options.weights == "clear" and program.options.packing == "batch"
    return encode(program.network if clear else build_skeleton(program.network))


def build_diagnosis_header(program: Program, magic: DiagnosisMagic) -> bytes:
    """The one valid header."""
    options, network = program.options, encode_public(program)
    switches = options.fold | options.absorb << 1
    return _HEADER.pack(
        magic.value,
        program.params.name.encode("ascii"),
        PACKINGS.index(options.packing),
        WEIGHT_KINDS.index(options.weights),
        switches,
        program.scale_bits,
        len(network),
        hashlib.sha256(network).digest()[:16],
    )


def build_model_head(program: Program) -> bytes:
    """Everything of a model but what its packing keeps of the weights."""
    head = build_diagnosis_header(program, DiagnosisMagic.MODEL) + encode_public(program)
    return head.ljust(compute_model_start(program.network), b"\0")


def open_model(source: Source, *, allow_insecure: bool = False) -> Program:
    """The program of a model's bytes, by its head alone; `check_model` looks at the rest.

    Raises: GateError on bytes that are no model's; ParameterError or DepthError on one that can't be
    evaluated.
    """
    view = open_source(source)
    if len(view) < HEADER_BYTES:
        raise GateError(GateReason.LENGTH, f"a model has at least {HEADER_BYTES} bytes, not {len(view)}")
    magic, name, packing, weights, switches, scale_bits, length, _ = _HEADER.unpack(view[:HEADER_BYTES])
    if magic != DiagnosisMagic.MODEL.value or packing >= len(PACKINGS) or weights >= len(WEIGHT_KINDS):
        raise GateError(GateReason.HEADER, "not a diagnosis model")
    if switches > 3 or not 20 <= scale_bits <= 60:
        raise GateError(GateReason.HEADER, "switches or scale are none that a compiler writes")
    if length > MAX_NETWORK_BYTES or HEADER_BYTES + length > len(view):
        raise GateError(GateReason.LENGTH, f"a network of {length} bytes in a model of {len(view)}")
    try:
        params = get_params(name.rstrip(b"\0").decode("ascii"), allow_insecure=allow_insecure)
        network = decode(bytes(view[HEADER_BYTES : HEADER_BYTES + length]))
    except (UnicodeDecodeError, ParameterError) as error:
        raise GateError(GateReason.HEADER, f"not a diagnosis model: {error}") from error
    options = Options(PACKINGS[packing], WEIGHT_KINDS[weights], bool(switches & 1), bool(switches & 2))
    program = build_program(network, options, params, scale_bits)
    head = build_model_head(program)
    if view[: len(head)] != head:
        raise GateError(GateReason.HEADER, "not the one encoding of this model")
    check_length(view, program.sizes.model)
    return program


def check_model(program: Program, source: Source) -> memoryview:
    """The whole of a well-formed model of this very program.

    Raises: GateError.
    """
    view = open_source(source)
    check_length(view, program.sizes.model)
    head = build_model_head(program)
    if view[: len(head)] != head:
        raise GateError(GateReason.HEADER, "a model of another network or other parameters")
    if program.options.packing == "single":
        from he.single.blobs import check_model as check_single

        check_single(get_single_plan(program), view[len(head) :])
    else:
        check_bodies(program.params, view, get_model_bodies(program))
    return view


def get_model_bodies(program: Program) -> tuple[Body, ...]:
    """Encrypted weights and biases in batch packing: layer by layer, weights in C order, then biases."""
    bodies, offset = [], compute_model_start(program.network)
    for _, weight, bias, weights, biases in get_weight_forms(program.options, plan_program(program)):
        for form, count in ((weight, weights), (bias, biases)):
            for _ in range(count):
                bodies.append(Body(offset, form))
                offset += compute_body_bytes(program.params, form.level)
    return tuple(bodies)


def get_request_bodies(program: Program) -> tuple[Body, ...]:
    """Pixels [c][i][j]; slots are images."""
    form = Form(program.params.levels, Fraction(2**program.scale_bits))
    return _lay_out(program, form, program.sizes.request_ciphertexts)


def get_result_bodies(program: Program) -> tuple[Body, ...]:
    """Outputs in C order."""
    return _lay_out(program, plan_program(program)[-1].value.form, program.sizes.result_ciphertexts)


def _lay_out(program: Program, form: Form, count: int) -> tuple[Body, ...]:
    step = compute_body_bytes(program.params, form.level)
    return tuple(Body(HEADER_BYTES + index * step, form) for index in range(count))


def check_request(program: Program, source: Source) -> memoryview:
    """The whole of a well-formed request for this very program.

    Raises: GateError.
    """
    if program.options.packing == "single":
        from he.single.blobs import check_request as check_single

        return check_single(get_single_plan(program), source)
    return _check(program, source, DiagnosisMagic.REQUEST, get_request_bodies, program.sizes.request)


def check_result(program: Program, source: Source) -> memoryview:
    """The whole of a well-formed result of this very program.

    Raises: GateError.
    """
    if program.options.packing == "single":
        from he.single.blobs import check_result as check_single

        return check_single(get_single_plan(program), source)
    return _check(program, source, DiagnosisMagic.RESULT, get_result_bodies, program.sizes.result)


def _check(
    program: Program,
    source: Source,
    magic: DiagnosisMagic,
    get_bodies: Callable[[Program], tuple[Body, ...]],
    length: int,
) -> memoryview:
    # The length first: a model may promise more ciphertexts than there is memory to list.
    view = open_source(source)
    check_length(view, length)
    check_header(view, build_diagnosis_header(program, magic))
    check_bodies(program.params, view, get_bodies(program))
    return view


def check_keys(program: Program, source: Source) -> tuple[memoryview, memoryview]:
    """The encoded relinearisation keys and, in single packing, rotation keys behind them; well-formed.

    Raises: GateError.
    """
    view = open_source(source)
    check_length(view, program.sizes.keys)
    split = program.sizes.relin_keys
    check_relin_keys(program.params, view[:split])
    if program.options.packing == "single":
        check_galois_keys(program.params, get_single_plan(program).rotations, view[split:])
    return view[:split], view[split:]


def get_single_plan(program: Program) -> "SinglePlan":
    """The plan of single packing; the same for clear and skeleton networks."""
    from he.compiler import plan_single_program

    return plan_single_program(program.network, program.options, program.params)
