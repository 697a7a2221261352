"""Shamir's scheme against slow arithmetic, known answers, and what too few shares may say."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.shamir import combine, divide, multiply, split

DRAWS = {32: bytes(range(1, 33)), 2: b"\x12\x34"}


def multiply_slowly(a: int, b: int) -> int:
    """Schoolbook product of polynomials, then the remainder by x⁸+x⁴+x³+x+1."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def test_the_field() -> None:
    # FIPS 197, 4.2: {57}·{83} = {c1}, {57}·{13} = {fe}.
    assert multiply(0x57, 0x83) == 0xC1
    assert multiply(0x57, 0x13) == 0xFE
    for a in range(256):
        for b in range(256):
            assert multiply(a, b) == multiply_slowly(a, b)
            if b:
                assert divide(multiply(a, b), b) == a
    with pytest.raises(ZeroDivisionError):
        divide(1, 0)


def test_known_answers() -> None:
    """Worked by hand: 42 + c·x + d·x² at 1, 2, 3 with c = 12, d = 34 (hexadecimal)."""
    rows = iter((b"\x12", b"\x34"))
    shares = split(b"\x42", 3, 4, lambda length: next(rows))
    assert [shares[index][0] for index in (1, 2, 3)] == [0x64, 0xB6, 0x90]
    assert combine({index: shares[index] for index in (1, 2, 3)}) == b"\x42"
    # Shares that were once made, with more bytes and a threshold of two.
    shares = split(b"secret", 2, 3, lambda length: bytes.fromhex("000102fe80ff"))
    assert {index: value.hex() for index, value in shares.items()} == {
        1: "7364618ce58b", 2: "736767957e91", 3: "7366656bfe6e",
    }  # fmt: skip


@given(st.binary(min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_enough_shares_give_the_secret(secret: bytes, threshold: int, more: int, random) -> None:  # type: ignore[no-untyped-def]
    shares = split(secret, threshold, threshold + more)
    chosen = random.sample(sorted(shares), threshold)
    assert combine({index: shares[index] for index in chosen}) == secret
    assert combine(shares) == secret


@pytest.mark.parametrize(("threshold", "count"), [(2, 3), (3, 4)])
def test_too_few_shares_say_nothing(threshold: int, count: int) -> None:
    """Over all random coefficients, each set of too few shares takes every value equally often, and the same
    for every secret: the shares' distribution does not depend on it."""
    seen: list[list[Counter[tuple[int, ...]]]] = []
    limit = 256 if threshold == 2 else 256 * 256
    # Every byte of a secret is shared by itself: the n-th byte takes the n-th pair of coefficients.
    rows = [bytes(number % 256 for number in range(limit)), bytes(number // 256 for number in range(limit))]
    for secret in (0x00, 0x42, 0xFF):
        drawn = iter(rows)
        shares = split(bytes([secret]) * limit, threshold, count, lambda length, drawn=drawn: next(drawn))  # type: ignore[misc]
        chosen = combinations(sorted(shares), threshold - 1)
        seen.append([Counter(zip(*(shares[index] for index in few), strict=True)) for few in chosen])
    assert seen[0] == seen[1] == seen[2]
    assert all(set(counter.values()) == {1} and len(counter) == limit for counter in seen[0])


@pytest.mark.parametrize(("threshold", "count"), [(1, 3), (0, 0), (4, 3), (2, 256)])
def test_numbers_that_no_split_has(threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(b"secret", threshold, count)
    for shares in ({}, {1: b"a"}, {0: b"a", 1: b"b"}, {1: b"a", 2: b"bb"}, {1: b"a", 256: b"b"}):
        with pytest.raises(ValueError, match="expected at least two"):
            combine(shares)
