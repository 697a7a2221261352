"""Labelled images from npz, CSV and folders, and single images: what is read, split and refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.medical import build_dicom
from workloads.base import WorkloadError
from workloads.diagnosis_data import DiagnosisData, load_data
from workloads.diagnosis_images import ReadOptions, load_images

SIDE = 12


def draw(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {}
    for number, (name, count) in enumerate((("train", 20), ("val", 6), ("test", 8))):
        arrays[f"{name}_images"] = draw(count, number)
        arrays[f"{name}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(path, **(arrays | changes))
    return path


def test_npz_with_splits(tmp_path):
    path = save_npz(tmp_path / "data.npz")
    data = load_data(path)
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [20, 6, 8]
    assert data.train.images.shape == (20, 1, SIDE, SIDE)
    assert np.array_equal(np.rint(data.val.images[:, 0] * 255), draw(6, 1))
    assert data.train.labels.tolist() == [0, 1] * 10
    digest = data.compute_digest()
    assert digest == load_data(path).compute_digest()
    changed = draw(20, 0)
    changed[3, 4, 5] ^= 1
    assert digest != load_data(save_npz(path, train_images=changed)).compute_digest()


def collect_groups(data: DiagnosisData) -> list[set[int]]:
    return [set(part.groups.tolist()) for part in (data.train, data.val, data.test)]


def test_npz_without_splits_keeps_groups_together(tmp_path):
    path = tmp_path / "data.npz"
    groups = np.repeat(np.arange(40), 3)
    np.savez(path, images=draw(120), labels=np.arange(120) % 2, group=groups)
    data = load_data(path, seed=5)
    train, val, test = collect_groups(data)
    assert len(train) + len(val) + len(test) == len(train | val | test)
    assert (len(train), len(val), len(test)) == (28, 6, 6)
    assert collect_groups(load_data(path, seed=5)) == [train, val, test]
    assert collect_groups(load_data(path, seed=6)) != [train, val, test]


def test_colour_npz(tmp_path):
    path = tmp_path / "data.npz"
    pixels = np.random.default_rng(1).integers(0, 256, (60, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(60) % 2)
    assert load_data(path, ReadOptions(channels=3)).train.shape == (3, SIDE, SIDE)
    assert load_data(path).train.shape == (1, SIDE, SIDE)


def test_folders_of_classes_are_split_by_patient(tmp_path):
    for number, pixels in enumerate(draw(60)):
        name = "healthy" if number % 2 else "ill"
        save(tmp_path / name / f"case{number // 3}_{number}.png", pixels)
    data = load_data(tmp_path)
    assert data.classes == ("healthy", "ill")
    train, val, test = collect_groups(data)
    assert len(train) + len(val) + len(test) == len(train | val | test)
    assert len(train | val | test) == 20


def test_folders_of_splits(tmp_path):
    for split, count in (("train", 6), ("validation", 2), ("test", 4)):
        for number, pixels in enumerate(draw(count)):
            save(tmp_path / split / ("b" if number % 2 else "a") / f"{split}{number}.png", pixels)
    data = load_data(tmp_path)
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [6, 2, 4]


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_csv(tmp_path):
    rows = []
    for number, pixels in enumerate(draw(12)):
        save(tmp_path / "images" / f"{number}.png", pixels)
        split = ("train", "train", "train", "train", "val", "val", "test", "test")[number % 8]
        rows.append({"file": f"images/{number}.png", "label": f"grade {number % 2}", "split": split})
    data = load_data(write_list(tmp_path / "list.csv", rows))
    assert data.classes == ("grade 0", "grade 1")
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [8, 2, 2]
    rows[3]["split"] = ""
    with pytest.raises(WorkloadError, match="some images have a split"):
        load_data(write_list(tmp_path / "list.csv", rows))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_images": draw(20).astype(np.float32)}, "train_images: expected .* of 8 bits"),
        ({"val_labels": np.zeros(5, dtype=np.int64)}, "val_labels: expected 6 integers"),
        ({"test_labels": np.zeros(8, dtype=np.int64)}, r"the split test has labels \[0\]"),
        ({"test_images": draw(8, 0, 9)}, "splits have images of shapes"),
        ({"val_labels": np.array([0, 1, 2, 0, 1, 2])}, r"the split val has labels \[0, 1, 2\]"),
    ],
)
def test_npz_that_is_refused(tmp_path, changes, reason):
    with pytest.raises(WorkloadError, match=reason):
        load_data(save_npz(tmp_path / "data.npz", **changes))


def test_sources_that_are_none(tmp_path):
    with pytest.raises(WorkloadError, match="does not exist"):
        load_data(tmp_path / "nothing")
    with pytest.raises(WorkloadError, match="holds no folder"):
        load_data(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(WorkloadError, match="can not be read"):
        load_data(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", images=np.array([object()]), labels=np.array([1]))
    with pytest.raises(WorkloadError, match="can not be read"):
        load_data(tmp_path / "objects.npz")
    save(tmp_path / "one" / "a.png", draw(1)[0])
    with pytest.raises(WorkloadError, match="expected two classes, got 1: one"):
        load_data(tmp_path)


def test_an_image_of_the_wrong_size_is_refused_or_averaged(tmp_path):
    path = save(tmp_path / "large.png", np.kron(draw(1)[0], np.ones((3, 3), dtype=np.uint8)))
    with pytest.raises(WorkloadError, match=r"large\.png: is 36x36 pixels, the model takes 12x12"):
        load_images(path, ReadOptions(size=(SIDE, SIDE)))
    images, names = load_images(path, ReadOptions(size=(SIDE, SIDE), resize=True))
    assert names == ("large",)
    assert np.abs(images[0, 0] * 255 - draw(1)[0]).max() < 1e-3


def test_resizing_keeps_proportions(tmp_path):
    wide = np.zeros((12, 30), dtype=np.uint8)
    wide[:, 9:21] = draw(1)[0]
    path = save(tmp_path / "wide.png", wide)
    images, _ = load_images(path, ReadOptions(size=(SIDE, SIDE), resize=True))
    assert np.abs(images[0, 0] * 255 - draw(1)[0]).max() < 1e-3


def test_colour_and_grey(tmp_path):
    colour = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    path = save(tmp_path / "colour.png", colour)
    images, _ = load_images(path, ReadOptions(channels=3))
    assert np.abs(images[0].transpose(1, 2, 0) * 255 - colour).max() < 1e-9
    assert load_images(path, ReadOptions())[0].shape == (1, 1, SIDE, SIDE)


def test_dicom(tmp_path):
    image = np.random.default_rng(3).integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
    path = tmp_path / "image.dcm"
    build_dicom(image).save_as(path, enforce_file_format=True)
    images, names = load_images(path, ReadOptions(size=(SIDE, SIDE)))
    assert images.shape == (1, 1, SIDE, SIDE)
    assert len(names) == 1
    assert 0 <= images.min() < images.max() <= 1
    assert np.corrcoef(images.ravel(), image.ravel())[0, 1] > 0.99


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(WorkloadError, match=r"a\.png: is neither PNG nor TIFF"):
        load_images(tmp_path / "a.png", ReadOptions())
