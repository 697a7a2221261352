"""Each trap of the library is provoked on the raw library and then shown to be guarded."""

import copy
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from Pyfhel import PyCtxt, Pyfhel, PyPtxt

from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.errors import (
    ComponentsError,
    DepthError,
    KeyReuseError,
    LevelError,
    MagnitudeError,
    MissingKeyError,
    ParameterError,
    ScaleError,
)
from he.params import CkksParams, get_params
from he.plan import Form
from tests.he.conftest import World

RING = 4096
BITS = [60] * 5


def build_raw(*, keys: bool = True) -> Pyfhel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = Pyfhel()
        raw.contextGen(scheme="CKKS", n=RING, scale=2.0**30, qi_sizes=BITS, sec=0)
    if keys:
        raw.keyGen()
        raw.relinKeyGen()
    return raw


@pytest.fixture(scope="module")
def raw() -> Pyfhel:
    return build_raw()


@pytest.fixture(scope="module")
def form() -> Form:
    return Form(4, Fraction(2**30))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine with a whole key set of its own."""
    built = Engine(get_params("test-4096-60x5", allow_insecure=True))
    built.generate_keys()
    return built


VALUES = np.arange(1.0, 6.0)


# --- keys -------------------------------------------------------------------------------------


def test_relinearising_without_keys_makes_keys_of_a_random_secret(
    raw: Pyfhel, small: World, form: Form
) -> None:
    product = raw.multiply(raw.encryptFrac(VALUES), raw.encryptFrac(VALUES), True)
    stranger = build_raw(keys=False)
    foreign = PyCtxt(pyfhel=stranger, bytestring=product.to_bytes("none"))
    with pytest.warns(RuntimeWarning, match="generating it"):
        stranger.relinearize(foreign)
    back = PyCtxt(pyfhel=raw, bytestring=foreign.to_bytes("none"))
    assert np.abs(raw.decryptFrac(back)[:5] - VALUES**2).max() > 1e6

    keyless = PublicContext(small.params, public_key=small.private.public.public_key)
    tensor = keyless.engine.square(keyless.encrypt(VALUES, form))
    with pytest.raises(MissingKeyError, match="relinearisation keys"):
        keyless.engine.relinearize_inplace(tensor)


def test_decrypting_without_a_secret_key_crashes_the_process(small: World, form: Form) -> None:
    script = f"""
import warnings; warnings.simplefilter("ignore")
import numpy as np
from Pyfhel import Pyfhel, PyCtxt
owner, other = Pyfhel(), Pyfhel()
for side in (owner, other):
    side.contextGen(scheme="CKKS", n={RING}, scale=2.0**30, qi_sizes={BITS}, sec=0)
owner.keyGen()
other.from_bytes_public_key(owner.to_bytes_public_key("none"))
print("before", flush=True)
other.decryptFrac(PyCtxt(pyfhel=other, bytestring=owner.encryptFrac(np.ones(2)).to_bytes("none")))
print("after", flush=True)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["before"]
    assert result.returncode < 0

    public = small.private.public
    with pytest.raises(MissingKeyError, match="secret key"):
        public.engine.decrypt(public.encrypt(VALUES, form))


def test_relinearisation_keys_made_after_loading_a_secret_belong_to_another(
    raw: Pyfhel, small: World
) -> None:
    loaded = build_raw(keys=False)
    loaded.from_bytes_public_key(raw.to_bytes_public_key("none"))
    loaded.from_bytes_secret_key(raw.to_bytes_secret_key("none"))
    loaded.relinKeyGen()
    fresh = loaded.encryptFrac(VALUES)
    assert np.allclose(loaded.decryptFrac(fresh)[:5], VALUES, atol=1e-4)
    product = loaded.multiply(fresh, fresh, True)
    loaded.relinearize(product)
    assert np.abs(loaded.decryptFrac(product)[:5] - VALUES**2).max() > 1e6

    context = PrivateContext.load(small.params, small.private.save())
    assert np.allclose(
        context.decrypt(context.encrypt(VALUES, Form(4, Fraction(2**30))))[:5], VALUES, atol=1e-3
    )
    guarded = Engine(small.params)
    assert context.public.public_key is not None
    guarded.load_public_key(context.public.public_key.body)
    with pytest.raises(KeyReuseError):
        guarded.generate_keys()
    with pytest.raises(KeyReuseError):
        guarded.load_public_key(context.public.public_key.body)


