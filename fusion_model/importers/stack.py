"""What a reader finds in files before pixels are wanted: stacks of planes of one patient and modality."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fusion_model.gradients import Array
from fusion_model.importers.colour import Bytes
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.geometry import Geometry

MAX_SIDE = 4096
MAX_PIXELS = 2**27
"""Of a file: 512 slices of 512x512. More is taken for damage or a trap."""


@dataclass(frozen=True, slots=True)
class Patient:
    """Whose images they are, as far as the files tell. Never written to a data set."""

    label: str
    """What tells patients apart: PatientID, or a part of the file's name."""
    identified: bool = False
    """Whether the label is the patient's own number, not just a name of a file."""
    study: str = ""
    birth: str = ""
    sex: str = ""


@dataclass(frozen=True, slots=True)
class LookUp:
    """A table from stored to displayed values: entry i, in [0, 1], is that of the value `start` + i."""

    start: int
    table: Array


@dataclass(frozen=True, slots=True)
class Window:
    """Centre and width of the grey values to show; `exact` and `sigmoid` are DICOM's other functions."""

    centre: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True, slots=True)
class Pixels:
    """One plane as its file has it: grey values (H, W) after rescaling, or 8-bit colours (H, W, 3)."""

    values: Array | None
    colour: Bytes | None = None
    limits: tuple[float, float] | None = None
    """Least and greatest value that the file's bits can say; None for floats."""
    windows: tuple[Window, ...] = ()
    """What the file proposes, its first choice first."""
    lookups: tuple[LookUp, ...] = ()
    inverted: bool = False
    """Whether the least value is white."""
    fills: bool = False
    """Whether the greatest of `limits` is meant to be white, as in pictures; else the values decide."""

    @property
    def size(self) -> tuple[int, int]:
        found = self.values if self.colour is None else self.colour
        if found is None:
            raise ValueError("pixels of neither grey nor colour")
        return found.shape[0], found.shape[1]


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane of a stack: where it comes from and where it lies; (H, W) and geometry are after `turn`."""

    path: Path
    name: str
    """Tells it apart for messages: the file's name, and the frame where a file has several."""
    size: tuple[int, int]
    geometry: Geometry | None
    bits: int
    read: Callable[[], Pixels]
    """Raises ImportRefusedError."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Planes of one series, volume or file, in order."""

    path: Path
    """What messages name."""
    name: str
    """The path within the imported folder without suffixes, which finds the twin; empty for DICOM series."""
    patient: Patient
    planes: tuple[Plane, ...]
    modality: str = ""
    """DICOM's word, if it is one."""
    frame_of_reference: str = ""

    def keep(self, planes: tuple[Plane, ...]) -> "Stack":
        return replace(self, planes=planes)


@dataclass(frozen=True, slots=True)
class Omission:
    """Something that was left out: what, why, and what the user can do."""

    path: Path
    reason: str
    remedy: str
    count: int = 1
    """Planes or pairs lost by it; 1 for a file that can not be read at all."""

    @classmethod
    def of(cls, error: ImportRefusedError, count: int = 1) -> "Omission":
        return cls(error.path, error.reason, error.remedy, count)


@dataclass(frozen=True, slots=True)
class Found:
    """Stacks in a folder or file, and what of it can not be read."""

    stacks: tuple[Stack, ...]
    omissions: tuple[Omission, ...] = ()


def check_size(path: Path, rows: int, columns: int, planes: int = 1) -> None:
    """Raises ImportRefusedError for sizes that no image to fuse has, before memory is taken for them."""
    if min(rows, columns, planes) < 1:
        raise ImportRefusedError(
            path, f"says it has {columns}x{rows} pixels and {planes} planes", "export it again"
        )
    if max(rows, columns, planes) > MAX_SIDE or rows * columns * planes > MAX_PIXELS:
        raise ImportRefusedError(
            path,
            f"has {columns}x{rows} pixels in {planes} planes, more than {MAX_SIDE} of either "
            f"or {MAX_PIXELS} in all",
            "cut or shrink both images of the pair, or split the file",
        )


def check_finite(path: Path, values: Array) -> None:
    """Raises ImportRefusedError if some value is not a number or infinite."""
    if not np.isfinite(values).all():
        raise ImportRefusedError(
            path,
            "has values that are NaN or infinite",
            "set them to the background's value (for instance `fslmaths IN -nan OUT`)",
        )
