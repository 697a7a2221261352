"""Image files as what a diagnosis network reads: (C, H, W) in [0, 1], of exactly its size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.rendering import FILE_WINDOW, WindowChoice, measure_range, needs_range, render
from fusion_model.importers.scan import ScanOptions, scan
from fusion_model.importers.stack import Pixels
from workloads.base import WorkloadError

Floats = NDArray[np.float64]

_SAMPLED = 24
"""Planes of a stack in whose values the range to show is looked for, where the file leaves it open."""
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What files leave open."""

    size: tuple[int, int] | None = None
    """(H, W) that images must have, or are brought to if `resize`; None: any."""
    resize: bool = False
    channels: int = 1
    """1 makes grey of colour; 3 makes colour of grey."""
    window: WindowChoice = FILE_WINDOW
    even: bool = False
    """Give every image the same mean and spread: see `even_contrast`."""


def parse_window(text: str) -> WindowChoice:
    """Raises WorkloadError that lists what there is."""
    try:
        return WindowChoice.parse(text)
    except ValueError as error:
        raise WorkloadError(str(error)) from error


def load_images(path: Path, options: ReadOptions) -> tuple[Floats, tuple[str, ...]]:
    """(n, C, H, W) in [0, 1] of all images of a file or folder, and their names.

    PNG, TIFF, DICOM and NIfTI. Raises WorkloadError naming the first file that can't be used, and why:
    nothing is left out in silence.
    """
    images: list[Floats] = []
    names: list[str] = []
    try:
        found = scan(path, ScanOptions())
        for omission in found.omissions:
            raise ImportRefusedError(omission.path, omission.reason, omission.remedy)
        for stack in found.stacks:
            pixels = [plane.read() for plane in stack.planes]
            measured = _measure(pixels, options.window)
            for plane, one in zip(stack.planes, pixels, strict=True):
                image = _render(one, plane.path, options.window, measured)
                images.append(fit_image(image, plane.path, options))
                names.append(plane.name)
    except ImportRefusedError as error:
        raise WorkloadError(str(error)) from error
    return stack_images(images, names), tuple(names)


def fit_image(image: Floats, path: Path, options: ReadOptions) -> Floats:
    """(C, H, W) of an image (H, W, 1 or 3) in [0, 1], of the options' size and channels.

    Resizing cuts the middle square part of the wanted shape, then averages: the shape is kept.
    Raises WorkloadError naming the file, its size and the wanted one.
    """
    size = image.shape[0], image.shape[1]
    if options.size is not None and size != options.size:
        if not options.resize:
            raise WorkloadError(
                f"{path}: is {size[1]}x{size[0]} pixels, the model takes {options.size[1]}x{options.size[0]};"
                " give an image of that size, or --resize"
            )
        image = _resize(image, options.size)
    if options.channels == 1 and image.shape[2] == 3:
        image = (image @ _LUMINANCE)[:, :, None]
    elif options.channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    fitted = np.ascontiguousarray(image.transpose(2, 0, 1))
    return even_contrast(fitted) if options.even else fitted


def even_contrast(images: Floats) -> Floats:
    """Images (..., C, H, W) in [0, 1], each with mean 1/2 and, up to clipping, a standard deviation of 1/6.

    What a requester does before encrypting, if the model was trained so. ReLU scales with its argument, a
    quadratic does not, so a network of quadratics takes changes of contrast harder.
    """
    mean = images.mean(axis=(-3, -2, -1), keepdims=True)
    spread = images.std(axis=(-3, -2, -1), keepdims=True)
    result: Floats = np.clip((images - mean) / (6 * spread + 6e-3) + 0.5, 0.0, 1.0)
    return result


def stack_images(images: list[Floats], names: list[str]) -> Floats:
    """(n, C, H, W). Raises WorkloadError naming the first image of another size than the first one."""
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise WorkloadError(
                f"{name}: is {image.shape[2]}x{image.shape[1]} pixels, and {names[0]} is"
                f" {images[0].shape[2]}x{images[0].shape[1]}; all must be of one size, or give --resize"
            )
    return np.stack(images)


def _measure(pixels: list[Pixels], window: WindowChoice) -> tuple[float, float]:
    """The range to show of one stack, where its values are to decide."""
    samples = [one.values for one in pixels if one.values is not None and needs_range(one, window)]
    return measure_range(samples[:: -(-len(samples) // _SAMPLED)]) if samples else (0.0, 1.0)


def _render(pixels: Pixels, path: Path, window: WindowChoice, measured: tuple[float, float]) -> Floats:
    """(H, W, 1 or 3)."""
    if pixels.colour is not None:
        return np.asarray(pixels.colour / 255.0)
    try:
        return np.asarray(render(pixels, window, measured).luminance[:, :, None])
    except ValueError as error:
        raise ImportRefusedError(path, str(error)) from error


def _resize(image: Floats, size: tuple[int, int]) -> Floats:
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    cut = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    part = image[top : top + cut[0], left : left + cut[1]].astype(np.float32)
    planes = [
        Image.fromarray(np.ascontiguousarray(part[:, :, plane])).resize(
            (size[1], size[0]), Image.Resampling.BOX
        )
        for plane in range(part.shape[2])
    ]
    resized = np.stack([np.asarray(plane, dtype=np.float64) for plane in planes], axis=2)
    return np.clip(resized, 0.0, 1.0)
