"""The nested choice between ways to prepare frames."""

from pathlib import Path

import numpy as np

from benchmarks.sequence_selection import CANDIDATES, add_differences, describe_selection
from workloads.sequence import Patient


def test_differences_are_to_the_first_frame_and_in_range() -> None:
    frames = np.random.default_rng(1).uniform(-1, 1, (4, 3, 2, 2))
    wider = add_differences(Patient("p", 1, frames)).frames
    assert wider.shape == (4, 6, 2, 2)
    assert np.array_equal(wider[:, :3], frames)
    assert not wider[0, 3:].any()
    assert np.allclose(frames[0] + 2 * wider[:, 3:], frames)
    assert np.abs(wider).max() <= 1


def test_a_fold_counts_by_what_its_own_training_patients_chose(tmp_path: Path) -> None:
    """Each fold's choice is right on its patients, and no candidate is right on all of them."""
    labels = np.array([0, 1] * 10)
    assert describe_selection(labels, tmp_path, 2) == []
    for number in range(2):
        fold = np.arange(10 * number, 10 * number + 10)
        outer = np.tile(1.0 - labels[fold], (len(CANDIDATES), 1))
        outer[number] = labels[fold]
        inner = [0.9 if place == number else 0.4 for place in range(len(CANDIDATES))]
        np.savez(tmp_path / f"selection-{number}.npz", fold=fold, inner=inner, outer=outer)
    text = "\n".join(describe_selection(labels, tmp_path, 2))
    assert "| nested choice | | | 1.000 (1.000-1.000) |" in text
    assert text.count("| 1 of 2 |") == 2
