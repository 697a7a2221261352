"""Whole images through a trained model, in clear, on one's own machine.

Neither encryption nor a training library is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from fusion_model.fuse import fuse_luminance
from fusion_model.importers.png import ImportRefusedError, import_pair
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, recolour
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec


@dataclass(frozen=True, slots=True)
class Fuser:
    """A model's specification with its integer weights."""

    spec: FusionSpec
    weights: tuple[int, ...]

    @classmethod
    def decode(cls, model: bytes, weights: Sequence[int]) -> Self:
        """Raises WorkloadError if the specification is not canonical or has another number of weights."""
        spec = FusionSpec.decode(model)
        if len(weights) != spec.parameters:
            raise WorkloadError(f"weights: the specification has {spec.parameters}, got {len(weights)}")
        return cls(spec, tuple(weights))

    def fuse_luminance(self, pair: ImagePair) -> ByteImage:
        """The fused grey image (H, W). Raises ValueError for a pair too small for the network."""
        return fuse_luminance(self.spec.network, self.weights, pair, self.spec.settings)

    def fuse(self, pair: ImagePair) -> ByteImage:
        """The fused pair: (H, W), or (H, W, 3) in the colours of the pair's coloured image."""
        luminance = self.fuse_luminance(pair)
        return luminance if pair.chroma is None else recolour(luminance, pair.chroma)


def fuse_files(fuser: Fuser, first: Path, second: Path, output: Path) -> tuple[int, int]:
    """Writes the fused PNG; returns (width, height)."""
    try:
        fused = fuser.fuse(import_pair(first, second, first.stem, 0))
    except (ImportRefusedError, ValueError) as error:
        raise WorkloadError(str(error)) from error
    Image.fromarray(fused).save(output, format="PNG")
    return fused.shape[1], fused.shape[0]
