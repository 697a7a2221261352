"""The custody opens what it has checked and nothing else."""

import gc
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fusion_model.gradients import compute_patch_gradients, convert_weights
from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from he.formats import build_bundle_layout
from he.packing import decrypt_bundle
from he.plan import build_plan
from tests.he.forging import encode_slot, get_rows
from workloads.base import GradientJob, KeyFile, LossJob, WorkloadError
from workloads.clipping import add_sums
from workloads.custodian import BundleJob, LossSumJob, PrepareJob, SingleCustodian, generate_keys
from workloads.custody import (
    DEFAULT_TOLERANCES,
    PreparedBatch,
    check_bundle,
    clip_and_sum,
    open_gradient,
    prepare_batch,
    sum_patches,
)
from workloads.encryption import ContributionPlan, encrypt_contribution
from workloads.fusion import FusionSpec, FusionTraining

PRESET = "test-4096-60x5"
SPEC = FusionSpec()
MODEL = SPEC.encode()
WORKLOAD = FusionTraining(allow_insecure=True)
PARAMS = WORKLOAD.get_params(PRESET)
PLAN = build_plan(PARAMS, SPEC.circuit)
WEIGHTS = WORKLOAD.build_initial_weights(MODEL, 7)
CLIP, BITS = 3 * 2**20, 20
ENTRY_D, ENTRY_V = 112, 100
"""Gradient entries of both levels that occur: d (two primes) and v (one prime)."""


class Setting(NamedTuple):
    """A task's custody, one contribution and the honest bundle of its first batch."""

    directory: Path
    private: PrivateContext
    keys: KeyFile
    training: tuple[Path, ...]
    validation: Path
    patches: int
    prepared: PreparedBatch
    bundle: bytes


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    directory = tmp_path_factory.mktemp("custody")
    files = generate_keys(PRESET, directory / "keys", WORKLOAD)
    private = PrivateContext.load(PARAMS, (directory / "keys" / "secret.key").read_bytes())
    plan = ContributionPlan(2, 1, (2,), seed=1, patches_per_batch=2000)
    contribution = encrypt_contribution(private.public, SPEC, build_phantoms(5, 3), plan, directory / "data")
    keys = KeyFile(b"keys", files.relin_keys)
    first = contribution.training[0].path
    output = directory / "bundle"
    WORKLOAD.run_gradient(GradientJob(PRESET, MODEL, WEIGHTS, keys, first, output))
    return Setting(
        directory,
        private,
        keys,
        tuple(batch.path for batch in contribution.training),
        contribution.validation[0].path,
        2000,
        prepare_batch(private, SPEC, first, 2000, validation=False),
        output.read_bytes(),
    )


# --- arithmetic on bodies, as someone without the key can do it -----------------------------------


def get_body(bundle: bytes, entry: int) -> np.ndarray:
    """(components, primes, N) residues of one ciphertext as Python integers."""
    body = build_bundle_layout(PLAN).bodies[entry]
    level = body.form.level
    words = np.frombuffer(bundle, "<u8", 2 * level * PARAMS.ring, body.offset)
    return words.reshape(2, level, PARAMS.ring).astype(object)


def put_body(bundle: bytes, entry: int, residues: np.ndarray) -> bytes:
    body = build_bundle_layout(PLAN).bodies[entry]
    primes = np.array(PARAMS.primes[: body.form.level], dtype=object)[None, :, None]
    data = (residues % primes).astype("<u8").tobytes()
    return bundle[: body.offset] + data + bundle[body.offset + len(data) :]


def build_rotation(entry: int, place: int, bits: int) -> np.ndarray:
    """The ciphertext (0, 2^bits X^-place), which decrypts to a rotation of the secret."""
    level = build_bundle_layout(PLAN).bodies[entry].form.level
    coefficients = [0] * PARAMS.ring
    coefficients[-place % PARAMS.ring] = -(2**bits) if place else 2**bits
    rows = get_rows(PARAMS, coefficients, level)
    return np.stack([np.zeros_like(rows), rows])


def rotation(place: int, bits: int, entry: int = ENTRY_D) -> Callable[[bytes], bytes]:
    return lambda bundle: put_body(bundle, entry, build_rotation(entry, place, bits))


