"""Targets: descriptions of networks, models of encrypted diagnosis, and the byte gate of its blobs."""

import struct
from collections.abc import Iterable
from functools import cache

import numpy as np

from he.compiler import build_program, compile_network
from he.envelope import (
    DiagnosisMagic,
    build_diagnosis_header,
    build_model_head,
    check_model,
    check_request,
    check_result,
    get_model_bodies,
    get_request_bodies,
    get_result_bodies,
    open_model,
)
from he.errors import GateError, HeError, ParameterError
from he.formats import HEADER_BYTES, Body
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Network,
    Polynomial,
    decode,
    encode,
)
from he.params import CkksParams, build_params
from he.program import Program, WeightKind
from tests.fuzz.target import Target, require


def build_network() -> Network:
    """Every kind of layer."""
    half = np.full((1, 1, 1, 1), 0.5)
    return Network(
        (1, 2, 2),
        (
            Convolution("c", INPUT, half, np.zeros(1)),
            BatchNorm("n", "c", np.ones(1), np.zeros(1)),
            Polynomial("p", "n", (0.5, 0.25, 0.125), (-2.0, 2.0), 0.1),
            Add("s", "p", "c"),
            AveragePool("a", "s", 2),
            GlobalAveragePool("g", "a"),
            Dense("d", "g", np.full((1, 1), 0.5), np.zeros(1)),
        ),
    )


@cache
def build_tiny(weights: WeightKind) -> Program:
    """The gate reads sizes from the program, so a tiny ring leaves no line of it out."""
    layers = (Convolution("c", INPUT, np.ones((1, 1, 1, 1)), np.zeros(1)),)
    program = compile_network(Network((1, 1, 2), layers), weights=weights, insecure_ring=1024)
    primes = build_params(1024, program.params.prime_bits, insecure=True).primes
    params = CkksParams("fuzz-4", 4, primes, 30, 20, insecure=True)
    return build_program(program.network, program.options, params, program.scale_bits)


def run_network(data: bytes) -> None:
    """`decode`: a ParameterError, or a network whose one encoding the bytes are."""
    require(encode(decode(data)) == data, "encodes to other bytes")


def run_model(data: bytes) -> None:
    """`open_model`: an HeError, or a program of exactly these bytes' length and head."""
    program = open_model(data, allow_insecure=True)
    require(len(data) == program.sizes.model, "another length than the program's")
    require(data.startswith(build_model_head(program)), "another head than the program's")


def check_residues(program: Program, data: bytes, bodies: Iterable[Body]) -> None:
    """The gate's promise, word by word: below its prime, and with a secret part."""
    ring = program.params.ring
    for body in bodies:
        level = body.form.level
        words = struct.unpack_from(f"<{2 * level * ring}Q", data, body.offset)
        for index, word in enumerate(words):
            require(
                word < program.params.primes[index // ring % level], f"word {index} is not below its prime"
            )
        require(any(words[level * ring :]), f"no secret part at {body.offset}")


def run_request(data: bytes) -> None:
    """`check_request`: a GateError, or exact length, the one header, residues below their primes."""
    program = build_tiny("clear")
    check_request(program, data)
    require(len(data) == program.sizes.request, "another length than the program's")
    header = build_diagnosis_header(program, DiagnosisMagic.REQUEST)
    require(data[:HEADER_BYTES] == header, "another header")
    check_residues(program, data, get_request_bodies(program))


def run_result(data: bytes) -> None:
    """`check_result`: as `check_request`."""
    program = build_tiny("clear")
    check_result(program, data)
    require(len(data) == program.sizes.result, "another length than the program's")
    check_residues(program, data, get_result_bodies(program))


def run_weights(data: bytes) -> None:
    """`check_model` of encrypted weights: as `check_request`."""
    program = build_tiny("encrypted")
    check_model(program, data)
    require(len(data) == program.sizes.model, "another length than the program's")
    check_residues(program, data, get_model_bodies(program))


def build_blob(head: bytes, bodies: tuple[Body, ...]) -> Iterable[bytes]:
    words = sum(2 * body.form.level * 4 for body in bodies)
    yield head + struct.pack(f"<{words}Q", *range(1, words + 1))


def build_models() -> Iterable[bytes]:
    for packing in (True, False):
        program = compile_network(build_network(), fold=packing, absorb=packing, insecure_ring=1024)
        yield build_model_head(program)


def build_targets() -> list[Target]:
    clear, encrypted = build_tiny("clear"), build_tiny("encrypted")
    request = build_diagnosis_header(clear, DiagnosisMagic.REQUEST)
    result = build_diagnosis_header(clear, DiagnosisMagic.RESULT)
    refused = (GateError,)
    return [
        Target("model.network", run_network, (ParameterError,), lambda: [encode(build_network())]),
        Target("model.diagnosis", run_model, (HeError,), build_models, base=2**22),
        Target(
            "gate.diagnosis_request",
            run_request,
            refused,
            lambda: build_blob(request, get_request_bodies(clear)),
        ),
        Target(
            "gate.diagnosis_result", run_result, refused, lambda: build_blob(result, get_result_bodies(clear))
        ),
        Target(
            "gate.diagnosis_model",
            run_weights,
            refused,
            lambda: build_blob(build_model_head(encrypted), get_model_bodies(encrypted)),
        ),
    ]
