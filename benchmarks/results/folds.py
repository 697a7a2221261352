"""Patients of one modality dealt to folds and hospitals: who trains, who validates, whom nobody sees.

A patient is the number of an atlas case and all of its slices; no patient is on two sides of a fold. Nothing
here is drawn at random, so everyone gets the same folds from the same manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FOLDS = 3
"""The smallest modality has three patients; with three folds each of them is held back once."""


@dataclass(frozen=True, slots=True)
class Hospital:
    """What one contributor encrypts."""

    node: str
    training: tuple[int, ...]
    validation: tuple[int, ...]
    """Numbers above those of `training`."""

    @property
    def patients(self) -> tuple[int, ...]:
        return self.training + self.validation


@dataclass(frozen=True, slots=True)
class Fold:
    number: int
    hospitals: tuple[Hospital, ...]
    held_back: tuple[int, ...]
    """Patients that nobody sees before the metrics are computed."""

    @property
    def training(self) -> tuple[int, ...]:
        """Patients whose gradients are opened."""
        return tuple(sorted(patient for hospital in self.hospitals for patient in hospital.training))


def build_folds(patients: Sequence[int], nodes: Sequence[str], count: int = FOLDS) -> tuple[Fold, ...]:
    """Every patient is held back in exactly one fold; the others are dealt to the hospitals in turn.

    Each hospital holds its last patient for validation and trains on the rest. Where there is one patient a
    hospital, the last hospital validates and the others train. Raises ValueError for fewer patients.
    """
    ordered = sorted(set(patients))
    folds = []
    for number in range(count):
        held = tuple(ordered[number::count])
        rest = [patient for patient in ordered if patient not in held]
        shares = [rest[index :: len(nodes)] for index in range(len(nodes))]
        if not held or not all(shares) or len(rest) < 2:
            raise ValueError(
                f"{len(ordered)} patients are too few for {count} folds and {len(nodes)} hospitals"
            )
        hospitals = []
        for node, share in zip(nodes, shares, strict=True):
            cut = len(share) - 1 if len(share) > 1 else int(node != nodes[-1])
            hospitals.append(Hospital(node, tuple(share[:cut]), tuple(share[cut:])))
        folds.append(Fold(number, tuple(hospitals), held))
    return tuple(folds)