def hidden_rotation(place: int, bits: int, entry: int = ENTRY_D) -> Callable[[bytes], bytes]:
    """Added to the honest ciphertext, so that it is close to the right numbers."""
    return lambda bundle: put_body(
        bundle, entry, get_body(bundle, entry) + build_rotation(entry, place, bits)
    )


def masked_slot(bundle: bytes) -> bytes:
    """Every entry's ciphertext is replaced by one patch's number alone, enlarged."""
    mask = get_rows(PARAMS, encode_slot(PARAMS, 5, 2.0**16), 1)
    return put_body(bundle, ENTRY_V, get_body(bundle, ENTRY_V) * mask[None])


def wrapped_message(bundle: bytes) -> bytes:
    """Grown past the modulus, so that it wraps in every coefficient."""
    return put_body(bundle, ENTRY_V, get_body(bundle, ENTRY_V) * (2**40 + 1))


def changed_patch(bundle: bytes) -> bytes:
    """A thousandth is added to one patch's entry."""
    body = get_body(bundle, ENTRY_D)
    scale = float(build_bundle_layout(PLAN).bodies[ENTRY_D].form.scale)
    body[0] += get_rows(PARAMS, encode_slot(PARAMS, 1999, 1e-3 * scale), 2)
    return put_body(bundle, ENTRY_D, body)


def unused_slot(bundle: bytes) -> bytes:
    body = get_body(bundle, ENTRY_D)
    scale = float(build_bundle_layout(PLAN).bodies[ENTRY_D].form.scale)
    body[0] += get_rows(PARAMS, encode_slot(PARAMS, 2047, 1e-3 * scale), 2)
    return put_body(bundle, ENTRY_D, body)


def shifted_everywhere(bundle: bytes) -> bytes:
    """Every patch is moved by less than the tolerance; only the sum shows it."""
    body = get_body(bundle, ENTRY_D)
    scale = float(build_bundle_layout(PLAN).bodies[ENTRY_D].form.scale)
    constant = round(DEFAULT_TOLERANCES.gradient.absolute / 3 * scale * SPEC.circuit.output**2 / 2)
    body[0] += constant
    return put_body(bundle, ENTRY_D, body)


def swapped_entries(bundle: bytes) -> bytes:
    first, second = get_body(bundle, 80), get_body(bundle, 81)
    return put_body(put_body(bundle, 80, second), 81, first)


def transparent(bundle: bytes) -> bytes:
    body = get_body(bundle, ENTRY_D)
    body[1] = 0
    return put_body(bundle, ENTRY_D, body)


# --- bundles ---------------------------------------------------------------------------------------


def test_an_honest_bundle_is_accepted(setting: Setting) -> None:
    checked = check_bundle(setting.private, SPEC, WEIGHTS, setting.prepared, setting.bundle)
    assert checked.report.accepted, checked.report.detail
    # A margin of four: other data, other keys and later weights have it too.
    assert 4 * checked.report.error < checked.report.tolerance
    assert 4 * checked.report.sum_error < checked.report.sum_tolerance
    sums = clip_and_sum(SPEC, WEIGHTS, checked, CLIP, BITS)
    clear = compute_patch_gradients(
        SPEC.network, convert_weights(WEIGHTS), setting.prepared.inputs, setting.prepared.target
    )
    expected = sum_patches(SPEC, WEIGHTS, clear[: setting.patches], CLIP, BITS)
    assert len(sums) == SPEC.parameters
    np.testing.assert_allclose(sums, expected, rtol=0, atol=0.01 * CLIP)


def test_the_attack_on_the_key_is_real(setting: Setting) -> None:
    """Were it opened, (0, 2^k X^-j) would give the secret's coefficient j: clipping can't see it."""
    form = build_bundle_layout(PLAN).bodies[ENTRY_D].form
    found = set()
    for place in range(6):
        forged = rotation(place, 40)(setting.bundle)
        values = decrypt_bundle(setting.private, SPEC.circuit, forged)[:, ENTRY_D]
        # The mean over slots is coefficient 0 of the message.
        coefficient = values.mean() * SPEC.circuit.output**2 / 2 * float(form.scale) / 2.0**40
        assert abs(coefficient - round(coefficient)) < 1e-3
        assert round(coefficient) in (-1, 0, 1)
        found.add(round(coefficient))
        assert np.abs(values).max() < 1e-3
    assert len(found) > 1


