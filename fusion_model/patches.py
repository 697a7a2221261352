"""Patches of registered pairs, grouped by patient, with their windows of skip and targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair
from fusion_model.prepared import PairSettings, PreparedPair, prepare_pair
from fusion_model.targets import FusionTargets

BLACK_LEVEL = 0.05
"""A patch whose mean over both images is not above this is background and teaches nothing."""

DEFAULT_SETTINGS = PairSettings()

Places = npt.NDArray[np.int64]
"""Rows of (image, row, column): the upper left corners of patches."""


@dataclass(frozen=True, slots=True)
class PatchRange:
    """Patches [start, stop) belong to one patient."""

    patient: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Patches on the grid of their settings, contiguous by patient, patients ascending.

    Skip and targets cover a patch's inner window of side O = P - 2 margin.
    """

    inputs: Array
    """Both images in [0, 1], then extra planes in [-1, 1]; (n, 2 + planes, P, P)."""
    skip: Array
    """S, (n, O, O)."""
    targets: FusionTargets
    ranges: tuple[PatchRange, ...]


def extract_patches(
    pairs: Sequence[ImagePair],
    count: int,
    seed: int,
    patch: int = 6,
    black_level: float = BLACK_LEVEL,
    settings: PairSettings = DEFAULT_SETTINGS,
    margin: int = 0,
) -> PatchSet:
    """Exactly `count` different patches, shared evenly by the patients and drawn at random by `seed`.

    Which ones does not depend on `settings`. A patient with fewer patches above `black_level` than its share
    gives all of them and the others fill up. Pairs are prepared one after the other, so that hundreds of them
    need no more room than their patches.
    Raises ValueError when there are not `count` such patches in all, and what `prepare_pair` raises.
    """
    patients = sorted({pair.patient for pair in pairs})
    images = {patient: [pair for pair in pairs if pair.patient == patient] for patient in patients}
    places = {patient: _find_places(images[patient], patch, black_level) for patient in patients}
    shares = _compute_shares(patients, {p: len(places[p]) for p in patients}, count)
    found = _allocate(count, 2 + len(settings.planes), patch, patch - 2 * margin)
    ranges: list[PatchRange] = []
    start = 0
    for patient in patients:
        generator = np.random.default_rng([seed, patient])
        order = generator.choice(len(places[patient]), size=shares[patient], replace=False)
        chosen = places[patient][order]
        for image in np.unique(chosen[:, 0]):
            at = np.flatnonzero(chosen[:, 0] == image)
            prepared = prepare_pair(settings, images[patient][image])
            _cut(prepared, chosen[at, 1], chosen[at, 2], found, start + at, margin)
        if shares[patient]:
            ranges.append(PatchRange(patient, start, start + shares[patient]))
        start += shares[patient]
    inputs, skip, targets = found
    return PatchSet(inputs, skip, targets, tuple(ranges))


def count_patches(pairs: Sequence[ImagePair], patch: int = 6, black_level: float = BLACK_LEVEL) -> int:
    """How many patches `extract_patches` can draw from."""
    return len(_find_places(pairs, patch, black_level))


def _allocate(count: int, inputs: int, patch: int, inner: int) -> tuple[Array, Array, FusionTargets]:
    if inner < 1:
        raise ValueError(f"a margin leaves nothing of a {patch}x{patch} patch")
    return (
        np.empty((count, inputs, patch, patch)),
        np.empty((count, inner, inner)),
        FusionTargets(
            np.empty((count, inner, inner)),
            np.empty((count, inner, inner - 1)),
            np.empty((count, inner - 1, inner)),
        ),
    )


def _cut(
    pair: PreparedPair,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    found: tuple[Array, Array, FusionTargets],
    at: npt.NDArray[np.int64],
    margin: int,
) -> None:
    """Copies one pair's patches with these corners to the places `at`."""
    inputs, skip, targets = found
    for plane, source in enumerate(pair.inputs):
        inputs[at, plane] = _take(source, rows, columns, inputs.shape[2], inputs.shape[3])
    inner = ((skip, pair.skip), *zip(targets, pair.targets, strict=True))
    for target, source in inner:
        target[at] = _take(source, rows + margin, columns + margin, *target.shape[1:])


def _take(
    image: Array, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], height: int, width: int
) -> Array:
    """Windows (n, height, width) of an image by their upper left corners."""
    down = rows[:, None, None] + np.arange(height)[:, None]
    across = columns[:, None, None] + np.arange(width)
    return np.asarray(image[down, across], dtype=np.float64)


def _find_places(pairs: Sequence[ImagePair], patch: int, black_level: float) -> Places:
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
