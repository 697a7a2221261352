"""Where a plane lies in the patient, how it is turned for display, and whether two planes coincide.

Directions and positions are of DICOM's patient system, in mm: x to the patient's left, y to the back, z to
the head (PS3.3, C.7.6.2.1.1). NIfTI's system differs from it by the signs of x and y.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fusion_model.gradients import Array

_Value = TypeVar("_Value", bound=np.generic)

ANGLE_TOLERANCE = math.cos(math.radians(1.0))
SPACING_TOLERANCE = 0.01
"""Of the spacing; scanners and tools round differently."""

_PLANES = ("sagittal", "coronal", "axial")
_DISPLAY = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
}
"""Directions to the right and downwards on a screen, as radiologists look at each plane."""


class Turn(NamedTuple):
    """A transposition, then flips: what brings an image to the usual display without resampling."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: npt.NDArray[_Value]) -> npt.NDArray[_Value]:
        """An image (H, W) or (H, W, 3), turned."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A plane's grid: unit vectors along rows and columns, mm between pixels, the first pixel's place."""

    across: tuple[float, ...]
    """In which the column's number grows."""
    down: tuple[float, ...]
    """In which the row's number grows."""
    spacing: tuple[float, float]
    """Between rows, between columns; mm."""
    origin: tuple[float, ...] | None = None
    """Centre of the first pixel; None where the file does not say."""

    @property
    def normal(self) -> Array:
        return np.cross(self.across, self.down)

    @property
    def plane(self) -> str:
        """The anatomical plane that is nearest."""
        return _PLANES[int(np.argmax(np.abs(self.normal)))]

    @property
    def depth(self) -> float | None:
        """Place along the normal that points to the left, the back or the head; mm."""
        if self.origin is None:
            return None
        normal = self.normal
        sign = np.sign(normal[int(np.argmax(np.abs(normal)))])
        return float(sign * np.dot(normal, self.origin))

    def find_turn(self) -> Turn:
        """The turn after which the image lies as radiologists look at its plane."""
        right, below = (np.array(vector) for vector in _DISPLAY[self.plane])
        across, down = np.array(self.across), np.array(self.down)
        transpose = bool(abs(across @ right) < abs(down @ right))
        if transpose:
            across, down = down, across
        return Turn(transpose, bool(down @ below < 0), bool(across @ right < 0))

    def turn(self, turn: Turn, size: tuple[int, int]) -> "Geometry":
        """The geometry of a plane of `size` (H, W) after the turn."""
        across, down = np.array(self.across), np.array(self.down)
        (row_mm, column_mm), (height, width) = self.spacing, size
        if turn.transpose:
            across, down = down, across
            row_mm, column_mm, height, width = column_mm, row_mm, width, height
        origin = None if self.origin is None else np.array(self.origin)
        if turn.flip_rows:
            origin = None if origin is None else origin + (height - 1) * row_mm * down
            down = -down
        if turn.flip_columns:
            origin = None if origin is None else origin + (width - 1) * column_mm * across
            across = -across
        place = None if origin is None else tuple(origin.tolist())
        return Geometry(tuple(across.tolist()), tuple(down.tolist()), (row_mm, column_mm), place)


def describe_directions(geometry: Geometry) -> str:
    """The plane and where its rows and columns lead, in letters: `axial (rows to L, columns to P)`."""
    letters = [_describe_direction(vector) for vector in (geometry.across, geometry.down)]
    return f"{geometry.plane} (rows to {letters[0]}, columns to {letters[1]})"


def _describe_direction(vector: tuple[float, ...]) -> str:
    axis = int(np.argmax(np.abs(vector)))
    return ("LPH", "RAF")[vector[axis] < 0][axis]


def find_turned(first: Geometry, second: Geometry) -> str | None:
    """How the second plane is turned against the first, or None if they are parallel and alike."""
    pairs = ((first.across, second.across), (first.down, second.down))
    if all(float(np.dot(a, b)) >= ANGLE_TOLERANCE for a, b in pairs):
        return None
    return (
        f"has orientation {describe_directions(second)}, turned against its twin's "
        f"{describe_directions(first)} by {_measure_angle(pairs):.1f} degrees"
    )


def find_other_spacing(first: Geometry, second: Geometry) -> str | None:
    """How the second plane's pixels differ in size, or None."""
    if all(abs(a / b - 1) <= SPACING_TOLERANCE for a, b in zip(first.spacing, second.spacing, strict=True)):
        return None
    spacings = [f"{one.spacing[0]:.4g}x{one.spacing[1]:.4g} mm" for one in (second, first)]
    return f"has pixels of {spacings[0]}, but its twin's are {spacings[1]}"


def measure_offset(first: Geometry, second: Geometry) -> tuple[float, float] | None:
    """Rows and columns by which the second plane's first pixel lies off the first's; None if unknown."""
    if first.origin is None or second.origin is None:
        return None
    difference = np.array(second.origin) - np.array(first.origin)
    rows = float(difference @ np.array(first.down)) / first.spacing[0]
    columns = float(difference @ np.array(first.across)) / first.spacing[1]
    return rows, columns


def _measure_angle(pairs: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]) -> float:
    cosines = [min(1.0, max(-1.0, float(np.dot(a, b)))) for a, b in pairs]
    return math.degrees(math.acos(min(cosines)))
