"""The federated experiment: no publication in two parts, and figures of known scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federation import setting
from benchmarks.federation.scores import Scored, Truth, compute_figures
from workloads.diagnosis_metrics import compute_metrics


def _save(path: Path) -> Path:
    draw = np.random.default_rng(4)
    groups = np.sort(draw.integers(0, 150, 400))
    np.savez(
        path,
        images=draw.integers(0, 256, (400, 64, 64), dtype=np.uint8),
        labels=(groups % 4 == 0).astype(np.int64),
        group=groups,
    )
    return path


def test_no_publication_is_in_two_parts_or_hospitals(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npz")
    tested: set[int] = set()
    for fold in range(3):
        study = setting.build_study(path, fold)
        train, val, test = (set(part.groups.tolist()) for part in (study.train, study.val, study.test))
        assert not train & val
        assert not train & test
        assert not val & test
        assert not tested & test
        tested |= test
        for kind in setting.SHARES:
            hospitals = [set(data.groups.tolist()) for data in study.deal(kind)]
            assert sum(map(len, hospitals)) == len(train) == len(set().union(*hospitals))
        skewed = [data.labels.mean() for data in study.deal("skewed")]
        assert min(skewed[:2]) > 0.5 > max(skewed[2:])


def test_figures_of_one_fold_are_those_of_the_metrics() -> None:
    draw = np.random.default_rng(5)
    labels = draw.integers(0, 2, 80)
    scores = draw.normal(size=80) + labels
    groups = np.repeat(np.arange(20), 4)
    val_labels = np.array([0, 0, 1, 1])
    scored = Scored((0.0, 0.2, 0.4, 0.6), tuple(scores.tolist()))
    found = compute_figures([Truth(val_labels, labels, groups)], {0: [scored]}, 1)
    plain = compute_metrics(scores, labels, 0.3, groups=groups)
    assert found.auc.value == pytest.approx(plain.auc.value)
    assert found.sensitivity.value == pytest.approx(plain.sensitivity.value)
    assert found.specificity.value == pytest.approx(plain.specificity.value)
    assert found.balanced.value == pytest.approx((plain.sensitivity.value + plain.specificity.value) / 2)
    assert found.auc.low == pytest.approx(plain.auc.low, abs=0.02)
    assert found.auc.high == pytest.approx(plain.auc.high, abs=0.02)
    same = found.compare(found)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_folds_scores_need_not_be_comparable() -> None:
    """A network whose scores all lie higher than another fold's loses nothing by it."""
    labels, groups = np.array([0, 1, 0, 1]), np.arange(4)
    truth = Truth(labels, labels, groups)
    low = Scored((0.1, 0.2, 0.1, 0.2), (0.1, 0.2, 0.1, 0.2))
    high = Scored((5.1, 5.2, 5.1, 5.2), (5.1, 5.2, 5.1, 5.2))
    found = compute_figures([truth, truth], {0: [low], 1: [high]}, 1)
    assert found.auc.value == 1
    assert found.balanced.value == 1


def test_always_positive_is_balanced_at_one_half() -> None:
    labels, groups = np.array([0, 1, 0, 1, 1]), np.arange(5)
    truth = Truth(np.array([0, 1]), labels, groups)
    found = compute_figures([truth], {0: [Scored((0.1, 0.2), (1.0,) * 5)]}, 1)
    assert (found.sensitivity.value, found.specificity.value, found.balanced.value) == (1, 0, 0.5)
    assert found.auc.value == 0.5


def test_settings_fit_each_other() -> None:
    assert 5e4 < setting.CONFIG.count_parameters() < 2e5
    for shares in setting.SHARES.values():
        assert np.allclose(np.sum(shares, axis=0), 1)
    study = setting.build_phantom_study()
    assert study.train.masks is not None
    assert not set(study.train.groups) & set(study.test.groups)
    assert replace(study.config, segmentation=False).shape == study.train.images.shape[1:]
