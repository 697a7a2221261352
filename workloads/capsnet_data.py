"""Images with labels, groups and, where they are known, masks: from an npz file, or phantoms by a seed.

Nothing of what is read is written anywhere.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.base import WorkloadError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MAX_IMAGES = 100_000
_MAX_BYTES = 2**30
"""Of an npz file's arrays, unpacked."""
_EDGE_PX = 0.8
"""Half-width of a phantom's edges."""


@dataclass(frozen=True, slots=True, eq=False)
class CapsuleData:
    """Square grey images with what is known of them."""

    images: Floats
    """(n, 1, S, S) in [0, 1]."""
    labels: Integers
    """(n,), from 0."""
    groups: Integers
    """(n,): images of one patient or publication have the same number."""
    masks: Floats | None = None
    """(n, S, S) of 0 and 1: pixels of the finding; None where unknown."""

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[1] != 1 or self.images.shape[2] != self.images.shape[3]:
            raise WorkloadError(f"images: expected (n, 1, S, S), got {self.images.shape}")
        if self.labels.shape != (n,) or self.groups.shape != (n,):
            raise WorkloadError(
                f"labels, groups: expected {n} each, got {self.labels.shape} and {self.groups.shape}"
            )
        if self.masks is not None and self.masks.shape != (n, *self.images.shape[2:]):
            raise WorkloadError(f"masks: expected one for each image, got {self.masks.shape}")

    def take(self, chosen: NDArray[np.bool_] | Integers) -> "CapsuleData":
        masks = None if self.masks is None else self.masks[chosen]
        return CapsuleData(self.images[chosen], self.labels[chosen], self.groups[chosen], masks)

    def __len__(self) -> int:
        return len(self.labels)


