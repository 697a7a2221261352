"""Sums of encrypted updates are exact, the same bytes everywhere, and the only thing that is opened."""

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from he.aggregate import (
    AggregatePlan,
    add_updates,
    check_sum,
    check_update,
    decrypt_sum,
    encode_private,
    encode_public_key,
    encrypt_update,
    load_private,
    load_public_key,
    make_aggregate_keys,
    plan_aggregate,
)
from he.aggregate_plan import AggregateMagic, compute_noise_bound
from he.context import PrivateContext, PublicContext
from he.errors import GateError, GateReason, MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES
from he.lanes import pack, unpack
from he.plan import Form
from he.transform import invert
from tests.fuzz.target import ROOT

SEED = 7
WEIGHTS = tuple(range(1, 65))
PLAN = plan_aggregate(4000, 500, sum(WEIGHTS), ring=1024, insecure=True)
"""Two ciphertexts, the second one not full, two values a coefficient, two primes."""

Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


def test_the_plan_is_as_said() -> None:
    assert (PLAN.ciphertexts, PLAN.digits, len(PLAN.primes)) == (2, 2, 2)
    assert PLAN.parameters < 2 * 2 * 1024


@pytest.fixture(scope="module")
def private() -> PrivateContext:
    return make_aggregate_keys(PLAN)


@pytest.fixture(scope="module")
def public(private: PrivateContext) -> PublicContext:
    """By way of the key's bytes, as a participant has it."""
    return load_public_key(PLAN, encode_public_key(private))


@pytest.fixture(scope="module")
def updates(public: PublicContext) -> list[tuple[Integers, bytes]]:
    """64 participants' values and updates, values at the ends of their ranges in patterns."""
    draw = np.random.default_rng(SEED)
    found = []
    for index, weight in enumerate(WEIGHTS):
        largest = PLAN.bound * weight
        values = draw.integers(-largest, largest, PLAN.parameters, endpoint=True)
        values[:500] = largest
        values[500:1000] = -largest
        values[1000:1500] = np.where(np.arange(500) % 2, largest, -largest)
        values[1500:2000] = 0 if index else 1
        found.append((values, encrypt_update(public, PLAN, values, weight=weight)))
    return found


