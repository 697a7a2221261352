"""DICOM files: series of planes by patient, place and frame; pixels are read when they are asked for.

Tags that are read: what fusion needs (sizes, bits, spacing, orientation, position, rescale and windows) and
what tells patients and series apart. Nothing of the second kind leaves this package's import.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fusion_model.importers.dicom_pixels import DicomPixels
from fusion_model.importers.dicom_tags import (
    DICOM_ERRORS,
    find_floats,
    get_floats,
    get_groups,
    get_integer,
    get_text,
    get_texts,
)
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.geometry import Geometry
from fusion_model.importers.stack import Found, Omission, Patient, Pixels, Plane, Stack, check_size

_EXPORT = "export it again from the archive"
_COPY = "the file is cut short or damaged: copy or export it again"
_DERIVED = ("SEG", "RTDOSE", "PR", "REG")
_UNIT = 1e-3
"""By which a direction may miss being a unit vector at a right angle to the other."""


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's mark after its preamble, or a DICOM name."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def read_series(paths: Sequence[Path]) -> Found:
    """The files' planes by patient and series, each series in order of place, else of instance number."""
    planes: dict[tuple[str, ...], list[tuple[tuple[float, ...], Plane]]] = {}
    stacks: dict[tuple[str, ...], Stack] = {}
    omissions: list[Omission] = []
    for path in paths:
        try:
            key, stack, found = _read_file(path)
        except ImportRefusedError as error:
            omissions.append(Omission.of(error))
            continue
        stacks.setdefault(key, stack)
        planes.setdefault(key, []).extend(found)
    made = []
    for key, stack in stacks.items():
        ordered = sorted(planes[key], key=lambda entry: (entry[0], entry[1].name))
        made.append(stack.keep(tuple(plane for _, plane in ordered)))
    return Found(tuple(made), tuple(omissions))


_SERIES_KEYS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "PhotometricInterpretation")


def _read_file(path: Path) -> tuple[tuple[str, ...], Stack, list[tuple[tuple[float, ...], Plane]]]:
    """What tells the file's series apart, the series without planes, and the planes with their order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote tags
            _check_syntax(path, read_file_meta_info(path))
            header = pydicom.dcmread(path, stop_before_pixels=True)
            _check_header(path, header)
            key = tuple(get_text(header, name) for name in _SERIES_KEYS)
            return key, _describe(path, header), list(_list_planes(path, header))
    except ImportRefusedError:
        raise
    except InvalidDicomError as error:
        raise ImportRefusedError(path, "is not a DICOM file (its mark is missing)", _EXPORT) from error
    except DICOM_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ImportRefusedError(path, f"can not be read as DICOM: {reason}", _COPY) from error


def _check_syntax(path: Path, meta: Dataset) -> None:
    """Refuses a file that would be inflated to any size as soon as its tags are read."""
    syntax = get_text(meta, "TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ImportRefusedError(
            path,
            "is deflated as a whole, which is not read",
            "inflate it (for instance `dcmconv +te IN OUT`)",
        )
    if not syntax:
        raise ImportRefusedError(path, "does not name its transfer syntax", _EXPORT)


def _check_header(path: Path, header: FileDataset) -> None:
    """Refuses what no image to fuse has."""
    if "Rows" not in header or "Columns" not in header:
        kind = get_text(header, "Modality") or "document"
        raise ImportRefusedError(
            path,
            f"holds no image ({kind}), or ends before it",
            "leave it out if it is a report or a plan; else export it again",
        )
    rows, columns = get_integer(header, "Rows"), get_integer(header, "Columns")
    check_size(path, rows, columns, get_integer(header, "NumberOfFrames", 1))
    if get_text(header, "BurnedInAnnotation").upper() == "YES":
        raise ImportRefusedError(
            path,
            "says that text is burned into its pixels, which may name the patient",
            "export the image without overlays, or blank the text",
        )
    if get_text(header, "Modality") in _DERIVED:
        raise ImportRefusedError(
            path, f"is of modality {header.Modality}, no picture of the patient", "leave it out"
        )
    if "LOCALIZER" in get_texts(header, "ImageType"):
        raise ImportRefusedError(path, "is a localizer, not a slice of the series", "leave it out")


def _describe(path: Path, header: Dataset) -> Stack:
    label = get_text(header, "PatientID") or get_text(header, "PatientName")
    study = get_text(header, "StudyInstanceUID")
    patient = Patient(
        label or study or path.stem,
        bool(label),
        study,
        get_text(header, "PatientBirthDate"),
        get_text(header, "PatientSex"),
    )
    return Stack(path, "", patient, (), get_text(header, "Modality"), get_text(header, "FrameOfReferenceUID"))


def _list_planes(path: Path, header: Dataset) -> Iterator[tuple[tuple[float, ...], Plane]]:
    """Every frame with what orders it: its depth if it has one, its instance and frame number."""
    frames = get_integer(header, "NumberOfFrames", 1)
    size = get_integer(header, "Rows"), get_integer(header, "Columns")
    bits = get_integer(header, "BitsStored", 8)
    instance = get_integer(header, "InstanceNumber", 0)
    pixels = DicomPixels(path)
    for frame in range(frames):
        geometry = _get_geometry(header, frame)
        name = path.stem if frames == 1 else f"{path.stem} frame {frame + 1}"
        read: Callable[[], Pixels] = partial(pixels.read, frame)
        turned = size
        if geometry is not None:
            turn = geometry.find_turn()
            geometry = geometry.turn(turn, size)
            turned = (size[1], size[0]) if turn.transpose else size
            read = partial(pixels.read, frame, turn)
        depth = None if geometry is None else geometry.depth
        order = (0.0 if depth is None else depth, float(instance), float(frame))
        yield order, Plane(path, name, turned, geometry, bits, read)


def _get_geometry(header: Dataset, frame: int) -> Geometry | None:
    """Where a frame lies: of its functional groups, else of the shared ones, else of the file.

    Raises ValueError for directions that are not at right angles.
    """
    groups = get_groups(header, frame)
    direction = _find_exactly(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _find_exactly(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    origin = _find_exactly(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    if len(direction) != 6:
        return None
    across, down = direction[:3], direction[3:]
    norms = float(np.linalg.norm(across)), float(np.linalg.norm(down))
    if abs(norms[0] - 1) > _UNIT or abs(norms[1] - 1) > _UNIT or abs(float(np.dot(across, down))) > _UNIT:
        raise ValueError(
            f"ImageOrientationPatient {list(direction)} are not two unit vectors at right angles"
        )
    if len(spacing) != 2:
        spacing = (1.0, 1.0)
    if min(spacing) <= 0:
        raise ValueError(f"PixelSpacing {list(spacing)} is not positive")
    place = np.array(origin) if len(origin) == 3 else None
    detectors = header.get("DetectorInformationSequence")
    if place is not None and detectors and frame and "PerFrameFunctionalGroupsSequence" not in header:
        # Nuclear medicine gives the first frame's place and the step to the next.
        step = get_floats(header, "SpacingBetweenSlices") or get_floats(header, "SliceThickness") or (1.0,)
        place = place + frame * step[0] * np.cross(across, down)
    located = None if place is None else tuple(place.tolist())
    return Geometry(tuple(across), tuple(down), (spacing[0], spacing[1]), located)


def _find_exactly(groups: Sequence[Dataset], sequence: str, name: str, count: int) -> tuple[float, ...]:
    """The nearest numbers of that name if they are as many as due and finite; else none."""
    found = find_floats(groups, sequence, name)
    return found if len(found) == count and np.isfinite(found).all() else ()