def load_capsule_data(path: Path, side: int) -> CapsuleData:
    """From an npz with `images` (n, H, H) of 8 bits, `labels` (n,), and perhaps `group` and `masks`.

    Images are averaged down to the side, which must divide H; a mask's pixel is set if at least half of what
    it covers is. Raises WorkloadError naming file and array.
    """
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; name an npz file with images and labels")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise WorkloadError(f"{path}: unpacks to more than {_MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"images", "labels"} - set(arrays.files)
            if missing:
                raise WorkloadError(f"{path}: lacks the arrays {', '.join(sorted(missing))}")
            pixels, labels = np.asarray(arrays["images"]), np.asarray(arrays["labels"]).ravel()
            groups = (
                np.asarray(arrays["group"]).ravel() if "group" in arrays.files else np.arange(len(labels))
            )
            drawn = np.asarray(arrays["masks"]) if "masks" in arrays.files else None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise WorkloadError(f"{path}: can not be read as image data: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= len(pixels) <= _MAX_IMAGES:
        raise WorkloadError(
            f"{path}: images: expected (n, H, H) of 8 bits with n up to {_MAX_IMAGES}, got {pixels.shape} of"
            f" {pixels.dtype}"
        )
    height = pixels.shape[1]
    if pixels.shape[2] != height or side < 1 or height % side:
        raise WorkloadError(
            f"{path}: images: expected squares of a multiple of {side}, got {pixels.shape[1:]}"
        )
    if labels.dtype.kind not in "iub" or len(labels) != len(pixels) or labels.min() < 0:
        raise WorkloadError(f"{path}: labels: expected {len(pixels)} integers from 0, got {labels.shape}")
    if len(groups) != len(pixels):
        raise WorkloadError(f"{path}: group: expected {len(pixels)} entries, got {len(groups)}")
    if drawn is not None and drawn.shape != pixels.shape:
        raise WorkloadError(f"{path}: masks: expected {pixels.shape}, got {drawn.shape}")
    _, numbers = np.unique(groups, return_inverse=True)
    masks = None if drawn is None else (_shrink(drawn != 0, side) >= 0.5).astype(np.float64)
    return CapsuleData(
        _shrink(pixels, side)[:, None] / 255.0,
        labels.astype(np.int64),
        numbers.ravel().astype(np.int64),
        masks,
    )


def _shrink(pixels: NDArray[np.uint8] | NDArray[np.bool_], side: int) -> Floats:
    """(n, H, H) to (n, side, side) by averaging squares."""
    count, height, _ = pixels.shape
    factor = height // side
    return np.asarray(pixels.reshape(count, side, factor, side, factor).mean(axis=(2, 4)), dtype=np.float64)


# --- groups -----------------------------------------------------------------------------------


def deal_groups(data: CapsuleData, shares: Sequence[Sequence[float]], seed: int) -> list[CapsuleData]:
    """Whole groups to parts, so that part k has about shares[k][label] of the images of each label.

    A group counts with its first image's label. Groups go in drawn order to the part that has least of what
    it should have; a share of 0 gets none. Raises WorkloadError if shares do not fit.
    """
    table = np.array(shares, dtype=np.float64)
    labels = int(data.labels.max()) + 1
    if table.ndim != 2 or table.shape[1] != labels or (table < 0).any() or not np.allclose(table.sum(0), 1):
        raise WorkloadError(f"shares: expected {labels} for each part that add up to 1 for each label")
    unique, first, counts = np.unique(data.groups, return_index=True, return_counts=True)
    totals = np.bincount(data.labels, minlength=labels)
    held = np.zeros(table.shape)
    owner = np.zeros(len(unique), dtype=np.int64)
    for one in np.random.default_rng([seed, 67]).permutation(len(unique)):
        label = data.labels[first[one]]
        wanted = table[:, label] * totals[label]
        missing = np.where(wanted > 0, wanted - held[:, label], -np.inf)
        owner[one] = int(np.argmax(missing))
        held[owner[one], label] += counts[one]
    places = owner[np.searchsorted(unique, data.groups)]
    return [data.take(places == part) for part in range(len(table))]


# --- phantoms ---------------------------------------------------------------------------------


def build_chest_phantoms(seed: int, patients: int, side: int = 32, first_patient: int = 0) -> CapsuleData:
    """One slice of each patient: a body with two lungs and vessels; every second has opacities, label 1.

    The mask holds the opacities' pixels within the lungs. A patient depends on seed, number and side alone.
    """
    made = [_build_chest(seed, number, side) for number in range(first_patient, first_patient + patients)]
    numbers = np.arange(first_patient, first_patient + patients, dtype=np.int64)
    return CapsuleData(
        np.stack([image for image, _ in made])[:, None],
        numbers % 2,
        numbers,
        np.stack([mask for _, mask in made]),
    )


def _build_chest(seed: int, patient: int, side: int) -> tuple[Floats, Floats]:
    draw = np.random.default_rng([seed, patient, 71])
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]

    def ellipse(cx: float, cy: float, a: float, b: float) -> Floats:
        distance = (np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2) - 1) * min(a, b) * side / 2
        return np.asarray(1 / (1 + np.exp(np.clip(distance / _EDGE_PX, -40, 40))), dtype=np.float64)

    body = ellipse(0, 0, draw.uniform(0.85, 0.97), draw.uniform(0.68, 0.85))
    lungs = np.zeros((side, side))
    centres = []
    for left in (-1, 1):
        cx, cy = left * draw.uniform(0.4, 0.46), draw.uniform(-0.1, 0.1)
        a, b = draw.uniform(0.26, 0.34), draw.uniform(0.4, 0.55)
        lungs = np.maximum(lungs, ellipse(cx, cy, a, b))
        centres.append((cx, cy, a, b))
    air, tissue = draw.uniform(0.05, 0.15), draw.uniform(0.55, 0.75)
    image = tissue * body + lungs * (air - tissue)

    def within() -> tuple[float, float]:
        cx, cy, a, b = centres[int(draw.integers(2))]
        angle, radius = draw.uniform(0, 2 * np.pi), 0.8 * np.sqrt(draw.random())
        return float(cx + a * radius * np.cos(angle)), float(cy + b * radius * np.sin(angle))

    for _ in range(int(draw.integers(4, 10))):
        # Vessels: small and bright, in sick and healthy alike.
        vessel = ellipse(*within(), draw.uniform(0.02, 0.05), draw.uniform(0.02, 0.05)) * lungs
        image += vessel * (tissue - image)
    mask = np.zeros((side, side))
    if patient % 2:
        for _ in range(int(draw.integers(1, 4))):
            opacity = ellipse(*within(), draw.uniform(0.1, 0.24), draw.uniform(0.1, 0.24)) * lungs
            image += opacity * (draw.uniform(0.3, 0.5) - image)
            mask = np.maximum(mask, opacity)
    image += draw.normal(0, 0.04, (side, side))
    return np.rint(np.clip(image, 0, 1) * 255) / 255, (mask >= 0.5).astype(np.float64)
