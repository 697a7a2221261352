"""Import of paired PNG files: what is read, and what is refused with the file and the reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_model.fuse import recolour
from fusion_model.importers.png import (
    ImportRefusedError,
    import_folders,
    import_manifest,
    import_pair,
    read_splits,
)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def draw(shape: tuple[int, ...] = (9, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_manifest(folder: Path, *rows: str, header: str = "id,modality,file_a,file_b,patient") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_folders_pair_equal_names_and_group_patients(tmp_path: Path) -> None:
    for name in ("bob_2", "ann_1", "ann_2"):
        save(tmp_path / "ct" / f"{name}.png", draw(seed=1))
        save(tmp_path / "mr" / f"{name}.png", draw(seed=2))
    pairs = import_folders(tmp_path / "ct", tmp_path / "mr")
    assert [(pair.name, pair.patient) for pair in pairs] == [("ann_1", 0), ("ann_2", 0), ("bob_2", 1)]
    np.testing.assert_array_equal(pairs[0].first * 255, draw(seed=1))
    np.testing.assert_array_equal(pairs[0].second * 255, draw(seed=2))
    assert pairs[0].chroma is None


def test_numbered_patients_keep_their_numbers(tmp_path: Path) -> None:
    save(tmp_path / "a.png", draw())
    manifest = write_manifest(
        tmp_path, "x,MRI-CT,a.png,a.png,41", "y,MRI-PET,a.png,a.png,7", "z,MRI-CT,a.png,a.png,007"
    )
    assert [pair.patient for pair in import_manifest(manifest, "MRI-CT")] == [41, 7]
    # 7 and 007 are one number but two labels: then ranks are given, and nobody is merged.
    assert [pair.patient for pair in import_manifest(manifest)] == [1, 2, 0]


def test_colour_is_read_as_luminance_and_comes_back(tmp_path: Path) -> None:
    colour = draw((9, 8, 3), seed=3)
    pair = import_pair(save(tmp_path / "a.png", draw()), save(tmp_path / "b.png", colour), "p", 0)
    luminance = np.rint(colour @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_allclose(pair.second * 255, luminance, atol=1e-9)
    assert pair.chroma is not None
    back = recolour(luminance.astype(np.uint8), pair.chroma)
    assert np.abs(back.astype(int) - colour).max() <= 1


def test_sixteen_bits_are_read_at_full_depth(tmp_path: Path) -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (9, 8), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    pair = import_pair(save(tmp_path / "a.png", deep), save(tmp_path / "b.png", draw()), "p", 0)
    np.testing.assert_array_equal(np.rint(pair.first * 65535), deep)
    assert pair.first.min() == 0
    assert pair.first.max() == 1
    assert pair.chroma is None


def test_grey_saved_as_colour_is_grey(tmp_path: Path) -> None:
    grey = np.repeat(draw()[..., None], 3, axis=2)
    pair = import_pair(save(tmp_path / "a.png", grey), save(tmp_path / "b.png", grey), "p", 0)
    assert pair.chroma is None
    np.testing.assert_array_equal(pair.first * 255, grey[..., 0])


def test_refusals_name_the_file_and_the_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", draw())
    text = tmp_path / "text.png"
    text.write_text("not an image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-40])
    jpeg = tmp_path / "jpeg.png"
    Image.fromarray(draw()).save(jpeg, format="JPEG")
    cases = [
        (save(tmp_path / "small.png", draw((9, 7))), "is 7x9 pixels, but its twin .* is 8x9"),
        (save(tmp_path / "bits.png", draw() > 99), "pixel mode 1; only grey of 8 or 16 bits"),
        (save(tmp_path / "alpha.png", draw((9, 8, 4))), "pixel mode RGBA"),
        (text, "not a PNG"),
        (jpeg, "not a PNG"),
        (cut, "can not be read"),
        (tmp_path / "none.png", "does not exist"),
        (save(tmp_path / "wide.png", draw((1, 4097))), "4097x1 pixels, more than 4096"),
    ]
    for path, reason in cases:
        with pytest.raises(ImportRefusedError, match=reason) as refused:
            import_pair(good, path, "p", 0)
        assert refused.value.path == path
        assert str(path) in str(refused.value)
    colour = save(tmp_path / "colour.png", draw((9, 8, 3)))
    with pytest.raises(ImportRefusedError, match="is coloured, and so is"):
        import_pair(colour, colour, "p", 0)


def test_folders_without_twins_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "ct" / "a.png", draw())
    (tmp_path / "mr").mkdir()
    with pytest.raises(ImportRefusedError, match=r"a\.png: has no file of the same name"):
        import_folders(tmp_path / "ct", tmp_path / "mr")
    (tmp_path / "none").mkdir()
    with pytest.raises(ImportRefusedError, match="no PNG"):
        import_folders(tmp_path / "none", tmp_path / "mr")
    with pytest.raises(ImportRefusedError, match="not a folder"):
        import_folders(tmp_path / "absent", tmp_path / "mr")


def test_broken_manifests_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", draw())
    folder = tmp_path / "in"
    with pytest.raises(ImportRefusedError, match="can not be read"):
        import_manifest(folder / "absent.csv")
    with pytest.raises(ImportRefusedError, match="lacks the columns file_b, patient"):
        import_manifest(write_manifest(folder, header="id,modality,file_a"))
    with pytest.raises(ImportRefusedError, match="has no pair of modality MRI-CT"):
        import_manifest(write_manifest(folder, "x,MRI-PET,a.png,a.png,1"), "MRI-CT")
    with pytest.raises(ImportRefusedError, match="has no pair"):
        import_manifest(write_manifest(folder))
    with pytest.raises(ImportRefusedError, match="row 2 has too few"):
        import_manifest(write_manifest(folder, "x,MRI-CT,a.png"))
    save(tmp_path / "outside.png", draw())
    with pytest.raises(ImportRefusedError, match=r"names \.\./outside\.png"):
        import_manifest(write_manifest(folder, "x,MRI-CT,../outside.png,a.png,1"))


def test_splits_are_of_patients(tmp_path: Path) -> None:
    header = "id,modality,file_a,file_b,patient,split"
    rows = ["x,CT,a.png,a.png,41,train", "y,CT,a.png,a.png,7,test", "z,PET,a.png,a.png,8,validation"]
    manifest = write_manifest(tmp_path, *rows, header=header)
    assert read_splits(manifest) == {41: "train", 7: "test", 8: "validation"}
    assert read_splits(manifest, "CT") == {41: "train", 7: "test"}
    with pytest.raises(ImportRefusedError, match="patient 7 in the splits test and train"):
        read_splits(write_manifest(tmp_path, *rows, "w,CT,a.png,a.png,7,train", header=header))
    with pytest.raises(ImportRefusedError, match="lacks the column split"):
        read_splits(write_manifest(tmp_path, "x,CT,a.png,a.png,41"))