@pytest.mark.parametrize(
    "craft",
    [
        *(rotation(place, bits) for place in (0, 1, 4095) for bits in (0, 20, 40, 55)),
        rotation(3, 30, ENTRY_V),
        hidden_rotation(0, 46),
        hidden_rotation(17, 50),
        masked_slot,
        wrapped_message,
        changed_patch,
        unused_slot,
        shifted_everywhere,
        swapped_entries,
        transparent,
        lambda bundle: bundle[:-1],
        lambda bundle: bundle + b"\x00",
        lambda bundle: b"BMIFBAT1" + bundle[8:],
        lambda bundle: bundle[:64] + b"\xff" * 8 + bundle[72:],
        lambda bundle: b"",
    ],
)
def test_a_crafted_bundle_is_refused_and_nothing_is_opened(
    setting: Setting, craft: Callable[[bytes], bytes]
) -> None:
    forged = craft(setting.bundle)
    assert forged != setting.bundle
    checked = check_bundle(setting.private, SPEC, WEIGHTS, setting.prepared, forged)
    assert not checked.report.accepted
    assert checked.report.detail
    assert checked.gradients is None
    with pytest.raises(WorkloadError, match="not opened"):
        clip_and_sum(SPEC, WEIGHTS, checked, CLIP, BITS)


def test_a_rotation_too_small_to_see_drowns_in_the_noise(setting: Setting) -> None:
    """Below the tolerance a forged bundle moves the sum by less than a thousandth of a weak noise."""
    form = build_bundle_layout(PLAN).bodies[ENTRY_D].form
    honest = check_bundle(setting.private, SPEC, WEIGHTS, setting.prepared, setting.bundle)
    assert honest.gradients is not None
    largest = 0.0
    for bits in range(20, int(math.log2(form.scale)), 2):
        checked = check_bundle(
            setting.private, SPEC, WEIGHTS, setting.prepared, hidden_rotation(1, bits)(setting.bundle)
        )
        if checked.gradients is None:
            break
        largest = max(largest, float(np.abs((checked.gradients - honest.gradients).sum(axis=0)).max()))
    else:
        pytest.fail("no size of rotation was refused")
    noise = 1.0  # in gradient units: a third of the clip
    assert 0 < largest < noise / 1000


def test_another_batch_or_other_weights_are_refused(setting: Setting) -> None:
    output = setting.directory / "other"
    WORKLOAD.run_gradient(GradientJob(PRESET, MODEL, WEIGHTS, setting.keys, setting.training[1], output))
    assert not check_bundle(
        setting.private, SPEC, WEIGHTS, setting.prepared, output.read_bytes()
    ).report.accepted
    moved = (WEIGHTS[0] + 2**12, *WEIGHTS[1:])
    WORKLOAD.run_gradient(GradientJob(PRESET, MODEL, moved, setting.keys, setting.training[0], output))
    assert not check_bundle(
        setting.private, SPEC, WEIGHTS, setting.prepared, output.read_bytes()
    ).report.accepted
    assert check_bundle(setting.private, SPEC, moved, setting.prepared, output.read_bytes()).report.accepted


def test_a_prepared_batch_round_trips(setting: Setting, tmp_path: Path) -> None:
    for prepared in (
        setting.prepared,
        prepare_batch(setting.private, SPEC, setting.validation, 2000, validation=True),
    ):
        path = tmp_path / "prepared"
        prepared.save(path)
        again = PreparedBatch.load(path)
        assert again.patches == prepared.patches
        np.testing.assert_array_equal(again.inputs, prepared.inputs)
        np.testing.assert_array_equal(again.target, prepared.target)
        assert (again.constant is None) == (prepared.constant is None)


# --- openings --------------------------------------------------------------------------------------


