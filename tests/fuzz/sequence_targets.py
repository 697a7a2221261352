"""Targets: recurrent cells, models of their segments, and the byte gate of requests and results."""

import struct
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from he.errors import GateError, HeError, ParameterError
from he.formats import HEADER_BYTES, Body
from he.network import INPUT, Dense, Network
from he.params import CkksParams, build_params
from he.recurrent import OddCubic, RecurrentCell
from he.sequence_program import (
    REQUEST_MAGIC,
    RESULT_MAGIC,
    SegmentProgram,
    build_segment_header,
    build_segment_plan,
    check_model,
    check_segment_request,
    check_segment_result,
    encode_clear_model,
    plan_segments,
)
from tests.fuzz.target import Target, require
from workloads.sequence import ClearModel
from workloads.sequence_model import decode_network, encode_network

SMALL = build_params(1024, (55, *(40,) * 8, 55), insecure=True)
PARAMS = CkksParams("fuzz-4-55.40x8.55", 4, SMALL.primes, 30, 20, insecure=True)
"""The gate reads sizes from the parameters, so a tiny ring leaves no line of it out."""
CURVE = OddCubic(0.5, 0.25, -0.0078125, 4.0, 0.04)
CELL = RecurrentCell(
    weights=np.full((4, 1), 0.5),
    recurrent=np.full((4, 1), -0.25),
    bias=np.zeros(4),
    spatial=np.ones(1),
    temporal=np.ones(1),
    offset=0.0,
    gate=CURVE,
    candidate=CURVE,
    squash=CURVE,
    feature_bound=4.0,
)


def run_cell(data: bytes) -> None:
    """`RecurrentCell.decode`: a ParameterError, or a cell whose one encoding the bytes are."""
    require(RecurrentCell.decode(data).encode() == data, "encodes to other bytes")


def run_network(data: bytes) -> None:
    """`decode_network`: a ParameterError, or a network whose one encoding the bytes are."""
    require(encode_network(decode_network(data)) == data, "encodes to other bytes")


def build_networks() -> Iterable[bytes]:
    frames = Network((1, 2, 2), (Dense("features", INPUT, np.full((1, 4), 0.5), np.zeros(1)),))
    yield encode_network(ClearModel(frames, CELL, 2))


def run_segment_model(data: bytes) -> None:
    """`check_model`: an HeError, or a plan of exactly these bytes' length and program."""
    plan = check_model(data, allow_insecure=True)
    require(len(data) == plan.model_bytes, "another length than the plan's")
    require(data.startswith(plan.program.encode()), "encodes to another program")


def build_models() -> Iterable[bytes]:
    for program in plan_segments(SMALL, CELL, 2):
        yield encode_clear_model(program, CELL)


def build_residues(body: Body, fill: int) -> bytes:
    """Residues that are 0, 1 or largest."""
    primes = [prime for prime in PARAMS.primes[: body.form.level] for _ in range(PARAMS.ring)] * 2
    return struct.pack(f"<{len(primes)}Q", *((0, 1, prime - 1)[fill] for prime in primes))


def build_gate_target(
    name: str, magic: bytes, check: Callable[[bytes], None], bodies: tuple[Body, ...], header: bytes
) -> Target:
    def run(data: bytes) -> None:
        """GateError alone leaves it; what passes has the exact length, the one header, residues below their
        primes and secret parts, so that the encryption library sees nothing else."""
        check(data)
        require(data[:HEADER_BYTES] == header and header.startswith(magic), "another header")
        require(len(data) == HEADER_BYTES + sum(body.get_length(PARAMS) for body in bodies), "another length")
        for body in bodies:
            words = np.frombuffer(data, "<u8", body.get_length(PARAMS) // 8, body.offset)
            parts = words.reshape(2, body.form.level, PARAMS.ring)
            limits = np.array(PARAMS.primes[: body.form.level], dtype=np.uint64)[:, None]
            require(bool((parts < limits).all()), "a residue is not below its prime")
            require(bool(parts[1].any()), "no secret part")

    def build() -> Iterable[bytes]:
        for fill in (0, 1, 2):
            yield header + b"".join(build_residues(body, fill) for body in bodies)

    return Target(name, run, (GateError,), build, max_bytes=16384)


def build_targets() -> list[Target]:
    program: SegmentProgram = plan_segments(PARAMS, CELL, 2)[1]
    plan, model = build_segment_plan(program), encode_clear_model(program, CELL)
    targets = [
        Target("model.cell", run_cell, (ParameterError,), lambda: [CELL.encode()]),
        Target("model.sequence_network", run_network, (ParameterError,), build_networks),
        Target("model.segment", run_segment_model, (HeError,), build_models),
    ]
    for name, magic, check, bodies in (
        ("gate.segment_request", REQUEST_MAGIC, check_segment_request, plan.request_bodies),
        ("gate.segment_result", RESULT_MAGIC, check_segment_result, plan.result_bodies),
    ):
        header = build_segment_header(magic, plan, model)
        targets.append(build_gate_target(name, magic, partial(check, plan, model), bodies, header))
    return targets
