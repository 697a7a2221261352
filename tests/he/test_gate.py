"""The gate refuses everything but the one encoding of a well-formed blob."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from he.errors import GateError, GateReason, ParameterError
from he.formats import HEADER_BYTES, Magic, build_batch_layout, build_bundle_layout, build_header
from he.gate import (
    check_batch,
    check_bundle,
    check_loss,
    check_public_key,
    check_relin_keys,
    check_secret_key,
)
from he.keys import PublicKey, RelinKeys
from he.params import get_params
from he.plan import build_plan
from he.spec import PolynomialSpec
from tests.he.conftest import World

Check = Callable[[bytes], object]


@pytest.fixture
def blobs(small: World) -> dict[str, tuple[bytes, Check]]:
    """Every kind of blob with its check."""
    params, spec, public = small.params, small.spec, small.private.public
    assert public.public_key is not None
    assert public.relin_keys is not None
    secret = small.private.save()[: HEADER_BYTES + len(params.primes) * params.ring * 8]
    return {
        "batch": (small.batch, lambda data: check_batch(params, spec, data)),
        "bundle": (small.bundle, lambda data: check_bundle(params, spec, data)),
        "loss": (small.loss, lambda data: check_loss(params, spec, data)),
        "public key": (public.public_key.encode(), lambda data: check_public_key(params, data)),
        "relin keys": (public.relin_keys.encode(), lambda data: check_relin_keys(params, data)),
        "secret key": (secret, lambda data: check_secret_key(params, data)),
    }


KINDS = ["batch", "bundle", "loss", "public key", "relin keys", "secret key"]


def assert_refused(check: Check, data: bytes, reason: GateReason) -> None:
    with pytest.raises(GateError) as caught:
        check(data)
    assert caught.value.reason is reason


@pytest.mark.parametrize("kind", KINDS)
def test_well_formed_blobs_pass(blobs: dict[str, tuple[bytes, Check]], kind: str) -> None:
    data, check = blobs[kind]
    check(data)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_exact_length_passes(blobs: dict[str, tuple[bytes, Check]], kind: str) -> None:
    data, check = blobs[kind]
    for wrong in (b"", data[:63], data[:-1], data[:-8], data + b"\0", zlib.compress(data, 1)):
        assert_refused(check, wrong, GateReason.LENGTH)


@pytest.mark.parametrize("kind", KINDS)
def test_every_header_byte_counts(blobs: dict[str, tuple[bytes, Check]], kind: str) -> None:
    data, check = blobs[kind]
    for index in range(HEADER_BYTES):
        mutated = bytearray(data)
        mutated[index] ^= 1
        assert_refused(check, bytes(mutated), GateReason.HEADER)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_residues_lie_below_their_primes(
    small: World, blobs: dict[str, tuple[bytes, Check]], kind: str, place: str
) -> None:
    data, check = blobs[kind]
    offset = HEADER_BYTES if place == "first" else len(data) - 8
    mutated = bytearray(data)
    # A residue plus its prime means the same number: the second encoding that must not exist.
    level = {"batch": 3, "loss": 2, "bundle": 2}.get(kind, len(small.params.primes))
    prime = small.params.primes[0 if place == "first" else level - 1]
    value = int.from_bytes(mutated[offset : offset + 8], "little") + prime
    mutated[offset : offset + 8] = value.to_bytes(8, "little")
    assert_refused(check, bytes(mutated), GateReason.RESIDUE)
    mutated[offset : offset + 8] = b"\xff" * 8
    assert_refused(check, bytes(mutated), GateReason.RESIDUE)


def test_a_ciphertext_without_secret_part_is_refused(small: World) -> None:
    layout = build_batch_layout(build_plan(small.params, small.spec), validation=True)
    for body in (layout.inputs[0], layout.targets[-1], layout.constant):
        assert body is not None
        half = body.get_length(small.params) // 2
        mutated = bytearray(small.batch)
        mutated[body.offset + half : body.offset + 2 * half] = bytes(half)
        assert_refused(
            lambda data: check_batch(small.params, small.spec, data), bytes(mutated), GateReason.TRANSPARENT
        )


def test_a_bundle_may_hold_the_exact_zero_but_nothing_else_in_clear(small: World) -> None:
    body = build_bundle_layout(build_plan(small.params, small.spec)).bodies[0]
    half = body.get_length(small.params) // 2
    mutated = bytearray(small.bundle)
    mutated[body.offset + half : body.offset + 2 * half] = bytes(half)
    assert_refused(
        lambda data: check_bundle(small.params, small.spec, data), bytes(mutated), GateReason.TRANSPARENT
    )
    mutated[body.offset : body.offset + half] = bytes(half)
    check_bundle(small.params, small.spec, bytes(mutated))


def test_keys_without_random_part_are_refused(small: World) -> None:
    keys = small.private.public.relin_keys
    assert keys is not None
    part = 2 * len(small.params.primes) * small.params.ring * 8
    data = bytearray(keys.encode())
    data[HEADER_BYTES + part + part // 2 : HEADER_BYTES + 2 * part] = bytes(part // 2)
    assert_refused(lambda blob: check_relin_keys(small.params, blob), bytes(data), GateReason.TRANSPARENT)


def test_blobs_of_another_spec_or_preset_are_refused(small: World) -> None:
    other = PolynomialSpec(gradient_weight=2)
    assert_refused(lambda data: check_batch(small.params, other, data), small.batch, GateReason.HEADER)
    wider = PolynomialSpec(kernels=(3,) * 5)
    assert check_batch(small.params, wider, small.batch)
    branched = PolynomialSpec(kernels=(1, 3, 3, 3))
    assert check_batch(small.params, branched, small.batch)
    # As many weights, in another order.
    specs = (PolynomialSpec(kernels=(1, 3)), PolynomialSpec(kernels=(3, 1)))
    blobs = [build_header(Magic.BUNDLE, small.params, spec) for spec in specs]
    length = build_bundle_layout(build_plan(small.params, specs[0])).length
    swapped = blobs[0] + bytes(length - HEADER_BYTES)
    check_bundle(small.params, specs[0], swapped)
    assert_refused(lambda data: check_bundle(small.params, specs[1], data), swapped, GateReason.HEADER)
    real = get_params("ckks-16384-60x5")
    assert_refused(lambda data: check_batch(real, small.spec, data), small.batch, GateReason.LENGTH)


def test_kinds_do_not_stand_in_for_each_other(small: World) -> None:
    public = small.private.public.public_key
    assert public is not None
    forged = build_header(Magic.SECRET_KEY, small.params) + public.body
    assert_refused(lambda data: PublicKey.decode(small.params, data), forged, GateReason.HEADER)
    assert_refused(lambda data: RelinKeys.decode(small.params, data), public.encode(), GateReason.LENGTH)


def test_random_mutations_never_reach_the_library_unnoticed(small: World) -> None:
    """What passes decodes to itself: no two byte strings stand for one ciphertext."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(40):
        mutated = bytearray(small.loss)
        mutated[int(rng.integers(len(mutated)))] ^= 1 << int(rng.integers(8))
        try:
            check_loss(small.params, small.spec, bytes(mutated))
        except GateError:
            continue
        passed += 1
        form = build_plan(small.params, small.spec).loss
        engine = small.evaluator.engine
        body = bytes(mutated[HEADER_BYTES:])
        assert bytes(engine.save(engine.load(body, form))) == body
    assert passed > 0


def test_insecure_presets_need_consent() -> None:
    with pytest.raises(ParameterError, match="insecure"):
        get_params("test-4096-60x5")
    with pytest.raises(ParameterError, match="unknown"):
        get_params("ckks-1024")