def test_a_step_from_blobs_to_opening_and_again(setting: Setting) -> None:
    """The jobs as a node runs them; repeating all of it gives the same opening."""
    custodian = SingleCustodian(setting.directory / "keys", WORKLOAD)
    openings = []
    for attempt in range(2):
        sums = []
        for number, path in enumerate(setting.training):
            prepared = setting.directory / f"prepared-{number}"
            custodian.run_prepare(PrepareJob(PRESET, MODEL, path, 2000, False, prepared))
            bundle = setting.directory / f"bundle-{attempt}-{number}"
            WORKLOAD.run_gradient(GradientJob(PRESET, MODEL, WEIGHTS, setting.keys, path, bundle))
            outcome = custodian.run_bundle(BundleJob(PRESET, MODEL, WEIGHTS, prepared, bundle, CLIP, BITS))
            assert outcome.report.accepted, outcome.report.detail
            assert outcome.sums is not None
            sums.append(outcome.sums)
        openings.append(custodian.open_gradient(add_sums(sums), 2**20, b"task, step 0"))
    assert openings[0] == openings[1]
    assert openings[0] != custodian.open_gradient(add_sums(sums), 2**20, b"task, step 1")

    prepared = setting.directory / "prepared-validation"
    custodian.run_prepare(PrepareJob(PRESET, MODEL, setting.validation, 2000, True, prepared))
    loss = WORKLOAD.run_loss(LossJob(PRESET, MODEL, WEIGHTS, setting.keys, setting.validation))
    total = custodian.run_loss_sum(LossSumJob(PRESET, MODEL, WEIGHTS, prepared, loss, 2**20, 20))
    opened = custodian.open_loss((total,), 2000, 2**18, b"task, step 0")
    assert opened == custodian.open_loss((total,), 2000, 2**18, b"task, step 0")
    assert abs(opened - total / 2000) < 6 * 2**18 / 2000
    moved = (WEIGHTS[0] + 2**14, *WEIGHTS[1:])
    with pytest.raises(WorkloadError, match="loss"):
        custodian.run_loss_sum(LossSumJob(PRESET, MODEL, moved, prepared, loss, 2**20, 20))


def test_noise_is_independent_when_the_sums_differ() -> None:
    """So the difference of two openings never shows the difference of their sums bare."""
    secret, sums = bytes(32), (0,) * 112
    first = open_gradient(sums, 1000, secret, b"binding")
    second = open_gradient((1, *sums[1:]), 1000, secret, b"binding")
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5


def test_secrets_stay_where_they_are(setting: Setting) -> None:
    custodian = SingleCustodian(setting.directory / "keys", WORKLOAD)
    assert str(setting.directory) not in repr(custodian)
    job = pickle.dumps(custodian.run_bundle)
    secret = (setting.directory / "keys" / "secret.key").read_bytes()
    assert secret[64:96] not in job
    for name in ("secret.key", "noise.key"):
        assert (setting.directory / "keys" / name).stat().st_mode & 0o077 == 0
    with pytest.raises(WorkloadError, match="already"):
        generate_keys(PRESET, setting.directory / "keys", WORKLOAD)
    gc.collect()


def test_only_what_the_custody_recomputed_counts_beyond_the_tolerance(setting: Setting) -> None:
    """A bundle of other weights stands for an honest one whose error is larger than any measured."""
    custodian = SingleCustodian(setting.directory / "keys", WORKLOAD)
    prepared, bundle = setting.directory / "prepared-far", setting.directory / "bundle-far"
    custodian.run_prepare(PrepareJob(PRESET, MODEL, setting.training[0], 2000, False, prepared))
    moved = (WEIGHTS[0] + 2**14, *WEIGHTS[1:])
    WORKLOAD.run_gradient(GradientJob(PRESET, MODEL, moved, setting.keys, setting.training[0], bundle))
    claimed = BundleJob(PRESET, MODEL, WEIGHTS, prepared, bundle, CLIP, BITS)
    refused = custodian.run_bundle(claimed)
    assert not refused.report.accepted
    assert refused.sums is None
    recomputed = custodian.run_bundle(replace(claimed, recomputed=True))
    assert not recomputed.report.accepted
    assert recomputed.sums is not None
