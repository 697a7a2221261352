"""Byte layout of everything that travels: a 64-byte header of ours and bodies of raw residues.

A body is uint64 little-endian residues in the order [component][prime][coefficient], in NTT form.
Header: magic (8), preset name (32, zero-padded), then as uint16 patch, inputs, output side,
channels, gradient weight and flags, then 12 bytes: of the SHA-256 of the spec's encoding for what
was computed with its weights, zeros for everything else. There is exactly one valid header for each
kind, preset, spec and flag, so it is compared, never parsed.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum

from he.params import CkksParams
from he.plan import Form, Plan
from he.spec import PolynomialSpec

HEADER_BYTES = 64
WORD_BYTES = 8
_DIGEST_BYTES = 12


class Magic(bytes, Enum):
    BATCH = b"BMIFBAT2"
    BUNDLE = b"BMIFBUN2"
    LOSS = b"BMIFLOS2"
    PUBLIC_KEY = b"BMIFPUB1"
    RELIN_KEYS = b"BMIFRLK1"
    SECRET_KEY = b"BMIFSEC1"
    GALOIS_KEYS = b"BMIFGAL1"


VALIDATION_FLAG = 1


def build_header(
    magic: Magic, params: CkksParams, spec: PolynomialSpec | None = None, flags: int = 0
) -> bytes:
    """The one valid header."""
    name = params.name.encode("ascii")
    shape, digest = (0, 0, 0, 0, 0), b""
    if spec is not None:
        # A batch fits networks of any channels and kernels that leave the same window of output.
        channels = 0 if magic is Magic.BATCH else spec.channels
        digest = b"" if magic is Magic.BATCH else hashlib.sha256(spec.encode()).digest()[:_DIGEST_BYTES]
        shape = (spec.patch, spec.inputs, spec.output, channels, spec.gradient_weight)
    return struct.pack("<8s32s6H12s", magic.value, name, *shape, flags, digest)


@dataclass(frozen=True, slots=True)
class Body:
    """One ciphertext's place in a blob; always two components."""

    offset: int
    form: Form

    def get_length(self, params: CkksParams) -> int:
        return compute_body_bytes(params, self.form.level)


def compute_body_bytes(params: CkksParams, level: int) -> int:
    """Bytes of a ciphertext of two components."""
    return 2 * level * params.ring * WORD_BYTES


def _lay_out(params: CkksParams, forms: tuple[Form, ...]) -> tuple[Body, ...]:
    bodies, offset = [], HEADER_BYTES
    for form in forms:
        bodies.append(Body(offset, form))
        offset += compute_body_bytes(params, form.level)
    return tuple(bodies)


def _compute_end(params: CkksParams, bodies: tuple[Body, ...]) -> int:
    return bodies[-1].offset + bodies[-1].get_length(params)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Inputs [a][i][j], targets R [i][j] and, for validation, the loss's constant."""

    inputs: tuple[Body, ...]
    targets: tuple[Body, ...]
    constant: Body | None
    length: int

    @property
    def bodies(self) -> tuple[Body, ...]:
        return self.inputs + self.targets + (() if self.constant is None else (self.constant,))


def build_batch_layout(plan: Plan, *, validation: bool) -> BatchLayout:
    spec, params = plan.spec, plan.params
    inputs, targets = spec.inputs * spec.patch**2, spec.output**2
    forms = (plan.input,) * inputs + (plan.output,) * targets + ((plan.loss_sum,) if validation else ())
    bodies = _lay_out(params, forms)
    return BatchLayout(
        inputs=bodies[:inputs],
        targets=bodies[inputs : inputs + targets],
        constant=bodies[-1] if validation else None,
        length=_compute_end(params, bodies),
    )


@dataclass(frozen=True, slots=True)
class BundleLayout:
    """One body a gradient entry, in the order of the spec."""

    bodies: tuple[Body, ...]
    length: int


def build_bundle_layout(plan: Plan) -> BundleLayout:
    bodies = _lay_out(plan.params, plan.get_gradient_forms())
    return BundleLayout(bodies, _compute_end(plan.params, bodies))


def build_loss_layout(plan: Plan) -> BundleLayout:
    bodies = _lay_out(plan.params, (plan.loss,))
    return BundleLayout(bodies, _compute_end(plan.params, bodies))
