"""Residues packed to the width of their prime: 64 numbers of b bits in b words, no bit of padding.

Number i of 64 takes bits i b to i b + b - 1 of the b words, the lowest bit first; words are little-endian.
Every string of bytes of the right length is the packing of exactly one row of numbers below 2^b.
"""

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Residues = NDArray[np.uint64]

_LANES = 64
_WORD_BITS = 64


def compute_packed_bytes(count: int, width: int) -> int:
    """Raises: ParameterError unless `count` is a multiple of 64."""
    if count % _LANES or not 1 <= width < _WORD_BITS:
        raise ParameterError(f"{count} numbers of {width} bits do not fill words of {_WORD_BITS}")
    return count * width // 8


def pack(numbers: Residues, width: int) -> bytes:
    """`numbers` (n,) below 2^width; n is a multiple of 64."""
    compute_packed_bytes(len(numbers), width)
    lanes = np.ascontiguousarray(numbers.reshape(-1, _LANES).T)
    words = np.zeros((width, lanes.shape[1]), dtype=np.uint64)
    for lane in range(_LANES):
        word, shift = divmod(lane * width, _WORD_BITS)
        words[word] |= lanes[lane] << np.uint64(shift)
        if shift + width > _WORD_BITS:
            words[word + 1] |= lanes[lane] >> np.uint64(_WORD_BITS - shift)
    return words.T.astype("<u8").tobytes()


def unpack(data: bytes | memoryview, width: int) -> Residues:
    """(n,) of what `pack` gave."""
    words = np.ascontiguousarray(np.frombuffer(data, dtype="<u8").reshape(-1, width).T).astype(np.uint64)
    lanes = np.empty((_LANES, words.shape[1]), dtype=np.uint64)
    mask = np.uint64((1 << width) - 1)
    for lane in range(_LANES):
        word, shift = divmod(lane * width, _WORD_BITS)
        lanes[lane] = words[word] >> np.uint64(shift)
        if shift + width > _WORD_BITS:
            lanes[lane] |= words[word + 1] << np.uint64(_WORD_BITS - shift)
        lanes[lane] &= mask
    return np.ascontiguousarray(lanes.T).reshape(-1)
