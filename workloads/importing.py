"""Import of medical images, for commands: options as text, pairs listed in a CSV, errors as WorkloadError."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fusion_model.importers.batch import (
    COLOUR_RULES,
    REGISTRATIONS,
    ImportJob,
    ImportOptions,
    ProgressHook,
    import_data,
)
from fusion_model.importers.batch import ImportSummary as ImportSummary
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import AXES
from fusion_model.importers.png import read_splits
from fusion_model.importers.registration import MAX_SHIFT, AlignmentLimits
from fusion_model.importers.rendering import WindowChoice
from fusion_model.importers.scan import PATIENT_PATTERN, ScanOptions
from workloads.base import WorkloadError

_Word = TypeVar("_Word", bound=str)
_OPTIONAL = ("patient", "modality")
KEY_SUFFIX = ".key.csv"


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What a user may ask for, as typed."""

    output: Path
    first: Path | None = None
    second: Path | None = None
    pairs: Path | None = None
    """CSV with first, second and, if wanted, patient and modality; paths relative to its folder."""
    key: Path | None = None
    """None: beside the output, with `KEY_SUFFIX`."""
    modality: str | None = None
    first_window: str = "file"
    second_window: str = "file"
    axis: str = "axial"
    slices: str = "::"
    bits: int | None = None
    pattern: str = PATIENT_PATTERN.pattern
    colour: str = "either"
    registration: str = "refuse"
    max_shift: float = MAX_SHIFT
    min_information: float = 1.0
    min_content: float = 0.01
    split: str = "70,15,15"
    seed: int = 1
    preview: bool = True

    @property
    def key_path(self) -> Path:
        return self.output.with_name(self.output.name + KEY_SUFFIX) if self.key is None else self.key


def run_import(request: ImportRequest, progress: ProgressHook | None = None) -> ImportSummary:
    """Imports what it can and says what it left out. Raises WorkloadError that names the option at fault."""
    options = parse_options(request)
    try:
        return import_data(list_jobs(request), request.output, request.key_path, options, progress)
    except (ImportRefusedError, ValueError) as error:
        raise WorkloadError(str(error)) from error


@dataclass(frozen=True, slots=True)
class SplitPatients:
    """Whom an imported manifest's splits allow for what; the test split's people are in neither."""

    training: tuple[int, ...]
    validation: tuple[int, ...]


def get_split_patients(manifest: Path, modality: str | None = None) -> SplitPatients:
    """The manifest's patients for training and validation. Raises WorkloadError if its splits are no use."""
    try:
        splits = read_splits(manifest, modality)
    except ImportRefusedError as error:
        raise WorkloadError(str(error)) from error
    found = {
        name: tuple(sorted(number for number, split in splits.items() if split == name))
        for name in ("train", "validation")
    }
    if not found["train"]:
        raise WorkloadError(f"{manifest}: no patient of the split train; import with a larger share for it")
    return SplitPatients(found["train"], found["validation"])


def parse_options(request: ImportRequest) -> ImportOptions:
    """The request's options, checked. Raises WorkloadError."""
    return ImportOptions(
        ScanOptions(_choose("axis", request.axis, AXES), request.bits, _parse_pattern(request.pattern)),
        (
            _parse_window("first-window", request.first_window),
            _parse_window("second-window", request.second_window),
        ),
        _parse_slices(request.slices),
        _choose("colour", request.colour, COLOUR_RULES),
        _choose("registration", request.registration, REGISTRATIONS),
        AlignmentLimits(request.max_shift, request.min_information),
        request.min_content,
        _parse_shares(request.split),
        request.seed,
        request.preview,
    )


def list_jobs(request: ImportRequest) -> list[ImportJob]:
    """The two paths, or every row of the list. Raises WorkloadError."""
    if request.pairs is None:
        if request.first is None or request.second is None:
            raise WorkloadError("give --first and --second, or --list")
        return [ImportJob(request.first, request.second, None, request.modality)]
    if request.first is not None or request.second is not None:
        raise WorkloadError("give --first and --second, or --list, not both")
    path = request.pairs
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"first", "second"} - set(reader.fieldnames or ())
            if missing:
                raise WorkloadError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
            rows = [{name: row.get(name) or "" for name in ("first", "second", *_OPTIONAL)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path}: can not be read: {error}") from error
    for line, row in enumerate(rows, start=2):
        if not row["first"] or not row["second"]:
            raise WorkloadError(f"{path}: row {line} names no first or no second file")
    if not rows:
        raise WorkloadError(f"{path}: has no row")
    return [
        ImportJob(
            path.parent / row["first"],
            path.parent / row["second"],
            row["patient"] or None,
            row["modality"] or request.modality,
        )
        for row in rows
    ]


def _choose(name: str, word: str, known: Sequence[_Word]) -> _Word:
    for one in known:
        if one == word:
            return one
    raise WorkloadError(f"{name}: {word!r} is none of {', '.join(known)}")


def _parse_window(name: str, text: str) -> WindowChoice:
    try:
        return WindowChoice.parse(text)
    except ValueError as error:
        raise WorkloadError(f"{name}: {error}") from error


def _parse_slices(text: str) -> slice:
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        if 2 <= len(parts) <= 3 and (len(parts) < 3 or parts[2] is None or parts[2] > 0):
            return slice(*parts)
    except ValueError:
        pass
    raise WorkloadError(f"slices: {text!r} is not START:STOP or START:STOP:STEP with a positive step")


def _parse_pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise WorkloadError(f"patient-pattern: {error}") from error
    if pattern.groups < 1:
        raise WorkloadError("patient-pattern: has no group in parentheses that is the patient")
    return pattern


def _parse_shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise WorkloadError(f"split: {text!r} is not three shares such as 70,15,15") from error
