"""Figures of an arm over all folds, with intervals by drawing publications anew, alike for every arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.diagnosis_metrics import Interval, choose_threshold, compute_auc

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES = 2000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is known of a fold's images."""

    val_labels: Integers
    test_labels: Integers
    test_groups: Integers


@dataclass(frozen=True, slots=True)
class Scored:
    """One network's suspicions of a fold's validation and test images."""

    val: tuple[float, ...]
    test: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Means over folds for the AUC, over all test images for the rest; over networks where there are more."""

    val_auc: float
    auc: Interval
    sensitivity: Interval
    specificity: Interval
    balanced: Interval
    auc_draws: Floats
    """(RESAMPLES,): the AUC of each draw; draw k is of the same publications for every arm."""

    def compare(self, other: "Figures") -> Interval:
        """AUC less the other's."""
        return _build(self.auc.value - other.auc.value, self.auc_draws - other.auc_draws)


def compute_figures(truths: Sequence[Truth], scored: Mapping[int, Sequence[Scored]], seed: int) -> Figures:
    """`scored` has a fold's networks by the fold's number. Thresholds are chosen on validation images."""
    draw = np.random.default_rng([seed, 73])
    aucs, val_aucs = [], []
    counts = np.zeros((2, RESAMPLES + 1))
    correct = np.zeros((2, RESAMPLES + 1))
    for fold, truth in enumerate(truths):
        # The first row is of the publications as they are.
        weights = _draw_weights(draw, truth.test_groups)
        sick, healthy = (weights[:, truth.test_labels == label] for label in (1, 0))
        for one in scored[fold]:
            val, test = np.array(one.val), np.array(one.test)
            val_aucs.append(compute_auc(val, truth.val_labels))
            found = test >= choose_threshold(val, truth.val_labels)
            positive, negative = (test[truth.test_labels == label] for label in (1, 0))
            wins = (np.sign(positive[:, None] - negative[None, :]) + 1) / 2
            pairs = sick.sum(axis=1) * healthy.sum(axis=1)
            aucs.append(((sick @ wins) * healthy).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))
            for label, part in ((1, sick), (0, healthy)):
                counts[label] += part.sum(axis=1)
                correct[label] += part @ (found[truth.test_labels == label] == label)
    auc = np.mean(aucs, axis=0)
    rates = correct / np.where(counts > 0, counts, np.nan)
    balanced = rates.mean(axis=0)
    figures = [_build(float(row[0]), row[1:]) for row in (auc, rates[1], rates[0], balanced)]
    return Figures(float(np.mean(val_aucs)), figures[0], figures[1], figures[2], figures[3], auc[1:])


def _draw_weights(draw: np.random.Generator, groups: Integers) -> Floats:
    """(1 + RESAMPLES, n): how often each image is in a draw of as many groups as there are."""
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    drawn = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float64)[:, index]


def _build(value: float, draws: Floats) -> Interval:
    low, high = np.nanquantile(draws, _TAILS)
    return Interval(value, float(low), float(high))
