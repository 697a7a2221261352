"""Rotation keys between the library's form and ours: residues of exactly the rotations that were asked for.

The library writes a list of keys for each of N automorphisms X -> X^(2 i + 1), empty where there is none; we
keep the residues alone, in the order of rotations.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise

from he.errors import BuildError, ParameterError
from he.library import CIPHERTEXT_HEADER, KEYS_HEADER, WORD
from he.params import CkksParams

Buffer = bytes | bytearray | memoryview


def check_rotations(params: CkksParams, rotations: Sequence[int]) -> None:
    """Returns only for ascending steps from 1 to one less than the slots.

    Raises: ParameterError.
    """
    bounds = (0, *rotations, params.slots)
    if any(a >= b for a, b in pairwise(bounds)):
        raise ParameterError(f"rotations must be ascending steps from 1 to {params.slots - 1}")


def _get_index(params: CkksParams, step: int) -> int:
    """Where the library keeps the key of a rotation, the automorphism X -> X^(3^step)."""
    return (pow(3, step, 2 * params.ring) - 1) // 2


def _get_part_bytes(params: CkksParams) -> int:
    return 2 * len(params.primes) * params.ring * WORD


def cut_galois_keys(params: CkksParams, rotations: Sequence[int], data: bytes) -> bytes:
    """The residues in what the library wrote.

    Raises: BuildError if its layout is unknown, or keys are of other rotations.
    """
    view, offset = memoryview(data), KEYS_HEADER + WORD
    size = _get_part_bytes(params)
    part = CIPHERTEXT_HEADER + size
    found: dict[int, bytes] = {}
    for index in range(params.ring):
        (count,) = struct.unpack_from("<Q", view, offset)
        offset += WORD
        if count not in (0, params.levels):
            raise BuildError("unexpected layout of rotation keys")
        if count:
            starts = range(offset + CIPHERTEXT_HEADER, offset + count * part, part)
            found[index] = b"".join(view[start : start + size] for start in starts)
            offset += count * part
    order = [_get_index(params, step) for step in rotations]
    if offset != len(data) or sorted(order) != sorted(found):
        raise BuildError("the library made keys for other rotations")
    return b"".join(found[index] for index in order)


def join_galois_keys(
    params: CkksParams, rotations: Sequence[int], body: Buffer, header: bytes, part_header: bytes
) -> bytes:
    """What the library reads; its headers are those that this process's library wrote for these parameters.

    Raises: ParameterError if the body is of another length.
    """
    part, view = _get_part_bytes(params), memoryview(body)
    size = params.levels * part
    if len(view) != len(rotations) * size:
        raise ParameterError(f"a body of {len(view)} bytes holds no keys for {len(rotations)} rotations")
    places = {_get_index(params, step): place for place, step in enumerate(rotations)}
    parts: list[Buffer] = [b"", struct.pack("<Q", params.ring)]
    for index in range(params.ring):
        place = places.get(index)
        if place is None:
            parts.append(bytes(WORD))
            continue
        parts.append(struct.pack("<Q", params.levels))
        for start in range(place * size, (place + 1) * size, part):
            parts += [part_header, view[start : start + part]]
    length = KEYS_HEADER + sum(len(piece) for piece in parts)
    parts[0] = header[:8] + struct.pack("<Q", length) + header[16:]
    return b"".join(parts)
