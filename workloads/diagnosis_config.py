"""What a diagnosis network looks like and how it is trained: plain settings, checked."""

from dataclasses import dataclass
from typing import Literal

from workloads.base import WorkloadError

Head = Literal["global", "dense"]
Activation = Literal["polynomial", "relu"]

CHANNELS = {2: (4, 8), 3: (4, 8, 8), 4: (4, 8, 8, 8)}
"""Channels of each block, by number of blocks: few, for an encrypted weight is a ciphertext."""
MAX_SIDE = 256
_LEAST_POOLED = 6
"""Sides below this are pooled no further before the head."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One convolution with its batch norm, activation and pool."""

    inputs: int
    outputs: int
    stride: int
    pool: int
    """Side of the pooled windows; 1: none."""
    residual: bool


@dataclass(frozen=True, slots=True)
class DiagnosisConfig:
    """Shape of the network; its blocks' strides and pools follow from the image's size."""

    shape: tuple[int, int, int] = (1, 28, 28)
    """(C, H, W) of an image in [0, 1]."""
    channels: tuple[int, ...] = CHANNELS[2]
    """Of each block; 2 to 4 blocks."""
    kernel: int = 3
    head: Head = "global"
    """Global average pooling before the last layer, or a dense layer over all of the last block."""
    activation: Activation = "polynomial"
    degree: int = 2
    reach: float = 2.5
    """Polynomials stand for ReLU on [-reach, reach]."""
    residual: bool = False
    """Whether blocks that keep shape and size add their input, before pooling."""

    def __post_init__(self) -> None:
        colours, height, width = self.shape
        if colours not in (1, 3) or not 8 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            raise WorkloadError(
                f"shape: expected 1 or 3 channels and sides of 8 to {MAX_SIDE}, got {self.shape}"
            )
        if not 1 <= len(self.channels) <= 4 or not all(1 <= count <= 64 for count in self.channels):
            raise WorkloadError(f"channels: expected 1 to 4 blocks of 1 to 64 channels, got {self.channels}")
        if self.kernel not in (1, 3, 5, 7):
            raise WorkloadError(f"kernel: expected 1, 3, 5 or 7, got {self.kernel}")
        if not 2 <= self.degree <= 4:
            raise WorkloadError(f"degree: expected 2 to 4, got {self.degree}")
        if not 0.5 <= self.reach <= 100:
            raise WorkloadError(f"reach: expected 0.5 to 100, got {self.reach}")

    def plan_blocks(self) -> tuple[BlockPlan, ...]:
        """The first convolution goes in steps of 2; a block pools while sides stay at least 3."""
        return tuple(plan for plan, _, _ in self._walk())

    def count_features(self) -> int:
        """Numbers that the last layer reads."""
        _, height, width = self._walk()[-1]
        return self.channels[-1] * (1 if self.head == "global" else height * width)

    def _walk(self) -> list[tuple[BlockPlan, int, int]]:
        """Each block and the size of what it gives."""
        inputs, height, width = self.shape
        blocks: list[tuple[BlockPlan, int, int]] = []
        for number, outputs in enumerate(self.channels):
            stride = 2 if number == 0 else 1
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
            pool = 2 if min(height, width) >= _LEAST_POOLED else 1
            residual = self.residual and stride == 1 and inputs == outputs
            height, width = height // pool, width // pool
            blocks.append((BlockPlan(inputs, outputs, stride, pool, residual), height, width))
            inputs = outputs
        return blocks


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """With the images, all that the result depends on up to rounding."""

    epochs: int = 30
    batch: int = 64
    rate: float = 1e-2
    """Peak rate of Adam; it falls by a cosine to 0."""
    decay: float = 1e-4
    range_penalty: float = 1.0
    """Weight of the mean square excess over the polynomials' intervals."""
    shift: int = 2
    """Most pixels by which training images are moved."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or self.rate <= 0:
            raise WorkloadError(
                f"training: epochs and rate must be positive and batch at least 2; got {self.epochs},"
                f" {self.rate}, {self.batch}"
            )
        if self.decay < 0 or self.range_penalty < 0 or not 0 <= self.shift <= 8 or self.seed < 0:
            raise WorkloadError(
                "training: decay, range penalty and seed must not be negative, and shift must be 0 to 8; got"
                f" {self.decay}, {self.range_penalty}, {self.seed}, {self.shift}"
            )
