"""Intervals by bootstrap over patients."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from fusion_model.metrics import FusionMetrics
from fusion_model.statistics import Estimate, PairScores, bootstrap_means, summarise_scores


def make_scores(model: float, maximum: float, name: str = "pair", patient: int = 0) -> PairScores:
    figures = {"model": FusionMetrics(*[model] * 10), "maximum": FusionMetrics(*[maximum] * 10)}
    return PairScores(name, patient, figures)


def test_intervals_agree_with_the_library_where_every_patient_has_one_pair() -> None:
    values = np.random.default_rng(5).gamma(2.0, 1.0, (24, 3))
    found = bootstrap_means(values, range(24), seed=1, resamples=20_000)
    for column, estimate in zip(values.T, found, strict=True):
        expected = stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2)
        ).confidence_interval
        assert estimate.mean == pytest.approx(column.mean())
        spread = expected.high - expected.low
        assert estimate.low == pytest.approx(expected.low, abs=0.04 * spread)
        assert estimate.high == pytest.approx(expected.high, abs=0.04 * spread)


def test_patients_are_drawn_and_not_pairs() -> None:
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(8), 20)
    values = generator.normal(0, 1, 8)[patients][:, None] + generator.normal(0, 0.05, (160, 1))
    by_patient = bootstrap_means(values, patients.tolist(), seed=1)[0]
    by_pair = bootstrap_means(values, range(160), seed=1)[0]
    assert by_patient.low is not None
    assert by_patient.high is not None
    assert by_pair.low is not None
    assert by_pair.high is not None
    assert by_patient.high - by_patient.low > 3 * (by_pair.high - by_pair.low)


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(11)
    patients = np.repeat(np.arange(20), 2).tolist()
    held = 0
    for seed in range(200):
        values = generator.normal(0, 1, (20, 1)).repeat(2, axis=0) + generator.normal(0, 0.5, (40, 1))
        estimate = bootstrap_means(values, patients, seed, resamples=1000)[0]
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0 <= estimate.high
    assert 0.88 <= held / 200 <= 0.98


def test_one_seed_gives_one_interval() -> None:
    values = np.random.default_rng(7).normal(size=(12, 2))
    patients = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert bootstrap_means(values, patients, 4) == bootstrap_means(values, patients, 4)
    assert bootstrap_means(values, patients, 4) != bootstrap_means(values, patients, 5)


def test_one_patient_has_no_interval_and_equal_pairs_have_an_empty_one() -> None:
    assert bootstrap_means(np.array([[1.0], [3.0]]), [9, 9], 0) == [Estimate(2.0, None, None)]
    constant = bootstrap_means(np.full((6, 1), 2.0), [1, 1, 2, 2, 3, 3], 0)[0]
    assert astuple(constant) == (2.0, 2.0, 2.0)
    assert not Estimate(2.0, None, None).excludes_zero
    assert Estimate(2.0, 1.0, 3.0).excludes_zero
    assert not Estimate(0.5, -1.0, 3.0).excludes_zero


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(13)
    scores = []
    for patient in range(10):
        level = float(generator.normal(0, 5))
        scores.append(make_scores(level + 0.5, level, f"pair{patient}", patient))
    summary = summarise_scores(scores)
    assert summary.extent == "10 pairs of 10 patients"
    assert not summary.means["model"]["VIF"].excludes_zero
    gain = summary.differences["model"]["VIF"]
    assert gain.mean == pytest.approx(0.5)
    assert gain.excludes_zero
    assert "maximum" not in summary.differences


def test_one_pair_is_not_plural() -> None:
    assert summarise_scores([make_scores(1, 2)]).extent == "1 pair of 1 patient"


def test_unsuitable_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarise_scores([])
    odd = PairScores("odd", 2, {"model": FusionMetrics(*[1.0] * 10)})
    with pytest.raises(ValueError, match="pair odd"):
        summarise_scores([make_scores(1, 2), odd])
    with pytest.raises(ValueError, match="a row of values"):
        bootstrap_means(np.ones((3, 1)), [1, 2], 0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_means(np.array([[1.0], [np.nan]]), [1, 2], 0)
