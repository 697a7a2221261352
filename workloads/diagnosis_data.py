"""Labelled images for diagnosis from an npz file, a CSV or folders, split so that no patient is in two parts.

Nothing of what is read is written anywhere; a digest says which data a model was trained on.
"""

import csv
import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from workloads.base import WorkloadError
from workloads.diagnosis import Floats, LabelledImages
from workloads.diagnosis_images import ReadOptions, fit_image, load_images, stack_images

SPLITS = ("train", "val", "test")
SHARES = (0.7, 0.15, 0.15)
"""Of the groups, where the data has no splits of its own."""
_SUFFIXES = {"validation": "val", "valid": "val", "training": "train"}
_MAX_IMAGES = 200_000
_MAX_BYTES = 2**30
"""Of an npz file's arrays, unpacked."""


@dataclass(frozen=True, slots=True)
class DiagnosisData:
    """Images of both classes, split so that no group is in two splits."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    classes: tuple[str, str]
    """Names of the labels 0 and 1."""

    def compute_digest(self) -> str:
        """SHA-256 in hexadecimal over the classes' names and all images and labels in their order."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for part in (self.train, self.val, self.test):
            digest.update(repr(part.images.shape).encode())
            digest.update(np.ascontiguousarray(part.images, dtype="<f4").tobytes())
            digest.update(np.ascontiguousarray(part.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


def load_data(path: Path, options: ReadOptions | None = None, seed: int = 0) -> DiagnosisData:
    """An `.npz`, a `.csv` of files, or a folder with one folder a class. Raises WorkloadError.

    npz: `train_images` (n, H, W[, 3]) of 8 bits and `train_labels` (n[, 1]), and the same with `val` and
    `test`; or `images`, `labels` and, if there are any, `group`. CSV: columns file, label and, if wanted,
    group and split, files relative to its folder. Folders: CLASS/..., or SPLIT/CLASS/...; classes by name,
    the group is the file's name up to an underscore. Without splits of its own the data is split by the seed.
    """
    options = options or ReadOptions()
    if path.is_dir():
        return _load_rows(_list_folder(path), path, options, seed)
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; name an npz file, a CSV or a folder")
    if path.suffix.lower() == ".npz":
        return _load_npz(path, options, seed)
    if path.suffix.lower() == ".csv":
        return _load_rows(_read_csv(path), path, options, seed)
    raise WorkloadError(f"{path}: expected an npz file, a CSV or a folder of folders, one for each class")


# --- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    label: str
    group: str
    split: str


def _list_folder(folder: Path) -> list[_Row]:
    """Files of SPLIT/CLASS/ or CLASS/, by name."""
    tops = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    split = bool(tops) and all(_name_split(top.name) in SPLITS for top in tops)
    rows = []
    for top in tops:
        below = sorted(entry for entry in top.iterdir() if entry.is_dir()) if split else [top]
        for each in below:
            files = sorted(file for file in each.rglob("*") if file.is_file())
            for file in files:
                if not file.name.startswith("."):
                    group = file.stem.split("_", 1)[0]
                    rows.append(_Row(file, each.name, group, _name_split(top.name) if split else ""))
    if not rows:
        raise WorkloadError(f"{folder}: holds no folder of images for each class")
    return rows


def _name_split(name: str) -> str:
    return _SUFFIXES.get(name.lower(), name.lower())


def _read_csv(path: Path) -> list[_Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"file", "label"} - set(reader.fieldnames or ())
            if missing:
                raise WorkloadError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
            rows = []
            for line, row in enumerate(reader, start=2):
                if not row["file"] or not row["label"]:
                    raise WorkloadError(f"{path}: row {line} has no file or no label")
                group = row.get("group") or row["file"]
                rows.append(
                    _Row(path.parent / row["file"], row["label"], group, _name_split(row.get("split") or ""))
                )
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise WorkloadError(f"{path}: can not be read: {error}") from error
    for number, one in enumerate(rows, start=2):
        if one.split and one.split not in SPLITS:
            raise WorkloadError(f"{path}: row {number}: split {one.split!r} is none of {', '.join(SPLITS)}")
    return rows


def _load_rows(rows: Sequence[_Row], source: Path, options: ReadOptions, seed: int) -> DiagnosisData:
    if len(rows) > _MAX_IMAGES:
        raise WorkloadError(f"{source}: has {len(rows)} images, more than {_MAX_IMAGES}")
    names = sorted({row.label for row in rows})
    if len(names) != 2:
        raise WorkloadError(f"{source}: expected two classes, got {len(names)}: {', '.join(names[:5])}")
    size = options.size
    images: list[Floats] = []
    for row in rows:
        found, _ = load_images(row.path, replace(options, size=size))
        if len(found) != 1:
            raise WorkloadError(f"{row.path}: has {len(found)} planes, and its label is for one")
        images.append(found[0])
        size = size or (found.shape[2], found.shape[3])
    labels = np.array([names.index(row.label) for row in rows], dtype=np.int64)
    _, numbers = np.unique([row.group for row in rows], return_inverse=True)
    everything = LabelledImages(
        stack_images(images, [str(row.path) for row in rows]), labels, numbers.astype(np.int64)
    )
    given = [row.split for row in rows]
    classes = (names[0], names[1])
    if not any(given):
        return _split(everything, classes, seed, source)
    if not all(given):
        raise WorkloadError(f"{source}: some images have a split and some have none")
    return _build(
        [everything.take(np.array([one == name for one in given])) for name in SPLITS], classes, source
    )


# --- npz --------------------------------------------------------------------------------------


def _load_npz(path: Path, options: ReadOptions, seed: int) -> DiagnosisData:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > _MAX_BYTES:
            raise WorkloadError(f"{path}: unpacks to {total} bytes, more than {_MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            if {"train_images", "val_images", "test_images"} <= names:
                parts = [_read_part(path, arrays, f"{name}_", options) for name in SPLITS]
                return _build(parts, ("0", "1"), path)
            return _split(_read_part(path, arrays, "", options), ("0", "1"), seed, path)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise WorkloadError(f"{path}: can not be read as image data: {error}") from error


def _read_part(
    path: Path, arrays: "np.lib.npyio.NpzFile", prefix: str, options: ReadOptions
) -> LabelledImages:
    pixels, labels = np.asarray(arrays[f"{prefix}images"]), np.asarray(arrays[f"{prefix}labels"])
    where = f"{path}: {prefix}images"
    colour = pixels.ndim == 4 and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or colour):
        raise WorkloadError(
            f"{where}: expected (n, H, W) or (n, H, W, 3) of 8 bits, got {pixels.shape} of {pixels.dtype}"
        )
    if labels.dtype.kind not in "iub" or labels.size != len(pixels):
        raise WorkloadError(f"{path}: {prefix}labels: expected {len(pixels)} integers, got {labels.shape}")
    fitted = [fit_image(image if colour else image[:, :, None], path, options) for image in pixels / 255.0]
    count = len(fitted)
    groups = np.arange(count)
    if f"{prefix}group" in arrays.files:
        _, groups = np.unique(np.asarray(arrays[f"{prefix}group"]).ravel(), return_inverse=True)
    if groups.shape != (count,):
        raise WorkloadError(f"{path}: {prefix}group: expected {count} entries, got {groups.shape}")
    return LabelledImages(
        stack_images(fitted, [str(path)] * count), labels.ravel().astype(np.int64), groups.astype(np.int64)
    )


# --- splits -----------------------------------------------------------------------------------


def _split(data: LabelledImages, classes: tuple[str, str], seed: int, source: Path) -> DiagnosisData:
    """Groups to splits by the seed, in the shares above."""
    groups = np.unique(data.groups)
    order = np.random.default_rng([seed, 23]).permutation(len(groups))
    ends = np.rint(np.cumsum(SHARES) * len(groups)).astype(int)
    chosen = [groups[order[start:end]] for start, end in zip((0, *ends[:-1]), ends, strict=True)]
    return _build([data.take(np.isin(data.groups, each)) for each in chosen], classes, source)


def _build(parts: Sequence[LabelledImages], classes: tuple[str, str], source: Path) -> DiagnosisData:
    for name, part in zip(SPLITS, parts, strict=True):
        if set(np.unique(part.labels).tolist()) != {0, 1}:
            raise WorkloadError(
                f"{source}: the split {name} has labels {np.unique(part.labels).tolist()}; each needs 0 and 1"
            )
        if part.shape != parts[0].shape:
            raise WorkloadError(f"{source}: splits have images of shapes {parts[0].shape} and {part.shape}")
    return DiagnosisData(parts[0], parts[1], parts[2], classes)
