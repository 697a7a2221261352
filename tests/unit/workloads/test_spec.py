"""The model specification has one encoding; the registry loads what is asked for and no more."""

import pickle
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.base import WorkloadError, get_kinds, get_workload
from workloads.fusion import FusionSpec, FusionTraining
from workloads.hashing import compute_loss_digest, compute_loss_hash, hash_domain

PRESET = "ckks-16384-60x5"


@given(st.integers(5, 12), st.integers(1, 16), st.integers(0, 16), st.integers(1, 4095))
def test_round_trip(patch: int, channels: int, gradient_weight: int, levels: int) -> None:
    spec = FusionSpec(patch=patch, channels=channels, gradient_weight=gradient_weight, levels=levels)
    assert FusionSpec.decode(spec.encode()) == spec


def test_golden_bytes() -> None:
    assert FusionSpec().encode().hex() == "98010604030201ccffa76d6178696d756d"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x01", "array"),
        (msgpack.packb([2, 6, 4, 3, 2, 1, 255, "maximum"]), "version"),
        (msgpack.packb([1, 6, 4, 3, 2, 1, 255, "other"]), "target"),
        (msgpack.packb([1, 6, 4, 3, 2, True, 255, "maximum"]), "integers"),
        (msgpack.packb([1, 6, 4, 2, 2, 1, 255, "maximum"]), "kernel"),
        (msgpack.packb([1, 6, 4, 3, 3, 1, 255, "maximum"]), "inputs"),
        (msgpack.packb([1, 6, 4, 3, 2, 1, 0, "maximum"]), "levels"),
        (b"\x98\x01\xcc\x06\x04\x03\x02\x01\xcc\xff\xa7maximum", "canonical"),
        (FusionSpec().encode() + b"\x00", "msgpack"),
        (bytes(300), "at most"),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        FusionSpec.decode(data)


def test_registry() -> None:
    assert get_kinds() == ("fusion-training",)
    assert get_workload("fusion-training").kind == "fusion-training"
    with pytest.raises(WorkloadError, match="unknown"):
        get_workload("other")


def test_drafts_are_checked() -> None:
    workload, model = FusionTraining(), FusionSpec().encode()
    workload.check_model(PRESET, model, 112, 2**24)
    for preset, data, parameters, box, message in (
        ("ckks-none", model, 112, 1, "preset"),
        ("test-4096-60x5", model, 112, 1, "insecure"),
        (PRESET, model + b"\x00", 112, 1, "model"),
        (PRESET, model, 113, 1, "parameters"),
        (PRESET, model, 112, 0, "weight_box"),
    ):
        with pytest.raises(WorkloadError, match=message):
            workload.check_model(preset, data, parameters, box)


def test_weights_that_could_wrap_are_refused() -> None:
    workload, model = FusionTraining(), FusionSpec().encode()
    workload.check_weights(PRESET, model, workload.build_initial_weights(model, 0))
    with pytest.raises(WorkloadError, match="wraps"):
        workload.check_weights(PRESET, model, (2**24,) * 112)
    with pytest.raises(WorkloadError, match="weights"):
        workload.check_weights(PRESET, model, (0,) * 111)


def test_sizes_are_exact() -> None:
    sizes = FusionTraining().get_sizes(PRESET, FusionSpec().encode())
    body = 2 * 16384 * 8
    assert sizes.training_batch == 64 + (72 * 4 + 4 * 3) * body
    assert sizes.validation_batch == sizes.training_batch + 3 * body
    assert sizes.public_key == 64 + 5 * body
    assert sizes.relin_keys == 64 + 20 * body


def test_a_workload_travels_to_a_worker() -> None:
    workload = FusionTraining(allow_insecure=True)
    assert pickle.loads(pickle.dumps(workload.run_gradient)).__self__ == workload


def test_losses_hash_in_order() -> None:
    first, second = compute_loss_digest(b"first"), compute_loss_digest(b"second")
    assert compute_loss_hash([first, second]) != compute_loss_hash([second, first])
    assert FusionTraining().compute_loss_hash([b"first", b"second"]) == compute_loss_hash([first, second])
    with pytest.raises(ValueError, match="at least one"):
        compute_loss_hash([])


def test_domain_hash_matches_the_protocol() -> None:
    import hashlib

    assert hash_domain("x", b"data") == hashlib.sha256(b"\x06bmif/xdata").digest()


def test_an_observer_loads_neither_encryption_nor_training() -> None:
    code = (
        "import sys; from workloads.base import get_workload; from workloads.fusion import FusionSpec;"
        "w = get_workload('fusion-training'); m = FusionSpec().encode();"
        f"w.check_model('{PRESET}', m, 112, 2**22); w.get_sizes('{PRESET}', m);"
        "w.compute_loss_hash([b'x']);"
        "assert not {'torch', 'Pyfhel', 'he.backend'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
