"""Encodings of what members send each other: exact length, one valid header, every residue below its prime.

A header of 64 bytes: magic (8), preset name (32, zero-padded), four numbers of 16 bits and 16 bytes of
more; what each kind puts there its class says. Bodies are uint64 little-endian residues, modulo the prime
of their row. As in `he.gate`, the reader knows what it expects and compares; nothing is parsed.
"""

import struct
from collections.abc import Sequence
from enum import Enum

import numpy as np

from he.errors import GateError, GateReason, ParameterError
from he.formats import HEADER_BYTES, WORD_BYTES
from he.gate import Source, check_header, check_length, open_source
from he.multiparty.modular import Residues
from he.params import CkksParams

MAX_MEMBERS = 64
"""A set of members is a number of 64 bits in headers."""


class Magic(bytes, Enum):
    PUBLIC_SHARE = b"BMIFMPK1"
    RELIN_FIRST = b"BMIFMR11"
    RELIN_SECOND = b"BMIFMR21"
    PIECE = b"BMIFMPC1"
    PARTIAL_OPENING = b"BMIFMPO1"
    MEMBER_SECRETS = b"BMIFMSE1"
    KEY_SHARE = b"BMIFMKS1"


def check_place(place: int) -> None:
    if not 0 <= place < MAX_MEMBERS:
        raise ParameterError(f"places are 0 to {MAX_MEMBERS - 1}, got {place}")


def build_header(magic: Magic, params: CkksParams, numbers: Sequence[int] = (), more: bytes = b"") -> bytes:
    """The one valid header."""
    fields = (*numbers, *(0,) * (4 - len(numbers)))
    return struct.pack("<8s32s4H16s", magic.value, params.name.encode("ascii"), *fields, more)


def encode_residues(residues: Residues) -> bytes:
    return residues.astype("<u8").tobytes()


def check_residues(
    params: CkksParams, source: Source, header: bytes, shape: tuple[int, ...], *, allow_zero: bool = False
) -> Residues:
    """Residues of `shape`, whose last two axes are primes (from the first on) and the ring; a copy.

    Raises: GateError, also if a polynomial is zero modulo every prime and that is not allowed.
    """
    view = open_source(source)
    check_length(view, HEADER_BYTES + WORD_BYTES * int(np.prod(shape)))
    check_header(view, header)
    residues = np.frombuffer(view, dtype="<u8", offset=HEADER_BYTES).reshape(shape)
    limits = np.array(params.primes[: shape[-2]], dtype=np.uint64)
    if not bool((residues.max(axis=-1) < limits).all()):
        raise GateError(GateReason.RESIDUE, "a residue is not below its prime")
    if not allow_zero and not bool(residues.any(axis=(-2, -1)).all()):
        raise GateError(GateReason.TRANSPARENT, "a polynomial is zero")
    return residues.astype(np.uint64)
