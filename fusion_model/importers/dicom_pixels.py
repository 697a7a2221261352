"""Pixels of a DICOM file: decompression, bits, rescale, windows, colour.

Source: DICOM PS3.3, C.7.6.3 and C.11.
"""

import logging
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import get_expected_length, pixel_array

from fusion_model.gradients import Array
from fusion_model.importers.colour import Bytes
from fusion_model.importers.dicom_tags import (
    DICOM_ERRORS,
    find_floats,
    get_groups,
    get_integer,
    get_text,
    list_holders,
)
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.geometry import Turn
from fusion_model.importers.stack import LookUp, Pixels, Window, check_finite

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values of tags

_COPY = "the file is cut short or damaged: copy or export it again"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_GREY_ONLY = ("CT", "MR")
_PLUGINS = "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or python-gdcm"
_JPEG_LS = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
_HIGH_THROUGHPUT = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"


@lru_cache(maxsize=2)  # one of each side of the pairs that are being read
def _load(path: Path, changed: int, size: int) -> FileDataset:
    """The whole file; `changed` and `size` tell whether it is still the same."""
    return pydicom.dcmread(path)


class DicomPixels:
    """The frames of one file; the file is read once for frames that are asked for one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, frame: int, turn: Turn | None = None) -> Pixels:
        """A frame's pixels, turned. Raises ImportRefusedError."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they quote tags, and say nothing that is not checked here
                pixels = self._read(frame)
        except ImportRefusedError:
            raise
        except DICOM_ERRORS as error:
            reason = " ".join(str(error).split())
            remedy = _COPY
            if "plugins" in reason:
                remedy = (
                    f"decompress it (for instance `gdcmconv --raw IN OUT`) or install {_PLUGINS} with pip"
                )
            raise ImportRefusedError(
                self.path, f"has pixels that can not be decoded: {reason}", remedy
            ) from error
        if turn is None:
            return pixels
        colour = None if pixels.colour is None else turn.apply(pixels.colour)
        values = None if pixels.values is None else turn.apply(pixels.values)
        return replace(pixels, values=values, colour=colour)

    def _read(self, frame: int) -> Pixels:
        status = self.path.stat()
        dataset = _load(self.path, status.st_mtime_ns, status.st_size)
        self._check_data(dataset)
        space = get_text(dataset, "PhotometricInterpretation")
        if space not in _GREY + _COLOUR:
            raise ImportRefusedError(
                self.path,
                f"has colour space {space or 'unknown'}, which is not read",
                f"convert it to one of {', '.join(_GREY + _COLOUR)}",
            )
        modality = get_text(dataset, "Modality")
        if space in _COLOUR and modality in _GREY_ONLY:
            raise ImportRefusedError(
                self.path,
                f"is in colour ({space}), but {modality} is grey: a picture of a screen, or overlaid",
                "export the original series",
            )
        stored = pixel_array(dataset, index=frame)
        if space in _COLOUR:
            return Pixels(None, _convert_colour(dataset, stored, space))
        return _convert_grey(self.path, dataset, stored, frame, space)

    def _check_data(self, dataset: FileDataset) -> None:
        syntax = dataset.file_meta.TransferSyntaxUID
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ImportRefusedError(self.path, "ends before its pixels", _COPY)
        if not syntax.is_compressed:
            if "PixelData" in dataset:
                wanted, found = get_expected_length(dataset), len(dataset.PixelData)
                if found < wanted:
                    raise ImportRefusedError(
                        self.path, f"is truncated: {found} bytes of pixels where {wanted} are due", _COPY
                    )
            return
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise ImportRefusedError(
                self.path,
                f"is compressed as {syntax.name}, which is not read",
                "decompress it (for instance `gdcmconv --raw IN OUT`)",
            ) from error
        if not decoder.is_available:
            needed = _PLUGINS
            if str(syntax) in _JPEG_LS:
                needed = "pyjpegls, or pylibjpeg pylibjpeg-libjpeg"
            elif str(syntax) in _HIGH_THROUGHPUT:
                needed = "pylibjpeg pylibjpeg-openjpeg"
            raise ImportRefusedError(
                self.path,
                f"is compressed as {syntax.name}, for which no plugin is installed",
                f"install {needed} with pip, or decompress it (for instance `gdcmconv --raw IN OUT`)",
            )


