"""Rotation keys and vectors: each trap of the library is provoked and shown to be guarded."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from Pyfhel import PyCtxt, Pyfhel, PyPtxt

from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.errors import (
    ComponentsError,
    GateError,
    GateReason,
    KeyReuseError,
    LevelError,
    MagnitudeError,
    MissingKeyError,
    ParameterError,
    ScaleError,
)
from he.gate import compute_galois_bytes
from he.keys import GaloisKeys
from he.params import CkksParams
from he.plan import Form
from he.primes import derive_primes
from he.vectors import MAX_COEFFICIENT, compute_slots, round_coefficients
from tests.he.forging import get_rows

BITS = (40, 30, 40)
PARAMS = CkksParams("test-1024-40-30-40", 1024, derive_primes(1024, BITS), 25, 20, insecure=True)
STEPS = (1, 8, 511)
FORM = Form(2, Fraction(2**25))
VALUES = np.arange(512.0) / 512


@pytest.fixture(scope="module")
def private() -> PrivateContext:
    return PrivateContext.generate(PARAMS, STEPS)


@pytest.fixture(scope="module")
def evaluator(private: PrivateContext) -> PublicContext:
    """By way of the keys' bytes."""
    keys = private.public.galois_keys
    assert keys is not None
    return PublicContext(PARAMS, galois_keys=GaloisKeys.decode(PARAMS, STEPS, keys.encode()))


def move(private: PrivateContext, evaluator: PublicContext) -> bytes:
    """A fresh ciphertext's bytes, as a peer gets them."""
    return private.public.engine.save(private.encrypt(VALUES, FORM)).tobytes()


def test_rotations_move_slots(private: PrivateContext, evaluator: PublicContext) -> None:
    body = move(private, evaluator)
    for step in STEPS:
        rotated = evaluator.engine.rotate(evaluator.engine.load(body, FORM), step)
        back = private.decrypt_body(memoryview(evaluator.engine.save(rotated).tobytes()), FORM)
        assert np.abs(back - np.roll(VALUES, -step)).max() < 1e-2


def test_loaded_keys_give_the_bytes_that_the_makers_give(
    private: PrivateContext, evaluator: PublicContext
) -> None:
    body = move(private, evaluator)
    copies = [
        engine.save(engine.rotate(engine.load(body, FORM), 8)).tobytes()
        for engine in (private.public.engine, evaluator.engine)
    ]
    assert copies[0] == copies[1]


def test_saved_context_keeps_its_rotations(private: PrivateContext) -> None:
    loaded = PrivateContext.load(PARAMS, private.save(), STEPS)
    engine = loaded.public.engine
    rotated = engine.rotate(loaded.encrypt(VALUES, FORM), 1)
    assert np.abs(loaded.decrypt(rotated) - np.roll(VALUES, -1)).max() < 1e-2


def build_raw() -> Pyfhel:
    raw = Pyfhel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw.contextGen(scheme="CKKS", n=PARAMS.ring, scale=2.0**25, qi_sizes=list(BITS), sec=0)
    return raw


def test_rotating_without_keys_makes_keys_of_a_random_secret(private: PrivateContext) -> None:
    owner, stranger = build_raw(), build_raw()
    owner.keyGen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foreign = PyCtxt(pyfhel=stranger, bytestring=owner.encryptFrac(VALUES).to_bytes("none"))
        rotated = stranger.rotate(foreign, 1, True)
    back = PyCtxt(pyfhel=owner, bytestring=rotated.to_bytes("none"))
    assert np.abs(owner.decryptFrac(back) - np.roll(VALUES, -1)).max() > 1e3

    public = PublicContext(PARAMS, private.public.public_key, private.public.relin_keys)
    with pytest.raises(MissingKeyError, match="rotation key for 1 steps"):
        public.engine.rotate(public.encrypt(VALUES, FORM), 1)


def test_rotations_without_their_own_key_are_not_composed(
    private: PrivateContext, evaluator: PublicContext
) -> None:
    raw = build_raw()
    raw.keyGen()
    raw.rotateKeyGen([1, 8])
    # 9 = 8 + 1: the library takes two keys, twice the time and noise, and says nothing.
    composed = raw.rotate(raw.encryptFrac(VALUES), 9, True)
    assert np.abs(raw.decryptFrac(composed) - np.roll(VALUES, -9)).max() < 1e-2
    tensor = evaluator.engine.load(move(private, evaluator), FORM)
    for step in (9, 0, -1, 512, 513):
        with pytest.raises(MissingKeyError):
            evaluator.engine.rotate(tensor, step)


def test_three_components_are_not_rotated(private: PrivateContext) -> None:
    engine = private.public.engine
    product = engine.square(private.encrypt(VALUES, FORM))
    with pytest.raises(ComponentsError):
        engine.rotate(product, 1)


