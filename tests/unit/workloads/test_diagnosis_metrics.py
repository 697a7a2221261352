"""Figures against their definitions, and intervals against what is known of them."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from workloads.base import WorkloadError
from workloads.diagnosis_metrics import choose_threshold, compute_auc, compute_metrics


def draw(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rounded scores, so that some tie, and labels that they say something of."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(np.int64)
    return np.round(generator.normal(labels * 1.5, 1), 1), labels


def test_auc_is_the_rank_statistic():
    scores, labels = draw(300)
    sick, healthy = scores[labels == 1], scores[labels == 0]
    statistic = mannwhitneyu(sick, healthy).statistic
    assert compute_auc(scores, labels) == pytest.approx(statistic / (len(sick) * len(healthy)), abs=1e-12)


def test_auc_of_perfect_and_of_useless_scores():
    labels = np.array([0, 0, 1, 1])
    assert compute_auc(np.array([1.0, 2.0, 3.0, 4.0]), labels) == 1
    assert compute_auc(np.array([4.0, 3.0, 2.0, 1.0]), labels) == 0
    assert compute_auc(np.zeros(4), labels) == 0.5


def test_the_threshold_is_the_best_of_all():
    scores, labels = draw(200)

    def judge(threshold: float) -> float:
        found = scores >= threshold
        return float(found[labels == 1].mean() + (~found)[labels == 0].mean())

    best = judge(choose_threshold(scores, labels))
    assert best == pytest.approx(max(judge(value) for value in np.linspace(-5, 7, 2401)))


def test_metrics_at_a_threshold():
    scores, labels = np.array([0.1, 0.4, 0.6, 0.9, 0.7]), np.array([0, 1, 0, 1, 1])
    metrics = compute_metrics(scores, labels, 0.5)
    assert metrics.sensitivity.value == pytest.approx(2 / 3)
    assert metrics.specificity.value == pytest.approx(1 / 2)
    assert (metrics.positives, metrics.negatives) == (3, 2)


def test_intervals_hold_their_value_narrow_with_images_and_repeat():
    widths = []
    for count in (100, 900):
        scores, labels = draw(count)
        metrics = compute_metrics(scores, labels, 0.7, seed=4)
        assert metrics == compute_metrics(scores, labels, 0.7, seed=4)
        for interval in (metrics.auc, metrics.sensitivity, metrics.specificity):
            assert interval.low < interval.value < interval.high
        widths.append(metrics.auc.high - metrics.auc.low)
    assert widths[1] == pytest.approx(widths[0] / 3, rel=0.5)


def test_images_of_the_same_patients_say_less_than_as_many_patients():
    scores, labels = draw(100)
    single = compute_metrics(scores, labels, 0.7)
    copies = compute_metrics(
        np.tile(scores, 4), np.tile(labels, 4), 0.7, groups=np.tile(np.arange(100, dtype=np.int64), 4)
    )
    assert copies.auc.low == pytest.approx(single.auc.low, abs=1e-9)
    blind = compute_metrics(np.tile(scores, 4), np.tile(labels, 4), 0.7)
    assert blind.auc.high - blind.auc.low < 0.7 * (copies.auc.high - copies.auc.low)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0, float("nan")], [0, 1]), ([1.0], [0, 1]), ([1.0, 2.0], [0, 2])],
)
def test_what_has_no_metrics_is_refused(scores, labels):
    with pytest.raises(WorkloadError, match="expected"):
        compute_auc(np.array(scores), np.array(labels))
