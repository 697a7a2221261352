"""Parameters built from ring degree and sizes: exact primes, one name, 128 bits."""

import pytest

from he.errors import ParameterError
from he.params import PRESETS, build_params, get_params
from he.primes import is_prime


def test_a_name_says_everything() -> None:
    params = build_params(16384, (50, 30, 30, 30, 50))
    assert params.name == "ckks-16384-50.30x3.50"
    assert get_params(params.name) == params
    assert params.prime_bits == (50, 30, 30, 30, 50)
    assert len(set(params.primes)) == 5
    assert all(is_prime(prime) and prime % 32768 == 1 for prime in params.primes)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_what_is_built(name: str) -> None:
    preset = PRESETS[name]
    assert build_params(preset.ring, preset.prime_bits, insecure=preset.insecure) == preset


def test_less_than_128_bits_is_refused() -> None:
    with pytest.raises(ParameterError, match="at most 214 give 128-bit security"):
        build_params(8192, (60, 60, 60, 60))
    with pytest.raises(ParameterError, match="at most 214"):
        get_params("ckks-8192-60x4")
    with pytest.raises(ParameterError, match="no security limit"):
        build_params(2048, (30, 30))
    assert build_params(2048, (60,) * 4, insecure=True).name == "test-2048-60x4"
    with pytest.raises(ParameterError, match="for tests only"):
        get_params("test-2048-60x4")
    assert get_params("test-2048-60x4", allow_insecure=True).insecure


@pytest.mark.parametrize(
    "name",
    [
        "ckks-16384-50.30.30.30.50",
        "ckks-16384-50.30x1.50",
        "ckks-16384-50.30x03.50",
        "ckks-12345-50.30",
        "ckks-16384-50",
        "ckks-16384-9x2",
        "ckks-16384-12x2",
        "ckks-16384-50.30x99",
        "ckks-32768-20.21.22.23.24.25.26.27",
        "ckks-16384-50..50",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ParameterError):
        get_params(name)