def test_rotation_keys_are_made_once_and_in_the_maker() -> None:
    engine = Engine(PARAMS)
    bodies = engine.generate_keys((1,))
    assert engine.rotations == {1}
    for body in (bodies.galois, b""):
        with pytest.raises(KeyReuseError):
            engine.load_galois_keys(body, (1,))
    with pytest.raises(KeyReuseError):
        engine.generate_keys((2,))
    other = Engine(PARAMS)
    other.load_galois_keys(bodies.galois, (1,))
    with pytest.raises(KeyReuseError):
        other.generate_keys()


@pytest.mark.parametrize("steps", [(0,), (512,), (2, 1), (1, 1), (-1,)])
def test_rotations_are_ascending_steps(steps: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="ascending"):
        Engine(PARAMS).generate_keys(steps)


def test_keys_are_gated(private: PrivateContext) -> None:
    keys = private.public.galois_keys
    assert keys is not None
    good = keys.encode()
    assert len(good) == compute_galois_bytes(PARAMS, STEPS)
    high = bytearray(good)
    high[-8:] = b"\xff" * 8
    for source, steps, reason in (
        (good[:-8], STEPS, GateReason.LENGTH),
        (good, (1, 8), GateReason.LENGTH),
        (good, (1, 9, 511), GateReason.HEADER),
        (bytes(good[:64]) + bytes(len(good) - 64), STEPS, GateReason.TRANSPARENT),
        (bytes(high), STEPS, GateReason.RESIDUE),
    ):
        with pytest.raises(GateError) as caught:
            GaloisKeys.decode(PARAMS, steps, source)
        assert caught.value.reason is reason
    with pytest.raises(ParameterError, match="does not belong"):
        PublicContext(CkksParams("other", 1024, PARAMS.primes, 25, 20, insecure=True), galois_keys=keys)


# --- vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 16, 512])
def test_vectors_are_the_exact_polynomial_in_the_library(private: PrivateContext, period: int) -> None:
    values = np.random.default_rng(period).uniform(-1, 1, period)
    coefficients = round_coefficients(values, Fraction(2**20))
    gap = PARAMS.slots // period
    full = [0] * PARAMS.ring
    for index, value in enumerate(coefficients.tolist()):
        full[index * gap] = value
        if index:
            full[PARAMS.ring - index * gap] = -value
    vector = private.public.engine.load_vector(coefficients, Form(2, Fraction(2**20)))
    assert isinstance(vector.native, PyPtxt)
    residues = np.frombuffer(vector.native.to_bytes("none")[88:], dtype="<u8").reshape(2, -1)
    assert (residues.astype(object) == get_rows(PARAMS, full, 2)).all()
    assert np.abs(compute_slots(coefficients) / 2**20 - values).max() < 2.0**-14


def test_coefficients_survive_the_transforms_at_their_largest() -> None:
    generator = np.random.default_rng(1)
    coefficients = generator.integers(-MAX_COEFFICIENT, MAX_COEFFICIENT, 16384, endpoint=True)
    again = round_coefficients(compute_slots(coefficients), Fraction(1))
    assert (again == coefficients).all()


def test_vectors_multiply_and_add_slot_by_slot(private: PrivateContext) -> None:
    engine, generator = private.public.engine, np.random.default_rng(5)
    weights, bias = generator.uniform(-1, 1, (2, 512))
    vector = engine.load_vector(round_coefficients(weights, Fraction(2**14)), Form(2, Fraction(2**14)))
    offset = engine.load_vector(round_coefficients(bias, Fraction(2**39)), Form(2, Fraction(2**39)))
    tensor = private.encrypt(VALUES, FORM)
    with pytest.raises(ScaleError):
        engine.add_vector_inplace(tensor, offset)
    product = engine.multiply_vector(tensor, vector)
    assert product.scale == FORM.scale * 2**14
    engine.add_vector_inplace(product, offset)
    assert np.abs(private.decrypt(product) - weights * VALUES - bias).max() < 1e-2
    low = engine.load_vector(round_coefficients(weights, Fraction(2**20)), Form(1, Fraction(2**20)))
    with pytest.raises(LevelError):
        engine.multiply_vector(tensor, low)


def test_vectors_that_can_not_be_exact_are_refused(private: PrivateContext) -> None:
    with pytest.raises(MagnitudeError):
        round_coefficients(np.array([np.nan, 1.0]), Fraction(2))
    with pytest.raises(MagnitudeError):
        compute_slots(np.array([MAX_COEFFICIENT + 1]))
    with pytest.raises(ParameterError, match="power of two"):
        round_coefficients(np.ones(3), Fraction(2))
    with pytest.raises(ParameterError, match="512 slots"):
        private.public.engine.load_vector(np.ones(1024, dtype=np.int64), FORM)
