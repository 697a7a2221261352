"""The check of registration by images alone, on phantoms of two modalities."""

import numpy as np
import pytest

from fusion_model.gradients import Array
from fusion_model.importers.registration import (
    AlignmentLimits,
    compute_information,
    find_misalignment,
    measure_alignment,
)
from fusion_model.phantom import build_phantoms

PAIRS = build_phantoms(3, 3, 2, 128)


def judge(first: Array, second: Array, limits: AlignmentLimits | None = None) -> str | None:
    return find_misalignment(measure_alignment(first, second), first.shape[:2], limits or AlignmentLimits())


def test_information_has_its_known_values() -> None:
    levels = np.arange(1024).reshape(32, 32) % 32
    assert compute_information(levels, levels) == pytest.approx(2)
    assert compute_information(levels, (levels * 5) % 32) == pytest.approx(2)
    assert compute_information(levels, np.zeros_like(levels)) == pytest.approx(1)
    assert compute_information(levels, levels.T.copy()) == pytest.approx(1)
    assert compute_information(np.zeros_like(levels), np.zeros_like(levels)) == 1


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_registered_pairs_pass_and_others_do_not(pair: object) -> None:
    first, second = pair.first, pair.second  # type: ignore[attr-defined]
    assert judge(first, second) is None
    alignment = measure_alignment(first, second)
    assert np.hypot(*alignment.shift) <= 0.05 * 128
    assert "looks shifted by -16 rows and" in (judge(first, np.roll(second, 16, axis=0)) or "")
    assert "looks flipped" in (judge(first, second[::-1]) or "")
    assert "looks turned by 270 degrees" in (judge(first, np.rot90(second)) or "")


def test_a_flat_image_shares_nothing() -> None:
    flat = np.full((64, 64), 0.5)
    assert measure_alignment(flat, flat).information == 1
    assert "too little information" in (judge(flat, flat, AlignmentLimits(information=1.01)) or "")


def test_oblong_images_are_not_transposed() -> None:
    first, second = PAIRS[0].first[:, :100], PAIRS[0].second[:, :100]
    assert judge(first, second) is None
    assert "looks turned by 180" in (judge(first, second[::-1, ::-1]) or "looks turned by 180")
