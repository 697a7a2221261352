"""Folds of the results: no patient on two sides; ladders that a task can climb."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results.cases import CASES, build_rungs
from benchmarks.results.folds import FOLDS, build_folds

NODES = ("node2", "node3")


@given(st.sets(st.integers(0, 99), min_size=3, max_size=20))
def test_every_patient_is_held_back_once_and_on_one_side_only(patients: set[int]) -> None:
    folds = build_folds(sorted(patients), NODES)
    assert len(folds) == FOLDS
    assert sorted(patient for fold in folds for patient in fold.held_back) == sorted(patients)
    for fold in folds:
        training = {patient for hospital in fold.hospitals for patient in hospital.training}
        validation = {patient for hospital in fold.hospitals for patient in hospital.validation}
        assert training
        assert validation
        sides = [set(fold.held_back), training, validation]
        assert sum(map(len, sides)) == len(set().union(*sides)) == len(patients)
        for hospital in fold.hospitals:
            # `bmif data encrypt` holds the last patients by number for validation.
            assert not hospital.training or max(hospital.training) < min((*hospital.validation, 100))


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        build_folds([1, 2], NODES)


@given(st.floats(1e-3, 1.0), st.floats(0.01, 0.3))
def test_rungs_fall(first: float, share: float) -> None:
    rungs = build_rungs(first, share * first)
    targets = [float(rung.split(":")[0]) for rung in rungs]
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] >= share * first > 0


def test_a_loss_that_does_not_fall_gives_no_ladder() -> None:
    with pytest.raises(ValueError, match="no ladder"):
        build_rungs(0.1, 0.1)


def test_each_modality_has_one_case() -> None:
    assert len({case.modality for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.schedule.loss_openings * case.schedule.loss_every >= case.schedule.steps
