"""Grey and coloured byte images: conversion, recolouring, and figures that show images side by side."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair

ByteImage = npt.NDArray[np.uint8]

_LABEL_PX = 20
_GAP_PX = 4


def convert_to_bytes(image: Array) -> ByteImage:
    """Values in [0, 1] as 0..255, clipped."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def recolour(luminance: ByteImage, chroma: Array) -> ByteImage:
    """RGB (H, W, 3) of a luminance (H, W) and Cb, Cr (2, H, W); full-range BT.601."""
    y, (cb, cr) = luminance / 255, chroma
    return convert_to_bytes(
        np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    )


def show_sources(pair: ImagePair) -> tuple[ByteImage, ByteImage]:
    """Both images of a pair, whichever is coloured in its colours."""
    first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
    if pair.chroma is None:
        return first, second
    if pair.colour_first:
        return recolour(first, pair.chroma), second
    return first, recolour(second, pair.chroma)


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


def stack_figures(figures: Sequence[Image.Image]) -> Image.Image:
    """Figures below one another, aligned at the left."""
    if not figures:
        raise ValueError("a sheet needs at least one figure")
    height = sum(figure.height for figure in figures) + _GAP_PX * (len(figures) - 1)
    sheet = Image.new("RGB", (max(figure.width for figure in figures), height), "white")
    top = 0
    for figure in figures:
        sheet.paste(figure, (0, top))
        top += figure.height + _GAP_PX
    return sheet


def encode_png(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes with `texts` as tEXt chunks (iTXt where they are not Latin-1)."""
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
