"""Residue arithmetic of up to 61 bits equals Python's integers, and the transform the library's."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he.backend import Engine
from he.errors import ParameterError
from he.multiparty.modular import (
    Residues,
    add,
    center,
    compute_constant,
    compute_inner_product,
    compute_lagrange,
    join_residues,
    multiply,
    negate,
    reduce_signed,
    split_limbs,
    subtract,
)
from he.multiparty.ring import invert_transform, lift, lower, transform
from he.params import get_params
from tests.he import forging

SMALL = get_params("test-2048-60x3", allow_insecure=True)
PRIMES = (3, 65537, (1 << 31) - 1, 1125899906629633, *SMALL.primes, (1 << 60) - 93, (1 << 61) - 1)


@st.composite
def draw_pairs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    prime = draw(st.sampled_from(PRIMES))
    edge = st.sampled_from(sorted({0, 1, prime // 2, prime // 2 + 1, prime - 2, prime - 1}))
    halves = st.sampled_from([1 << 30, (1 << 30) - 1, 1 << 53]).map(lambda value: value % prime)
    residue = st.one_of(st.integers(0, prime - 1), edge, halves)
    return prime, draw(st.lists(st.tuples(residue, residue), min_size=1, max_size=40))


@given(draw_pairs())
def test_arithmetic_equals_python(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    prime, pairs = drawn
    a, b = (np.array(column, dtype=np.uint64) for column in zip(*pairs, strict=True))
    cases: list[tuple[Residues, Callable[[int, int], int]]] = [
        (multiply(a, b, prime), lambda x, y: x * y),
        (add(a, b, prime), lambda x, y: x + y),
        (subtract(a, b, prime), lambda x, y: x - y),
        (negate(a, prime), lambda x, y: -x),
    ]
    for found, expected in cases:
        assert found.tolist() == [expected(x, y) % prime for x, y in pairs]
    assert multiply(a, pairs[0][1], prime).tolist() == [x * pairs[0][1] % prime for x, _ in pairs]
    inner = compute_inner_product(split_limbs(a), split_limbs(b), prime)
    assert inner == sum(x * y for x, y in pairs) % prime
    if prime != 3 or len(pairs) % 3:
        assert compute_constant(a, prime) == sum(x for x, _ in pairs) * pow(len(pairs), -1, prime) % prime
    signed = center(a, prime)
    assert bool((2 * np.abs(signed) < prime).all())
    assert reduce_signed(signed, prime).tolist() == a.tolist()


@pytest.mark.parametrize("prime", PRIMES)
def test_long_products_equal_python(prime: int) -> None:
    """Several chunks, and rows of extremes on which every rounding errs to one side."""
    rng = np.random.default_rng(prime)
    drawn = rng.integers(0, prime, (2, 9000), dtype=np.uint64)
    for a, b in (
        drawn,
        (np.full(9000, prime - 1, np.uint64), drawn[0]),
        [np.full(9000, prime - 1, np.uint64)] * 2,
    ):
        expected = [x * y % prime for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert multiply(a, b, prime).tolist() == expected
        assert compute_inner_product(split_limbs(a), split_limbs(b), prime) == sum(expected) % prime


def test_shapes_are_kept_and_checked() -> None:
    prime = SMALL.primes[0]
    a = np.arange(12, dtype=np.uint64).reshape(3, 4)
    assert multiply(a.T, a.T, prime).tolist() == (a.T**2).tolist()
    with pytest.raises(ParameterError):
        multiply(a, a[0], prime)
    with pytest.raises(ParameterError):
        multiply(a, a, 1 << 61)
    with pytest.raises(ParameterError):
        compute_inner_product(split_limbs(a[0]), split_limbs(a[0, :2]), prime)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8, unique=True), st.data())
def test_lagrange_factors_give_the_value_at_zero(points: list[int], data: st.DataObject) -> None:
    prime = SMALL.primes[1]
    coefficients = data.draw(st.lists(st.integers(0, prime - 1), min_size=len(points), max_size=len(points)))
    values = {x: sum(c * x**k for k, c in enumerate(coefficients)) for x in points}
    total = sum(compute_lagrange(points, x, prime) * value for x, value in values.items())
    assert total % prime == coefficients[0]


@pytest.mark.parametrize("points", [(1, 1), (0, 1), (SMALL.primes[0], 1), (2, 3)])
def test_points_that_give_a_share_away_are_refused(points: tuple[int, ...]) -> None:
    """At 0 (and at the prime) a share would be the secret."""
    with pytest.raises(ParameterError):
        compute_lagrange(points, 1, SMALL.primes[0])


@given(st.integers(-(2**118), 2**118))
def test_residues_join_to_the_signed_integer(value: int) -> None:
    primes = SMALL.primes[:2]
    assert join_residues([value % prime for prime in primes], primes) == value


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_the_transform_is_the_textbook_one(seed: int) -> None:
    """Against the reference in Python integers, of a ring of 64."""
    prime = SMALL.primes[0]
    coefficients = np.random.default_rng(seed).integers(0, prime, 64, dtype=np.uint64)
    values = transform(coefficients, prime)
    assert values.tolist() == forging.transform(coefficients.tolist(), prime)
    assert invert_transform(values, prime).tolist() == coefficients.tolist()
    assert compute_constant(values, prime) == int(coefficients[0])


def test_the_transform_is_the_librarys() -> None:
    """A secret of the library's is ternary in it, modulo every prime alike."""
    body = Engine(SMALL).generate_keys(relin=False).secret
    residues = np.frombuffer(body, "<u8").reshape(-1, SMALL.ring).astype(np.uint64)
    coefficients = lower(SMALL, residues, 1)
    assert set(coefficients.tolist()) == {-1, 0, 1}
    assert bool((lift(SMALL, coefficients, len(SMALL.primes)) == residues).all())


def test_what_is_not_one_small_polynomial_is_refused() -> None:
    small = np.zeros(SMALL.ring, dtype=np.int8)
    small[3] = 2
    residues = lift(SMALL, small, len(SMALL.primes))
    assert bool((lower(SMALL, residues, 2) == small).all())
    with pytest.raises(ParameterError, match="larger"):
        lower(SMALL, residues, 1)
    other = residues.copy()
    other[2] = transform(np.zeros(SMALL.ring, dtype=np.uint64), SMALL.primes[2])
    with pytest.raises(ParameterError, match="another polynomial"):
        lower(SMALL, other, 2)
    other[1, 0] = SMALL.primes[1]
    with pytest.raises(ParameterError, match="below"):
        lower(SMALL, other, 2)
    with pytest.raises(ParameterError):
        lower(SMALL, residues[:2], 2)
    with pytest.raises(ParameterError):
        lift(SMALL, small[:8], 1)
