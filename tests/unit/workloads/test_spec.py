"""The model specification has one encoding; the registry loads what is asked for and no more."""

import pickle
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_model.planes import PLANES, SKIPS
from fusion_model.prepared import PairSettings
from fusion_model.targets import TARGETS
from workloads.base import WorkloadError, get_kinds, get_workload
from workloads.fusion import FusionSpec, FusionTraining
from workloads.hashing import compute_loss_digest, compute_loss_hash, hash_domain

PRESET = "ckks-16384-60x5"


@given(
    patch=st.integers(7, 12),
    kernels=st.lists(st.sampled_from((1, 3, 5)), min_size=1, max_size=16),
    planes=st.lists(st.sampled_from(PLANES), unique=True, max_size=14),
    gradient_weight=st.integers(0, 16),
    skip=st.sampled_from(SKIPS),
    target=st.sampled_from(TARGETS),
    levels=st.integers(1, 1023),
)
def test_round_trip(
    patch: int,
    kernels: list[int],
    planes: list[str],
    gradient_weight: int,
    skip: str,
    target: str,
    levels: int,
) -> None:
    spec = FusionSpec(patch, tuple(kernels), 3, tuple(planes), gradient_weight, skip, target, levels)
    assert FusionSpec.decode(spec.encode()) == spec
    assert spec.network.parameters == spec.circuit.parameters == spec.parameters
    assert spec.network.output == spec.circuit.output
    assert spec.inputs == 2 + len(planes)


def test_golden_bytes() -> None:
    assert FusionSpec().encode().hex() == "990206940303030303" + "01ccff90a46d65616ea76d6178696d756d"


def test_the_default_is_the_network_of_old() -> None:
    spec = FusionSpec()
    assert (spec.parameters, spec.channels, spec.inputs, spec.network.output) == (112, 4, 2, 2)
    assert spec.settings == PairSettings((), "mean", "maximum", 255)


def pack(**changes: object) -> bytes:
    """The default's encoding with some fields changed."""
    fields: dict[str, object] = {
        "version": 2,
        "patch": 6,
        "kernels": [3, 3, 3, 3],
        "second": 3,
        "gradient_weight": 1,
        "levels": 255,
        "planes": [],
        "skip": "mean",
        "target": "maximum",
    }
    data: bytes = msgpack.packb(list({**fields, **changes}.values()))
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x01", "array"),
        (b"\x90", "array"),
        (msgpack.packb([1, 6, 4, 3, 2, 1, 255, "maximum"]), "version 1, expected 2"),
        (pack(version=True), "version True"),
        (pack(version=3), "9 entries, expected version and 9 fields"),
        (pack(version=4), "version 4"),
        (msgpack.packb([2, 6]), "2 entries"),
        (pack(more=1), "10 entries"),
        (pack(target="other"), "target 'other' is unknown; known are maximum"),
        (pack(skip="other"), "skip 'other' is unknown; known are mean"),
        (pack(planes=["other"]), "plane 'other' is unknown; known are"),
        (pack(planes=["saliency", "saliency"]), "planes: saliency, saliency name one twice"),
        (pack(planes=["saliency"] * 15), "planes: 15 given, at most 14"),
        (pack(planes="saliency"), "planes must be a list of names"),
        (pack(planes=[b"saliency"]), "planes must be a list of names"),
        (pack(planes=[3]), "planes must be a list of names"),
        (pack(skip=None), "must be names"),
        (pack(target=b"maximum"), "must be names"),
        (pack(gradient_weight=True), "integers"),
        (pack(levels=255.0), "integers"),
        (pack(kernels=3), "kernels must be a list of integers"),
        (pack(kernels=[3, True]), "kernels must be a list of integers"),
        (pack(kernels=[]), "kernels: 1 to 64 channels are known, got 0"),
        (pack(kernels=[1] * 65), "kernels: 1 to 64 channels are known, got 65"),
        (pack(kernels=[3, 2]), "kernel"),
        (pack(kernels=[-1]), "kernel"),
        (pack(second=2), "kernel"),
        (pack(kernels=[5], patch=6), "no output"),
        (pack(patch=-6), "patch"),
        (pack(patch=2**60), "patch"),
        (pack(gradient_weight=-1), "gradient_weight"),
        (pack(gradient_weight=1025), "gradient_weight"),
        (pack(levels=0), "levels"),
        (pack(levels=4096), "levels"),
        (pack(patch=64, levels=4095), "levels: a loss of this patch and gradient_weight.*at most 40"),
        (b"\x99\x02\xcc\x06" + FusionSpec().encode()[3:], "canonical"),
        (
            b"\xdc\x00" + FusionSpec().encode()[:1].replace(b"\x99", b"\x09") + FusionSpec().encode()[1:],
            "canonical",
        ),
        (FusionSpec().encode() + b"\x00", "msgpack"),
        (bytes(1025), "at most 1024"),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        FusionSpec.decode(data)


def test_the_largest_specification_fits() -> None:
    assert len(FusionSpec(patch=30, kernels=(15,) * 64, second=15, planes=PLANES[:14]).encode()) < 1024


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


def test_weights_start_fresh_or_pretrained() -> None:
    model = FusionSpec(patch=5, kernels=(3,)).encode()
    fresh = FusionTraining().build_initial_weights(model, 1)
    assert fresh == FusionTraining().build_initial_weights(model, 1, "fresh")
    pretrained = FusionTraining().build_initial_weights(model, 1, "pretrained")
    assert len(pretrained) == len(fresh)
    assert pretrained != fresh
    with pytest.raises(WorkloadError, match="known are fresh, pretrained"):
        FusionTraining().build_initial_weights(model, 1, "random")
