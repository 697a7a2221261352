"""Targets: the byte gate of what travels for one image in few ciphertexts, and of rotation keys."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np

from he.errors import GateError
from he.formats import HEADER_BYTES, Body
from he.gate import build_galois_header, check_galois_keys
from he.network import INPUT, Convolution, Network
from he.params import CkksParams
from he.program import WeightKind
from he.single.blobs import (
    SingleMagic,
    build_single_header,
    check_model,
    check_request,
    check_result,
    get_model_bodies,
    get_request_bodies,
    get_result_bodies,
)
from he.single.layout import SinglePlan, plan_single
from he.vectors import MAX_COEFFICIENT
from tests.fuzz.target import Target, require

STEPS = (1,)


@cache
def build_tiny(weights: WeightKind) -> SinglePlan:
    """A plan whose ring is made so small that an input holds a blob; the gate reads sizes from it."""
    layer = Convolution("conv", INPUT, np.ones((1, 1, 1, 1)), np.zeros(1))
    plan = plan_single(Network((1, 1, 1), (layer,)), weights=weights, ring=1024, insecure=True)
    params = plan.params
    small = CkksParams("fuzz-4", 4, params.primes, params.data_scale_bits, params.weight_scale_bits, True)
    return replace(plan, params=small)


def check_residues(plan: SinglePlan, data: bytes, offset: int, level: int, components: int = 2) -> None:
    """The gate's promise, word by word: below its prime, and a secret part."""
    words = struct.unpack_from(f"<{components * level * plan.params.ring}Q", data, offset)
    half = len(words) // components
    for index, word in enumerate(words):
        require(word < plan.params.primes[index % half // plan.params.ring], f"word {index} is too large")
    require(any(words[-half:]), "no secret part")


def check_header(plan: SinglePlan, data: bytes, magic: SingleMagic, length: int) -> None:
    require(data[:HEADER_BYTES] == build_single_header(plan, magic), "another header")
    require(len(data) == length, "another length")


def run_request(data: bytes) -> None:
    """`check_request`: a GateError, or the one header, the exact length and residues below their primes."""
    plan = build_tiny("clear")
    check_request(plan, data)
    check_header(plan, data, SingleMagic.REQUEST, plan.request_bytes)
    for body in get_request_bodies(plan):
        check_residues(plan, data, body.offset, body.form.level)


def run_result(data: bytes) -> None:
    """`check_result`: as `check_request`."""
    plan = build_tiny("clear")
    check_result(plan, data)
    check_header(plan, data, SingleMagic.RESULT, plan.result_bytes)
    for body in get_result_bodies(plan):
        check_residues(plan, data, body.offset, body.form.level)


def run_clear_model(data: bytes) -> None:
    """`check_model`: a GateError, or coefficients that the encoder keeps exactly."""
    plan = build_tiny("clear")
    check_model(plan, data)
    check_header(plan, data, SingleMagic.MODEL, plan.model_bytes)
    words = np.frombuffer(data, dtype="<i8", offset=HEADER_BYTES).tolist()
    require(all(abs(word) <= MAX_COEFFICIENT for word in words), "a coefficient is too large")


def run_encrypted_model(data: bytes) -> None:
    """`check_model`: as `check_request`."""
    plan = build_tiny("encrypted")
    check_model(plan, data)
    check_header(plan, data, SingleMagic.MODEL, plan.model_bytes)
    for parts in get_model_bodies(plan).values():
        for part in parts:
            check_residues(plan, data, part.offset, part.form.level)


def run_galois_keys(data: bytes) -> None:
    """`check_galois_keys`: as `check_request`; what it returns is the body."""
    plan = build_tiny("clear")
    require(check_galois_keys(plan.params, STEPS, data) == data[HEADER_BYTES:], "another body")
    require(data[:HEADER_BYTES] == build_galois_header(plan.params, STEPS), "another header")
    level = len(plan.params.primes)
    for part in range(len(STEPS) * plan.params.levels):
        check_residues(plan, data, HEADER_BYTES + part * 2 * level * plan.params.ring * 8, level)


# --- seeds ------------------------------------------------------------------------------------


def build_residues(plan: SinglePlan, level: int, fill: int) -> bytes:
    """Residues that are 1, largest or zero."""
    primes = [prime for prime in plan.params.primes[:level] for _ in range(plan.params.ring)] * 2
    return struct.pack(f"<{len(primes)}Q", *((0, 1, prime - 1)[fill] for prime in primes))


def build_seeds(
    weights: WeightKind, magic: SingleMagic, get_bodies: Callable[[SinglePlan], Iterable[Body]]
) -> Callable[[], Iterable[bytes]]:
    def build() -> Iterable[bytes]:
        plan = build_tiny(weights)
        for fill in (0, 1, 2):
            bodies = [build_residues(plan, body.form.level, fill) for body in get_bodies(plan)]
            yield build_single_header(plan, magic) + b"".join(bodies)

    return build


def list_weights(plan: SinglePlan) -> Iterable[Body]:
    return [Body(part.offset, part.form) for parts in get_model_bodies(plan).values() for part in parts]


def build_clear_models() -> Iterable[bytes]:
    plan = build_tiny("clear")
    words = (plan.model_bytes - HEADER_BYTES) // 8
    for value in (0, 1, -MAX_COEFFICIENT, MAX_COEFFICIENT, MAX_COEFFICIENT + 1):
        yield build_single_header(plan, SingleMagic.MODEL) + struct.pack(f"<{words}q", *[value] * words)


def build_galois_seeds() -> Iterable[bytes]:
    plan = build_tiny("clear")
    for fill in (0, 1, 2):
        body = build_residues(plan, len(plan.params.primes), fill) * len(STEPS) * plan.params.levels
        yield build_galois_header(plan.params, STEPS) + body


def build_targets() -> list[Target]:
    refused = (GateError,)
    request = build_seeds("clear", SingleMagic.REQUEST, get_request_bodies)
    result = build_seeds("clear", SingleMagic.RESULT, get_result_bodies)
    hidden = build_seeds("encrypted", SingleMagic.MODEL, list_weights)
    return [
        Target("gate.galois_keys", run_galois_keys, refused, build_galois_seeds),
        Target("gate.single_request", run_request, refused, request),
        Target("gate.single_result", run_result, refused, result),
        Target("gate.single_model", run_clear_model, refused, build_clear_models),
        Target("gate.single_encrypted_model", run_encrypted_model, refused, hidden),
    ]
