"""Colour images: a luminance to fuse, and the chroma that recolours the result (full-range BT.601)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusion_model.gradients import Array

Bytes = npt.NDArray[np.uint8]

_LUMINANCE = np.array([0.299, 0.587, 0.114])


class Grey(NamedTuple):
    """A luminance (H, W) in [0, 1], and Cb, Cr (2, H, W) in [-0.5, 0.5] of an image that has colours."""

    luminance: Array
    chroma: Array | None


def split_colour(pixels: Bytes) -> Grey:
    """The luminance, on the grid of 8 bits, and the chroma of an RGB image (H, W, 3).

    An image whose three channels are equal everywhere has no chroma: it is grey, saved as colour.
    """
    colour = pixels / 255
    exact = colour @ _LUMINANCE
    luminance = np.rint(exact * 255) / 255
    if (pixels == pixels[:, :, :1]).all():
        return Grey(luminance, None)
    chroma = np.stack([(colour[:, :, 2] - exact) / 1.772, (colour[:, :, 0] - exact) / 1.402])
    return Grey(luminance, chroma)
