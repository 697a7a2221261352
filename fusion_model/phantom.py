"""Synthetic registered pairs of two modalities, for tests and demonstrations without any patient's data.

The first image is CT-like: bright bone, calcifications, flat soft tissue. The second is MR-like: dark bone, bright fat
and lesions, textured soft tissue. Each is brighter somewhere, and neither's sign of contrast predicts which, so that
no linear filter fuses them well.
"""

from collections.abc import Callable

import numpy as np

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair

_Mask = Callable[[float, float, float, float, float], Array]


def build_phantom_patient(
    seed: int, patient: int, slices: int = 4, size: int = 96, first_number: int = 0
) -> list[ImagePair]:
    """`slices` neighbouring slices of one synthetic head, the same for the same seed and patient."""
    return [
        _build_slice(seed, patient, first_number + index, index / max(1, slices - 1), size)
        for index in range(slices)
    ]


def build_phantoms(
    seed: int, patients: int, slices: int = 4, size: int = 96, first_patient: int = 0
) -> list[ImagePair]:
    """Slices of `patients` patients, numbered from `first_patient`."""
    return [
        pair
        for patient in range(first_patient, first_patient + patients)
        for pair in build_phantom_patient(seed, patient, slices, size)
    ]


def _build_slice(seed: int, patient: int, number: int, depth: float, size: int) -> ImagePair:
    anatomy = np.random.default_rng([seed, patient])
    noise = np.random.default_rng([seed, patient, number + 1])
    ellipse = _build_rasteriser(size)
    scale = 1 - 0.25 * depth
    width, height = anatomy.uniform(0.72, 0.86) * scale, anatomy.uniform(0.82, 0.95) * scale
    tilt = anatomy.uniform(-0.2, 0.2)
    bone = anatomy.uniform(0.09, 0.15)
    fat = anatomy.uniform(0.05, 0.08)

    head = ellipse(0, 0, width, height, tilt)
    skull = ellipse(0, 0, width - fat, height - fat, tilt)
    brain = ellipse(0, 0, width - fat - bone, height - fat - bone, tilt)
    ct = 0.12 * (head - skull) + anatomy.uniform(0.8, 0.95) * (skull - brain) + 0.3 * brain
    mr = anatomy.uniform(0.65, 0.85) * (head - skull) + 0.08 * (skull - brain) + 0.5 * brain

    for _ in range(int(anatomy.integers(10, 16))):
        place = _draw_place(anatomy, depth)
        mask = ellipse(
            *place, anatomy.uniform(0.06, 0.26), anatomy.uniform(0.05, 0.2), anatomy.uniform(0, np.pi)
        )
        mask = mask * brain
        if anatomy.random() < 0.5:
            # Dense tissue: bright in CT, dark in MR.
            ct += mask * (anatomy.uniform(0.55, 0.8) - ct)
            mr += mask * (anatomy.uniform(0.1, 0.3) - mr)
        else:
            # Lesion or oedema: bright in MR, dark in CT.
            ct += mask * (anatomy.uniform(0.1, 0.3) - ct)
            mr += mask * (anatomy.uniform(0.6, 0.85) - mr)
    for _ in range(int(anatomy.integers(8, 16))):
        place = _draw_place(anatomy, depth)
        radius = anatomy.uniform(0.015, 0.04)
        mask = ellipse(*place, radius, radius * anatomy.uniform(0.7, 1.4), 0.0) * brain
        if anatomy.random() < 0.5:
            ct += mask * (0.9 - ct)
            mr += mask * (0.15 - mr)
        else:
            mr += mask * (0.9 - mr)
    ct += head * 0.02 * noise.normal(size=(size, size))
    mr += brain * 0.06 * _smooth(noise.normal(size=(size, size))) + head * 0.015 * noise.normal(
        size=(size, size)
    )
    return ImagePair(f"phantom-{patient}-{number}", patient, _quantise(ct), _quantise(mr))


def _draw_place(generator: np.random.Generator, depth: float) -> tuple[float, float]:
    """A centre within the brain that drifts a little from slice to slice."""
    x, y = generator.uniform(-0.55, 0.55, 2)
    dx, dy = generator.uniform(-0.15, 0.15, 2)
    return float(x + depth * dx), float(y + depth * dy)


def _build_rasteriser(size: int) -> _Mask:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]

    def rasterise(cx: float, cy: float, a: float, b: float, angle: float) -> Array:
        """A filled ellipse whose edge is about a pixel and a half wide."""
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        distance = (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b) * size / 2
        return np.asarray(1 / (1 + np.exp(np.clip(distance / 0.6, -40, 40))), dtype=np.float64)

    return rasterise


def _smooth(noise: Array) -> Array:
    """Coarse-grained noise of unit variance."""
    for axis in (0, 1):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 3**0.5
    return noise


def _quantise(image: Array) -> Array:
    """What an 8-bit file would hold."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255) / 255, dtype=np.float64)
