"""The federated experiment: no publication in two parts, and figures of known scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federation import setting
from benchmarks.federation.arms import Outcome
from benchmarks.federation.encrypted import Encrypted
from benchmarks.federation.page import Dealt, Everything, build_page
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


def test_page_states_figures_of_every_arm() -> None:
    labels, groups = np.array([0, 1, 0, 1]), np.arange(4)
    truth = Truth(labels, labels, groups)
    good = Scored((0.1, 0.9, 0.2, 0.8), (0.1, 0.9, 0.2, 0.8))
    bad = Scored((0.1, 0.9, 0.2, 0.8), (0.9, 0.1, 0.2, 0.8))
    arms = {"central": good, "apart-IID": bad, "averaged-IID": good, "encrypted-IID": bad}
    figures = {arm: compute_figures([truth], {0: [scored]}, 1) for arm, scored in arms.items()}
    run = Encrypted(9, 24, 4.0, 1_500_000, 3, 8192, 0, 1e-7, 17.5, 1.2, 0, 0.05, 0.06, 0.07)
    masked = Outcome((good,), ((0.5, 0.7),), (0.01,), 3.0)
    dealt = Dealt({"IID": [(1, 2)] * 4}, (4, 8), (3, 4), (5, 6), (7, 8, 9))
    page = build_page(
        Everything(
            "a machine",
            [dealt],
            figures,
            dict.fromkeys(figures, 12.0),
            {"IID": [run]},
            {"central": masked, "encrypted-IID": masked},
            {"IID": run},
        )
    )
    assert "encrypted less plain averaging -0.7500" in page
    assert "not within 0.01" in page
    assert "| COVID-CT, IID | 9 | 0 | 1.0e-07 | 17.5 | 1.20 | 0 | 1.5 MB | 3 | 8192 |" in page
    assert "0.600 (" in page
    assert "| IID | federated, encrypted |" in page