def test_a_secret_key_alone_does_not_decrypt(raw: Pyfhel, small: World) -> None:
    loaded = build_raw(keys=False)
    loaded.from_bytes_secret_key(raw.to_bytes_secret_key("none"))
    with pytest.raises(RuntimeError):
        loaded.decryptFrac(PyCtxt(pyfhel=loaded, bytestring=raw.encryptFrac(VALUES).to_bytes("none")))

    with pytest.raises(MissingKeyError, match="public key"):
        Engine(small.params).load_secret_key(bytes(8))


# --- operators, scales and levels -------------------------------------------------------------


def test_operators_swap_operands_and_align_silently(raw: Pyfhel, small: World, form: Form) -> None:
    ciphertext = raw.encryptFrac(VALUES)
    assert np.allclose(raw.decryptFrac(1 - ciphertext)[:5], VALUES - 1, atol=1e-4)
    assert isinstance((np.ones(3) - ciphertext)[0], PyCtxt)
    other = raw.encryptFrac(VALUES, scale=2.0**30.4)
    assert np.abs(raw.decryptFrac(ciphertext + other)[:5] - 2 * VALUES).max() > 0.3

    tensor = small.private.encrypt(VALUES, form)
    operations = {
        "number left": lambda a: 1 - a,
        "number right": lambda a: a - 1,
        "array left": lambda a: np.ones(3) - a,
        "array right": lambda a: a * np.ones(3),
        "negation": lambda a: -a,
        "sum": lambda a: a + a,
        "product": lambda a: a * a,
    }
    for operation in operations.values():
        with pytest.raises(TypeError):
            operation(tensor)


def test_scales_must_be_exactly_equal(engine: Engine, form: Form) -> None:
    tensor = engine.encrypt(VALUES, form)
    near = engine.encrypt(VALUES, Form(4, Fraction(2**30 + 1)))
    for operation in (engine.add_inplace, engine.subtract_inplace):
        with pytest.raises(ScaleError):
            operation(tensor, near)
    with pytest.raises(ScaleError):
        engine.add_constant_inplace(tensor, engine.build_constant(3, Form(4, Fraction(2**31))))


def test_the_library_forgets_levels_and_rounds_scales(raw: Pyfhel, engine: Engine, form: Form) -> None:
    ciphertext = raw.encryptFrac(VALUES)
    raw.mod_switch_to_next_ctxt(ciphertext)
    assert ciphertext.mod_level == 1
    assert PyCtxt(pyfhel=raw, bytestring=ciphertext.to_bytes("none")).mod_level == 0
    square = raw.square(raw.encryptFrac(VALUES), True)
    assert square.mod_level == 1
    assert len(square.to_bytes("none")) == 113 + 3 * 4 * RING * 8

    tensor = engine.square(engine.encrypt(VALUES, form))
    engine.rescale_inplace(tensor)
    assert (tensor.level, tensor.scale) == (3, Fraction(2**60, engine.params.primes[3]))
    loaded = engine.load(engine.save(tensor), Form(3, tensor.scale), components=3)
    assert (loaded.level, loaded.scale, loaded.components) == (3, tensor.scale, 3)
    copied = engine.copy(loaded)
    engine.drop_inplace(copied, 1)
    assert (copied.level, loaded.level) == (1, 3)


def test_levels_must_be_equal(engine: Engine, form: Form) -> None:
    high, low = engine.encrypt(VALUES, form), engine.encrypt(VALUES, Form(3, form.scale))
    constant = engine.build_constant(7, Form(3, form.scale))
    for operation in (engine.add_inplace, engine.subtract_inplace, engine.multiply):
        with pytest.raises(LevelError):
            operation(high, low)
    for plain in (engine.add_constant_inplace, engine.multiply_constant):
        with pytest.raises(LevelError):
            plain(high, constant)
    for level in (0, 5):
        with pytest.raises(LevelError):
            engine.encrypt(VALUES, Form(level, form.scale))


