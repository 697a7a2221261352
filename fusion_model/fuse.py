"""Whole images through a trained network, and figures that show them beside their sources."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from fusion_model.config import NetworkConfig
from fusion_model.gradients import Array
from fusion_model.model import PolynomialFusion
from fusion_model.pairs import ImagePair

ByteImage = npt.NDArray[np.uint8]

_LABEL_PX = 20
_GAP_PX = 4


def fuse_planes(config: NetworkConfig, weights: Sequence[int], planes: Array) -> ByteImage:
    """The fused grey image (H, W) of planes (inputs, H, W) in [0, 1], clipped and rounded to 0..255.

    Borders are continued by reflection. Raises ValueError for an image too small to reflect.
    """
    if planes.ndim != 3 or planes.shape[0] != config.inputs:
        raise ValueError(f"expected planes of shape ({config.inputs}, H, W), got {planes.shape}")
    if min(planes.shape[1:]) <= config.margin:
        raise ValueError(f"an image of {planes.shape[1:]} is too small for a margin of {config.margin}")
    network = PolynomialFusion.from_integers(config, weights)
    with torch.no_grad():
        fused = network.fuse(torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float64))[None])[
            0
        ].numpy()
    return convert_to_bytes(fused)


def fuse_pair(config: NetworkConfig, weights: Sequence[int], pair: ImagePair) -> ByteImage:
    """The fused pair: (H, W), or (H, W, 3) in the colours of the pair's coloured image."""
    luminance = fuse_planes(config, weights, pair.planes)
    return luminance if pair.chroma is None else recolour(luminance, pair.chroma)


def convert_to_bytes(image: Array) -> ByteImage:
    """Values in [0, 1] as 0..255, clipped."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def recolour(luminance: ByteImage, chroma: Array) -> ByteImage:
    """RGB (H, W, 3) of a luminance (H, W) and Cb, Cr (2, H, W); full-range BT.601."""
    y, (cb, cr) = luminance / 255, chroma
    return convert_to_bytes(
        np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    )


def build_figure(panels: Sequence[tuple[str, ByteImage]]) -> Image.Image:
    """Equally high images side by side, each under its label."""
    if not panels:
        raise ValueError("a figure needs at least one image")
    images = [Image.fromarray(image).convert("RGB") for _, image in panels]
    if len({image.height for image in images}) != 1:
        raise ValueError(f"images of different heights: {[image.height for image in images]}")
    width = sum(image.width for image in images) + _GAP_PX * (len(images) - 1)
    figure = Image.new("RGB", (width, images[0].height + _LABEL_PX), "white")
    draw = ImageDraw.Draw(figure)
    font = ImageFont.load_default()
    left = 0
    for (label, _), image in zip(panels, images, strict=True):
        draw.text((left + 3, 4), label, fill="black", font=font)
        figure.paste(image, (left, _LABEL_PX))
        left += image.width + _GAP_PX
    return figure


def save_fusion_figure(
    path: Path, config: NetworkConfig, weights: Sequence[int], pair: ImagePair, labels: tuple[str, str]
) -> None:
    """Writes a PNG of the pair's two sources, labelled, and the fused image to their right."""
    second = convert_to_bytes(pair.second)
    panels = [
        (labels[0], convert_to_bytes(pair.first)),
        (labels[1], second if pair.chroma is None else recolour(second, pair.chroma)),
        ("fused", fuse_pair(config, weights, pair)),
    ]
    build_figure(panels).save(path, format="PNG")
