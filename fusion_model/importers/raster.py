"""PNG and TIFF files as stacks: grey of 8, 12, 16 or 32 bits or floats, colour, and pages as slices."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.png import DECODER_ERRORS
from fusion_model.importers.stack import Patient, Pixels, Plane, Stack, check_finite, check_size

SUFFIXES = (".png", ".tif", ".tiff")
_FORMATS = ("PNG", "TIFF")
_GREY = {"1": 1, "L": 8, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 0}
"""Modes of grey and their bits; 0 for floats."""
_COLOUR = ("RGB", "P", "RGBA", "LA")
_BITS_PER_SAMPLE = 258
_MAX_SAMPLE_VALUE = 281
_COPY = "the file is cut short or damaged: copy or export it again"


@dataclass(frozen=True, slots=True)
class _Page:
    """What a page's header says."""

    size: tuple[int, int]
    bits: int


def is_raster(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_raster(path: Path, name: str, patient: Patient, bits: int | None = None) -> Stack:
    """The file's pages. `bits` says how many of a 16-bit file's bits are used: its white is 2^bits - 1.

    Raises ImportRefusedError for what is neither PNG nor TIFF, or too large.
    """
    pages = _list_pages(path)
    planes = tuple(
        Plane(
            path,
            name if len(pages) == 1 else f"{name} page {number + 1}",
            page.size,
            None,
            bits if bits is not None and page.bits == 16 else page.bits,
            partial(_read_page, path, number, bits),
        )
        for number, page in enumerate(pages)
    )
    return Stack(path, name, patient, planes)


def _list_pages(path: Path) -> list[_Page]:
    with _Quiet(path), Image.open(path, formats=_FORMATS) as image:
        count = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        check_size(path, image.height, image.width, count)
        pages = []
        for number in range(count):
            if count > 1:
                image.seek(number)
            check_size(path, image.height, image.width)
            pages.append(_Page((image.height, image.width), _get_bits(image)))
        return pages


def _get_bits(image: Image.Image) -> int:
    """Significant bits of a grey image, as far as the file tells; 8 for colours."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.mode.startswith("I;16"):
        depth = tags.get(_BITS_PER_SAMPLE, (16,))
        greatest = tags.get(_MAX_SAMPLE_VALUE)
        if isinstance(greatest, tuple):
            greatest = greatest[0] if greatest else None
        if isinstance(greatest, int) and greatest > 1:
            return min(16, greatest.bit_length())
        if isinstance(depth, tuple) and depth and isinstance(depth[0], int) and 8 < depth[0] <= 16:
            return depth[0]
    return _GREY.get(image.mode, 8)


def _read_page(path: Path, number: int, bits: int | None) -> Pixels:
    with _Quiet(path), Image.open(path, formats=_FORMATS) as image:
        if number:
            image.seek(number)
        if image.mode in _GREY:
            depth = _get_bits(image)
            if bits is not None and depth == 16:
                depth = bits
            values = np.asarray(image).astype(np.float64)
            check_finite(path, values)
            if depth in (0, 32):  # no white: the values decide
                return Pixels(values)
            if float(values.max(initial=0)) > 2**depth - 1:
                raise ImportRefusedError(
                    path,
                    f"has the value {values.max():.0f}, more than {depth} bits hold",
                    "give the right --bits, or leave it out",
                )
            return Pixels(values, limits=(0.0, 2.0**depth - 1), fills=True)
        if image.mode not in _COLOUR:
            raise ImportRefusedError(
                path, f"has pixel mode {image.mode}, which is not read", "save it as grey or RGB"
            )
        if "A" in image.mode or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
            if (alpha != 255).any():
                raise ImportRefusedError(
                    path, "is transparent in places", "flatten it onto a black background"
                )
        return Pixels(None, np.asarray(image.convert("RGB")))


class _Quiet:
    """Turns what the library raises for a file into ImportRefusedError, and keeps its warnings back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._warnings.__exit__(None, None, None)
        if error is None or isinstance(error, ImportRefusedError):
            return
        if isinstance(error, FileNotFoundError):
            raise ImportRefusedError(self._path, "does not exist") from error
        if isinstance(error, UnidentifiedImageError):
            raise ImportRefusedError(
                self._path, "is neither PNG nor TIFF, whatever its name says", "save it as one of them"
            ) from error
        if isinstance(error, Image.DecompressionBombError):
            raise ImportRefusedError(
                self._path, f"is too large: {error}", "cut or shrink both images of the pair"
            ) from error
        if isinstance(error, DECODER_ERRORS):
            raise ImportRefusedError(self._path, f"can not be read: {error}", _COPY) from error
