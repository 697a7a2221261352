"""Imports from end to end: what is made of good input, and that bad input costs itself alone."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fusion_model.importers.batch import ImportJob, ImportOptions, ImportSummary, import_data
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.png import import_folders, import_manifest
from fusion_model.importers.rendering import WindowChoice
from fusion_model.phantom import build_phantoms
from tests.medical import (
    BIRTH,
    NAME,
    NUMBER,
    UID,
    build_dicom,
    build_enhanced,
    build_slices,
    save_dicom,
    save_nifti,
    save_series,
)

FULL = WindowChoice.parse("full")
FAST = ImportOptions(windows=(FULL, FULL), registration="off")
"""Registration's check has tests of its own, and is most of an import's time."""


def run(folder: Path, options: ImportOptions = FAST, *jobs: ImportJob, name: str = "out") -> ImportSummary:
    chosen = jobs or (ImportJob(folder / "a", folder / "b"),)
    return import_data(chosen, folder / name, folder / "key.csv", options)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_pngs(folder: Path, patients: int = 2) -> None:
    for pair in build_phantoms(1, patients, 2, 64):
        for side, image in (("a", pair.first), ("b", pair.second)):
            save(
                folder / side / f"case{pair.patient}_{pair.name[-1]}.png",
                np.rint(image * 255).astype(np.uint8),
            )


def get_reasons(summary: ImportSummary) -> str:
    return "\n".join(f"{each.count} {each.path} {each.reason}; {each.remedy}" for each in summary.omissions)


def test_two_dicom_series_become_pairs_that_the_rest_can_read(tmp_path: Path) -> None:
    images, others = build_slices(slices=4)
    save_series(tmp_path / "a", images, "CT")
    save_series(tmp_path / "b", others, "MR", series=2, study=2)
    summary = run(tmp_path)
    assert get_reasons(summary) == ""
    pairs = import_manifest(tmp_path / "out" / "manifest.csv", "CT-MRI")
    assert [pair.name for pair in pairs] == [f"0000_{n:03d}" for n in range(4)]
    for pair, first, second in zip(pairs, images, others, strict=True):
        np.testing.assert_allclose(pair.first, np.rint(first * 4095) / 4095, atol=1 / 65535)
        np.testing.assert_allclose(pair.second, np.rint(second * 4095) / 4095, atol=1 / 65535)
    with (tmp_path / "out" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["plane"] for row in rows} == {"axial"}
    assert (rows[0]["row_mm"], rows[0]["bits_a"], rows[0]["modality_b"]) == ("1", "12", "MRI")
    assert (tmp_path / "out" / "preview.png").is_file()
    folders = import_folders(tmp_path / "out" / "first", tmp_path / "out" / "second")
    assert [pair.name for pair in folders] == [pair.name for pair in pairs]


def test_nothing_of_the_patient_is_in_the_data_set(tmp_path: Path) -> None:
    images, others = build_slices(slices=2)
    save_series(tmp_path / "a" / "doe", images, "CT")
    save_series(tmp_path / "b" / "doe", others, "MR", series=2)
    run(tmp_path)
    secrets = [
        text.encode() for text in (NUMBER, "Doe", "doe", "Jane", BIRTH, "Nowhere", "20200229", UID, "IM00")
    ]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert not [secret for secret in secrets if secret in path.read_bytes()]
        assert not [secret for secret in secrets if secret.decode() in str(path.relative_to(tmp_path))]
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.info == {}
    key = (tmp_path / "key.csv").read_text()
    assert NUMBER in key
    assert NAME not in key
    assert (tmp_path / "key.csv").stat().st_mode & 0o777 == 0o600


def test_multi_frame_dicom_and_nifti_meet_by_place(tmp_path: Path) -> None:
    images, others = build_slices(slices=5)
    save_dicom(
        tmp_path / "a.dcm", build_enhanced(images[1:])
    )  # its first slice lies where the second's second
    save_nifti(tmp_path / "b.nii.gz", others, codes="RAS")
    enhanced = build_enhanced(images[1:])
    for frame, item in enumerate(enhanced.PerFrameFunctionalGroupsSequence):
        item.PlanePositionSequence[0].ImagePositionPatient = [0.0, 0.0, 3.0 * (frame + 1)]
    save_dicom(tmp_path / "a.dcm", enhanced)
    summary = run(tmp_path, FAST, ImportJob(tmp_path / "a.dcm", tmp_path / "b.nii.gz", modality="X"))
    assert get_reasons(summary) == ""
    pairs = import_manifest(tmp_path / "out" / "manifest.csv", "X")
    high, low = max(i.max() for i in others[1:]), 0
    for pair, other in zip(pairs, others[1:], strict=True):
        assert np.corrcoef(pair.second.ravel(), np.clip(other, low, high).ravel())[0, 1] > 0.999


def test_colour_is_kept_and_fused_in_luminance(tmp_path: Path) -> None:
    pair = build_phantoms(1, 1, 1, 64)[0]
    rgb = np.stack([pair.second * 255, pair.second * 100, 20 * np.ones((64, 64))], axis=-1).astype(np.uint8)
    save(tmp_path / "a" / "p_1.png", np.rint(pair.first * 255).astype(np.uint8))
    save(tmp_path / "b" / "p_1.png", rgb)
    assert get_reasons(run(tmp_path)) == ""
    found = import_manifest(tmp_path / "out" / "manifest.csv")[0]
    assert found.chroma is not None
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "second" / "0000_000.png")), rgb)
    summary = run(tmp_path, replace(FAST, colour="first"), name="other")
    assert (
        "b/p_1.png is in colour where grey is due; save it as grey, or give --colour second"
        in get_reasons(summary)
    )
    assert not (tmp_path / "other").exists()


def test_patients_are_split_as_a_whole_and_keep_numbers_under_one_key(tmp_path: Path) -> None:
    save_pngs(tmp_path, patients=6)
    one = run(tmp_path, replace(FAST, shares=(50.0, 30.0, 20.0)), name="one")
    two = run(tmp_path, replace(FAST, seed=9), name="two")
    assert one.splits == two.splits
    assert sorted(one.splits.values()) == ["test"] + 3 * ["train"] + 2 * ["validation"]
    counts = {}
    for split in ("train", "validation", "test"):
        pairs = import_manifest(tmp_path / "one" / f"{split}.csv")
        counts[split] = {pair.patient for pair in pairs}
        assert len(pairs) == 2 * len(counts[split])
        assert {one.splits[patient] for patient in counts[split]} == {split}
    assert sum(map(len, counts.values())) == 6


def test_every_bad_pair_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    save_pngs(tmp_path)
    a, b = tmp_path / "a", tmp_path / "b"
    good = np.asarray(Image.open(a / "case0_0.png"))
    colour = np.dstack([good, good // 2, 255 - good])
    for name in ("small", "two", "cut", "black"):
        save(a / f"{name}_1.png", good)
    save(b / "small_1.png", good[:50])
    save(a / "two_1.png", colour)
    save(b / "two_1.png", colour)
    (b / "cut_1.png").write_bytes((b / "case0_0.png").read_bytes()[:-60])
    save(b / "black_1.png", good * 0)
    save(a / "lonely_1.png", good)
    (b / "notes.txt").write_text("not an image")
    (b / ".hidden").write_text("not an image")
    summary = run(tmp_path)
    assert len(summary.pairs) == 4
    reasons = get_reasons(summary)
    assert "b/small_1.png is 64x50 pixels, but its twin" in reasons
    assert "resample it onto its twin's grid" in reasons
    assert "b/two_1.png is in colour, and so is its twin" in reasons
    assert "b/cut_1.png can not be read" in reasons
    assert "b/black_1.png is empty or nearly so" in reasons
    assert "a/lonely_1.png has no twin of the same patient or name in the second folder" in reasons
    assert "b/notes.txt is neither DICOM, NIfTI, PNG nor TIFF" in reasons
    assert len(summary.omissions) == 6
    assert all(each.remedy for each in summary.omissions)


def test_bad_volumes_cost_themselves_alone(tmp_path: Path) -> None:
    images, others = build_slices(slices=3)
    for name in ("good", "nan", "turned", "far", "spacing"):
        save_nifti(tmp_path / "a" / f"{name}.nii.gz", images)
        save_nifti(tmp_path / "b" / f"{name}.nii.gz", others)
    spoiled = [image.copy() for image in others]
    spoiled[1][5, 5] = np.nan
    save_nifti(tmp_path / "b" / "nan.nii.gz", spoiled)
    volume = np.stack([image.T for image in others], axis=2).astype(np.float32)
    angle = np.radians(5)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    base = np.diag([-1.0, -1.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(volume, tilt @ base), tmp_path / "b" / "turned.nii.gz")
    moved = base.copy()
    moved[2, 3] = 500
    nib.save(nib.Nifti1Image(volume, moved), tmp_path / "b" / "far.nii.gz")
    nib.save(nib.Nifti1Image(volume, np.diag([-1.2, -1.2, 3.0, 1.0])), tmp_path / "b" / "spacing.nii.gz")
    summary = run(tmp_path)
    reasons = get_reasons(summary)
    assert len(summary.pairs) == 3 + 2
    assert "1 " + str(tmp_path / "b" / "nan.nii.gz") + " has values that are NaN or infinite" in reasons
    assert "b/turned.nii.gz has orientation axial" in reasons
    assert "by 5.0 degrees; resample" in reasons
    assert "b/far.nii.gz has no slice in the place of one of" in reasons
    assert "b/spacing.nii.gz has pixels of 1.2x1.2 mm, but its twin's are 1x1 mm" in reasons


def test_pairs_of_different_people_are_refused(tmp_path: Path) -> None:
    images, others = build_slices(slices=2)
    save_series(tmp_path / "a", images, "CT")
    save_series(tmp_path / "b", others, "MR", series=2, patient="someone else")
    summary = run(tmp_path)
    assert "is of another patient than" in get_reasons(summary)
    assert "someone" not in get_reasons(summary)
    assert not summary.pairs
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "key.csv").exists()

    for number, (folder, image) in enumerate((("c", images[0]), ("d", others[0]))):
        dataset = build_dicom(image, patient="", study=number)
        dataset.PatientName = ""
        save_dicom(tmp_path / folder / "x.dcm", dataset)
    summary = run(tmp_path, FAST, ImportJob(tmp_path / "c", tmp_path / "d"))
    assert "is of another study than" in get_reasons(summary)

    born = build_dicom(others[0])
    born.PatientBirthDate = "19991231"
    save_dicom(tmp_path / "e.dcm", born)
    save_dicom(tmp_path / "f.dcm", build_dicom(images[0]))
    summary = run(tmp_path, FAST, ImportJob(tmp_path / "e.dcm", tmp_path / "f.dcm"))
    assert "PatientBirthDate differs" in get_reasons(summary)


def test_patients_of_two_archives_find_each_other(tmp_path: Path) -> None:
    """Folders per patient, other file names on each side, one patient on one side only, a truncated file."""
    for number in range(3):
        images, others = build_slices(number, slices=3)
        facts = {"patient": f"P{number}", "frame_of_reference": number + 1}
        save_series(tmp_path / "a" / f"x{number}", images, "CT", study=number, series=1, **facts)
        if number < 2:
            save_series(tmp_path / "b" / f"y{9 - number}", others, "MR", study=number, series=2, **facts)
    cut = next((tmp_path / "b" / "y9").iterdir())
    cut.write_bytes(cut.read_bytes()[:-100])
    summary = run(tmp_path)
    assert len(summary.pairs) == 5
    assert len({pair.patient for pair in summary.pairs}) == 2
    assert f"1 {cut} is truncated" in get_reasons(summary)
    assert "3 " + str(tmp_path / "a" / "x2") + " has no twin of the same patient" in get_reasons(summary)


def test_two_candidates_are_ambiguous_unless_one_shares_the_frame_of_reference(tmp_path: Path) -> None:
    images, others = build_slices(slices=2)
    save_series(tmp_path / "a", images, "CT", frame_of_reference=1)
    save_series(tmp_path / "b" / "t1", others, "MR", series=2, frame_of_reference=2)
    save_series(tmp_path / "b" / "t2", others, "MR", series=3, frame_of_reference=3)
    summary = run(tmp_path)
    assert "has 2 twins of the same patient" in get_reasons(summary)
    assert not summary.pairs
    save_series(tmp_path / "b" / "t3", others, "MR", series=4, frame_of_reference=1)
    summary = run(tmp_path)
    assert len(summary.pairs) == 2
    assert summary.notes == []


def test_series_of_several_times_and_other_grids_are_refused(tmp_path: Path) -> None:
    images, others = build_slices(slices=2)
    save_series(tmp_path / "a", images, "CT")
    save_series(tmp_path / "b", others, "MR", series=2)
    extra = build_dicom(others[0], series=2, instance=9)
    save_dicom(tmp_path / "b" / "again.dcm", extra)
    assert "several planes in one place" in get_reasons(run(tmp_path))
    (tmp_path / "b" / "again.dcm").unlink()
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    for number, image in enumerate(others):
        dataset = build_dicom(image, series=2, instance=number, place=(4.0, 0.0, 3.0 * number))
        save_dicom(tmp_path / "b" / f"{number}.dcm", dataset)
    assert "lies 0.0 rows and 4.0 columns beside its twin" in get_reasons(run(tmp_path))


def test_unregistered_pairs_are_refused_or_noted(tmp_path: Path) -> None:
    pair = build_phantoms(3, 1, 1, 128)[0]
    save(tmp_path / "a" / "p_1.png", np.rint(pair.first * 255).astype(np.uint8))
    save(tmp_path / "b" / "p_1.png", np.rint(pair.second[::-1] * 255).astype(np.uint8))
    options = replace(FAST, registration="refuse")
    assert "looks flipped top-bottom against its twin" in get_reasons(run(tmp_path, options))
    summary = run(tmp_path, replace(FAST, registration="warn"))
    assert len(summary.pairs) == 1
    assert any("looks flipped" in note for note in summary.notes)


def test_volumes_are_judged_as_one(tmp_path: Path) -> None:
    """One slice that looks wrong is no evidence against a volume; most of them are."""
    pairs = build_phantoms(3, 1, 5, 96)
    job = ImportJob(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    save_nifti(job.first, [pair.first for pair in pairs])
    options = replace(FAST, registration="refuse")
    for wrong, imported in ((1, 5), (4, 0)):
        slices = [pair.second[::-1] if n < wrong else pair.second for n, pair in enumerate(pairs)]
        save_nifti(job.second, slices)
        summary = run(tmp_path, options, job, name=f"out{wrong}")
        assert len(summary.pairs) == imported
    assert "b.nii.gz looks flipped top-bottom against its twin" in get_reasons(summary)
    assert "as do 4 of 5 slices" in get_reasons(summary)
    assert summary.omissions[0].count == 5


def test_folders_of_patients_tell_whose_pictures_lie_in_them(tmp_path: Path) -> None:
    for pair in build_phantoms(1, 3, 2, 64):
        for side, image in (("a", pair.first), ("b", pair.second)):
            path = tmp_path / side / f"case-{pair.patient}" / "axial" / f"slice{pair.name[-1]}.png"
            save(path, np.rint(image * 255).astype(np.uint8))
    summary = run(tmp_path)
    assert [pair.patient for pair in summary.pairs].count(0) == 2
    assert len({pair.patient for pair in summary.pairs}) == 3


def test_empty_and_absent_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    summary = run(tmp_path)
    assert "a is an empty folder; name the folder that holds the images" in get_reasons(summary)
    assert "b does not exist" in get_reasons(summary)
    assert not summary.pairs
    twice = run(tmp_path, FAST, ImportJob(tmp_path / "a", tmp_path / "a"))
    assert "is given for both modalities" in get_reasons(twice)


def test_outputs_and_keys_are_not_overwritten(tmp_path: Path) -> None:
    save_pngs(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(ImportRefusedError, match="is not an empty folder"):
        run(tmp_path)
    with pytest.raises(ImportRefusedError, match="lies in the data set"):
        import_data([ImportJob(tmp_path / "a", tmp_path / "b")], tmp_path / "o", tmp_path / "o" / "k", FAST)
    (tmp_path / "key.csv").write_text("something else\n")
    with pytest.raises(ImportRefusedError, match="is not a key of patients"):
        run(tmp_path, name="o")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "key.csv", "out"]


def test_slices_can_be_chosen(tmp_path: Path) -> None:
    images, others = build_slices(slices=6)
    save_nifti(tmp_path / "a.nii", images)
    save_nifti(tmp_path / "b.nii", others)
    job = ImportJob(tmp_path / "a.nii", tmp_path / "b.nii")
    summary = run(tmp_path, replace(FAST, slices=slice(1, None, 2)), job)
    assert len(summary.pairs) == 3


def test_a_missing_window_and_undecodable_slices_are_told(tmp_path: Path) -> None:
    images, others = build_slices(slices=1)
    save_dicom(tmp_path / "a" / "1.dcm", build_dicom(images[0], "CT"))
    save_dicom(tmp_path / "b" / "1.dcm", build_dicom(others[0], series=2))
    summary = run(tmp_path, replace(FAST, windows=(WindowChoice.parse("file:2"), FULL)))
    assert "a/1.dcm proposes 0 windows, so there is no number 2; choose another window" in get_reasons(
        summary
    )
