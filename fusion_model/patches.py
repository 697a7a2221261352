"""Patches of registered pairs, grouped by patient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair

BLACK_LEVEL = 0.05
"""A patch whose mean over both images is not above this is background and teaches nothing."""


@dataclass(frozen=True, slots=True)
class PatchRange:
    """Patches [start, stop) belong to one patient."""

    patient: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Patches in [0, 1], contiguous by patient, patients ascending."""

    inputs: Array
    """(n, 2, P, P)."""
    ranges: tuple[PatchRange, ...]


def extract_patches(
    pairs: Sequence[ImagePair], count: int, seed: int, patch: int = 6, black_level: float = BLACK_LEVEL
) -> PatchSet:
    """Exactly `count` different patches, shared evenly by the patients and drawn at random by `seed`.

    A patient with fewer patches above `black_level` than its share gives all of them and the others fill up.
    Raises ValueError when there are not `count` such patches in all.
    """
    patients = sorted({pair.patient for pair in pairs})
    images = {patient: [pair for pair in pairs if pair.patient == patient] for patient in patients}
    places = {patient: _find_places(images[patient], patch, black_level) for patient in patients}
    shares = _compute_shares(patients, {p: len(places[p]) for p in patients}, count)
    inputs = np.empty((count, 2, patch, patch))
    ranges: list[PatchRange] = []
    start = 0
    for patient in patients:
        generator = np.random.default_rng([seed, patient])
        chosen = generator.choice(len(places[patient]), size=shares[patient], replace=False)
        for index, (image, row, column) in enumerate(places[patient][chosen], start=start):
            pair = images[patient][image]
            inputs[index, 0] = pair.first[row : row + patch, column : column + patch]
            inputs[index, 1] = pair.second[row : row + patch, column : column + patch]
        if shares[patient]:
            ranges.append(PatchRange(patient, start, start + shares[patient]))
        start += shares[patient]
    return PatchSet(inputs, tuple(ranges))


def count_patches(pairs: Sequence[ImagePair], patch: int = 6, black_level: float = BLACK_LEVEL) -> int:
    """How many patches `extract_patches` can draw from."""
    return len(_find_places(pairs, patch, black_level))


def _find_places(pairs: Sequence[ImagePair], patch: int, black_level: float) -> npt.NDArray[np.int64]:
    """(image, row, column) of every patch above the black level, in reading order."""
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    for index, pair in enumerate(pairs):
        if min(pair.first.shape) < patch:
            raise ValueError(f"pair {pair.name}: {pair.first.shape} is smaller than a {patch}x{patch} patch")
        total = np.zeros((pair.first.shape[0] + 1, pair.first.shape[1] + 1))
        total[1:, 1:] = (pair.first + pair.second).cumsum(axis=0).cumsum(axis=1)
        sums = (
            total[patch:, patch:] - total[:-patch, patch:] - total[patch:, :-patch] + total[:-patch, :-patch]
        )
        rows, columns = np.nonzero(sums / (2 * patch * patch) > black_level)
        found.append(np.column_stack([np.full(len(rows), index), rows, columns]))
    return np.concatenate(found)


def _compute_shares(patients: Sequence[int], available: dict[int, int], count: int) -> dict[int, int]:
    if sum(available.values()) < count:
        raise ValueError(f"{count} patches wanted, only {sum(available.values())} are not black")
    shares: dict[int, int] = {}
    left = count
    # Smallest first: what they cannot give is spread over those still to come.
    for position, patient in enumerate(sorted(patients, key=lambda p: (available[p], p))):
        shares[patient] = min(available[patient], -(-left // (len(patients) - position)))
        left -= shares[patient]
    return shares