def _convert_colour(dataset: Dataset, stored: npt.NDArray[np.generic], space: str) -> Bytes:
    """8-bit RGB of the decoder's output, which has turned YBR into RGB already."""
    bits = get_integer(dataset, "BitsStored", 8)
    if space == "PALETTE COLOR":
        looked_up: npt.NDArray[np.generic] = apply_color_lut(stored, dataset)
        stored, bits = looked_up, 8 * looked_up.dtype.itemsize
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise ValueError(f"colour of shape {stored.shape}")
    if bits == 8:
        return np.asarray(stored, dtype=np.uint8)
    return np.asarray(np.rint(stored.astype(np.float64) / (2**bits - 1) * 255), dtype=np.uint8)


def _convert_grey(
    path: Path, dataset: Dataset, stored: npt.NDArray[np.generic], frame: int, space: str
) -> Pixels:
    groups = get_groups(dataset, frame)
    limits: tuple[float, float] | None = None
    if stored.dtype.kind in "iu":
        stored = _mask_bits(dataset, stored)
        bits = get_integer(dataset, "BitsStored", 8 * stored.dtype.itemsize)
        signed = get_integer(dataset, "PixelRepresentation") == 1
        limits = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    values: Array
    if "ModalityLUTSequence" in dataset:
        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        limits = (float(values.min()), float(values.max()))
    else:
        slope = find_floats(groups, "PixelValueTransformationSequence", "RescaleSlope") or (1.0,)
        intercept = find_floats(groups, "PixelValueTransformationSequence", "RescaleIntercept") or (0.0,)
        if not np.isfinite([slope[0], intercept[0]]).all() or slope[0] == 0:
            raise ImportRefusedError(
                path, f"has rescale slope {slope[0]} and intercept {intercept[0]}", "export it again"
            )
        values = stored.astype(np.float64) * slope[0] + intercept[0]
        if limits is not None:
            ends = [limit * slope[0] + intercept[0] for limit in limits]
            limits = (min(ends), max(ends))
    check_finite(path, values)
    if values.ndim != 2:
        raise ValueError(f"a grey plane of shape {values.shape}")
    # More than eight bits are seldom filled: with no window, the series' own values say what is white.
    fills = limits is not None and get_integer(dataset, "BitsStored", 8) <= 8
    windows, lookups = _get_windows(groups), _get_lookups(dataset)
    return Pixels(values, None, limits, windows, lookups, space == "MONOCHROME1", fills)


def _mask_bits(dataset: Dataset, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The stored bits alone: older files keep overlays in the bits above."""
    allocated = 8 * stored.dtype.itemsize
    bits = get_integer(dataset, "BitsStored", allocated)
    high = get_integer(dataset, "HighBit", bits - 1)
    if not 1 <= bits <= allocated:
        raise ValueError(f"BitsStored is {bits} of {allocated}")
    if bits == allocated:
        return stored
    whole: npt.NDArray[np.int64] = (stored.astype(np.int64) >> max(0, high - bits + 1)) & (2**bits - 1)
    if get_integer(dataset, "PixelRepresentation") == 1:
        whole = np.where(whole >= 2 ** (bits - 1), whole - 2**bits, whole)
    return whole


def _get_windows(groups: list[Dataset]) -> tuple[Window, ...]:
    centres = find_floats(groups, "FrameVOILUTSequence", "WindowCenter")
    widths = find_floats(groups, "FrameVOILUTSequence", "WindowWidth")
    function = "LINEAR"
    for holder in list_holders(groups, "FrameVOILUTSequence"):
        if get_text(holder, "VOILUTFunction"):
            function = get_text(holder, "VOILUTFunction")
            break
    return tuple(
        Window(centre, width, function)
        for centre, width in zip(centres, widths, strict=False)
        if width > 0 and np.isfinite([centre, width]).all()
    )


def _get_lookups(dataset: Dataset) -> tuple[LookUp, ...]:
    """VOI tables; they come before windows where a file has both, as viewers do."""
    found = []
    for item in dataset.get("VOILUTSequence") or ():
        entries, start, bits = (int(value) for value in item.LUTDescriptor)
        data = item.LUTData
        table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.array(data)
        entries = entries or 2**16
        if len(table) >= entries and 1 <= bits <= 16:
            found.append(LookUp(start, np.clip(table[:entries] / (2**bits - 1), 0, 1)))
    return tuple(found)