def test_exhausted_levels_raise_our_error(raw: Pyfhel, engine: Engine) -> None:
    ciphertext = raw.encryptFrac(VALUES)
    for _ in range(3):
        # The scale falls far below one: the message is gone, and nobody says so.
        raw.rescale_to_next(ciphertext)
    assert ciphertext.scale < 1e-40
    with pytest.raises(ValueError, match="end of modulus switching chain"):
        raw.rescale_to_next(ciphertext)

    last = engine.encrypt(VALUES, Form(1, Fraction(2**30)))
    with pytest.raises(DepthError, match="no level"):
        engine.rescale_inplace(last)
    with pytest.raises(DepthError, match="go up"):
        engine.drop_inplace(last, 2)


def test_components_are_checked(engine: Engine, form: Form) -> None:
    pair = engine.encrypt(VALUES, form)
    square = engine.square(pair)
    with pytest.raises(ComponentsError):
        engine.square(square)
    with pytest.raises(ComponentsError):
        engine.multiply(square, pair)
    with pytest.raises(ComponentsError):
        engine.relinearize_inplace(pair)
    engine.relinearize_inplace(square)
    assert np.allclose(engine.decrypt(square)[:5], VALUES**2, atol=1e-3)


def test_scales_beyond_the_modulus_are_refused(engine: Engine) -> None:
    tensor = engine.encrypt(VALUES, Form(1, Fraction(2**50)))
    with pytest.raises((MagnitudeError, ValueError)):
        engine.square(tensor)


# --- messages ---------------------------------------------------------------------------------


