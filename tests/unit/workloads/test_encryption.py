"""A contributor's batches: whole, split by patient, and refused with a remedy."""

from pathlib import Path

import numpy as np
import pytest

from fusion_model.losses import build_loss_target
from fusion_model.model import PolynomialFusion
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from he.packing import decrypt_batch
from workloads.base import WorkloadError
from workloads.encryption import (
    ContributionPlan,
    EncryptionProgress,
    build_clear_batches,
    build_pairs,
    encrypt_contribution,
)
from workloads.export import check_box, export_weights, import_weights
from workloads.fusion import FusionSpec, FusionTraining

SPEC = FusionSpec()
SLOTS = 2048
PHANTOMS = build_phantoms(1, 4)
"""Four patients of four slices."""
PLAN = ContributionPlan(3, 2, (1, 3), seed=4, patches_per_batch=1000)


def test_patients_are_never_split() -> None:
    training, validation = build_clear_batches(SPEC, PHANTOMS, PLAN, SLOTS)
    assert len(training) == 3
    assert len(validation) == 2
    for batches, expected in ((training, [0, 2]), (validation, [1, 3])):
        for batch in batches:
            assert batch.inputs.shape == (1000, 2, 6, 6)
            assert [patient for patient, _, _ in batch.ranges] == expected
            # The ranges tile the batch.
            edges = [0, *(stop for _, _, stop in batch.ranges)]
            assert [start for _, start, _ in batch.ranges] == edges[:-1]
            assert edges[-1] == 1000


def test_grey_values_are_on_the_grid() -> None:
    training, _ = build_clear_batches(FusionSpec(levels=15), PHANTOMS, PLAN, SLOTS)
    scaled = training[0].inputs * 15
    np.testing.assert_allclose(scaled, np.rint(scaled), atol=1e-12)


def test_planes_skip_and_targets_are_those_of_the_task() -> None:
    """Patches come from whole pairs that were prepared first: the same as cutting them by hand."""
    spec = FusionSpec(patch=8, planes=("saliency",), skip="maximum", target="energy", levels=31)
    plan = ContributionPlan(2, 0, (), seed=4, patches_per_batch=500)
    batches, _ = build_clear_batches(spec, PHANTOMS, plan, SLOTS)
    chosen = extract_patches(PHANTOMS, 1000, 4, 8, settings=spec.settings, margin=2)
    target = build_loss_target(spec.network, chosen.inputs, chosen.targets, chosen.skip)
    for number, batch in enumerate(batches):
        assert batch.inputs.shape == (500, 3, 8, 8)
        np.testing.assert_array_equal(batch.inputs, chosen.inputs[number::2])
        np.testing.assert_allclose(batch.target.plane, target.plane[number::2], atol=1e-12)
        np.testing.assert_allclose(batch.target.constant, target.constant[number::2], atol=1e-12)
        assert (batch.inputs[:, 2].min(), batch.inputs[:, 2].max()) != (0, 0)


def test_the_same_seed_gives_the_same_batches() -> None:
    first, _ = build_clear_batches(SPEC, PHANTOMS, PLAN, SLOTS)
    again, _ = build_clear_batches(SPEC, PHANTOMS, PLAN, SLOTS)
    np.testing.assert_array_equal(first[1].inputs, again[1].inputs)
    assert not np.array_equal(first[0].inputs, first[1].inputs)


def test_pairs_from_8_bit_and_float_images() -> None:
    eight = np.arange(100, dtype=np.uint8).reshape(10, 10)
    pairs = build_pairs([(7, eight, eight / 255.0)])
    assert pairs[0].patient == 7
    np.testing.assert_array_equal(pairs[0].first, pairs[0].second)


