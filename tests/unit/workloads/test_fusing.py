"""Fusing files: pairs, folders, volumes; what the results say of their origin, and what is left out."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fusion_model.initial import build_initial_weights
from fusion_model.outputs import Provenance
from fusion_model.phantom import build_phantoms
from workloads.base import WorkloadError
from workloads.fusing import Fuser, FuseRequest, fuse_files
from workloads.fusion import FusionSpec
from workloads.importing import ImportRequest, parse_options

MADE = Provenance("Test", "ab" * 32, "cd" * 32, 7, "ef" * 32, "bmif 0")
SPEC = FusionSpec()
FUSER = Fuser(SPEC, build_initial_weights(SPEC.network, 0))
SIZE = 72
COUNT = 4


def build_request(output: Path, **changes: object) -> FuseRequest:
    options = parse_options(ImportRequest(output, registration="off"))
    return FuseRequest(output, options, **changes)  # type: ignore[arg-type]


def build_slices() -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = build_phantoms(1, 1, slices=COUNT, size=SIZE)
    return [
        (np.rint(pair.first * 255).astype(np.uint8), np.rint(pair.second * 255).astype(np.uint8))
        for pair in pairs
    ]


def save_folders(folder: Path) -> tuple[Path, Path]:
    folders = folder / "a", folder / "b"
    for side, place in enumerate(folders):
        place.mkdir()
        for number, images in enumerate(build_slices()):
            Image.fromarray(images[side]).save(place / f"case{number}.png")
    return folders


def save_volumes(folder: Path) -> tuple[Path, Path, np.ndarray]:
    # Rows along the second axis, turned left, 1.5 mm slices: not as the display has it.
    affine = np.array([[-0.9, 0, 0, 40], [0, 0.9, 0, -30], [0, 0, 1.5, 12], [0, 0, 0, 1.0]])
    paths = folder / "mr.nii.gz", folder / "ct.nii.gz"
    for side, path in enumerate(paths):
        volume = np.stack([images[side].T[:, ::-1] for images in build_slices()], axis=2)
        nib.save(nib.Nifti1Image(volume, affine), path)
    return *paths, affine


def save_series(folder: Path, side: int, name: str) -> Path:
    place = folder / f"{name}-series"
    place.mkdir()
    series, study = generate_uid(), "1.2.3.4"
    for number, images in enumerate(build_slices()):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = (
            "Doe^Jo",
            "P77",
            "19610203",
            "O",
        )
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.AccessionNumber, data.StudyDate = "ACC-5", "20200102"
        data.FrameOfReferenceUID, data.Modality = "1.2.3.9", "CT" if side else "MR"
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [-30.0, -40.0, 5.0 + 2.5 * number]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [0.9, 0.8]
        data.Rows = data.Columns = SIZE
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.WindowCenter, data.WindowWidth = 128, 256
        data.PixelData = images[side].tobytes()
        data.save_as(place / f"{number}.dcm", enforce_file_format=True)
    return place


def test_a_pair_gives_a_png_that_names_its_model(tmp_path: Path) -> None:
    first, second = save_folders(tmp_path)
    output, figure = tmp_path / "fused.png", tmp_path / "figure.png"
    request = build_request(output, first=first / "case0.png", second=second / "case0.png", figure=figure)
    done = fuse_files(FUSER, request, MADE)
    assert (done.files, done.planes, done.size, done.omissions) == ([output], 1, (SIZE, SIZE), [])
    with Image.open(output) as image:
        assert (image.mode, image.size) == ("L", (SIZE, SIZE))
        assert (image.text["bmif:block"], image.text["bmif:task"]) == (MADE.block, MADE.task)  # type: ignore[attr-defined]
        assert MADE.weights_digest in image.text["Description"]  # type: ignore[attr-defined]
    with Image.open(figure) as image:
        assert image.width == 3 * SIZE + 8


def test_folders_go_on_past_bad_pairs(tmp_path: Path) -> None:
    first, second = save_folders(tmp_path)
    (first / "case1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("L", (SIZE + 1, SIZE)).save(second / "case2.png")
    (first / "notes.txt").write_text("no image")
    done = fuse_files(FUSER, build_request(tmp_path / "out", first=first, second=second), MADE)
    assert sorted(path.name for path in done.files) == ["case0.png", "case3.png"]
    named = " ".join(f"{item.path.name}: {item.reason}; {item.remedy}" for item in done.omissions)
    for words in ("case1.png", "case2.png: is 73x72 pixels", "resample it", "notes.txt: is neither"):
        assert words in named


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_volumes_keep_affine_and_orientation(tmp_path: Path, axis: str) -> None:
    first, second, affine = save_volumes(tmp_path)
    output = tmp_path / "fused.nii.gz"
    whole = "127.5/255"
    options = parse_options(
        ImportRequest(output, registration="off", axis=axis, first_window=whole, second_window=whole)
    )
    mean = Fuser(SPEC, (0,) * SPEC.parameters)  # without weights the result is the skip
    done = fuse_files(mean, FuseRequest(output, options, first, second), MADE)
    assert (done.files, done.planes) == ([output], COUNT if axis == "axial" else SIZE)
    made = nib.load(output)
    np.testing.assert_allclose(made.affine, affine, atol=1e-4)
    sources = [np.asarray(nib.load(path).dataobj).astype(np.float64) for path in (first, second)]
    np.testing.assert_allclose(np.asarray(made.dataobj), np.mean(sources, axis=0), atol=0.51)
    told = json.loads(made.header.extensions[0].text)
    assert (told["block"], told["task"]) == (MADE.block, MADE.task)
    assert bytes(made.header["descrip"].item()).startswith(b"bmif fused, block cdcd")


def test_dicom_series_become_one_deidentified_object(tmp_path: Path) -> None:
    first, second = save_series(tmp_path, 0, "mr"), save_series(tmp_path, 1, "ct")
    done = fuse_files(FUSER, build_request(tmp_path / "out", first=first, second=second), MADE)
    assert [path.name for path in done.files] == ["fused-001.dcm"]
    made = pydicom.dcmread(done.files[0])
    assert (made.NumberOfFrames, made.Modality, made.SOPClassUID.name) == (
        COUNT, "OT", "Multi-frame Grayscale Byte Secondary Capture Image Storage",
    )  # fmt: skip
    assert made.pixel_array.shape == (COUNT, SIZE, SIZE)
    raw = done.files[0].read_bytes()
    for secret in (b"Doe", b"P77", b"19610203", b"ACC-5", b"1.2.3.4", b"1.2.3.9", b"20200102"):
        assert secret not in raw
    assert made.PatientIdentityRemoved == "YES"
    equipment = made.ContributingEquipmentSequence[0]
    assert (equipment.Manufacturer, equipment.SoftwareVersions) == ("BMIF", "bmif 0")
    assert MADE.block in equipment.ContributionDescription
    assert MADE.weights_digest in made.DerivationDescription
    places = [
        [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient]
        for frame in made.PerFrameFunctionalGroupsSequence
    ]
    np.testing.assert_allclose(places, [[-30, -40, 5 + 2.5 * number] for number in range(COUNT)])
    shared = made.SharedFunctionalGroupsSequence[0]
    assert [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing] == [0.9, 0.8]
    again = fuse_files(FUSER, build_request(tmp_path / "again", first=first, second=second), MADE)
    other = pydicom.dcmread(again.files[0])
    assert other.SOPInstanceUID != made.SOPInstanceUID
    assert other.StudyInstanceUID != made.StudyInstanceUID


def test_identity_is_kept_on_request_and_only_in_dicom(tmp_path: Path) -> None:
    first, second = save_series(tmp_path, 0, "mr"), save_series(tmp_path, 1, "ct")
    output = tmp_path / "out.dcm"
    request = build_request(output, first=first, second=second, keep_identity=True)
    fuse_files(FUSER, request, MADE)
    made = pydicom.dcmread(output)
    assert (str(made.PatientName), made.PatientID, made.AccessionNumber) == ("Doe^Jo", "P77", "ACC-5")
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID) == ("1.2.3.4", "1.2.3.9")
    assert made.PatientIdentityRemoved == "NO"
    assert made.SOPInstanceUID not in {pydicom.dcmread(path).SOPInstanceUID for path in first.iterdir()}
    pngs = build_request(tmp_path / "p", first=first, second=second, keep_identity=True, format="png")
    with pytest.raises(WorkloadError, match="keep-identity"):
        fuse_files(FUSER, pngs, MADE)


def test_dicom_can_become_nifti_and_png(tmp_path: Path) -> None:
    first, second = save_series(tmp_path, 0, "mr"), save_series(tmp_path, 1, "ct")
    volume = tmp_path / "out.nii.gz"
    fuse_files(FUSER, build_request(volume, first=first, second=second), MADE)
    made = nib.load(volume)
    np.testing.assert_allclose(
        made.affine, [[-0.8, 0, 0, 30], [0, -0.9, 0, 40], [0, 0, 2.5, 5], [0, 0, 0, 1]], atol=1e-4
    )
    request = build_request(tmp_path / "png", first=first, second=second, format="png")
    done = fuse_files(FUSER, request, MADE)
    assert [path.name for path in done.files] == [f"fused-001-{number:04d}.png" for number in range(1, 5)]


def test_coloured_pairs_give_coloured_results_in_every_format(tmp_path: Path) -> None:
    images = build_slices()[0]
    first, second = tmp_path / "mr.png", tmp_path / "pet.png"
    Image.fromarray(images[0]).save(first)
    colour = np.stack([images[1], images[1] // 2, images[1] // 4], axis=-1)
    Image.fromarray(colour).save(second)
    for name in ("fused.png", "fused.nii.gz", "fused.dcm"):
        done = fuse_files(FUSER, build_request(tmp_path / name, first=first, second=second), MADE)
        assert done.files == [tmp_path / name], name
    with Image.open(tmp_path / "fused.png") as image:
        expected = np.asarray(image)
    assert expected.shape == (SIZE, SIZE, 3)
    dicom = pydicom.dcmread(tmp_path / "fused.dcm")
    np.testing.assert_array_equal(dicom.pixel_array, expected)
    assert (dicom.BurnedInAnnotation, dicom.SOPClassUID.name) == ("YES", "Secondary Capture Image Storage")
    volume = np.asarray(nib.load(tmp_path / "fused.nii.gz").dataobj)
    np.testing.assert_array_equal(volume["R"][:, :, 0].T, expected[..., 0])


def test_a_manifest_names_the_pairs(tmp_path: Path) -> None:
    save_folders(tmp_path)
    manifest = tmp_path / "manifest.csv"
    rows = ["id,modality,file_a,file_b,patient", "x,MRI-CT,a/case0.png,b/case0.png,1"]
    rows += ["y,MRI-CT,a/case1.png,b/gone.png,1", "z,MRI-PET,a/case2.png,b/case2.png,1"]
    manifest.write_text("\n".join(rows))
    request = build_request(tmp_path / "out", manifest=manifest, modality="MRI-CT")
    done = fuse_files(FUSER, request, MADE)
    assert [path.name for path in done.files] == ["case0.png"]
    assert [(item.path.name, item.reason) for item in done.omissions] == [("gone.png", "does not exist")]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("o.png", {"first": Path("x")}, "one of each modality"),
        ("o.png", {}, "two files or folders, or --manifest"),
        ("o.png", {"first": Path("/gone"), "second": Path("/gone")}, "/gone does not exist"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, name: str, changes: dict[str, Path], words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        fuse_files(FUSER, build_request(tmp_path / name, **changes), MADE)


def test_several_results_do_not_fit_one_file(tmp_path: Path) -> None:
    first, second = save_folders(tmp_path)
    with pytest.raises(WorkloadError, match="name a folder"):
        fuse_files(FUSER, build_request(tmp_path / "one.png", first=first, second=second), MADE)
    with pytest.raises(WorkloadError, match="does not end as a dicom file"):
        fuse_files(FUSER, build_request(tmp_path / "o.png", first=first, second=second, format="dicom"), MADE)


def test_fusing_loads_neither_torch_nor_encryption() -> None:
    code = "import sys; import workloads.fusing; print(sorted({'torch', 'Pyfhel'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
