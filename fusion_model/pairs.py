"""Registered pairs of images, the common currency of phantoms, importers, training and fusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_model.gradients import Array


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two registered grey images of one patient, values in [0, 1], equal shapes (H, W)."""

    name: str
    patient: int
    first: Array
    second: Array
    chroma: Array | None = None
    """Cb and Cr (2, H, W) in [-0.5, 0.5] of the pair's coloured image, if it has one."""
    colour_first: bool = False
    """Whether the coloured image is the first."""

    def __post_init__(self) -> None:
        if self.first.ndim != 2 or self.first.shape != self.second.shape:
            raise ValueError(f"pair {self.name}: sizes differ, {self.first.shape} and {self.second.shape}")
        if self.chroma is not None and self.chroma.shape != (2, *self.first.shape):
            raise ValueError(f"pair {self.name}: chroma of shape {self.chroma.shape} for {self.first.shape}")

    @property
    def planes(self) -> Array:
        """Both images, (2, H, W)."""
        return np.stack([self.first, self.second])


def split_by_patient(
    pairs: Sequence[ImagePair], validation: Sequence[int]
) -> tuple[list[ImagePair], list[ImagePair]]:
    """Training and validation pairs; no patient is in both.

    Raises ValueError if a validation patient has no pair or no training pair remains.
    """
    missing = set(validation) - {pair.patient for pair in pairs}
    if missing:
        raise ValueError(f"no pairs of validation patients {sorted(missing)}")
    held = set(validation)
    training = [pair for pair in pairs if pair.patient not in held]
    if not training:
        raise ValueError("every patient is held for validation; nothing is left to train on")
    return training, [pair for pair in pairs if pair.patient in held]
