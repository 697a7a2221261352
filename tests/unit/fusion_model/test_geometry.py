"""Places of planes: the display they are turned to, and what does not lie on each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_model.importers.geometry import (
    Geometry,
    describe_directions,
    find_other_spacing,
    find_turned,
    measure_offset,
)

AXES = {
    "L": (1.0, 0, 0),
    "R": (-1.0, 0, 0),
    "P": (0, 1.0, 0),
    "A": (0, -1.0, 0),
    "H": (0, 0, 1.0),
    "F": (0, 0, -1.0),
}
DISPLAY = {"axial": "LP", "coronal": "LF", "sagittal": "PF"}


def build(letters: str, origin: tuple[float, ...] | None = (0.0, 0.0, 0.0)) -> Geometry:
    return Geometry(AXES[letters[0]], AXES[letters[1]], (2.0, 0.5), origin)


PAIRS = [a + b for a in AXES for b in AXES if not np.dot(AXES[a], AXES[b])]


@given(letters=st.sampled_from(PAIRS), height=st.integers(1, 5), width=st.integers(1, 5))
def test_every_orientation_is_turned_to_the_display_and_pixels_keep_their_places(
    letters: str, height: int, width: int
) -> None:
    before = build(letters, (7.0, -3.0, 5.0))
    image = np.arange(height * width).reshape(height, width)
    turn = before.find_turn()
    after, turned = before.turn(turn, (height, width)), turn.apply(image)
    assert describe_directions(after) == (
        f"{before.plane} (rows to {DISPLAY[before.plane][0]}, columns to {DISPLAY[before.plane][1]})"
    )
    assert after.find_turn() == (False, False, False)

    def place(geometry: Geometry, row: int, column: int) -> tuple[float, ...]:
        assert geometry.origin is not None
        found = (
            np.array(geometry.origin)
            + row * geometry.spacing[0] * np.array(geometry.down)
            + column * geometry.spacing[1] * np.array(geometry.across)
        )
        return tuple(np.round(found, 6))

    places = {place(before, *at): value for at, value in np.ndenumerate(image)}
    assert {place(after, *at): value for at, value in np.ndenumerate(turned)} == places


def test_depth_grows_to_the_left_the_back_and_the_head() -> None:
    assert build("LP", (1.0, 2.0, 3.0)).depth == 3
    assert build("PL", (1.0, 2.0, 3.0)).depth == 3
    assert build("LF", (1.0, 2.0, 3.0)).depth == 2
    assert build("PF", (1.0, 2.0, 3.0)).depth == 1
    assert build("PF", None).depth is None


def test_other_grids_are_told_apart() -> None:
    axial = build("LP")
    assert find_turned(axial, axial) is None
    assert "axial (rows to R, columns to P)" in (find_turned(axial, build("RP")) or "")
    assert "by 90.0 degrees" in (find_turned(axial, build("LF")) or "")
    tilt = np.radians(2)
    tilted = Geometry((1.0, 0, 0), (0, float(np.cos(tilt)), float(np.sin(tilt))), (2.0, 0.5))
    assert "by 2.0 degrees" in (find_turned(axial, tilted) or "")
    assert find_other_spacing(axial, axial) is None
    wide = Geometry(axial.across, axial.down, (2.0, 0.6))
    assert find_other_spacing(axial, wide) == "has pixels of 2x0.6 mm, but its twin's are 2x0.5 mm"
    assert measure_offset(axial, build("LP", (1.0, -4.0, 9.0))) == pytest.approx((-2.0, 2.0))
    assert measure_offset(axial, build("LP", None)) is None
