"""Registered pairs from PNG files: two folders of equal names, or a manifest of pairs and patients."""

import csv
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fusion_model.importers.colour import Grey, split_colour
from fusion_model.importers.errors import ImportRefusedError as ImportRefusedError
from fusion_model.importers.stack import MAX_SIDE
from fusion_model.pairs import ImagePair

_PATIENT_COLUMNS = ("patient", "atlas_case")
_DEPTHS = {"L": 255, "I;16": 65535}
"""Modes of grey PNG files, and their white."""

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What the library lets through for chunks that are not what they say."""


Refusals = list[ImportRefusedError]
"""Where an import is given one, it goes on past what it refuses, which is told there."""


def import_folders(first: Path, second: Path, refusals: Refusals | None = None) -> list[ImagePair]:
    """Pairs of the PNG files that have equal names in both folders, sorted by name.

    The patient is the part of the name before the first underscore, so `case7_012.png` belongs to `case7`.
    Raises ImportRefusedError for an empty folder and, without `refusals`, for a file without its twin and
    what `import_pair` refuses.
    """
    names = [_list_names(folder) for folder in (first, second)]
    for folder, mine, other in ((first, names[0], names[1]), (second, names[1], names[0])):
        for lonely in sorted(mine - other):
            refusal = ImportRefusedError(folder / lonely, "has no file of the same name in the other folder")
            if refusals is None:
                raise refusal
            refusals.append(refusal)
    if not names[0]:
        raise ImportRefusedError(first, "contains no PNG file")
    ordered = sorted(names[0] & names[1])
    labels = [Path(name).stem.split("_", 1)[0] for name in ordered]
    numbers = _number_patients(labels)
    return _import_each(
        [
            partial(import_pair, first / name, second / name, Path(name).stem, numbers[label])
            for name, label in zip(ordered, labels, strict=True)
        ],
        refusals,
    )


def _import_each(calls: Sequence[Callable[[], ImagePair]], refusals: Refusals | None) -> list[ImagePair]:
    pairs = []
    for call in calls:
        try:
            pairs.append(call())
        except ImportRefusedError as refusal:
            if refusals is None:
                raise
            refusals.append(refusal)
    return pairs


def import_manifest(
    manifest: Path, modality: str | None = None, refusals: Refusals | None = None
) -> list[ImagePair]:
    """Pairs of a CSV with the columns id, modality, file_a, file_b and patient (or atlas_case), in its order.

    Files are relative to the manifest's folder and may not leave it. `modality` keeps only those rows. Raises
    ImportRefusedError for a manifest that is none and, without `refusals`, for a row's files.
    """
    rows = _read_rows(manifest)
    kept = [row for row in rows if modality is None or row["modality"] == modality]
    if not kept:
        raise ImportRefusedError(
            manifest, f"has no pair of modality {modality}" if modality else "has no pair"
        )
    column = next(name for name in _PATIENT_COLUMNS if name in kept[0])
    numbers = _number_patients([row[column] for row in kept])

    def import_row(row: Mapping[str, str]) -> ImagePair:
        first, second = (_resolve_inside(manifest, row[name]) for name in ("file_a", "file_b"))
        return import_pair(first, second, row["id"], numbers[row[column]])

    return _import_each([partial(import_row, row) for row in kept], refusals)


def list_manifest(manifest: Path, modality: str | None = None) -> list[tuple[Path, Path]]:
    """The files of a manifest's pairs, unread. Raises ImportRefusedError for a manifest that is none."""
    rows = [row for row in _read_rows(manifest) if modality is None or row["modality"] == modality]
    if not rows:
        raise ImportRefusedError(
            manifest, f"has no pair of modality {modality}" if modality else "has no pair"
        )
    return [
        (_resolve_inside(manifest, row["file_a"]), _resolve_inside(manifest, row["file_b"])) for row in rows
    ]


