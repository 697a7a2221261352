"""Plans, packed residues and the transform that exact sums rest on."""

import itertools

import numpy as np
import pytest

from he.aggregate_plan import MAX_CAPACITY, MAX_UPDATES, AggregatePlan, compute_noise_bound, plan_aggregate
from he.errors import MagnitudeError, ParameterError
from he.lanes import compute_packed_bytes, pack, unpack
from he.params import MAX_MODULUS_BITS
from he.primes import derive_primes
from he.transform import invert, multiply_modulo, transform
from tests.he.forging import transform as transform_by_the_book

SEED = 11

GOLDEN = {
    (1, 1, 2): ("ckks-4096-16.22", 1, 1, 16_448),
    (100_000, 1 << 15, 1000): ("ckks-16384-49x4.22", 7, 1, 802_880),
    (1_000_000, 1 << 16, 1000): ("ckks-16384-43x5.42.22", 9, 7, 7_368_768),
    (1_000_000, 1 << 31, 1 << 18): ("ckks-16384-46x4.45x4.22", 7, 9, 13_418_560),
}
"""Parameters, digits, ciphertexts and bytes: everybody's, so none of them may change."""


@pytest.mark.parametrize("asked", GOLDEN)
def test_plans_are_the_same_everywhere(asked: tuple[int, int, int]) -> None:
    plan = plan_aggregate(*asked)
    assert (plan.params.name, plan.digits, plan.ciphertexts, plan.update_bytes) == GOLDEN[asked]
    assert f"{plan.update_bytes:,} bytes" in str(plan)


@pytest.mark.parametrize(
    ("parameters", "bound", "weights"),
    list(itertools.product((1, 4097, 100_000, 1_000_000), (1, 1 << 8, 1 << 20, 1 << 31), (2, 1 << 18))),
)
def test_plans_are_secure_and_leave_room_for_the_noise(parameters: int, bound: int, weights: int) -> None:
    plan = plan_aggregate(parameters, bound, weights)
    assert not plan.params.insecure
    assert sum(plan.params.prime_bits) <= MAX_MODULUS_BITS[plan.params.ring]
    assert plan.digits * plan.ciphertexts * plan.params.ring >= parameters
    check_room(plan)


def check_room(plan: AggregatePlan) -> None:
    """The largest message and the largest noise together stay within the modulus and round to the message."""
    noise = compute_noise_bound(plan.params.ring)
    largest = sum(plan.capacity * plan.radix**digit for digit in range(plan.digits))
    assert plan.delta > 2 * noise
    assert 2 * (plan.delta * largest + noise) < plan.modulus


def test_the_noise_bound_is_that_of_the_argument() -> None:
    """Hoeffding's inequality for 64 updates of N + 1 roundings, over 2^25 coefficients: below 2^-64."""
    for ring in MAX_MODULUS_BITS:
        t = compute_noise_bound(ring) - MAX_UPDATES
        exponent = 2 * t * t / (MAX_UPDATES * (ring + 1))
        assert exponent / np.log(2) - 1 - 25 >= 64
        # What the special prime divides is below one.
        assert 21 * (2 * ring + 1) < 2**21


def test_plans_out_of_range_are_refused() -> None:
    for wrong, name in (
        ((0, 1, 1), "parameters"),
        ((1 << 26, 1, 1), "parameters"),
        ((1, 0, 1), "bound"),
        ((1, 1, 0), "weights_total"),
        ((1, 1, MAX_CAPACITY + 1), "weights_total"),
    ):
        with pytest.raises(ParameterError, match=name):
            plan_aggregate(*wrong)
    with pytest.raises(MagnitudeError, match="lower bound"):
        plan_aggregate(1, 1 << 40, 1 << 17)
    check_room(plan_aggregate(1, MAX_CAPACITY, 1))


# --- packing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 14, 22, 31, 32, 33, 43, 48, 50, 63])
def test_numbers_are_packed_without_padding(width: int) -> None:
    numbers = np.random.default_rng(SEED).integers(0, 1 << width, 192, dtype=np.uint64)
    numbers[:3] = 0, (1 << width) - 1, 1
    data = pack(numbers, width)
    assert len(data) == compute_packed_bytes(192, width) == 24 * width
    assert int.from_bytes(data, "little") == sum(
        int(number) << index * width for index, number in enumerate(numbers)
    )
    assert (unpack(data, width) == numbers).all()


def test_every_string_is_one_packing() -> None:
    data = np.random.default_rng(SEED).bytes(43 * 16)
    assert pack(unpack(data, 43), 43) == data


def test_numbers_that_leave_bits_over_are_refused() -> None:
    for count, width in ((63, 8), (64, 0), (64, 64)):
        with pytest.raises(ParameterError, match="do not fill"):
            compute_packed_bytes(count, width)


# --- the transform ----------------------------------------------------------------------------


def test_products_are_exact_up_to_the_largest_prime() -> None:
    draw = np.random.default_rng(SEED)
    for bits in (14, 40, 50):
        prime = derive_primes(1024, (bits,))[0]
        a, b = draw.integers(0, prime, (2, 20_000))
        edges = np.array([0, 1, 2, prime // 2, prime // 2 + 1, prime - 2, prime - 1])
        a[:49], b[:49] = np.repeat(edges, 7), np.tile(edges, 7)
        expected = [x * y % prime for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert multiply_modulo(a, b, prime).tolist() == expected


@pytest.mark.parametrize("bits", [20, 43, 50])
def test_the_transform_is_the_library_s(bits: int) -> None:
    prime = derive_primes(1024, (bits,))[0]
    coefficients = np.random.default_rng(SEED).integers(0, prime, (2, 1024))
    values = transform(coefficients, prime)
    assert values[1].tolist() == transform_by_the_book(coefficients[1].tolist(), prime)
    assert (invert(values, prime) == coefficients).all()


def test_primes_that_are_too_large_or_do_not_split_the_ring_are_refused() -> None:
    for prime in (derive_primes(1024, (51,))[0], 12289):
        with pytest.raises(ParameterError, match="no prime of at most"):
            transform(np.zeros(16384, dtype=np.int64), prime)
