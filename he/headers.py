"""Headers of what the library writes, harvested from its own throw-away keys.

Bodies travel without them: whoever loads a body puts this process's own header before it, so that no header
of foreign origin reaches the library.
"""

from dataclasses import dataclass

import numpy as np

from he.errors import BuildError
from he.library import (
    CIPHERTEXT_HEADER,
    PLAINTEXT_HEADER,
    RELIN_HEADER,
    SECRET_HEADER,
    WORD,
    Library,
)
from he.params import CkksParams


@dataclass(frozen=True, slots=True)
class Templates:
    """Headers that this process's library wrote for these parameters."""

    ciphertext: tuple[bytes, ...]
    """By level - 1, for two components at scale 1."""
    plaintext: tuple[bytes, ...]
    public_key: bytes
    secret_key: bytes
    relin_keys: bytes


def build_templates(scratch: Library, params: CkksParams) -> Templates:
    """Harvests headers from throw-away keys of `scratch`, of no use afterwards; checks how it was built."""
    scratch.keyGen()
    scratch.relinKeyGen()
    plain = scratch.encodeFrac(np.ones(1), scale=1.0)
    probe = scratch.encryptFrac(np.ones(1), scale=1.0)
    try:
        zero = scratch.sub(probe, probe, True)
    except (RuntimeError, ValueError) as error:
        raise BuildError(
            "the library was built to throw on transparent ciphertexts; see the README"
        ) from error
    del zero
    ciphertext: list[bytes] = []
    plaintext: list[bytes] = []
    for level in range(params.levels, 0, -1):
        data = probe.to_bytes("none")
        check_length(data, CIPHERTEXT_HEADER + 2 * level * params.ring * WORD)
        ciphertext.append(data[:CIPHERTEXT_HEADER])
        text = plain.to_bytes("none")
        check_length(text, PLAINTEXT_HEADER + level * params.ring * WORD)
        plaintext.append(bytes(text[:PLAINTEXT_HEADER]))
        if level > 1:
            scratch.mod_switch_to_next_ctxt(probe)
            plain = scratch.mod_switch_to_next_ptxt(plain, True)
    key = 2 * len(params.primes) * params.ring * WORD
    public = scratch.to_bytes_public_key("none")
    check_length(public, CIPHERTEXT_HEADER + key)
    secret = scratch.to_bytes_secret_key("none")
    check_length(secret, SECRET_HEADER + key // 2)
    relin = scratch.to_bytes_relin_key("none")
    part = CIPHERTEXT_HEADER + key
    check_length(relin, RELIN_HEADER + params.levels * part)
    for index in range(params.levels):
        start = RELIN_HEADER + index * part
        if relin[start : start + CIPHERTEXT_HEADER] != public[:CIPHERTEXT_HEADER]:
            raise BuildError("unexpected layout of relinearisation keys")
    return Templates(
        ciphertext=tuple(reversed(ciphertext)),
        plaintext=tuple(reversed(plaintext)),
        public_key=public[:CIPHERTEXT_HEADER],
        secret_key=secret[:SECRET_HEADER],
        relin_keys=relin[:RELIN_HEADER],
    )


def check_length(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise BuildError(f"the library serialised {len(data)} bytes where {expected} were expected")
