"""Means over image pairs with confidence intervals by bootstrap over patients.

Slices of one patient resemble each other, so it is patients that are drawn anew, each with all of its pairs;
an interval over single pairs would be too narrow. Intervals are bias-corrected and accelerated (BCa).

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import NormalDist

import numpy as np

from fusion_model.gradients import Array
from fusion_model.metrics import METRIC_NAMES, FusionMetrics

RESAMPLES = 5000
CONFIDENCE = 0.95
FEW_PATIENTS = 10
"""With fewer patients a bootstrap interval tends to be too narrow."""
REFERENCE = "maximum"
"""The method that all others are compared with, pair by pair."""

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over pairs with its interval; no interval where there is only one patient."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class PairScores:
    """The figures of one pair by every method."""

    name: str
    patient: int
    methods: dict[str, FusionMetrics]


Table = dict[str, dict[str, Estimate]]
"""Estimates by method and metric."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Means of every method, and what they are above the pixel maximum on the same pairs."""

    pairs: int
    patients: int
    seed: int
    means: Table
    differences: Table
    """Of every method but the pixel maximum; empty where the maximum was not computed."""

    @property
    def extent(self) -> str:
        """How many pairs of how many patients, in words."""
        pairs, patients = "s" * (self.pairs != 1), "s" * (self.patients != 1)
        return f"{self.pairs} pair{pairs} of {self.patients} patient{patients}"

    @property
    def caution(self) -> str | None:
        """What to say of intervals from few patients."""
        if self.patients < 2:
            return "There is one patient only, so no interval can be given."
        if self.patients < FEW_PATIENTS:
            return f"With fewer than {FEW_PATIENTS} patients, intervals tend to be too narrow."
        return None


def summarise_scores(
    scores: Sequence[PairScores], seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Summary:
    """Means and differences from the pixel maximum, with intervals; the same seed gives the same intervals.

    Raises ValueError without pairs, or when pairs were not all fused by the same methods.
    """
    if not scores:
        raise ValueError("expected the figures of at least one pair, got none")
    methods = tuple(scores[0].methods)
    for entry in scores:
        if tuple(entry.methods) != methods:
            raise ValueError(f"pair {entry.name}: fused by {tuple(entry.methods)}, the first by {methods}")
    patients = [entry.patient for entry in scores]
    # (pairs, methods, metrics)
    values = np.array([[astuple(figures) for figures in entry.methods.values()] for entry in scores])

    def build(names: Sequence[str], array: Array) -> Table:
        flat = bootstrap_means(array.reshape(len(scores), -1), patients, seed, resamples, confidence)
        width = len(METRIC_NAMES)
        return {
            name: dict(zip(METRIC_NAMES, flat[row * width : (row + 1) * width], strict=True))
            for row, name in enumerate(names)
        }

    differences: Table = {}
    if REFERENCE in methods and len(methods) > 1:
        column = methods.index(REFERENCE)
        others = [index for index in range(len(methods)) if index != column]
        differences = build(
            [methods[index] for index in others], values[:, others] - values[:, column : column + 1]
        )
    return Summary(len(scores), len(set(patients)), seed, build(methods, values), differences)


def bootstrap_means(
    values: Array,
    patients: Sequence[int],
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Estimate]:
    """The mean over pairs of each column of values (pairs, k), with its interval.

    One set of resampled patients serves all columns. Raises ValueError when pairs and patients differ in
    number, or a value is not finite.
    """
    if values.ndim != 2 or len(values) != len(patients) or not len(values):
        raise ValueError(f"expected a row of values for each of {len(patients)} pairs, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("expected finite values")
    means = values.mean(axis=0)
    labels, index = np.unique(np.asarray(patients, dtype=np.int64), return_inverse=True)
    count = len(labels)
    if count < 2:
        return [Estimate(float(mean), None, None) for mean in means]
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, index, values)
    sizes = np.bincount(index, minlength=count).astype(np.float64)
    generator = np.random.default_rng(seed)
    # How often each patient was drawn, (resamples, patients): all that the mean depends on.
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    resampled = (drawn @ sums) / (drawn @ sizes)[:, None]
    left_out = (sums.sum(axis=0) - sums) / (sizes.sum() - sizes)[:, None]
    estimates: list[Estimate] = []
    for mean, column, jackknife in zip(means, resampled.T, left_out.T, strict=True):
        ranks = _correct_ranks(float(mean), column, jackknife, confidence)
        low, high = np.quantile(column, ranks)
        estimates.append(Estimate(float(mean), float(low), float(high)))
    return estimates


def _correct_ranks(mean: float, resampled: Array, left_out: Array, confidence: float) -> tuple[float, float]:
    """The quantiles of the resampled means between which a BCa interval lies."""
    tail = (1 - confidence) / 2
    # Ties count half: differences that are often exactly 0 would else look biased.
    below = (np.count_nonzero(resampled < mean) + 0.5 * np.count_nonzero(resampled == mean)) / len(resampled)
    if not 0 < below < 1:
        return tail, 1 - tail
    bias = _NORMAL.inv_cdf(below)
    deviations = left_out.mean() - left_out
    spread = float((deviations**2).sum()) ** 1.5
    acceleration = float((deviations**3).sum()) / (6 * spread) if spread > 0 else 0.0

    def correct(rank: float) -> float:
        shifted = bias + _NORMAL.inv_cdf(rank)
        return _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))

    return correct(tail), correct(1 - tail)