def test_one_message_too_large_changes_every_slot(raw: Pyfhel, engine: Engine) -> None:
    values = np.zeros(RING // 2)
    values[7] = 2.0**33
    large = raw.encryptFrac(values, scale=2.0**30)
    for _ in range(3):
        raw.mod_switch_to_next_ctxt(large)
    # The modulus is 2^60 now. One slot alone spreads over coefficients that are far smaller...
    assert np.abs(np.delete(raw.decryptFrac(large), 7)).max() < 1.0
    values[:] = 2.0**33
    constant = raw.encryptFrac(values, scale=2.0**30)
    for _ in range(3):
        raw.mod_switch_to_next_ctxt(constant)
    # ...but equal slots gather in one coefficient, which wraps, and all of them change.
    assert np.abs(raw.decryptFrac(constant) - values).min() > 2.0**20

    with pytest.raises(MagnitudeError, match="wraps"):
        engine.encrypt(values, Form(1, Fraction(2**30)))
    for bad in (np.array([np.nan]), np.array([np.inf])):
        with pytest.raises(MagnitudeError):
            engine.encrypt(bad, Form(4, Fraction(2**30)))
    with pytest.raises(MagnitudeError, match="constant"):
        engine.build_constant(2**59, Form(1, Fraction(1)))


def test_rescaling_three_components_is_noisier_below_2_40(engine: Engine) -> None:
    """Why the circuit rescales three components at 2^40 and above only."""

    def measure(*, relinearise_first: bool) -> float:
        factors = [engine.encrypt(VALUES, Form(4, Fraction(2**45))) for _ in range(2)]
        product = engine.multiply(*factors)
        if relinearise_first:
            engine.relinearize_inplace(product)
        engine.rescale_inplace(product)
        if not relinearise_first:
            engine.relinearize_inplace(product)
        return float(np.abs(engine.decrypt(product)[5:]).max())

    assert measure(relinearise_first=False) > 10 * measure(relinearise_first=True)


# --- transparent ciphertexts and exact constants ----------------------------------------------


def test_transparent_results_are_silent_in_this_build(raw: Pyfhel, engine: Engine, form: Form) -> None:
    """The default build would raise; ours computes on, and the gate refuses such bytes from outside."""
    ciphertext = raw.encryptFrac(VALUES)
    difference = raw.sub(ciphertext, ciphertext, True)
    assert not any(difference.to_bytes("none")[113:])

    tensor = engine.encrypt(VALUES, form)
    zero = engine.multiply_constant(tensor, engine.build_constant(0, Form(4, Fraction(2**20))))
    assert (zero.level, zero.scale) == (4, Fraction(2**50))
    assert not any(engine.save(zero))
    engine.subtract_inplace(tensor, engine.copy(tensor))
    assert not any(engine.save(tensor))


def test_constants_are_exact_where_the_encoder_rounds(raw: Pyfhel, engine: Engine, form: Form) -> None:
    value = 2**60 + 1
    encoded = PyPtxt(raw.encodeFrac(np.full(RING // 2, float(value)), scale=1.0)).to_bytes("none")
    residues = np.frombuffer(encoded, dtype="<u8", offset=88).reshape(4, RING)
    assert (residues[0] != value % engine.params.primes[0]).any()

    body = np.zeros((2, 4, RING), dtype="<u8")
    body[0] = 1
    one = engine.load(body, form)
    for constant in (value, -value, 12345, -1):
        product = engine.multiply_constant(one, engine.build_constant(constant, Form(4, Fraction(2**20))))
        result = np.frombuffer(engine.save(product), dtype="<u8").reshape(2, 4, RING)
        for index, prime in enumerate(engine.params.primes[:4]):
            assert (result[0, index] == constant % prime).all()
        assert not result[1].any()


def test_mutated_bytes_load_without_complaint(raw: Pyfhel) -> None:
    """Why hashes alone decide what a ciphertext is; malformed residues are the gate's part."""
    ciphertext = raw.encryptFrac(VALUES)
    mutated = bytearray(ciphertext.to_bytes("none"))
    mutated[113] ^= 1
    loaded = PyCtxt(pyfhel=raw, bytestring=bytes(mutated))
    assert np.abs(raw.decryptFrac(loaded)[:5] - VALUES).max() > 1e-3 or loaded.to_bytes("none") == bytes(
        mutated
    )
    scale = bytearray(ciphertext.to_bytes("none"))
    scale[79] ^= 1
    forged = PyCtxt(pyfhel=raw, bytestring=bytes(scale))
    assert not np.allclose(raw.decryptFrac(forged)[:5], VALUES, atol=0.1)


# --- processes --------------------------------------------------------------------------------


def test_the_library_keeps_the_interpreter_lock() -> None:
    """Why workers are processes: while a call runs, no other thread gets on."""
    big = Pyfhel()
    big.contextGen(scheme="CKKS", n=2**15, scale=2.0**30, qi_sizes=[60] * 12, sec=128)
    big.keyGen()
    counter, stop = SimpleNamespace(value=0), threading.Event()

    def count() -> None:
        while not stop.is_set():
            counter.value += 1

    def measure(call: Callable[[], object]) -> float:
        """Counts a second of the other thread while one call runs."""
        time.sleep(0)  # the lock is taken anew, so nobody asks for it before the call
        before, begun = counter.value, time.perf_counter()
        call()
        return (counter.value - before) / (time.perf_counter() - begun)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        during_calls = min(measure(big.relinKeyGen) for _ in range(5))
        during_sleep = max(measure(lambda: time.sleep(0.2)) for _ in range(5))
    finally:
        stop.set()
        thread.join()
    # At most one slice of the interpreter's switch interval gets in between the call and the reading.
    assert during_calls < during_sleep / 3


# --- parameters -------------------------------------------------------------------------------


def test_insecure_or_foreign_parameters_are_refused() -> None:
    small = get_params("test-4096-60x5", allow_insecure=True)
    claimed = CkksParams("claimed", small.ring, small.primes, 30, 20)
    for build in (Engine, PublicContext, PrivateContext.generate):
        with pytest.raises(ParameterError, match="300 bits"):
            build(claimed)
    other = CkksParams("other", small.ring, small.primes[::-1], 30, 20, insecure=True)
    with pytest.raises(ParameterError, match="other primes"):
        Engine(other)


# --- secrecy ----------------------------------------------------------------------------------


def test_secrets_are_neither_shown_nor_pickled_nor_copied(small: World) -> None:
    private = small.private
    secret = private.save()[64:80].hex()
    for thing in (private, private._secret_key, private._get_engine(), private.public):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert secret not in text
            assert len(text) < 200
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                attempt(thing)


def test_tensors_are_neither_pickled_nor_copied_behind_our_back(small: World, form: Form) -> None:
    tensor = small.private.encrypt(VALUES, form)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(tensor)
    assert repr(tensor) == "CiphertextTensor(level=4, scale=2^+30, components=2)"


def test_public_bytes_hold_no_secret(small: World) -> None:
    """Residues of the secret key occur in what travels no more often than chance has it."""
    saved = small.private.save()
    length = 64 + len(small.params.primes) * small.params.ring * 8
    secret = np.frombuffer(saved, dtype="<u8", offset=64, count=(length - 64) // 8)
    for blob in (saved[length:], small.batch, small.bundle, small.loss):
        common = np.intersect1d(secret, np.frombuffer(blob, dtype="<u8", offset=64))
        assert len(common) < 3
