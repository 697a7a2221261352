"""Key and batch bytes made of arbitrary residues: the circuit is exact, so no secret is needed."""

import numpy as np

from he.formats import VALIDATION_FLAG, Magic, build_batch_layout, build_header
from he.keys import RelinKeys
from he.params import CkksParams
from he.plan import build_plan
from he.spec import PolynomialSpec


def make_residues(seed: int, params: CkksParams, parts: int, level: int) -> bytes:
    """`parts` polynomials of residues below the first `level` primes, from a fixed raw stream."""
    raw = (
        np.random.Philox(key=seed).random_raw(parts * level * params.ring).reshape(parts, level, params.ring)
    )
    return (raw % np.array(params.primes[:level], dtype=np.uint64)[:, None]).astype("<u8").tobytes()


def make_relin_keys(params: CkksParams, seed: int = 1) -> RelinKeys:
    body = make_residues(seed, params, 2 * params.levels, len(params.primes))
    return RelinKeys.decode(params, build_header(Magic.RELIN_KEYS, params) + body)


def make_batch(params: CkksParams, spec: PolynomialSpec, *, validation: bool, seed: int = 100) -> bytes:
    layout = build_batch_layout(build_plan(params, spec), validation=validation)
    parts = [build_header(Magic.BATCH, params, spec, VALIDATION_FLAG if validation else 0)]
    parts += [
        make_residues(seed + index, params, 2, body.form.level) for index, body in enumerate(layout.bodies)
    ]
    return b"".join(parts)
