"""Whole pairs through a trained network, and figures that show them beside their sources; without torch."""

from collections.abc import Sequence
from pathlib import Path

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array
from fusion_model.inference import fuse_image
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, build_figure, convert_to_bytes, recolour, show_sources
from fusion_model.prepared import PairSettings, prepare_inputs

__all__ = [
    "ByteImage",
    "build_figure",
    "convert_to_bytes",
    "fuse_luminance",
    "fuse_pair",
    "fuse_planes",
    "recolour",
    "save_fusion_figure",
]


def fuse_planes(
    config: NetworkConfig, weights: Sequence[int], planes: Array, skip: Array | None = None
) -> ByteImage:
    """The fused grey image (H, W) of planes (inputs, H, W), clipped and rounded to 0..255.

    Borders are continued by reflection. Raises ValueError for an image too small to reflect.
    """
    return convert_to_bytes(fuse_image(config, weights, planes, skip))


def fuse_luminance(
    config: NetworkConfig, weights: Sequence[int], pair: ImagePair, settings: PairSettings
) -> ByteImage:
    """The fused grey image (H, W) of a pair, with the planes and the skip that the model was trained on.

    Raises ValueError naming the pair for what `prepare_inputs` refuses, and for one too small.
    """
    inputs, skip = prepare_inputs(settings, pair)
    return fuse_planes(config, weights, inputs, skip)


def fuse_pair(
    config: NetworkConfig, weights: Sequence[int], pair: ImagePair, settings: PairSettings | None = None
) -> ByteImage:
    """The fused pair: (H, W), or (H, W, 3) in the colours of the pair's coloured image."""
    luminance = fuse_luminance(config, weights, pair, PairSettings() if settings is None else settings)
    return luminance if pair.chroma is None else recolour(luminance, pair.chroma)


def save_fusion_figure(
    path: Path, config: NetworkConfig, weights: Sequence[int], pair: ImagePair, labels: tuple[str, str]
) -> None:
    """Writes a PNG of the pair's two sources, labelled, and the fused image to their right."""
    panels = [*zip(labels, show_sources(pair), strict=True), ("fused", fuse_pair(config, weights, pair))]
    build_figure(panels).save(path, format="PNG")
