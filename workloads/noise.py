"""Gaussian noise that is a pseudorandom function of a secret and what it is bound to.

The same secret, binding and number of draws always give the same noise, so an opening that is
repeated after a crash has the same bytes; without the secret it cannot be told from fresh noise.
"""

import hashlib
from statistics import NormalDist

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

SECRET_BYTES = 32
_DRAW_BYTES = 8
_UNIFORM_BITS = 53
_NORMAL = NormalDist()


def compute_keystream(secret: bytes, binding: bytes, length: int) -> bytes:
    """`length` bytes of ChaCha20 keystream under SHA-256(secret, binding), nonce and counter zero."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a noise secret has {SECRET_BYTES} bytes, got {len(secret)}")
    if not binding:
        raise ValueError("noise must be bound to what it is added to, got an empty binding")
    key = hashlib.sha256(secret + binding).digest()
    # A fixed nonce is safe because no key ever serves two messages: the key *is* the binding's.
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return encryptor.update(bytes(length))


def draw_gaussian(secret: bytes, binding: bytes, count: int, std: int) -> tuple[int, ...]:
    """`count` draws of N(0, std²), each rounded to an integer; the sum with an integer is thus the
    rounding of that integer plus continuous noise, and the continuous mechanism's epsilon holds."""
    if std < 0:
        raise ValueError(f"noise std must not be negative, got {std}")
    if std == 0:
        return (0,) * count
    stream = compute_keystream(secret, binding, count * _DRAW_BYTES)
    draws = []
    for index in range(count):
        word = int.from_bytes(stream[index * _DRAW_BYTES : (index + 1) * _DRAW_BYTES], "big")
        # 53 bits for the lower half and one for the sign: exact, never 0 or 1 (infinite), and the
        # tail is as fine as the middle.
        lower = ((word >> (64 - _UNIFORM_BITS)) + 1) / 2.0 ** (_UNIFORM_BITS + 1)
        magnitude = -std * _NORMAL.inv_cdf(lower)
        draws.append(round(magnitude if word & 1 else -magnitude))
    return tuple(draws)
