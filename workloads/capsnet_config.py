"""What a capsule network looks like and how a hospital trains it: plain settings, checked, without torch."""

from dataclasses import dataclass
from math import prod

from workloads.base import WorkloadError

FIRST_KERNEL = 5
KERNEL = 3
"""Of every convolution after the first."""
MASK_CHANNELS = 16
"""Of the segmentation head's inner convolution."""
MAX_PARAMETERS = 1 << 22
MAX_CAPSULES = 4096


@dataclass(frozen=True, slots=True)
class CapsuleConfig:
    """Shape of the network: two convolutions, primary capsules, class capsules, and masks if wanted."""

    side: int = 32
    """Images are (1, side, side) in [0, 1]."""
    channels: tuple[int, int] = (32, 64)
    """Of the two convolutions."""
    strides: tuple[int, int, int] = (2, 1, 2)
    """Of the two convolutions and of the primary capsules."""
    primary_types: int = 4
    """Kinds of primary capsules at each place."""
    primary_size: int = 8
    """Numbers in a primary capsule."""
    class_size: int = 16
    """Numbers in a class capsule."""
    classes: int = 2
    routing: int = 3
    """Iterations of routing by agreement."""
    shared: bool = False
    """One transformation for each kind of primary capsules; else, as published, for each place too."""
    segmentation: bool = False
    """Whether a head gives a mask of the finding."""

    def __post_init__(self) -> None:
        if not 8 <= self.side <= 128:
            raise WorkloadError(f"side: expected 8 to 128, got {self.side}")
        if not all(4 <= one <= 256 and one % 4 == 0 for one in self.channels):
            raise WorkloadError(f"channels: expected two multiples of 4, 4 to 256, got {self.channels}")
        if not all(one in (1, 2) for one in self.strides):
            raise WorkloadError(f"strides: expected three of 1 or 2, got {self.strides}")
        if self.side % prod(self.strides):
            raise WorkloadError(f"side: expected a multiple of {prod(self.strides)}, got {self.side}")
        for name, value, least, most in (
            ("primary_types", self.primary_types, 1, 64),
            ("primary_size", self.primary_size, 2, 64),
            ("class_size", self.class_size, 2, 64),
            ("classes", self.classes, 2, 16),
            ("routing", self.routing, 1, 8),
        ):
            if not least <= value <= most:
                raise WorkloadError(f"{name}: expected {least} to {most}, got {value}")
        if self.capsules > MAX_CAPSULES:
            raise WorkloadError(
                f"primary_types: {self.capsules} primary capsules, more than {MAX_CAPSULES};"
                " take fewer kinds or greater strides"
            )
        if self.count_parameters() > MAX_PARAMETERS:
            raise WorkloadError(f"channels: {self.count_parameters()} weights, more than {MAX_PARAMETERS}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return 1, self.side, self.side

    @property
    def grid(self) -> int:
        """Side of the primary capsules' grid."""
        return self.side // prod(self.strides)

    @property
    def capsules(self) -> int:
        """Primary capsules of an image."""
        return self.primary_types * self.grid**2

    @property
    def transforms(self) -> int:
        """Distinct transformations from a primary capsule to one class' prediction."""
        return self.primary_types if self.shared else self.capsules

    def count_parameters(self) -> int:
        """Length of the flat weight vector."""
        first, second = self.channels
        field = self.primary_types * self.primary_size
        count = (FIRST_KERNEL**2 + 1 + 2) * first
        count += (KERNEL**2 * first + 1 + 2) * second
        count += (KERNEL**2 * second + 1) * field
        count += self.transforms * self.classes * self.primary_size * self.class_size
        if self.segmentation:
            count += (field + 1 + self.classes * self.class_size) * second
            count += (KERNEL**2 * second + 1) * MASK_CHANNELS
            count += KERNEL**2 * MASK_CHANNELS + 1
        return count


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How a participant trains within one round; with the seed, all that its update depends on."""

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-3
    """Of Adam, constant; its moments begin anew each round."""
    decay: float = 1e-4
    """Decoupled weight decay."""
    proximal: float = 0.0
    """mu of FedProx: half of it times the squared distance from the first weights is added to the loss."""
    balanced: bool = True
    """Whether labels weigh the same in the loss, however many images have them."""
    mask_weight: float = 1.0
    """Of Dice and cross-entropy against the margin loss."""
    shift: int = 2
    """Most pixels by which images are moved, with wrapping."""
    mirror: bool = True
    contrast: float = 0.2
    """Most relative change of contrast and most absolute change of brightness."""

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 1000:
            raise WorkloadError(f"epochs: expected 1 to 1000, got {self.epochs}")
        if not 1 <= self.batch <= 4096:
            raise WorkloadError(f"batch: expected 1 to 4096, got {self.batch}")
        if not 0 < self.rate <= 1:
            raise WorkloadError(f"rate: expected above 0 and at most 1, got {self.rate}")
        for name, value, most in (
            ("decay", self.decay, 1.0),
            ("proximal", self.proximal, 100.0),
            ("mask_weight", self.mask_weight, 100.0),
            ("contrast", self.contrast, 0.9),
        ):
            if not 0 <= value <= most:
                raise WorkloadError(f"{name}: expected 0 to {most:g}, got {value}")
        if not 0 <= self.shift <= 16:
            raise WorkloadError(f"shift: expected 0 to 16, got {self.shift}")