@pytest.mark.parametrize(
    ("patient", "first", "second", "message"),
    [
        (-1, np.zeros((8, 8)), np.zeros((8, 8)), "patient must not be negative"),
        (0, np.zeros((8, 8)), np.zeros((8, 9)), "differ in size.*resample"),
        (0, np.zeros((8, 8, 3)), np.zeros((8, 8, 3)), "image A: expected a grey image"),
        (0, np.zeros((8, 8)), np.full((8, 8), 1.5), r"image B: values must lie in \[0, 1\].*rescale"),
        (0, np.full((8, 8), np.nan), np.zeros((8, 8)), r"image A: values must lie in \[0, 1\]"),
    ],
)
def test_unusable_images_are_refused(
    patient: int, first: np.ndarray, second: np.ndarray, message: str
) -> None:
    with pytest.raises(WorkloadError, match=message):
        build_pairs([(patient, first, second)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training_batches": 500},
            "training_batches: 500 batches of 1000 patches cannot be filled.*give more",
        ),
        ({"validation_batches": 500}, "validation_batches: 500 batches"),
        ({"training_batches": -1}, "must not be negative"),
        ({"training_batches": 0, "validation_batches": 0}, "nothing to contribute"),
        ({"patches_per_batch": 2049}, r"patches_per_batch must lie in \[1, 2048\]"),
        ({"validation_patients": ()}, "validation_patients and validation_batches go together"),
        ({"validation_patients": (9,)}, "validation_patients: no pairs of validation patients"),
        ({"validation_patients": (0, 1, 2, 3)}, "validation_patients: every patient is held"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {
        "training_batches": 3,
        "validation_batches": 2,
        "validation_patients": (1, 3),
        "seed": 4,
        "patches_per_batch": 1000,
    }
    with pytest.raises(WorkloadError, match=message):
        build_clear_batches(
            SPEC,
            PHANTOMS,
            ContributionPlan(**{**fields, **changes}),
            SLOTS,  # type: ignore[arg-type]
        )


def test_black_images_are_refused() -> None:
    pairs = build_pairs([(0, np.zeros((64, 64)), np.full((64, 64), 0.5))])
    with pytest.raises(WorkloadError, match=r"pair 0 \(patient 0\): image A is black.*leave the pair out"):
        build_clear_batches(SPEC, pairs, ContributionPlan(1, 0, (), 0, 10), SLOTS)
    with pytest.raises(WorkloadError, match="pairs: none given"):
        build_clear_batches(SPEC, [], ContributionPlan(1, 0, (), 0, 10), SLOTS)


def test_images_smaller_than_a_patch_are_refused() -> None:
    pairs = build_pairs([(0, np.ones((5, 64)), np.ones((5, 64)))])
    with pytest.raises(WorkloadError, match="smaller than a 6x6 patch"):
        build_clear_batches(SPEC, pairs, ContributionPlan(1, 0, (), 0, 10), SLOTS)


def test_a_contribution_of_validation_alone() -> None:
    plan = ContributionPlan(0, 1, (0, 1), seed=0, patches_per_batch=100)
    training, validation = build_clear_batches(SPEC, PHANTOMS[:8], plan, SLOTS)
    assert training == []
    assert len(validation) == 1


def test_what_is_encrypted_is_what_was_given(tmp_path: Path) -> None:
    params = FusionTraining(allow_insecure=True).get_params("test-4096-60x5")
    private = PrivateContext.generate(params)
    plan = ContributionPlan(2, 1, (1,), seed=4, patches_per_batch=300)
    pairs, seen = PHANTOMS[:8], []
    made = encrypt_contribution(private.public, SPEC, pairs, plan, tmp_path / "out", seen.append)
    assert seen == [
        EncryptionProgress(1, 3, made.training[0].path),
        EncryptionProgress(2, 3, made.training[1].path),
        EncryptionProgress(3, 3, made.validation[0].path),
    ]
    assert {(entry.patient, entry.validation, entry.batch) for entry in made.patients} == {
        (0, False, 0),
        (0, False, 1),
        (1, True, 0),
    }
    clear = build_clear_batches(SPEC, pairs, plan, params.slots)[1][0]
    inputs, target, constant = decrypt_batch(private, SPEC.circuit, made.validation[0].path)
    assert constant is not None
    np.testing.assert_allclose(inputs[:300], clear.inputs, atol=1e-4)
    np.testing.assert_allclose(target[:300], clear.target.plane, atol=1e-12)
    np.testing.assert_allclose(constant[:300], clear.target.constant, atol=1e-12)
    np.testing.assert_allclose(inputs[300:], 0, atol=1e-4)


def test_weights_to_torch_and_back() -> None:
    weights = FusionTraining().build_initial_weights(SPEC.encode(), 3)
    model = import_weights(SPEC, weights)
    assert isinstance(model, PolynomialFusion)
    assert export_weights(SPEC, model, 2**22) == weights
    with pytest.raises(WorkloadError, match="outside"):
        export_weights(SPEC, model, 10)
    with pytest.raises(WorkloadError, match="network"):
        export_weights(FusionSpec(kernels=(3, 3)), model, 2**22)
    with pytest.raises(WorkloadError, match="expected 112"):
        import_weights(SPEC, weights[:-1])
    with pytest.raises(WorkloadError, match="entry 1"):
        check_box((0, -11), 10)