@pytest.fixture(scope="module")
def total(updates: list[tuple[Integers, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sums") / "total"
    add_updates(PLAN, [update for _, update in updates], path)
    return path


def assert_refused(check: Callable[[bytes], object], data: bytes, reason: GateReason) -> None:
    with pytest.raises(GateError) as caught:
        check(data)
    assert caught.value.reason is reason


# --- exactness --------------------------------------------------------------------------------


def test_sum_of_64_updates_at_their_bounds_is_exact(
    private: PrivateContext, updates: list[tuple[Integers, bytes]], total: Path
) -> None:
    expected = np.sum([values for values, _ in updates], axis=0)
    assert expected.max() == PLAN.capacity == -expected.min()
    assert (decrypt_sum(private, PLAN, total, 64) == expected).all()


def test_noise_is_what_its_bound_supposes(
    private: PrivateContext, updates: list[tuple[Integers, bytes]], total: Path
) -> None:
    """The deviation is that of uniform roundings times a ternary secret, the largest far below the bound."""
    noise = measure_noise(private, PLAN, total, np.sum([values for values, _ in updates], axis=0))
    supposed = (64 * (1 + 2 / 3 * PLAN.params.ring) / 12) ** 0.5
    assert 0.9 * supposed < noise.std() < 1.1 * supposed
    assert np.abs(noise).max() < 7 * supposed < compute_noise_bound(PLAN.params.ring) < PLAN.delta / 2


def measure_noise(
    private: PrivateContext, plan: AggregatePlan, total: Path, expected: Integers
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What decrypting finds beside D m, by Python's integers."""
    ring, noise = plan.params.ring, []
    flat = np.zeros(plan.ciphertexts * plan.digits * ring, dtype=object)
    flat[: plan.parameters] = expected.tolist()
    messages = flat.reshape(plan.ciphertexts, plan.digits, ring)
    for index, body in enumerate(read_bodies(plan, total.read_bytes())):
        message = sum(messages[index, digit] * plan.radix**digit for digit in range(plan.digits))
        phase = private.decrypt_residues(body)
        prime = plan.primes[0]
        rest = (invert(phase[0].view(np.int64), prime).astype(object) - plan.delta * message) % prime
        noise.append(np.where(rest > prime // 2, rest - prime, rest).astype(float))
    return np.concatenate(noise)


def read_bodies(plan: AggregatePlan, data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """(ciphertexts, 2, levels, N)."""
    at, rows = HEADER_BYTES, []
    for _ in range(2 * plan.ciphertexts):
        for width in plan.widths:
            rows.append(unpack(data[at : at + plan.params.ring * width // 8], width))
            at += plan.params.ring * width // 8
    return np.stack(rows).reshape(plan.ciphertexts, 2, len(plan.primes), plan.params.ring)


def write_bodies(
    plan: AggregatePlan, bodies: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], magic: AggregateMagic
) -> bytes:
    rows = bodies.reshape(-1, len(plan.primes), plan.params.ring)
    parts = [pack(row, width) for levels in rows for row, width in zip(levels, plan.widths, strict=True)]
    return plan.build_header(magic, 1) + b"".join(parts)


def test_addition_is_bit_for_bit_the_same_in_any_order_and_in_the_library(
    public: PublicContext, updates: list[tuple[Integers, bytes]], total: Path, tmp_path: Path
) -> None:
    sources = [update for _, update in updates]
    order = np.random.default_rng(SEED).permutation(64)
    paths = [tmp_path / str(index) for index in order]
    for path, index in zip(paths, order, strict=True):
        path.write_bytes(sources[index])
    add_updates(PLAN, paths, tmp_path / "total")
    assert (tmp_path / "total").read_bytes() == total.read_bytes()
    form, engine = Form(PLAN.params.levels, Fraction(1)), public.engine
    for index, body in enumerate(read_bodies(PLAN, total.read_bytes())):
        tensor = engine.load(read_bodies(PLAN, sources[0])[index], form)
        for source in sources[1:]:
            engine.add_inplace(tensor, engine.load(read_bodies(PLAN, source)[index], form))
        assert engine.save(tensor).tobytes() == body.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("parameters", "bound"), [(20_000, 1 << 8), (100_000, 1 << 15), (100_000, 1 << 30)])
def test_full_rings_are_exact(parameters: int, bound: int, tmp_path: Path) -> None:
    """At 128 bits of security, with 64 updates at their bounds."""
    draw = np.random.default_rng(SEED)
    plan = plan_aggregate(parameters, bound, 64 * 3)
    private = make_aggregate_keys(plan)
    public = load_public_key(plan, encode_public_key(private))
    paths, expected = [], np.zeros(parameters, dtype=np.int64)
    for index in range(64):
        values = draw.choice(np.array([-3 * bound, 3 * bound, 1]), parameters)
        values[: parameters // 2] = 3 * bound
        expected += values
        paths.append(tmp_path / str(index))
        paths[-1].write_bytes(encrypt_update(public, plan, values, weight=3))
    add_updates(plan, paths, tmp_path / "total")
    assert (decrypt_sum(private, plan, tmp_path / "total", 64) == expected).all()
    noise = measure_noise(private, plan, tmp_path / "total", expected)
    assert np.abs(noise).max() < compute_noise_bound(plan.params.ring) / 2


# --- keys and ranges --------------------------------------------------------------------------


def test_keys_encrypt_or_decrypt_and_do_nothing_else(
    private: PrivateContext, public: PublicContext, total: Path
) -> None:
    again = load_private(PLAN, encode_private(private))
    assert (decrypt_sum(again, PLAN, total, 64) == decrypt_sum(private, PLAN, total, 64)).all()
    assert public.relin_keys is None
    assert private.public.relin_keys is None
    assert not public.engine.has_secret
    body = read_bodies(PLAN, total.read_bytes())[0]
    with pytest.raises(MissingKeyError):
        public.engine.decrypt_residues(body)
    keyless = PublicContext(PLAN.params)
    for call in (lambda: encode_public_key(keyless), lambda: keyless.engine.encrypt_residues(body[0])):
        with pytest.raises(MissingKeyError):
            call()
    for data in (encode_private(private)[:-1], encode_private(private) + b"\0"):
        assert_refused(lambda data: load_private(PLAN, data), data, GateReason.LENGTH)


def test_values_out_of_range_are_refused_by_index_and_bound(public: PublicContext) -> None:
    values = np.zeros(PLAN.parameters, dtype=np.int64)
    for wrong in (1501, -1501, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        values[1234] = wrong
        with pytest.raises(MagnitudeError, match=rf"values\[1234\] = {wrong} lies outside \[-1500, 1500\]"):
            encrypt_update(public, PLAN, values, weight=3)
    values[1234] = PLAN.capacity + 1
    with pytest.raises(MagnitudeError, match=rf"values\[1234\].*{PLAN.capacity}\]"):
        encrypt_update(public, PLAN, values)
    for other in (values[:-1], values.astype(np.float64), values[None]):
        with pytest.raises(ParameterError, match="values"):
            encrypt_update(public, PLAN, other, weight=3)
    for weight in (0, PLAN.weights_total + 1):
        with pytest.raises(ParameterError, match="weight"):
            encrypt_update(public, PLAN, values, weight=weight)
    with pytest.raises(ParameterError, match="does not belong"):
        encrypt_update(public, plan_aggregate(10, 1, 10), values)
    for message in (np.zeros((1, 1024), np.uint64), np.zeros((2, 1024, 1), np.uint64)):
        with pytest.raises(ParameterError, match="polynomial"):
            public.engine.encrypt_residues(message)


# --- the gate ---------------------------------------------------------------------------------


def test_only_the_exact_bytes_of_an_update_or_a_sum_pass(
    updates: list[tuple[Integers, bytes]], total: Path
) -> None:
    cases: list[tuple[bytes, Callable[[bytes], object]]] = [
        (updates[0][1], lambda data: check_update(PLAN, data)),
        (total.read_bytes(), lambda data: check_sum(PLAN, data, 64)),
    ]
    for good, check in cases:
        check(good)
        assert len(good) == PLAN.update_bytes
        for data in (b"", good[:-1], good[:-8], good + b"\0", good + good):
            assert_refused(check, data, GateReason.LENGTH)
        for index in range(HEADER_BYTES):
            data = bytearray(good)
            data[index] ^= 1
            assert_refused(check, bytes(data), GateReason.HEADER)


def test_residues_lie_below_their_primes(updates: list[tuple[Integers, bytes]]) -> None:
    good = read_bodies(PLAN, updates[0][1])
    assert write_bodies(PLAN, good, AggregateMagic.UPDATE) == updates[0][1]
    for place in np.ndindex(good.shape[:3]):
        for coefficient in (0, PLAN.params.ring - 1):
            bodies = good.copy()
            bodies[*place, coefficient] = PLAN.primes[place[2]]
            data = write_bodies(PLAN, bodies, AggregateMagic.UPDATE)
            assert_refused(lambda data: check_update(PLAN, data), data, GateReason.RESIDUE)


def test_updates_without_a_secret_part_are_refused(updates: list[tuple[Integers, bytes]]) -> None:
    bodies = read_bodies(PLAN, updates[0][1])
    bodies[1, 1] = 0
    data = write_bodies(PLAN, bodies, AggregateMagic.UPDATE)
    with pytest.raises(GateError, match="ciphertext 1 has no secret part"):
        check_update(PLAN, data)


def test_one_update_is_never_opened(
    private: PrivateContext, updates: list[tuple[Integers, bytes]], tmp_path: Path
) -> None:
    """Neither as it came, nor as a sum of one, nor under another count than it is the sum of."""
    alone = updates[0][1]
    for count in (2, 64):
        assert_refused(
            lambda data, count=count: decrypt_sum(private, PLAN, data, count), alone, GateReason.HEADER
        )
    for count in (-1, 0, 1, 65):
        with pytest.raises(ParameterError, match="2 to 64"):
            decrypt_sum(private, PLAN, alone, count)
    with pytest.raises(ParameterError, match="2 to 64"):
        add_updates(PLAN, [alone], tmp_path / "one")
    add_updates(PLAN, [update for _, update in updates[:3]], tmp_path / "three")
    three = (tmp_path / "three").read_bytes()
    check_sum(PLAN, three, 3)
    assert_refused(lambda data: decrypt_sum(private, PLAN, data, 2), three, GateReason.HEADER)
    assert_refused(lambda data: check_update(PLAN, data), three, GateReason.HEADER)


def test_updates_of_another_plan_are_refused(updates: list[tuple[Integers, bytes]]) -> None:
    for other in (
        plan_aggregate(PLAN.parameters, PLAN.bound - 1, PLAN.weights_total, ring=1024, insecure=True),
        plan_aggregate(PLAN.parameters + 1, PLAN.bound, PLAN.weights_total, ring=1024, insecure=True),
    ):
        assert other.update_bytes == PLAN.update_bytes
        assert_refused(lambda data, other=other: check_update(other, data), updates[0][1], GateReason.HEADER)


def test_a_malformed_update_stops_the_sum_and_leaves_no_file(
    updates: list[tuple[Integers, bytes]], tmp_path: Path
) -> None:
    bodies = read_bodies(PLAN, updates[1][1])
    bodies[-1, -1, -1, -1] = PLAN.primes[-1]
    for bad in (write_bodies(PLAN, bodies, AggregateMagic.UPDATE), updates[1][1][:-1]):
        with pytest.raises(GateError):
            add_updates(PLAN, [updates[0][1], bad], tmp_path / "total")
    assert list(tmp_path.iterdir()) == []


# --- hostile but well-formed ------------------------------------------------------------------


def test_an_update_out_of_range_spoils_numbers_and_nothing_else(
    private: PrivateContext, public: PublicContext, updates: list[tuple[Integers, bytes]], tmp_path: Path
) -> None:
    """Whatever a well-formed update holds, decrypting ends, with values within the capacity."""
    draw = np.random.default_rng(SEED)
    shape = (PLAN.ciphertexts, 2, len(PLAN.primes), PLAN.params.ring)
    limits = np.array(PLAN.primes, dtype=np.uint64)[:, None]
    uniform = draw.integers(0, limits, shape, dtype=np.uint64)
    scaled = np.stack([public.engine.encrypt_residues(row) for row in uniform[:, 0]])
    honest = read_bodies(PLAN, updates[0][1])
    thousandfold = (honest.astype(object) * 1000 % limits.astype(object)).astype(np.uint64)
    # The last one leaves a sum without a secret part.
    negative = (limits - honest) % limits
    for hostile in (uniform, scaled, thousandfold, negative):
        data = write_bodies(PLAN, hostile, AggregateMagic.UPDATE)
        check_update(PLAN, data)
        add_updates(PLAN, [updates[0][1], data], tmp_path / "total")
        opened = decrypt_sum(private, PLAN, tmp_path / "total", 2)
        assert opened.shape == (PLAN.parameters,)
        assert int(np.abs(opened).max()) <= PLAN.capacity
    assert not opened.any()


# --- what it needs ----------------------------------------------------------------------------


def test_checking_and_adding_need_no_library(
    updates: list[tuple[Integers, bytes]], total: Path, tmp_path: Path
) -> None:
    for index in (0, 1):
        (tmp_path / str(index)).write_bytes(updates[index][1])
    program = f"""
import sys
from pathlib import Path
from he.aggregate import add_updates, check_sum, check_update, plan_aggregate
plan = plan_aggregate({PLAN.parameters}, {PLAN.bound}, {PLAN.weights_total}, ring=1024, insecure=True)
paths = [Path(name) for name in sys.argv[1:3]]
check_update(plan, paths[0])
add_updates(plan, paths, Path(sys.argv[3]))
check_sum(plan, Path(sys.argv[3]), 2)
sys.exit("Pyfhel" in sys.modules or "he.backend" in sys.modules)
"""
    arguments = [str(tmp_path / name) for name in ("0", "1", "total")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_adding_holds_one_polynomial_at_a_time(tmp_path: Path) -> None:
    """Updates in files, in less memory than half of one takes."""
    plan = plan_aggregate(50_000, 1 << 20, 64, ring=4096)
    sources = []
    body = b"\1".ljust(8, b"\0") * ((plan.update_bytes - HEADER_BYTES) // 8)
    for index in range(4):
        sources.append(tmp_path / str(index))
        sources[-1].write_bytes(plan.build_header(AggregateMagic.UPDATE, 1) + body)
    tracemalloc.start()
    try:
        add_updates(plan, sources, tmp_path / "total")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < plan.update_bytes / 2
