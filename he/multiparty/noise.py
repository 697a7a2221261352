"""Noise of a member, as a function of its secret and of what it is added to: exact discrete Gaussians.

The same secret and binding give the same noise, so a question that is repeated has one answer. The binding
names everything that makes a question another one: task, step, attempt, subset and the ciphertexts' digest.

Deviations in units of coefficients reach 2^61, where doubles are 2^9 apart: noise drawn in doubles would
leave the low bits of a coefficient bare, and those are of the ciphertext's error, which depends on the key.
So draws are made in integers alone, by rejection, of exactly the discrete Gaussian: probabilities are
proportional to exp(-x^2 / 2 deviation^2). It has the differential privacy of the continuous one.

Source: Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020,
algorithms 1 to 3.
"""

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from he.errors import ParameterError
from he.multiparty.hidden import Hidden
from he.multiparty.opening import Noise

SECRET_BYTES = 32
_DOMAIN = b"bmif opening noise 1\0"


class _Stream(Hidden):
    """Exact events of a keystream."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        # A fixed nonce is safe: the key is the binding's own.
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def draw_below(self, bound: int) -> int:
        """Uniform from 0 to `bound` - 1."""
        bits = (bound - 1).bit_length()
        length = (bits + 7) // 8
        while True:
            word = int.from_bytes(self._cipher.update(bytes(length)), "little") & ((1 << bits) - 1)
            if word < bound:
                return word

    def flip(self, numerator: int, denominator: int) -> bool:
        """True with probability numerator / denominator, at most 1."""
        return self.draw_below(denominator) < numerator

    def flip_exponential(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator), by von Neumann's series."""
        for _ in range(numerator // denominator):
            if not self._flip_series(1, 1):
                return False
        return self._flip_series(numerator % denominator, denominator)

    def _flip_series(self, numerator: int, denominator: int) -> bool:
        count = 1
        while self.flip(numerator, denominator * count):
            count += 1
        return count % 2 == 1

    def draw_laplace(self, scale: int) -> int:
        """With probability proportional to exp(-|x| / scale)."""
        while True:
            rest = self.draw_below(scale)
            if not self.flip_exponential(rest, scale):
                continue
            whole = 0
            while self._flip_series(1, 1):
                whole += 1
            magnitude, negative = rest + scale * whole, self.flip(1, 2)
            if magnitude or not negative:
                return -magnitude if negative else magnitude

    def draw_gaussian(self, deviation: int) -> int:
        """With probability proportional to exp(-x^2 / 2 deviation^2)."""
        scale, variance = deviation + 1, deviation**2
        while True:
            value = self.draw_laplace(scale)
            if self.flip_exponential((abs(value) * scale - variance) ** 2, 2 * variance * scale**2):
                return value


def draw_noise(secret: bytes, binding: bytes, deviations: Sequence[int]) -> Noise:
    """A draw for each deviation.

    Raises: ParameterError on a secret of another length, no binding, or a deviation that is not positive.
    """
    if len(secret) != SECRET_BYTES or not binding:
        raise ParameterError(f"noise needs a secret of {SECRET_BYTES} bytes and a binding")
    if any(deviation < 1 for deviation in deviations):
        raise ParameterError("nothing is opened without noise")
    stream = _Stream(hashlib.sha256(_DOMAIN + secret + hashlib.sha256(binding).digest()).digest())
    return Noise(tuple(stream.draw_gaussian(deviation) for deviation in deviations), tuple(deviations))
