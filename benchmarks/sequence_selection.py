"""Whether larger frames, differences of colour or stronger augmentation help the sequence network.

Chosen by nested cross-validation: of each outer fold's training patients, an inner cross-validation gives
every candidate an AUC, and the best is the one that counts on the outer fold's patients. So no figure of
the choice is of patients that it was made on. Source: Varma & Simon, BMC Bioinformatics 2006.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.diagnosis_metrics import compute_auc, compute_metrics
from workloads.sequence import (
    Floats,
    Patient,
    SequenceConfig,
    bootstrap_gain,
    split_patients,
    vote,
)

INNER_FOLDS = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to prepare frames and to train on them; the network is the same but for what it reads."""

    name: str
    side: int
    differences: bool = False
    """Three more planes: half of what changed since the examination's first frame."""
    shift: int = 1
    colour: float = 0.0


CANDIDATES = (
    Candidate("16x16, as above", 16),
    Candidate("32x32", 32, shift=2),
    Candidate("32x32, stronger augmentation", 32, shift=4, colour=0.2),
    Candidate("32x32, stronger augmentation, differences to the first frame", 32, True, 4, 0.2),
)
"""Settled before any of them was run."""
SIDES = tuple(sorted({candidate.side for candidate in CANDIDATES}))


def add_differences(patient: Patient) -> Patient:
    """With planes (2 C, S, S): each frame, and half its difference to the first, in [-1, 1] too."""
    changed = (patient.frames - patient.frames[:1]) / 2
    return replace(patient, frames=np.concatenate([patient.frames, changed], axis=1))


def run_folds(by_side: Mapping[int, Sequence[Patient]], folder: Path, folds: int) -> None:
    """Each outer fold's scores by candidate, and what the inner cross-validation says of each candidate, to
    selection-K.npz. Folds are those of the first repeat of the clear stage."""
    labels = np.array([patient.label for patient in by_side[SIDES[0]]], dtype=np.int64)
    everybody = range(len(labels))
    for number, fold in enumerate(split_patients(labels.tolist(), folds, 0)):
        target = folder / f"selection-{number}.npz"
        if target.exists():
            continue
        training = [index for index in everybody if index not in fold]
        inner = split_patients(labels[training].tolist(), INNER_FOLDS, 100 + number)
        inner_aucs, outer = [], []
        for candidate in CANDIDATES:
            patients = [
                add_differences(patient) if candidate.differences else patient
                for patient in by_side[candidate.side]
            ]
            scores = np.zeros(len(labels))
            for part in inner:
                held = [training[place] for place in part]
                rest = [index for index in training if index not in held]
                scores[held] = _score(candidate, patients, rest, held)
            inner_aucs.append(compute_auc(scores[training], labels[training]))
            outer.append(_score(candidate, patients, training, fold))
            print(f"fold {number}, {candidate.name}: inner AUC {inner_aucs[-1]:.3f}", flush=True)
        np.savez(target, allow_pickle=False, fold=np.array(fold), inner=inner_aucs, outer=np.array(outer))


def _score(
    candidate: Candidate, patients: Sequence[Patient], training: Sequence[int], held: Sequence[int]
) -> Floats:
    """Votes on the patients held back, by a network trained on the others."""
    from workloads.sequence_training import TrainingSettings, predict, train

    config = SequenceConfig(planes=patients[0].frames.shape[1], side=candidate.side)
    settings = TrainingSettings(shift=candidate.shift, colour=candidate.colour)
    trained, _ = train(config, settings, [patients[index] for index in training])
    return np.array([vote(predict(trained, patients[index])[0]) for index in held])


def describe_selection(labels: NDArray[np.int64], folder: Path, folds: int) -> list[str]:
    """Markdown: each candidate on its own, and the nested choice; nothing where the stage has not run."""
    files = [folder / f"selection-{number}.npz" for number in range(folds)]
    if not all(file.exists() for file in files):
        return []
    scores = np.zeros((len(CANDIDATES), len(labels)))
    chosen = np.zeros(len(labels))
    inner = np.zeros((folds, len(CANDIDATES)))
    for number, file in enumerate(files):
        with np.load(file, allow_pickle=False) as archive:
            fold, inner[number], outer = archive["fold"], archive["inner"], archive["outer"]
        scores[:, fold] = outer
        chosen[fold] = outer[inner[number].argmax()]
    winners = inner.argmax(axis=1)
    rows = [
        f"| {candidate.name} | {inner[:, place].mean():.3f} | {(winners == place).sum()} of {folds} | "
        f"{compute_metrics(scores[place], labels, 0.5).auc} |"
        for place, candidate in enumerate(CANDIDATES)
    ]
    auc = compute_metrics(chosen, labels, 0.5).auc
    gain = bootstrap_gain(labels, chosen, scores[0])
    verdict = "kept" if gain.low > 0 else "not kept: the gain can't be told from 0"
    return [
        "## Other inputs and augmentation",
        "",
        "The conv-LSTM with weighted unit and vote again: on larger frames, with stronger augmentation "
        "(moved by up to 4 pixels, each plane times a factor of standard deviation 0.2), and with three "
        "planes more that hold half the difference of each frame to the examination's first. Candidates were "
        f"settled before any was run. In each of the {folds} folds of the first repeat, a cross-validation "
        f"of {INNER_FOLDS} folds among the training patients alone chooses one; the last row is the AUC of "
        "what was chosen, on patients that took no part in the choice. Rows above it are each candidate on "
        "the same patients: the best of them is flattered by being picked here.",
        "",
        "| input | AUC, inner, mean | chosen | AUC of the vote |",
        "|---|---|---|---|",
        *rows,
        f"| nested choice | | | {auc} |",
        "",
        f"The nested choice against the first row, same patients: {gain.value:+.3f} ({gain.low:+.3f} to "
        f"{gain.high:+.3f}); {verdict}.",
        "",
    ]
