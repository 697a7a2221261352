"""Synthetic registered pairs of two modalities, for tests and demonstrations without any patient's data.

The first image is CT-like: bright bone and calcifications. The second is MR-like: dark bone, bright fat
and lesions, textured soft tissue. Where one is bright the other is dark, or both are bright alike: the fused
image is then far from any weighting of the two, so the best linear filter stays well behind a network that
sees their difference.
"""

from collections.abc import Callable

import numpy as np

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair

PHANTOM_SIZE = 128
_EDGE_PX = 1.2
"""Half-width of every edge: scanners blur."""

_DARK = 0.08
"""What bone and fat look like in the modality that does not show them."""

_Rasteriser = Callable[[float, float, float, float, float], Array]


def build_phantoms(
    seed: int, patients: int, slices: int = 4, size: int = PHANTOM_SIZE, first_patient: int = 0
) -> list[ImagePair]:
    """Slices of `patients` synthetic heads numbered from `first_patient`, ordered by patient.

    A pair depends on seed, patient, slices and size alone, so the same patient is the same in every set.
    """
    return [
        _build_slice(seed, patient, number, number / max(1, slices - 1), size)
        for patient in range(first_patient, first_patient + patients)
        for number in range(slices)
    ]


def _build_slice(seed: int, patient: int, number: int, depth: float, size: int) -> ImagePair:
    """One slice; `depth` in [0, 1] moves through the head, whose anatomy is the patient's."""
    anatomy = np.random.default_rng([seed, patient])
    noise = np.random.default_rng([seed, patient, number + 1])
    uniform = anatomy.uniform
    ellipse = _build_rasteriser(size)
    scale = 1 - 0.25 * depth
    width, height = uniform(0.72, 0.86) * scale, uniform(0.82, 0.95) * scale
    tilt, bone, fat = uniform(-0.2, 0.2), uniform(0.09, 0.15), uniform(0.07, 0.1)

    head = ellipse(0, 0, width, height, tilt)
    skull = ellipse(0, 0, width - fat, height - fat, tilt)
    brain = ellipse(0, 0, width - fat - bone, height - fat - bone, tilt)
    tissue = uniform(0.25, 0.35)
    ct = _DARK * (head - skull) + uniform(0.8, 0.95) * (skull - brain) + tissue * brain
    mr = (
        uniform(0.75, 0.9) * (head - skull)
        + _DARK * (skull - brain)
        + (tissue + uniform(-0.08, 0.08)) * brain
    )

    for _ in range(int(anatomy.integers(14, 22))):
        centre = _draw_centre(anatomy, depth)
        mask = ellipse(*centre, uniform(0.08, 0.28), uniform(0.07, 0.22), uniform(0, np.pi)) * brain
        in_ct, in_mr = _draw_tissue(anatomy)
        ct += mask * (in_ct - ct)
        mr += mask * (in_mr - mr)
    for _ in range(int(anatomy.integers(8, 16))):
        centre = _draw_centre(anatomy, depth)
        radius = uniform(0.015, 0.04)
        mask = ellipse(*centre, radius, radius * uniform(0.7, 1.4), 0.0) * brain
        # A calcification, seen by CT only, or a focal lesion, seen by MR only.
        in_ct, in_mr = (0.9, 0.1) if anatomy.random() < 0.5 else (0.1, 0.9)
        ct += mask * (in_ct - ct)
        mr += mask * (in_mr - mr)
    texture = _smooth(noise.normal(size=(size, size)))
    ct += 0.02 * head * noise.normal(size=(size, size))
    mr += 0.05 * brain * texture + 0.015 * head * noise.normal(size=(size, size))
    return ImagePair(f"phantom-{patient}-{number}", patient, _quantise(ct), _quantise(mr))


def _draw_tissue(generator: np.random.Generator) -> tuple[float, float]:
    """Brightness of one structure in CT and in MR: seen by one, by both alike, or a dark cavity."""
    bright, dark = generator.uniform(0.75, 0.95), generator.uniform(0.02, 0.15)
    shared, difference = generator.uniform(0.6, 0.9), generator.uniform(-0.08, 0.08)
    kinds = ((bright, dark), (dark, bright), (shared, shared + difference), (dark, dark))
    return kinds[int(generator.choice(len(kinds), p=(0.3, 0.3, 0.35, 0.05)))]


def _draw_centre(generator: np.random.Generator, depth: float) -> tuple[float, float]:
    """A place within the brain that drifts a little from slice to slice."""
    x, y = generator.uniform(-0.55, 0.55, 2)
    dx, dy = generator.uniform(-0.15, 0.15, 2)
    return float(x + depth * dx), float(y + depth * dy)


def _build_rasteriser(size: int) -> _Rasteriser:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]

    def rasterise(cx: float, cy: float, a: float, b: float, angle: float) -> Array:
        """A filled ellipse with soft edges, 1 inside and 0 outside."""
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        distance_px = (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b) * size / 2
        return np.asarray(1 / (1 + np.exp(np.clip(distance_px / _EDGE_PX, -40, 40))), dtype=np.float64)

    return rasterise


def _smooth(noise: Array) -> Array:
    """Coarse-grained noise of unit variance."""
    for axis in (0, 1):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 3**0.5
    return noise


def _quantise(image: Array) -> Array:
    """What an 8-bit file would hold."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255) / 255, dtype=np.float64)
