"""Encrypted networks give equal bytes everywhere: golden hashes over synthetic residues."""

import hashlib
from typing import Literal

import numpy as np
import pytest

from he.compiler import compile_network
from he.context import PublicContext
from he.diagnosis import compute_result
from he.envelope import (
    DiagnosisMagic,
    build_diagnosis_header,
    build_model_head,
    check_result,
    get_model_bodies,
    get_request_bodies,
    open_model,
)
from he.formats import HEADER_BYTES
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    Floats,
    GlobalAveragePool,
    Network,
    Polynomial,
    encode,
)
from he.program import Program
from tests.he.synthetic import make_relin_keys, make_residues

Switch = Literal["clear", "encrypted"]

GOLDEN: dict[tuple[Switch, bool], str] = {
    ("clear", True): "fa3111b05edde486f99b0a6a9bbe61768758a38f9d93b98b7325ecfd94e2e272",
    ("clear", False): "6fd633fa76ab60ddfced1b57bbd0c24a7098b7388796a12bb5a2ea5c4c1252f3",
    ("encrypted", True): "5d6e5cf7c11ae36cd916e90b7eada41f1493fb8c41da71dc63c5a4fca5552aff",
    ("encrypted", False): "e80b47f6a4fe93b26890bb683c852aae43a42a0fcdb6221e80c37f9aa8c0ecbb",
}
"""SHA-256 of header and bodies by kind of weights and rewriting; a change here breaks every job."""


def draw(seed: int, *shape: int) -> Floats:
    """Multiples of 2^-10 from integer arithmetic alone."""
    size = int(np.prod(shape))
    values = [((index + 1) * 2654435761 * (seed + 1) % 2**32) % 2049 - 1024 for index in range(size)]
    return np.array(values, dtype=np.float64).reshape(shape) / 1024


def make_network() -> Network:
    """Every kind of layer, a branch whose scales must be brought together, a square kept in three parts."""
    return Network(
        (1, 5, 4),
        (
            Convolution("conv", INPUT, draw(1, 2, 1, 3, 3), draw(2, 2), 1, 1),
            BatchNorm("norm", "conv", draw(3, 2), draw(4, 2)),
            Polynomial("quadratic", "norm", (0.125, 0.5, -0.25), (-3.0, 3.0), 0.125),
            Convolution("same", "quadratic", draw(5, 2, 2, 3, 3), draw(6, 2), 1, 1),
            Add("sum", "same", "quadratic"),
            Polynomial("square", "sum", (0.0, 0.0, 1.0), (-3.0, 3.0)),
            AveragePool("pool", "square", 2),
            Polynomial("cubic", "pool", (0.25, 0.5, 0.0, 0.125), (-3.0, 3.0), 0.125),
            GlobalAveragePool("mean", "cubic"),
            Dense("dense", "mean", draw(7, 3, 2), draw(8, 3)),
        ),
    )


def make_request(program: Program) -> bytes:
    parts = [build_diagnosis_header(program, DiagnosisMagic.REQUEST)]
    for index, body in enumerate(get_request_bodies(program)):
        parts.append(make_residues(500 + index, program.params, 2, body.form.level))
    return b"".join(parts)


def make_model(program: Program) -> bytes:
    parts = [build_model_head(program)]
    for index, body in enumerate(get_model_bodies(program)):
        parts.append(make_residues(5000 + index, program.params, 2, body.form.level))
    return b"".join(parts)


@pytest.mark.parametrize("rewritten", [True, False])
@pytest.mark.parametrize("weights", ["clear", "encrypted"])
def test_golden_hashes(weights: Switch, rewritten: bool) -> None:
    program = compile_network(
        make_network(), weights=weights, fold=rewritten, absorb=rewritten, insecure_ring=1024
    )
    model, request = make_model(program), make_request(program)
    assert len(model) == program.sizes.model
    seen = open_model(model, allow_insecure=True)
    context = PublicContext(program.params, relin_keys=make_relin_keys(program.params))
    result = compute_result(context, seen, model, request)
    check_result(program, result)
    assert len(result) == program.sizes.result > HEADER_BYTES
    assert hashlib.sha256(result).hexdigest() == GOLDEN[weights, rewritten]


def test_golden_encoding() -> None:
    digest = hashlib.sha256(encode(make_network())).hexdigest()
    assert digest == "f4970261694d95a6a2cc2b14dffa9e6b56bc51da0e8c69b9d10b4780739caf57"
