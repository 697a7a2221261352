"""Targets: the byte gate of encrypted updates before they are added, and of sums before they are opened."""

from collections.abc import Callable, Iterable

import numpy as np

from he.aggregate import check_sum, check_update
from he.aggregate_plan import AggregateMagic, AggregatePlan
from he.errors import GateError
from he.formats import HEADER_BYTES
from he.lanes import pack
from he.params import CkksParams
from tests.fuzz.target import Target, require

PARAMS = CkksParams("fuzz-64", 64, (12289, 7681, 40961), 30, 20, insecure=True)
"""The gate reads sizes from the parameters, so a tiny ring leaves no line of it out."""
PLAN = AggregatePlan(parameters=100, bound=10, weights_total=10, params=PARAMS, digits=1, ciphertexts=2)
COUNT = 3


def read_bits(data: bytes, at: int, width: int) -> int:
    """A number of `width` bits from bit `at`, the lowest bit first."""
    return int.from_bytes(data, "little") >> at & (1 << width) - 1


def build_run(
    check: Callable[[bytes], None], magic: AggregateMagic, count: int, *, secret: bool
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """GateError alone leaves it; what passes has the exact length, the one header and residues below
        their primes, an update a secret part as well."""
        check(data)
        require(len(data) == PLAN.update_bytes, "another length than the plan's")
        require(data[:HEADER_BYTES] == PLAN.build_header(magic, count), "another header")
        at = 0
        for _ in range(PLAN.ciphertexts):
            parts: list[list[int]] = [[], []]
            for part in parts:
                for prime, width in zip(PLAN.primes, PLAN.widths, strict=True):
                    for _ in range(PARAMS.ring):
                        part.append(read_bits(data[HEADER_BYTES:], at, width))
                        at += width
                        require(part[-1] < prime, "a residue is not below its prime")
            require(any(parts[1]) or not secret, "no secret part")
        require(at == 8 * (len(data) - HEADER_BYTES), "bits that no residue takes")

    return run


def build_seeds(magic: AggregateMagic, count: int) -> Callable[[], Iterable[bytes]]:
    def build() -> Iterable[bytes]:
        for fill in (0, 1, 2, 3):
            rows = [
                pack(np.full(PARAMS.ring, (0, 1, prime - 1, prime)[fill], dtype=np.uint64), width)
                for prime, width in zip(PLAN.primes, PLAN.widths, strict=True)
            ]
            yield PLAN.build_header(magic, count) + b"".join(rows) * (2 * PLAN.ciphertexts)

    return build


def build_targets() -> list[Target]:
    update, total = AggregateMagic.UPDATE, AggregateMagic.SUM
    run_update = build_run(lambda data: check_update(PLAN, data), update, 1, secret=True)
    run_sum = build_run(lambda data: check_sum(PLAN, data, COUNT), total, COUNT, secret=False)
    return [
        Target("gate.update", run_update, (GateError,), build_seeds(update, 1)),
        Target("gate.update_sum", run_sum, (GateError,), build_seeds(total, COUNT)),
    ]
