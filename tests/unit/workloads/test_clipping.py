"""Clipping: no patch ever weighs more than the clip, whatever its gradient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workloads.clipping import add_sums, clip_to_units, sum_clipped

ROWS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.one_of(
        st.floats(-10, 10),
        st.floats(-1e150, 1e150),
        st.floats(-1e-150, 1e-150),
        st.sampled_from([0.0, 5e-324, 1.0, -1.0]),
    ),
)


@given(ROWS, st.integers(1, 2**40), st.integers(0, 30))
def test_the_integer_norm_never_exceeds_the_clip(rows: np.ndarray, clip: int, bits: int) -> None:
    for row in clip_to_units(rows, clip, bits).tolist():
        assert sum(value**2 for value in row) <= clip**2  # exact integers


@given(ROWS, st.integers(1, 2**30), st.integers(0, 30))
def test_clipping_shrinks_and_keeps_signs(rows: np.ndarray, clip: int, bits: int) -> None:
    units = clip_to_units(rows, clip, bits)
    assert (np.abs(units) <= np.abs(np.ldexp(rows, bits))).all()
    assert (units * np.sign(rows) >= 0).all()


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-1, 1)))
def test_short_gradients_are_only_truncated(rows: np.ndarray) -> None:
    units = clip_to_units(rows, 10 * 2**20, 20)
    np.testing.assert_array_equal(units, np.trunc(rows * 2**20))


def test_truncation_is_toward_zero() -> None:
    rows = np.array([[1.75, -1.75, 0.99, -0.99]])
    assert clip_to_units(rows, 1000, 0).tolist() == [[1, -1, 0, 0]]


def test_a_long_gradient_keeps_its_direction() -> None:
    units = clip_to_units(np.array([[3e9, -4e9]]), 10**6, 20)
    np.testing.assert_allclose(units, [[6e5, -8e5]], atol=2)


def test_sums_are_exact() -> None:
    units = np.full((8192, 2), 2**40, dtype=np.int64)
    assert sum_clipped(units) == (2**53, 2**53)
    assert add_sums([(1, -2), (10, 20)]) == (11, 18)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        clip_to_units(np.array([[0.0, bad]]), 10, 20)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="clip"):
        clip_to_units(np.zeros((1, 1)), 0, 20)
    with pytest.raises(ValueError, match="at least one batch"):
        add_sums([])
    with pytest.raises(ValueError, match="different lengths"):
        add_sums([(1,), (1, 2)])
