"""Reading of NIfTI: every orientation gives the same slices, and what is no volume of numbers is refused."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import Axis, read_volume
from fusion_model.importers.stack import Patient, Stack
from tests.medical import save_nifti

WHO = Patient("p")
CODES = ["".join(c) for p in permutations(("LR", "PA", "SI")) for c in product(*p)]


def build_images(count: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(n).random((6, 5)).round(3) for n in range(count)]


def read(path: Path, axis: Axis = "axial") -> Stack:
    return read_volume(path, "volume", WHO, axis)


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def refuse(path: Path) -> str:
    with pytest.raises(ImportRefusedError) as refused:
        [plane.read() for plane in read(path).planes]
    assert refused.value.path == path
    assert refused.value.remedy
    return str(refused.value)


@given(codes=st.sampled_from(CODES))
@settings(max_examples=20, deadline=None)
def test_slices_do_not_depend_on_how_the_volume_is_stored(
    codes: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = build_images()
    path = save_nifti(tmp_path_factory.mktemp("v") / "v.nii.gz", images, codes=codes)
    stack = read(path)
    assert len(stack.planes) == 3
    for number, (plane, image) in enumerate(zip(stack.planes, images, strict=True)):
        np.testing.assert_allclose(plane.read().values, image, rtol=1e-6)
        assert plane.size == (6, 5)
        assert plane.geometry is not None
        assert plane.geometry.plane == "axial"
        assert plane.geometry.depth == pytest.approx(3.0 * number)
        assert plane.geometry.origin == pytest.approx((0.0, 0.0, 3.0 * number))


def test_other_axes(tmp_path: Path) -> None:
    images = build_images(4)
    path = save_nifti(tmp_path / "v.nii", images)
    volume = np.stack(images)  # head, back, left
    coronal, sagittal = read(path, "coronal"), read(path, "sagittal")
    assert [len(coronal.planes), len(sagittal.planes)] == [6, 5]
    np.testing.assert_allclose(coronal.planes[1].read().values, volume[::-1, 1, :], rtol=1e-6)
    np.testing.assert_allclose(sagittal.planes[2].read().values, volume[::-1, :, 2], rtol=1e-6)
    assert coronal.planes[0].size == (4, 5)
    assert coronal.planes[0].geometry is not None
    assert coronal.planes[0].geometry.spacing == (3.0, 1.0)


def test_scaling_and_colour(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, tmp_path / "s.nii.gz")
    values = [plane.read().values for plane in read(tmp_path / "s.nii.gz").planes]
    assert min(float(v.min()) for v in values if v is not None) == -5
    assert max(float(v.max()) for v in values if v is not None) == 41

    colours = np.zeros((4, 3, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = 200
    found = read(save(tmp_path / "c.nii.gz", colours)).planes[0].read()
    assert found.colour is not None
    assert found.colour.shape == (3, 4, 3)
    assert (found.colour == (200, 0, 0)).all()


def test_volumes_without_orientation_have_no_place(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 3, 2), dtype=np.float32), np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "v.nii")
    assert [plane.geometry for plane in read(tmp_path / "v.nii").planes] == [None, None]


def test_bad_volumes_are_refused(tmp_path: Path) -> None:
    ones = np.ones((4, 3, 2), dtype=np.float32)
    bad = ones.copy()
    bad[1, 1, 1] = np.nan
    assert "NaN or infinite; set them" in refuse(save(tmp_path / "nan.nii.gz", bad))
    assert "has 4 dimensions (4, 3, 2, 5)" in refuse(
        save(tmp_path / "time.nii.gz", np.ones((4, 3, 2, 5), dtype=np.float32))
    )
    assert "values of type complex64" in refuse(save(tmp_path / "complex.nii", ones.astype(np.complex64)))
    whole = save(tmp_path / "whole.nii", ones)
    short = tmp_path / "short.nii"
    short.write_bytes(whole.read_bytes()[:-20])
    assert "is truncated" in refuse(short)
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes())[:-30])
    assert "can not be read as NIfTI" in refuse(packed)
    text = tmp_path / "text.nii"
    text.write_text("not a volume")
    assert "can not be read as NIfTI" in refuse(text)
    flat = save(tmp_path / "flat.nii", ones)
    data = bytearray(flat.read_bytes())
    data[280:328] = bytes(48)  # the rows of the affine
    flat.write_bytes(data)
    assert "affine that is no grid" in refuse(flat)


def test_claims_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "v.nii", np.ones((4, 3, 2), dtype=np.float32)).read_bytes())
    data[42:48] = np.array([500, 500, 500], "<i2").tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    assert "can not hold the 500000352 bytes" in refuse(tmp_path / "v.nii")
    data[42:48] = np.array([32000, 32000, 2], "<i2").tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    assert "more than 4096" in refuse(tmp_path / "v.nii")
