"""NIfTI volumes: slices along an anatomical axis, in the places and the display that DICOM's would have."""

import gzip
import logging
import struct
import warnings
import zlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from fusion_model.gradients import Array
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.geometry import Geometry, Turn
from fusion_model.importers.stack import Patient, Pixels, Plane, Stack, check_finite, check_size

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # each header it mends is two lines

NIFTI_ERRORS = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError, AssertionError, MemoryError, struct.error, zlib.error),
)
"""What the library lets through for files that are not what they say."""

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, ...] = ("sagittal", "coronal", "axial")
"""In the order of the world's axes, left-right, back-front, foot-head."""

_SUFFIXES = (".nii.gz", ".nii")
_LPS = np.diag([-1.0, -1.0, 1.0])
_COPY = "the file is cut short or damaged: copy or convert it again"
_MAX_DEFLATION = 1032
"""Bytes that one byte of a gzip file can make, at most."""
_HEADER_BYTES = 540
_MAX_OFFSET = 16 * 1024 * 1024
"""Header and extensions."""
_COLOUR = [("R", "u1"), ("G", "u1"), ("B", "u1")]


def is_nifti(path: Path) -> bool:
    """By its name: a NIfTI file has no mark at its start."""
    return path.name.lower().endswith(_SUFFIXES)


def strip_suffix(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path, name: str, patient: Patient, axis: Axis) -> Stack:
    """The volume's slices along `axis`, from right to left, front to back or foot to head.

    Raises ImportRefusedError for what is no volume of real numbers or RGB colours, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_volume(path, name, patient, axis)
    except ImportRefusedError:
        raise
    except NIFTI_ERRORS as error:
        raise ImportRefusedError(path, f"can not be read as NIfTI: {_flatten(error)}", _COPY) from error


def _read_volume(path: Path, name: str, patient: Patient, axis: Axis) -> Stack:
    image = _open(path)
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise ImportRefusedError(
            path,
            f"has {len(shape)} dimensions {shape}; volumes of three are read",
            "take out one volume (for instance `fslsplit`, or `nib-roi`)",
        )
    check_size(path, shape[0], shape[1], shape[2])
    _check_length(path, image, shape)
    kind = _get_type(image)
    coloured = kind.fields is not None
    if kind.kind == "c" or (coloured and [(key, "u1") for key in kind.fields or ()] != _COLOUR):
        raise ImportRefusedError(path, f"has values of type {kind}", "convert it to real numbers or RGB24")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-9:
        raise ImportRefusedError(path, "has an affine that is no grid", "write the orientation again")
    known = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    axes = np.asarray(nib.orientations.io_orientation(affine))  # type: ignore[no-untyped-call]
    array_axis = int(np.flatnonzero(axes[:, 0] == AXES.index(axis))[0])
    bits = 8 if coloured else 8 * kind.itemsize
    planes = []
    status = path.stat()
    reverse = (axes[array_axis, 1] < 0) == (axis == "axial")
    for place in range(shape[array_axis]):
        index = shape[array_axis] - 1 - place if reverse else place
        grid = _get_grid(affine, shape, array_axis, index)
        rows, columns = (side for other, side in enumerate(shape) if other != array_axis)
        turn = grid.find_turn()
        size = (columns, rows) if turn.transpose else (rows, columns)
        geometry = grid.turn(turn, (rows, columns)) if known else None
        read = partial(
            _read_slice, path, (status.st_mtime_ns, status.st_size), shape, array_axis, index, turn
        )
        planes.append(Plane(path, f"{name} {axis} {index}", size, geometry, bits, read))
    return Stack(path, name, patient, tuple(planes))


def _flatten(error: Exception) -> str:
    return " ".join(str(error).split())


def _open(path: Path) -> nib.Nifti1Image:
    _check_offset(path)
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):  # the second version's class is made from the first's
        raise ImportRefusedError(path, f"is {type(image).__name__}, not NIfTI", "convert it to NIfTI")
    return image


def _check_offset(path: Path) -> None:
    """Refuses a file whose values begin far behind its header: all before them would be inflated."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    for order in "<>":
        for size, format, place in ((348, "f", 108), (540, "q", 168)):
            if len(head) >= place + 8 and struct.unpack_from(order + "i", head)[0] == size:
                (offset,) = struct.unpack_from(order + format, head, place)
                if not 0 <= offset <= _MAX_OFFSET:
                    raise ImportRefusedError(
                        path,
                        f"has {offset:.0f} bytes before its values, more than {_MAX_OFFSET}",
                        "write it again without its extensions",
                    )


def _get_type(image: nib.Nifti1Image) -> np.dtype[np.generic]:
    return np.dtype(image.get_data_dtype())  # type: ignore[no-untyped-call]


def _check_length(path: Path, image: nib.Nifti1Image, shape: tuple[int, ...]) -> None:
    """Refuses a file that is too short for its values, before memory is taken for them."""
    due = int(np.prod(shape)) * _get_type(image).itemsize + int(getattr(image.dataobj, "offset", 0))
    found = path.stat().st_size * (_MAX_DEFLATION if path.name.lower().endswith(".gz") else 1)
    if found < due:
        raise ImportRefusedError(
            path, f"is truncated: it can not hold the {due} bytes that its header claims", _COPY
        )


def _get_grid(affine: Array, shape: tuple[int, ...], array_axis: int, index: int) -> Geometry:
    """The grid of a slice as it lies in the array: rows along its first remaining axis."""
    row_axis, column_axis = (other for other in range(3) if other != array_axis)
    start = np.zeros(3)
    start[array_axis] = index
    down, across = _LPS @ affine[:3, row_axis], _LPS @ affine[:3, column_axis]
    row_mm, column_mm = float(np.linalg.norm(down)), float(np.linalg.norm(across))
    origin = _LPS @ (affine[:3, :3] @ start + affine[:3, 3])
    return Geometry(
        tuple((across / column_mm).tolist()),
        tuple((down / row_mm).tolist()),
        (row_mm, column_mm),
        tuple(origin.tolist()),
    )


@lru_cache(maxsize=2)  # one of each side of the pairs that are being read
def _load(path: Path, stamp: tuple[int, int], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """All values; `stamp` tells whether the file is still the same."""
    image = _open(path)
    if _get_type(image).fields is not None:
        return np.asarray(image.dataobj).reshape(shape)
    return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged")).reshape(shape)


def _read_slice(
    path: Path, stamp: tuple[int, int], shape: tuple[int, ...], array_axis: int, index: int, turn: Turn
) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plane = np.take(_load(path, stamp, shape), index, axis=array_axis)
    except NIFTI_ERRORS as error:
        raise ImportRefusedError(path, f"can not be read as NIfTI: {_flatten(error)}", _COPY) from error
    if plane.dtype.fields is not None:
        colour = np.stack([plane[name] for name, _ in _COLOUR], axis=-1)
        return Pixels(None, turn.apply(colour))
    with np.errstate(invalid="ignore"):  # signalling NaNs are told below
        values = turn.apply(plane).astype(np.float64)
    check_finite(path, values)
    return Pixels(values)
