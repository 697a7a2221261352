"""Fused images as files that say where they come from: PNG and NIfTI; DICOM is in `outputs_dicom`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from fusion_model.gradients import Array
from fusion_model.importers.geometry import Geometry
from fusion_model.pictures import ByteImage, encode_png

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COMMENT = 6
"""NIfTI's code of an extension that is text."""
_COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_DEPTH_TOLERANCE = 0.01
"""Of the distance of slices; also of their sideways shift."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which model made an image, and where the chain holds it."""

    title: str
    task: str
    block: str
    """Hash of the settled milestone's block."""
    height: int
    weights_digest: str
    software: str

    def describe(self) -> str:
        """One line for fields that hold text."""
        return (
            f"Fused by {self.software} with model {self.title!r}: task {self.task}, block {self.block} at "
            f"height {self.height}, weights {self.weights_digest}"
        )


@dataclass(frozen=True, slots=True)
class FusedPlane:
    """A fused image (H, W) or (H, W, 3) with the place of the first source's plane, if that is known."""

    name: str
    image: ByteImage
    geometry: Geometry | None


def save_png(path: Path, image: ByteImage, provenance: Provenance) -> None:
    """Provenance is in text chunks; overwrites."""
    texts = {"Software": provenance.software, "Description": provenance.describe()}
    texts |= {
        "bmif:task": provenance.task,
        "bmif:block": provenance.block,
        "bmif:weights": provenance.weights_digest,
    }
    path.write_bytes(encode_png(Image.fromarray(image), texts))


def save_nifti(
    path: Path, planes: Sequence[FusedPlane], provenance: Provenance, like: Path | None = None
) -> None:
    """A volume of 8-bit grey or RGB24, in the place of the first source; overwrites.

    With `like`, a NIfTI file, axes lie in memory as in that file, so that a whole volume has its very affine.
    Provenance is in `descrip` (in short) and in a text extension (JSON). Raises ValueError for planes of
    different sizes or not evenly spaced: the format can't say so.
    """
    sizes = {plane.image.shape for plane in planes}
    if len(sizes) != 1:
        raise ValueError(f"{path}: planes of different sizes {sorted(sizes)}; write PNG or DICOM files")
    # (column, row, slice), so that the axes are across, down and through.
    stacked = np.stack([plane.image.swapaxes(0, 1) for plane in planes], axis=2)
    values: npt.NDArray[np.generic] = stacked
    if stacked.ndim == 4:
        values = np.ascontiguousarray(stacked).view(_COLOUR)[..., 0]
    affine, known = _build_affine(path, planes)
    image = nib.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    if like is not None:
        orientations = [
            np.asarray(nib.orientations.io_orientation(grid))  # type: ignore[no-untyped-call]
            for grid in (affine, nib.load(like).affine)  # type: ignore[attr-defined]
        ]
        change = nib.orientations.ornt_transform(*orientations)  # type: ignore[no-untyped-call]
        image = image.as_reoriented(change)  # type: ignore[no-untyped-call]
    code = 2 if known else 0  # aligned, or unknown
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.set_sform(image.affine, code)  # type: ignore[no-untyped-call]
    image.set_qform(image.affine, code)  # type: ignore[no-untyped-call]
    image.header["descrip"] = (
        f"bmif fused, block {provenance.block[:16]} task {provenance.task[:16]}".encode()
    )
    text = json.dumps(asdict(provenance)).encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, text))
    nib.save(image, path)


def get_step(planes: Sequence[FusedPlane]) -> Array | None:
    """The way from one plane to the next, mm; None where places are not known or not even."""
    origins = [None if plane.geometry is None else plane.geometry.origin for plane in planes]
    places = np.array([origin for origin in origins if origin is not None])
    if len(places) != len(planes) or len(places) < 2:
        return None
    steps = np.diff(places, axis=0)
    mean = np.asarray(steps.mean(axis=0), dtype=np.float64)
    length = float(np.linalg.norm(mean))
    return mean if length and float(np.abs(steps - mean).max()) <= _DEPTH_TOLERANCE * length else None


def _build_affine(path: Path, planes: Sequence[FusedPlane]) -> tuple[Array, bool]:
    """From (column, row, slice) to NIfTI's world, and whether that is the patient's."""
    geometry = planes[0].geometry
    if geometry is None:
        return _LPS.copy(), False
    step = get_step(planes)
    if step is None and len(planes) > 1:
        raise ValueError(f"{path}: slices are not evenly spaced; write DICOM or PNG files instead")
    rows, columns = geometry.spacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(geometry.across) * columns
    affine[:3, 1] = np.array(geometry.down) * rows
    affine[:3, 2] = geometry.normal if step is None else step
    affine[:3, 3] = (0.0, 0.0, 0.0) if geometry.origin is None else geometry.origin
    return np.asarray(_LPS @ affine, dtype=np.float64), True
