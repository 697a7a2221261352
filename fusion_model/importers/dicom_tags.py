"""Tags of a DICOM data set as plain values, and the groups in which a frame's own are found."""

import struct
import zlib
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

DICOM_ERRORS = (
    *(InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, LookupError),
    *(AttributeError, ArithmeticError, RuntimeError, AssertionError, MemoryError, struct.error, zlib.error),
)
"""What the library lets through for files that are not what they say."""


def get_text(holder: Dataset, name: str) -> str:
    """A tag as text without its padding; empty if it is absent."""
    value = holder.get(name)
    return "" if value is None else str(value).strip(" \0")


def get_texts(holder: Dataset, name: str) -> tuple[str, ...]:
    """Every value of a tag as text; none if it is absent."""
    value = holder.get(name)
    if value is None:
        return ()
    return tuple(str(part) for part in (value if isinstance(value, list | tuple | MultiValue) else [value]))


def get_floats(holder: Dataset, name: str) -> tuple[float, ...]:
    """A tag's numbers; none if it is absent or empty. Raises ValueError or TypeError for anything else."""
    value = holder.get(name)
    if value is None or value == "":
        return ()
    return tuple(float(part) for part in (value if isinstance(value, list | tuple | MultiValue) else [value]))


def get_integer(holder: Dataset, name: str, default: int = 0) -> int:
    """A tag's first number as an integer. Raises ValueError, OverflowError or TypeError for anything else."""
    found = get_floats(holder, name)
    return int(found[0]) if found else default


def get_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """Where a frame's tags are looked up: its functional groups, the shared ones, the data set, the detector.

    Source: DICOM PS3.3, C.7.6.16 (enhanced images) and C.8.4.11 (nuclear medicine).
    """
    groups: list[Dataset] = []
    each = dataset.get("PerFrameFunctionalGroupsSequence")
    if each is not None and frame < len(each):
        groups.append(each[frame])
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared:
        groups.append(shared[0])
    groups.append(dataset)
    detectors = dataset.get("DetectorInformationSequence")
    if detectors:
        groups.append(detectors[0])
    return groups


def list_holders(groups: Sequence[Dataset], sequence: str) -> list[Dataset]:
    """Each group's nested item of that sequence, if it has one, and the group itself; nearest first."""
    holders: list[Dataset] = []
    for group in groups:
        nested = group.get(sequence)
        if nested:
            holders.append(nested[0])
        holders.append(group)
    return holders


def find_floats(groups: Sequence[Dataset], sequence: str, name: str) -> tuple[float, ...]:
    """The nearest numbers of that name; none if no group has any."""
    for holder in list_holders(groups, sequence):
        found = get_floats(holder, name)
        if found:
            return found
    return ()
