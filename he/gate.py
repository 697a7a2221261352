"""The byte gate: what comes from elsewhere is checked here, before the library sees any of it.

Exact length, the one valid header, every residue below its prime, and no ciphertext without a
secret part (but for the exact zero in bundles). What passes has exactly one encoding, so equal
hashes mean equal ciphertexts.
"""

import hashlib
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from he.errors import GateError, GateReason
from he.formats import (
    HEADER_BYTES,
    VALIDATION_FLAG,
    WORD_BYTES,
    Body,
    Magic,
    build_batch_layout,
    build_bundle_layout,
    build_header,
    build_loss_layout,
)
from he.params import CkksParams
from he.plan import build_plan
from he.spec import PolynomialSpec

Source = Path | bytes | bytearray | memoryview


def open_source(source: Source) -> memoryview:
    """A read-only view of bytes, or of a file mapped into memory."""
    if isinstance(source, Path):
        if source.stat().st_size == 0:
            return memoryview(b"")
        with source.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return memoryview(source).cast("B").toreadonly()


def check_batch(params: CkksParams, spec: PolynomialSpec, source: Source) -> bool:
    """True for a validation batch, False for a training batch.

    Raises: GateError.
    """
    plan = build_plan(params, spec)
    view = open_source(source)
    for validation in (False, True):
        layout = build_batch_layout(plan, validation=validation)
        if len(view) == layout.length:
            flags = VALIDATION_FLAG if validation else 0
            check_header(view, build_header(Magic.BATCH, params, spec, flags))
            check_bodies(params, view, layout.bodies)
            return validation
    raise GateError(GateReason.LENGTH, f"no batch has {len(view)} bytes")


def check_bundle(params: CkksParams, spec: PolynomialSpec, source: Source) -> None:
    """Returns only for a well-formed gradient bundle.

    Where weights are zero an honest gradient is the all-zero ciphertext, so that one is allowed.

    Raises: GateError.
    """
    layout = build_bundle_layout(build_plan(params, spec))
    view = open_source(source)
    check_length(view, layout.length)
    check_header(view, build_header(Magic.BUNDLE, params, spec))
    check_bodies(params, view, layout.bodies, allow_zero=True)


def check_loss(params: CkksParams, spec: PolynomialSpec, source: Source) -> None:
    """Returns only for a well-formed loss ciphertext.

    Raises: GateError.
    """
    layout = build_loss_layout(build_plan(params, spec))
    view = open_source(source)
    check_length(view, layout.length)
    check_header(view, build_header(Magic.LOSS, params, spec))
    check_bodies(params, view, layout.bodies)


def check_public_key(params: CkksParams, source: Source) -> memoryview:
    """The body of a well-formed public key.

    Raises: GateError.
    """
    return _check_keys(params, source, Magic.PUBLIC_KEY, parts=1, components=2)


def check_relin_keys(params: CkksParams, source: Source) -> memoryview:
    """The body of well-formed relinearisation keys: one part a data prime.

    Raises: GateError.
    """
    return _check_keys(params, source, Magic.RELIN_KEYS, parts=params.levels, components=2)


def check_secret_key(params: CkksParams, source: Source) -> memoryview:
    """The body of a well-formed secret key.

    Raises: GateError.
    """
    return _check_keys(params, source, Magic.SECRET_KEY, parts=1, components=1)


def check_galois_keys(params: CkksParams, rotations: Sequence[int], source: Source) -> memoryview:
    """The body of well-formed keys for exactly these rotations: in their order, one part a data prime.

    Raises: GateError.
    """
    header, parts = build_galois_header(params, rotations), len(rotations) * params.levels
    return _check_keys(params, source, Magic.GALOIS_KEYS, parts=parts, components=2, header=header)


def build_galois_header(params: CkksParams, rotations: Sequence[int]) -> bytes:
    """The one valid header: it ends in 12 bytes of the SHA-256 of the steps as 32-bit numbers."""
    digest = hashlib.sha256(struct.pack(f"<{len(rotations)}I", *rotations)).digest()[:12]
    return build_header(Magic.GALOIS_KEYS, params)[:-12] + digest


def compute_galois_bytes(params: CkksParams, rotations: Sequence[int]) -> int:
    """Exact length of encoded keys for these rotations."""
    words = len(rotations) * params.levels * 2 * len(params.primes) * params.ring
    return HEADER_BYTES + words * WORD_BYTES


def _check_keys(
    params: CkksParams,
    source: Source,
    magic: Magic,
    *,
    parts: int,
    components: int,
    header: bytes | None = None,
) -> memoryview:
    view = open_source(source)
    words = parts * components * len(params.primes) * params.ring
    check_length(view, HEADER_BYTES + words * WORD_BYTES)
    check_header(view, build_header(magic, params) if header is None else header)
    shape = (parts, components, len(params.primes), params.ring)
    residues = np.frombuffer(view, dtype="<u8", offset=HEADER_BYTES).reshape(shape)
    limits = np.array(params.primes, dtype=np.uint64)
    for part in range(parts):
        if not bool((residues[part].max(axis=-1) < limits).all()):
            raise GateError(GateReason.RESIDUE, f"a residue of key part {part} is not below its prime")
        if not bool(residues[part, -1].any()):
            raise GateError(GateReason.TRANSPARENT, f"key part {part} is empty")
    return view[HEADER_BYTES:]


def check_length(view: memoryview, expected: int) -> None:
    if len(view) != expected:
        raise GateError(GateReason.LENGTH, f"expected {expected} bytes, got {len(view)}")


def check_header(view: memoryview, expected: bytes) -> None:
    if view[:HEADER_BYTES] != expected:
        raise GateError(GateReason.HEADER, "not the header of this kind, preset and spec")


def check_bodies(
    params: CkksParams, view: memoryview, bodies: tuple[Body, ...], *, allow_zero: bool = False
) -> None:
    limits = np.array(params.primes, dtype=np.uint64)
    for index, body in enumerate(bodies):
        level = body.form.level
        words = 2 * level * params.ring
        residues = np.frombuffer(view, dtype="<u8", offset=body.offset, count=words).reshape(
            2, level, params.ring
        )
        if not bool((residues.max(axis=-1) < limits[:level]).all()):
            raise GateError(GateReason.RESIDUE, f"a residue of ciphertext {index} is not below its prime")
        if not bool(residues[1].any()) and not (allow_zero and not bool(residues[0].any())):
            raise GateError(GateReason.TRANSPARENT, f"ciphertext {index} has no secret part")
