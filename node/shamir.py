"""Shamir's secret sharing, byte by byte over GF(2⁸) with the polynomial of AES (0x11b).

Any `threshold` shares give the secret; fewer say nothing about it, whatever is computed: for every secret
there is exactly one polynomial through them.
"""

import secrets
from collections.abc import Callable, Mapping

MAX_SHARES = 255
_POLYNOMIAL = 0x11B


def _multiply_slowly(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= _POLYNOMIAL
        b >>= 1
    return product


def _build_tables() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Powers of the generator 3, twice round, and logarithms."""
    powers, logarithms, value = [], [0] * 256, 1
    for exponent in range(255):
        powers.append(value)
        logarithms[value] = exponent
        value = _multiply_slowly(value, 3)
    return tuple(powers * 2), tuple(logarithms)


_POWERS, _LOGARITHMS = _build_tables()


def multiply(a: int, b: int) -> int:
    """In GF(2⁸)."""
    return _POWERS[_LOGARITHMS[a] + _LOGARITHMS[b]] if a and b else 0


def divide(a: int, b: int) -> int:
    """In GF(2⁸). Raises: ZeroDivisionError."""
    if not b:
        raise ZeroDivisionError("division by zero in GF(256)")
    return _POWERS[_LOGARITHMS[a] + 255 - _LOGARITHMS[b]] if a else 0


def split(
    secret: bytes, threshold: int, count: int, draw: Callable[[int], bytes] = secrets.token_bytes
) -> dict[int, bytes]:
    """Shares by their index, 1 to `count`; `draw` gives random bytes.

    Raises: ValueError unless 2 <= threshold <= count <= 255.
    """
    if not 2 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"expected 2 <= threshold <= shares <= {MAX_SHARES}, got {threshold} of {count}")
    # Coefficients of each byte's polynomial, the constant first.
    rows = [secret, *(draw(len(secret)) for _ in range(threshold - 1))]
    return {index: _evaluate(rows, index) for index in range(1, count + 1)}


def _evaluate(rows: list[bytes], x: int) -> bytes:
    values = bytes(len(rows[0]))
    for row in reversed(rows):
        values = bytes(
            multiply(value, x) ^ coefficient for value, coefficient in zip(values, row, strict=True)
        )
    return values


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of at least as many shares as the threshold; of fewer, something that says nothing.

    Raises: ValueError for indices or lengths that no split gives.
    """
    lengths = {len(value) for value in shares.values()}
    if len(shares) < 2 or len(lengths) != 1 or not all(1 <= index <= MAX_SHARES for index in shares):
        raise ValueError("expected at least two shares of one length with indices from 1 to 255")
    secret = bytes(lengths.pop())
    for index, value in shares.items():
        # Lagrange's polynomial of this share at 0; in GF(2⁸) minus is plus.
        weight = 1
        for other in shares:
            if other != index:
                weight = multiply(weight, divide(other, other ^ index))
        secret = bytes(found ^ multiply(weight, byte) for found, byte in zip(secret, value, strict=True))
    return secret
