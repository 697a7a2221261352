"""How well scores tell the sick from the healthy: AUC, sensitivity, specificity, with bootstrap intervals.

Scores grow with the suspicion; labels are 1 for the finding and 0 without it. Where several images are of
one patient it is patients that are drawn anew, each with all of its images.
Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.base import WorkloadError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of the given images, and where it lies for others of their kind."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True, slots=True)
class DiagnosisMetrics:
    """Figures of one model on one set of images."""

    auc: Interval
    sensitivity: Interval
    specificity: Interval
    threshold: float
    """Scores from here on count as the finding."""
    positives: int
    negatives: int


def compute_auc(scores: Floats, labels: Integers) -> float:
    """The chance that an image with the finding scores above one without; ties count half.

    Raises WorkloadError unless both labels occur and all scores are finite.
    """
    return float(_compare(scores, labels)[0].mean())


def choose_threshold(scores: Floats, labels: Integers) -> float:
    """The threshold of the greatest sensitivity + specificity, midway between two scores.

    To be chosen on other images than those whose metrics are told. Source: Youden 1950.
    """
    _check(scores, labels)
    order = np.unique(scores)
    middles = np.concatenate([[order[0]], (order[1:] + order[:-1]) / 2])
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    below = np.searchsorted(positive, middles) / len(positive)
    correct = np.searchsorted(negative, middles) / len(negative)
    return float(middles[int(np.argmax(correct - below))])


def compute_metrics(
    scores: Floats,
    labels: Integers,
    threshold: float,
    *,
    groups: Integers | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> DiagnosisMetrics:
    """All figures at the given threshold; the same seed gives the same intervals.

    `groups` (n,) names each image's patient; None: every image is of another one. Draws without one of the
    labels are left out. Raises WorkloadError as `compute_auc` does.
    """
    wins, positive, negative = _compare(scores, labels)
    found = (scores >= threshold).astype(np.float64)
    hits, rejections = found[positive], 1 - found[negative]
    _, index = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    count = int(index.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = drawn[:, index].astype(np.float64)
    sick, healthy = weights[:, positive], weights[:, negative]
    usable = (sick.sum(axis=1) > 0) & (healthy.sum(axis=1) > 0)
    sick, healthy = sick[usable], healthy[usable]
    sicks, healthies = sick.sum(axis=1), healthy.sum(axis=1)
    aucs = ((sick @ wins) * healthy).sum(axis=1) / (sicks * healthies)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)

    def build(value: float, values: Floats) -> Interval:
        low, high = np.quantile(values, tails)
        return Interval(value, float(low), float(high))

    return DiagnosisMetrics(
        build(float(wins.mean()), aucs),
        build(float(hits.mean()), (sick @ hits) / sicks),
        build(float(rejections.mean()), (healthy @ rejections) / healthies),
        threshold,
        len(positive),
        len(negative),
    )


def _compare(scores: Floats, labels: Integers) -> tuple[Floats, Integers, Integers]:
    """(P, N) of 1, 1/2 or 0 for each pair of an image with and one without; and which images these are."""
    _check(scores, labels)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    difference = scores[positive][:, None] - scores[negative][None, :]
    return 0.5 * (np.sign(difference) + 1), positive, negative


def _check(scores: Floats, labels: Integers) -> None:
    if scores.shape != labels.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise WorkloadError(f"scores: expected a finite number for each of {len(labels)} labels")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise WorkloadError("labels: expected both 0 and 1 among them, and nothing else")