def read_splits(manifest: Path, modality: str | None = None) -> dict[int, str]:
    """Each patient's split, by the numbers that `import_manifest` gives; of the column `split`.

    Raises ImportRefusedError if there is no such column, or a patient is in two splits.
    """
    rows = [row for row in _read_rows(manifest) if modality is None or row["modality"] == modality]
    if any("split" not in row for row in rows):
        raise ImportRefusedError(manifest, "lacks the column split", "`bmif data import` writes one")
    column = next((name for name in _PATIENT_COLUMNS if rows and name in rows[0]), _PATIENT_COLUMNS[0])
    numbers = _number_patients([row[column] for row in rows])
    splits: dict[int, str] = {}
    for row in rows:
        number = numbers[row[column]]
        if splits.setdefault(number, row["split"]) != row["split"]:
            raise ImportRefusedError(
                manifest,
                f"has patient {number} in the splits {splits[number]} and {row['split']}",
                "a patient must be in one split alone",
            )
    return splits


def import_pair(first: Path, second: Path, name: str, patient: int) -> ImagePair:
    """One pair in [0, 1]; a coloured image gives its luminance and keeps its colours aside.

    Raises ImportRefusedError for an unreadable or non-PNG file, one that is neither grey (8 or 16 bits) nor
    RGB, a pair of different sizes (they would not be registered), or two coloured images.
    """
    a, b = _load_grey(first), _load_grey(second)
    if a.luminance.shape != b.luminance.shape:
        sizes = [f"{width}x{height}" for height, width in (b.luminance.shape, a.luminance.shape)]
        raise ImportRefusedError(
            second,
            f"is {sizes[0]} pixels, but its twin {first} is {sizes[1]}",
            "resample one onto the grid of the other",
        )
    if a.chroma is not None and b.chroma is not None:
        raise ImportRefusedError(second, f"is coloured, and so is its twin {first}; at most one may be")
    chroma = a.chroma if b.chroma is None else b.chroma
    return ImagePair(name, patient, a.luminance, b.luminance, chroma, a.chroma is not None)


def _load_grey(path: Path) -> Grey:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise ImportRefusedError(
                    path,
                    f"is {image.width}x{image.height} pixels, more than {MAX_SIDE} a side",
                    "cut or shrink both images of the pair",
                )
            if image.mode != "RGB" and image.mode not in _DEPTHS:
                raise ImportRefusedError(
                    path,
                    f"has pixel mode {image.mode}; only grey of 8 or 16 bits and RGB are read",
                    "`bmif data import` reads more",
                )
            pixels = np.asarray(image)
            mode = image.mode
    except FileNotFoundError as error:
        raise ImportRefusedError(path, "does not exist") from error
    except UnidentifiedImageError as error:
        raise ImportRefusedError(
            path, "is not a PNG image", "`bmif data import` reads more formats"
        ) from error
    except DECODER_ERRORS as error:
        if isinstance(error, ImportRefusedError):
            raise
        raise ImportRefusedError(path, f"can not be read: {error}") from error
    return split_colour(pixels) if mode == "RGB" else Grey(pixels / _DEPTHS[mode], None)


def _list_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise ImportRefusedError(folder, "is not a folder")
    return {path.name for path in folder.iterdir() if path.suffix.lower() == ".png"}


def _read_rows(manifest: Path) -> list[Mapping[str, str]]:
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows: list[Mapping[str, str]] = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImportRefusedError(manifest, f"can not be read: {error}") from error
    missing = sorted({"id", "modality", "file_a", "file_b"} - columns)
    if missing or not columns & set(_PATIENT_COLUMNS):
        missing += [] if columns & set(_PATIENT_COLUMNS) else ["patient"]
        raise ImportRefusedError(manifest, f"lacks the columns {', '.join(missing)}")
    for line, row in enumerate(rows, start=2):
        if any(value is None for value in row.values()):
            raise ImportRefusedError(manifest, f"row {line} has too few columns")
    return rows


def _resolve_inside(manifest: Path, name: str) -> Path:
    folder = manifest.parent.resolve()
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a loop of links
        raise ImportRefusedError(manifest, f"names {name!r}, which is no path") from error
    if not path.is_relative_to(folder):
        raise ImportRefusedError(manifest, f"names {name}, which is outside its folder")
    return path


def _number_patients(labels: Sequence[str]) -> dict[str, int]:
    """Patients' numbers: the labels themselves where all are different numbers, else their rank."""
    distinct = sorted(set(labels))
    if all(label.isdecimal() for label in distinct) and len({int(label) for label in distinct}) == len(
        distinct
    ):
        return {label: int(label) for label in distinct}
    return {label: rank for rank, label in enumerate(distinct)}
