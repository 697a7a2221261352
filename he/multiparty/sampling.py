"""Secrets and errors of the library's own sampler, and common strings that everybody expands alike.

The library shows neither its generator nor its sampler. A throw-away key pair (b, a) under s' shows both:
s' is uniform ternary, and e = -(b + a s') an error of deviation 3.2. Each throw-away gives one of the two
and never both, since (b, a) ties them together; it is made in an engine of its own, which is dropped.
"""

import hashlib
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from he.backend import Engine
from he.errors import BuildError, ParameterError
from he.multiparty.modular import Residues, add, multiply, negate
from he.multiparty.ring import Small, lower
from he.params import CkksParams

SEED_BYTES = 32
ERROR_DEVIATION = 3.2
_MAX_ERROR = 21
"""Of the library's centred binomial sampler: 21 bits less 21 bits. Its clipped normal one ends at 19."""
_DOMAIN = b"bmif uniform residues 1\0"


def draw_ternary(params: CkksParams) -> Small:
    """(N,) coefficients, uniform in {-1, 0, 1}, from the library's cryptographic generator.

    Raises: BuildError if they do not look so: a third of each within eight deviations.
    """
    bodies = Engine(params).generate_keys(relin=False)
    coefficients = lower(params, _read(params, bodies.secret)[0], 1)
    third, tolerance = params.ring / 3, 8 * (params.ring * 2 / 9) ** 0.5
    for value in (-1, 0, 1):
        if abs(int((coefficients == value).sum()) - third) > tolerance:
            raise BuildError("the library's secret is not uniform ternary")
    return coefficients


def draw_error(params: CkksParams) -> Small:
    """(N,) coefficients of deviation 3.2, from the library's cryptographic generator.

    Raises: BuildError if they do not look so, by mean and deviation.
    """
    bodies = Engine(params).generate_keys(relin=False)
    secret, public = _read(params, bodies.secret)[0], _read(params, bodies.public)
    rows = [
        negate(add(public[0, index], multiply(public[1, index], secret[index], prime), prime), prime)
        for index, prime in enumerate(params.primes)
    ]
    coefficients = lower(params, np.stack(rows), _MAX_ERROR)
    mean, deviation = float(coefficients.mean()), float(coefficients.std())
    tolerance = 8 * ERROR_DEVIATION / params.ring**0.5
    if abs(mean) > tolerance or abs(deviation - ERROR_DEVIATION) > tolerance + 0.1:
        raise BuildError("the library's error has not the deviation that security rests on")
    return coefficients


def _read(params: CkksParams, body: bytes) -> Residues:
    """(components, primes, N) of what the library has just made."""
    words = np.frombuffer(body, dtype="<u8").astype(np.uint64)
    return words.reshape(-1, len(params.primes), params.ring)


def expand_uniform(seed: bytes, label: bytes, prime: int, count: int) -> Residues:
    """(count,) residues below `prime`, uniform, and the same for everybody with this seed and label.

    Keystream of ChaCha20 under SHA-256 of a domain, seed, prime and label, nonce and counter zero, as
    little-endian words cut to the prime's bits; words that are not below the prime are passed over.
    """
    if len(seed) != SEED_BYTES:
        raise ParameterError(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
    key = hashlib.sha256(_DOMAIN + seed + prime.to_bytes(8, "little") + label).digest()
    # A fixed nonce is safe: no key serves two strings.
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    mask = np.uint64((1 << prime.bit_length()) - 1)
    parts: list[Residues] = []
    missing = count
    while missing:
        words = np.frombuffer(stream.update(bytes(8 * missing)), dtype="<u8").astype(np.uint64) & mask
        parts.append(words[words < np.uint64(prime)])
        missing -= parts[-1].size
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def expand_polynomial(params: CkksParams, seed: bytes, label: bytes, primes: int) -> Residues:
    """(primes, N): a uniform polynomial modulo each of the first `primes` primes, in either domain."""
    return np.stack([expand_uniform(seed, label, prime, params.ring) for prime in params.primes[:primes]])


def draw_uniform(params: CkksParams, primes: int) -> Residues:
    """(primes, N): a uniform polynomial that nobody else knows, from the system's generator."""
    return expand_polynomial(params, secrets.token_bytes(SEED_BYTES), b"secret", primes)
