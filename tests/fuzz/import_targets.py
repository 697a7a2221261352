"""Targets: the files that `bmif data import` reads, which come from archives and from other people."""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_model.importers.dicom import read_series
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import read_volume
from fusion_model.importers.patients import PatientKey
from fusion_model.importers.raster import read_raster
from fusion_model.importers.rendering import FILE_WINDOW, render
from fusion_model.importers.stack import Patient, Stack
from tests.fuzz.file_targets import build_images, get_folder, write
from tests.fuzz.target import Form, Target, require
from tests.medical import build_dicom, build_enhanced, compress, save_dicom, save_nifti
from workloads.base import WorkloadError
from workloads.importing import ImportRequest, list_jobs

_PATIENT = Patient("p")
_PLANES = 3
"""Of each stack that are rendered."""


def _render_all(stacks: Iterable[Stack]) -> None:
    for stack in stacks:
        require(bool(stack.planes), "a stack without planes")
        for plane in stack.planes[:_PLANES]:
            pixels = plane.read()
            luminance = render(pixels, FILE_WINDOW, (0.0, 1.0)).luminance
            require(luminance.ndim == 2, "no plane")
            require(bool(np.isfinite(luminance).all()), "not finite")
            require(0 <= float(luminance.min()) <= float(luminance.max()) <= 1, "out of [0, 1]")


def run_dicom(data: bytes) -> None:
    """`read_series`: refusals are omissions; pixels that are read are in [0, 1] when they are shown."""
    path = write("image.dcm", data)
    found = read_series([path])
    _render_all(found.stacks)
    for omission in found.omissions:
        raise ImportRefusedError(omission.path, omission.reason, omission.remedy)


def build_dicoms() -> Iterable[bytes]:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    windowed = build_dicom(ramp, "CT")
    windowed.WindowCenter, windowed.WindowWidth, windowed.RescaleIntercept = [40, 20], [80, 10], -24
    windowed.RescaleSlope = 1
    colour = build_dicom(np.stack([ramp.astype(np.uint8)] * 3, axis=-1), "PT", bits=8)
    frames = build_enhanced([ramp / 64, ramp.T / 64])
    for dataset in (windowed, colour, frames, compress(build_dicom(ramp, "PT"))):
        yield save_dicom(get_folder() / "seed.dcm", dataset).read_bytes()


def run_nifti(data: bytes) -> None:
    """`read_volume`: ImportRefusedError alone leaves it, packed or not."""
    packed = data[:2] == b"\x1f\x8b"
    path = write("image.nii.gz" if packed else "image.nii", data)
    _render_all([read_volume(path, "image", _PATIENT, "axial")])


def build_volumes() -> Iterable[bytes]:
    ramp = np.arange(64).reshape(8, 8) / 64
    plain = save_nifti(get_folder() / "seed.nii", [ramp, ramp.T], codes="LPI").read_bytes()
    yield plain
    yield gzip.compress(plain, mtime=0)


def run_raster(data: bytes) -> None:
    """`read_raster`: ImportRefusedError alone leaves it."""
    _render_all([read_raster(write("image.tif", data), "image", _PATIENT)])


def build_rasters() -> Iterable[bytes]:
    yield from build_images()
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for mode in (ramp, ramp.astype(np.float32), ramp.astype(np.uint8)):
        buffer = io.BytesIO()
        pages = [Image.fromarray(mode), Image.fromarray(mode.T.copy())]
        pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
        yield buffer.getvalue()


def run_key(data: bytes) -> None:
    """`PatientKey.load`: ImportRefusedError alone leaves it; else it is the same when saved and loaded."""
    path = write("key.csv", data)
    key = PatientKey.load(path)
    key.save()
    require(PatientKey.load(path).numbers == key.numbers, "other numbers after saving")


KEY = (
    b"patient,split,original,folder,id,source_a,source_b\n0,train,ann,set,0000_000,a.png,b.png\n"
    b'1,test,"b,ob",set,0001_000,a.png,b.png\n'
)


def run_list(data: bytes) -> None:
    """`list_jobs`: WorkloadError alone leaves it."""
    jobs = list_jobs(ImportRequest(Path("out"), pairs=write("list.csv", data)))
    require(bool(jobs), "no job")


LIST = b"first,second,patient,modality\na.png,b.png,7,MRI-CT\nc.nii,d.nii,,\n"


def build_targets() -> list[Target]:
    refused = (ImportRefusedError,)
    image = {"max_bytes": 2048, "base": 2**30, "frames": 400, "effort": 2}
    return [
        Target("image.dicom", run_dicom, refused, build_dicoms, Form.BINARY, **image),  # type: ignore[arg-type]
        Target("image.nifti", run_nifti, refused, build_volumes, Form.BINARY, **image),  # type: ignore[arg-type]
        Target("image.raster", run_raster, refused, build_rasters, Form.PNG, **image),  # type: ignore[arg-type]
        Target("image.patients", run_key, refused, lambda: [KEY], Form.TEXT, 1024, base=2**22),
        Target("image.list", run_list, (WorkloadError,), lambda: [LIST], Form.TEXT, 1024, base=2**22),
    ]
