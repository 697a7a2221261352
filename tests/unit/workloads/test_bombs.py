"""Small files that would become large: refused by name, before memory is taken."""

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import read_volume
from fusion_model.importers.png import import_pair
from fusion_model.importers.raster import read_raster
from fusion_model.importers.stack import Patient
from workloads.base import WorkloadError
from workloads.capsnet_data import load_capsule_data

MIB = 1024 * 1024
MOST = 24 * MIB
PATIENT = Patient("one")


@contextmanager
def bounded() -> Iterator[None]:
    """What is done inside takes little memory at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def squeeze(head: bytes, size: int) -> bytes:
    """A gzip file of a head and so many zeros, made in pieces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(head)]
    parts += [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join((*parts, packer.flush()))


def build_nifti(offset: int, side: int = 8, *, version: int = 1) -> bytes:
    """A header whose values begin at `offset`, and an extension that fills the room before them."""
    head = bytearray(348 if version == 1 else 540)
    struct.pack_into("<i", head, 0, len(head))
    if version == 1:
        struct.pack_into("<8h", head, 40, 3, side, side, side, 1, 1, 1, 1)
        struct.pack_into("<2h", head, 70, 16, 32)
        struct.pack_into("<8f", head, 76, *([1.0] * 8))
        struct.pack_into("<f", head, 108, float(offset))
        head[344:348] = b"n+1\0"
    else:
        head[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into("<2h", head, 12, 16, 32)
        struct.pack_into("<8q", head, 16, 3, side, side, side, 1, 1, 1, 1)
        struct.pack_into("<8d", head, 104, *([1.0] * 8))
        struct.pack_into("<q", head, 168, offset)
    return bytes(head) + b"\x01\0\0\0" + struct.pack("<ii", (offset - len(head) - 4) // 16 * 16 - 16, 6)


@pytest.mark.parametrize("version", [1, 2])
def test_an_inflated_extension_of_nifti(tmp_path: Path, version: int) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(squeeze(build_nifti(48 * MIB, version=version), 49 * MIB))
    assert path.stat().st_size < MIB
    with bounded(), pytest.raises(ImportRefusedError, match="bytes before its values"):
        read_volume(path, "bomb", PATIENT, "axial")


def test_a_volume_that_its_file_can_not_hold(tmp_path: Path) -> None:
    for side, reason in ((500, "can not hold"), (4_000, "more than")):
        path = tmp_path / f"{side}.nii.gz"
        path.write_bytes(gzip.compress(build_nifti(352, side)))
        with bounded(), pytest.raises(ImportRefusedError, match=reason):
            read_volume(path, "bomb", PATIENT, "axial")


def build_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    found = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in found
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pictures_larger_than_any(tmp_path: Path) -> None:
    rows = zlib.compress(bytes(48 * MIB), 1)
    path = tmp_path / "large.png"
    path.write_bytes(build_png(60_000, 60_000, (b"IDAT", rows), (b"IEND", b"")))
    with bounded(), pytest.raises(ImportRefusedError):
        read_raster(path, "bomb", PATIENT)
    with bounded(), pytest.raises(ImportRefusedError):
        import_pair(path, path, "one", 1)


def test_more_rows_than_a_picture_has(tmp_path: Path) -> None:
    """Forty-eight megabytes of rows in a picture of 8x8: what does not belong to it is not inflated."""
    path = tmp_path / "rows.png"
    path.write_bytes(build_png(8, 8, (b"IDAT", zlib.compress(bytes(48 * MIB), 1)), (b"IEND", b"")))
    with bounded():
        import_pair(path, path, "one", 1)


def test_texts_of_a_picture(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(48 * MIB), 1)
    path = tmp_path / "text.png"
    path.write_bytes(build_png(8, 8, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(72), 9)), (b"IEND", b"")))
    with bounded(), pytest.raises(ImportRefusedError):
        import_pair(path, path, "one", 1)


def test_a_tiff_of_many_large_pages(tmp_path: Path) -> None:
    path = tmp_path / "pages.tiff"
    page = Image.fromarray(np.zeros((4_000, 4_000), np.uint8))
    page.save(path, compression="tiff_adobe_deflate", save_all=True, append_images=[page] * 8)
    with bounded(), pytest.raises(ImportRefusedError, match="more than"):
        read_raster(path, "bomb", PATIENT)


def build_npz(shape: tuple[int, ...], size: int) -> bytes:
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images.npy", "labels.npy"):
            with archive.open(name, "w") as file:
                file.write(header.getvalue())
                for _ in range(size // MIB):
                    file.write(bytes(MIB))
    return buffer.getvalue()


def test_arrays_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.capsnet_data._MAX_BYTES", 24 * MIB)
    path = tmp_path / "data.npz"
    path.write_bytes(build_npz((1, 8, 8), 16 * MIB))
    with bounded(), pytest.raises(WorkloadError, match="unpacks to more"):
        load_capsule_data(path, 8)


def test_arrays_that_lie_about_their_length(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(build_npz((10**7, 10**4, 10**4), 0))
    with pytest.raises(WorkloadError, match="can not be read"):
        load_capsule_data(path, 8)
