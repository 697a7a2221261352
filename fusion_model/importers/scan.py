"""What lies in a file or folder: DICOM series, NIfTI volumes, PNG and TIFF files, and what is unreadable."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fusion_model.importers.dicom import is_dicom, read_series
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import Axis, is_nifti, read_volume, strip_suffix
from fusion_model.importers.raster import is_raster, read_raster
from fusion_model.importers.stack import Found, Omission, Patient, Stack

PATIENT_PATTERN = re.compile(r"([^_/.]+)")
"""Where a file does not tell the patient its path in the imported folder does: by default the first folder's
name, or the file's if it lies in none, up to an underscore or a dot."""


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """How files are read that leave it open."""

    axis: Axis = "axial"
    """Of NIfTI volumes' slices."""
    bits: int | None = None
    """Used bits of 16-bit PNG and TIFF files; None: as the file says, else 16."""
    pattern: re.Pattern[str] = PATIENT_PATTERN
    """Its first group at the start of a file's path within the imported folder is the patient."""


def scan(path: Path, options: ScanOptions) -> Found:
    """Every stack of the file, or of the folder and the folders in it, by name.

    Raises ImportRefusedError for a path that is not there, and for a folder without any image.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))
        root = path
    elif path.is_file():
        files, root = [path], path.parent
    else:
        raise ImportRefusedError(path, "does not exist", "check the path")
    if not files:
        raise ImportRefusedError(path, "is an empty folder", "name the folder that holds the images")
    series: list[Path] = []
    stacks: list[Stack] = []
    omissions: list[Omission] = []
    for file in files:
        try:
            if is_nifti(file):
                name = _name(root, file, strip_suffix(file))
                stacks.append(read_volume(file, name, _tell_patient(root, file, options), options.axis))
            elif is_raster(file):
                name = _name(root, file, file.stem)
                stacks.append(read_raster(file, name, _tell_patient(root, file, options), options.bits))
            elif is_dicom(file):
                series.append(file)
            else:
                omissions.append(
                    Omission(file, "is neither DICOM, NIfTI, PNG nor TIFF", "convert it, or leave it out")
                )
        except (ImportRefusedError, OSError) as error:
            omissions.append(_explain(file, error))
    found = read_series(series)
    stacks.extend(_name_series(root, stack) for stack in found.stacks)
    omissions.extend(found.omissions)
    if not stacks and not omissions:
        raise ImportRefusedError(path, "holds no image", "name the folder that holds the images")
    return Found(tuple(stacks), tuple(omissions))


def _explain(file: Path, error: ImportRefusedError | OSError) -> Omission:
    if isinstance(error, ImportRefusedError):
        return Omission.of(error)
    return Omission(file, f"can not be opened: {error.strerror}", "check its permissions")


def _name(root: Path, file: Path, stem: str) -> str:
    return (file.relative_to(root).parent / stem).as_posix()


def _name_series(root: Path, stack: Stack) -> Stack:
    """A series of one file can be found by the file's name; one of several is named by its folder."""
    if len({plane.path for plane in stack.planes}) == 1:
        return replace(stack, name=_name(root, stack.path, stack.path.stem))
    return replace(stack, path=stack.path.parent)


def _tell_patient(root: Path, file: Path, options: ScanOptions) -> Patient:
    found = options.pattern.match(file.relative_to(root).as_posix())
    if found is None or not found[1]:
        raise ImportRefusedError(
            file,
            f"has a name that the patient pattern {options.pattern.pattern!r} does not match",
            "rename it, or give another --patient-pattern",
        )
    return Patient(found[1])


def _is_hidden(file: Path, root: Path) -> bool:
    return file.name in ("Thumbs.db", "DICOMDIR") or any(
        part.startswith(".") for part in file.relative_to(root).parts
    )
