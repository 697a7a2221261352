"""Sequences of images of one patient: windows, votes, cross-validation by patient, and training in clear.

After HE-CLSTM (ACM TOIT 2021). Every `window` consecutive frames of a patient are one input of the network,
which gives a decision a frame; the patient's score is the mean probability of all decisions of all its
windows. This vote is taken in clear by the key holder, after decryption: the number of windows differs from
patient to patient, they lie in different slots, and adding them up under encryption would take rotations,
and with them keys that mix patients, to hide from the requester decisions on its own patients.

Importing this loads neither torch nor the encryption library.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from he.network import Network, evaluate
from he.recurrent import OddCubic, RecurrentCell, evaluate_sequence
from workloads.base import WorkloadError
from workloads.diagnosis_metrics import Interval, compute_auc
from workloads.polynomials import FittedPolynomial, fit_polynomial, relu, sigmoid

Floats = NDArray[np.float64]

MIN_FRAMES: Final = 3


def _fit_odd(function: Callable[[Floats], Floats], bound: float) -> OddCubic:
    """For functions odd about their value at 0, whose polynomial has no square."""
    fitted = fit_polynomial(function, 3, (-bound, bound))
    # Rounded, so that the same fit is the same bytes whatever linear algebra library made it.
    c0, c1, _, c3 = (round(value, 9) + 0.0 for value in fitted.coefficients)
    return OddCubic(c0, c1, c3, bound, round(fitted.error, 6))


def _fit_relu(bound: float) -> FittedPolynomial:
    fitted = fit_polynomial(relu, 2, (-bound, bound))
    rounded = tuple(round(value, 9) for value in fitted.coefficients)
    return FittedPolynomial(rounded, fitted.interval, round(fitted.error, 6))


LOGISTIC: Final = _fit_odd(sigmoid, 4.0)
TANH: Final = _fit_odd(np.tanh, 2.0)
RELU: Final = _fit_relu(4.0)


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """Shape of the network; what is switched off is what an ablation leaves out."""

    planes: int = 3
    side: int = 16
    window: int = 3
    channels: tuple[int, int] = (8, 16)
    features: int = 8
    hidden: int = 8
    temporal: bool = True
    """False: no LSTM, each frame is decided alone."""
    weighted: bool = True
    """False: spatial and temporal features weigh the same."""

    def __post_init__(self) -> None:
        if self.features != self.hidden:
            raise WorkloadError(
                f"hidden: expected {self.features}, as many as features, which it is weighed against;"
                f" got {self.hidden}"
            )
        if not 1 <= self.window <= MIN_FRAMES:
            raise WorkloadError(f"window: expected 1 to {MIN_FRAMES} frames, got {self.window}")

    def count_weights(self) -> int:
        """Trained numbers."""
        first, second = self.channels
        total = 9 * self.planes * first + 2 * first + 9 * first * second + 2 * second
        total += second * self.features + self.features + self.features + 1
        if self.temporal:
            total += 4 * self.hidden * (self.features + self.hidden + 1)
            total += self.features if self.weighted else 0
        return total


def build_single_frame(config: SequenceConfig) -> SequenceConfig:
    """A network of single frames with as many weights as `config`'s, to within one channel."""
    single = replace(config, window=1, temporal=False, weighted=False)
    while single.count_weights() < config.count_weights():
        single = replace(single, channels=(single.channels[0], single.channels[1] + 1))
    return single


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """Frames (T, C, S, S) in the order of the examination, in [-1, 1]."""

    name: str
    label: int
    frames: Floats


def prepare_frames(images: NDArray[np.uint8], side: int) -> Floats:
    """(T, C, side, side) in [-1, 1] from (T, S, S, C), by means over blocks.

    Raises: WorkloadError if S is no multiple of `side`.
    """
    count, height, width, planes = images.shape
    if height != width or height % side:
        raise WorkloadError(f"images: expected squares of a multiple of {side}, got {height} x {width}")
    blocks = images.reshape(count, side, height // side, side, width // side, planes)
    result: Floats = blocks.mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 127.5 - 1.0
    return result


def build_windows(patient: Patient, window: int) -> Floats:
    """(T - window + 1, window, C, S, S): every `window` consecutive frames.

    Raises: WorkloadError if the patient has fewer frames than that.
    """
    count = len(patient.frames) - window + 1
    if count < 1:
        raise WorkloadError(
            f"patient {patient.name}: needs {window} frames, has {len(patient.frames)}; repeat one"
        )
    return np.stack([patient.frames[start : start + window] for start in range(count)])


def arrange_features(features: Sequence[Floats], window: int) -> Floats:
    """(window, F, B) as the recurrent part takes them, from each patient's features (T, F) by frame: the
    windows of all patients beside each other, in their order."""
    columns = [part[start : start + window] for part in features for start in range(len(part) - window + 1)]
    return np.stack(columns).transpose(1, 2, 0)


def split_windows(decisions: Floats, frames: Sequence[int]) -> list[Floats]:
    """Each patient's decisions (windows, T), from decisions (T, B) of windows beside each other and the
    number of each patient's frames."""
    counts = [count - len(decisions) + 1 for count in frames]
    return np.split(decisions.T, np.cumsum(counts)[:-1])


def vote(decisions: Floats) -> float:
    """A patient's score in [0, 1]: the mean probability of all votes; decisions (windows, T), logits."""
    return float(sigmoid(decisions).mean())


def take_last(decisions: Floats) -> float:
    """What is decided without voting: the probability of the last window's last frame."""
    return float(sigmoid(decisions[-1:, -1:]).mean())


# --- statistics -------------------------------------------------------------------------------


def bootstrap_gain(
    labels: NDArray[np.int64], scores: Floats, other: Floats, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """The AUC of `scores` less that of `other` on the same patients, who are drawn anew together.

    Raises: WorkloadError as `compute_auc` does.
    """
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)]
    values = []
    for _ in range(draws):
        # Within each class: with few patients a draw could lack one.
        chosen = np.concatenate([generator.choice(members, len(members)) for members in classes])
        drawn = labels[chosen]
        values.append(compute_auc(scores[chosen], drawn) - compute_auc(other[chosen], drawn))
    low, high = np.quantile(values, [0.025, 0.975])
    value = compute_auc(scores, labels) - compute_auc(other, labels)
    return Interval(value, float(low), float(high))


def split_patients(labels: Sequence[int], folds: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """The patients of each test fold; every class is spread evenly."""
    generator = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(folds)]
    place = 0
    for label in sorted(set(labels)):
        for index in generator.permutation(np.flatnonzero(np.array(labels) == label)):
            parts[place % folds].append(int(index))
            place += 1
    return tuple(tuple(sorted(part)) for part in parts)


# --- what the encrypted program takes ----------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ClearModel:
    """A trained network as numbers: the frames' part and the recurrent part."""

    frames: Network
    cell: RecurrentCell
    window: int


def evaluate_clear(model: ClearModel, patients: Sequence[Patient]) -> list[Floats]:
    """Each patient's decisions (windows, T) in float64, as the encrypted program computes them."""
    features = [evaluate(model.frames, patient.frames) for patient in patients]
    decisions = evaluate_sequence(model.cell, arrange_features(features, model.window))
    return split_windows(decisions, [len(patient.frames) for patient in patients])
