"""The thresholds of the registration check, on real pairs: these pass, and the same pairs moved do not."""

from collections.abc import Callable

import numpy as np
import pytest

from fusion_model.gradients import Array
from fusion_model.importers.png import import_manifest
from fusion_model.importers.registration import AlignmentLimits, find_misalignment, measure_alignment
from tests.realdata.conftest import FOLDER

PAIRS = import_manifest(FOLDER / "manifest.csv")
SOME = PAIRS[::6]


def judge(first: Array, second: Array) -> str | None:
    return find_misalignment(measure_alignment(first, second), (256, 256), AlignmentLimits())


@pytest.mark.slow
def test_no_registered_pair_is_refused() -> None:
    assert [pair.name for pair in PAIRS if judge(pair.first, pair.second)] == []


def test_some_registered_pairs_pass() -> None:
    assert [pair.name for pair in SOME if judge(pair.first, pair.second)] == []


@pytest.mark.parametrize(
    ("move", "least"),
    [
        (lambda image: np.roll(image, 24, axis=0), 1.0),
        (lambda image: np.rot90(image), 0.9),
        (lambda image: image[::-1], 0.8),
        (lambda image: image[:, ::-1], 0.6),  # heads are nearly symmetric
    ],
    ids=["shifted", "turned", "upside down", "mirrored"],
)
def test_moved_pairs_are_found(move: Callable[[Array], Array], least: float) -> None:
    found = [judge(pair.first, move(pair.second)) is not None for pair in SOME]
    assert np.mean(found) >= least
