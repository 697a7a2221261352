"""Matrix products on residues are those of exact integers, however large sums become."""

import numpy as np
import pytest

from he.errors import ParameterError
from he.primes import derive_primes
from he.residues import build_row_matrix, compute_products

PRIMES = derive_primes(1024, (60, 30))


@pytest.mark.parametrize("bits", [2, 20, 39, 43])
def test_products_are_exact(bits: int) -> None:
    rng = np.random.default_rng(bits)
    matrix = rng.integers(-(2**bits), 2**bits, size=(3, 9))
    matrix[:, 4] = 0
    limits = np.array(PRIMES, dtype=np.uint64)[:, None]
    columns = [rng.integers(0, 2**62, size=(2, 2, 50), dtype=np.uint64) % limits for _ in range(9)]
    columns[0][:] = limits - np.uint64(1)
    out = np.empty((3, 2, 2, 50), dtype=np.uint64)
    compute_products(columns, matrix, PRIMES, out)
    for index, prime in enumerate(PRIMES):
        data = np.stack([column[:, index] for column in columns]).astype(object)
        exact = np.tensordot(matrix.astype(object), data, axes=1) % prime
        assert (out[:, :, index].astype(object) == exact).all()


def test_integers_that_are_too_large_are_refused() -> None:
    column = np.ones((1, 1, 4), dtype=np.uint64)
    with pytest.raises(ParameterError, match="too large for exact sums"):
        compute_products([column], np.array([[2**45]]), PRIMES[:1], np.empty((1, 1, 1, 4), dtype=np.uint64))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (1, 2), (2, 1), (3, 2)])
def test_row_matrices_are_convolutions(stride: int, padding: int) -> None:
    rng = np.random.default_rng(0)
    kernels = rng.integers(-9, 9, size=(2, 3, 3, 3))
    rows = rng.integers(-9, 9, size=(3, 3, 7))
    matrix = build_row_matrix(kernels, 7, stride, padding)
    got = (matrix @ rows.reshape(-1)).reshape(2, -1)
    padded = np.pad(rows, ((0, 0), (0, 0), (padding, padding)))
    for j in range(got.shape[1]):
        window = padded[:, :, j * stride : j * stride + 3].transpose(1, 0, 2)
        assert (got[:, j] == (kernels * window).sum(axis=(1, 2, 3))).all()
