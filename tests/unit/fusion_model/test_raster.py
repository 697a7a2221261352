"""Reading of PNG and TIFF for the import: depths, colours, pages, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.raster import read_raster
from fusion_model.importers.rendering import FILE_WINDOW, render
from fusion_model.importers.stack import Patient, Stack

WHO = Patient("p")
DEEP = np.random.default_rng(1).integers(0, 4096, (9, 8), dtype=np.uint16)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path, bits: int | None = None) -> Stack:
    return read_raster(path, path.stem, WHO, bits)


def show(path: Path, bits: int | None = None) -> np.ndarray:
    return render(read(path, bits).planes[0].read(), FILE_WINDOW, (0, 1)).luminance


def refuse(path: Path, bits: int | None = None) -> str:
    with pytest.raises(ImportRefusedError) as refused:
        read(path, bits).planes[0].read()
    assert refused.value.path == path
    return str(refused.value)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_every_depth(tmp_path: Path, suffix: str) -> None:
    eight = save(tmp_path / f"eight.{suffix}", (DEEP // 16).astype(np.uint8))
    np.testing.assert_allclose(show(eight), (DEEP // 16) / 255)
    sixteen = save(tmp_path / f"sixteen.{suffix}", DEEP)
    np.testing.assert_allclose(show(sixteen), DEEP / 65535)
    np.testing.assert_allclose(show(sixteen, bits=12), DEEP / 4095)
    assert [read(path).planes[0].bits for path in (eight, sixteen)] == [8, 16]
    assert read(sixteen, bits=12).planes[0].bits == 12


def test_a_tiff_may_say_that_it_has_twelve_bits(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095
    Image.fromarray(DEEP).save(tmp_path / "a.tif", tiffinfo=tags)
    np.testing.assert_allclose(show(tmp_path / "a.tif"), DEEP / 4095)


def test_pages_are_slices(tmp_path: Path) -> None:
    pages = [Image.fromarray(DEEP + n) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    stack = read(tmp_path / "a.tif")
    for number, plane in enumerate(stack.planes):
        np.testing.assert_array_equal(plane.read().values, DEEP + number)
    assert [plane.name for plane in stack.planes] == ["a page 1", "a page 2", "a page 3"]


def test_floats_have_no_white_of_their_own(tmp_path: Path) -> None:
    pixels = read(save(tmp_path / "a.tif", DEEP.astype(np.float32) / 7)).planes[0].read()
    assert pixels.limits is None
    assert not pixels.fills
    bad = DEEP.astype(np.float32)
    bad[0, 0] = np.inf
    assert "NaN or infinite" in refuse(save(tmp_path / "b.tif", bad))


def test_colours_and_palettes(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(save(tmp_path / "a.tif", rgb)).planes[0].read().colour, rgb)
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        read(tmp_path / "p.png").planes[0].read().colour, np.asarray(palette.convert("RGB"))
    )
    opaque = np.dstack([rgb, np.full((9, 8), 255, dtype=np.uint8)])
    np.testing.assert_array_equal(read(save(tmp_path / "o.png", opaque)).planes[0].read().colour, rgb)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", DEEP)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-40])
    assert "can not be read" in refuse(cut)
    text = tmp_path / "text.tif"
    text.write_text("no image")
    assert "neither PNG nor TIFF" in refuse(text)
    assert "does not exist" in refuse(tmp_path / "none.png")
    assert "5000x2 pixels" in refuse(save(tmp_path / "wide.png", np.zeros((2, 5000), dtype=np.uint8)))
    assert "transparent in places" in refuse(save(tmp_path / "t.png", np.zeros((9, 8, 4), dtype=np.uint8)))
    Image.new("CMYK", (8, 9)).save(tmp_path / "c.tif")
    assert "pixel mode CMYK" in refuse(tmp_path / "c.tif")
    assert "more than 10 bits hold; give the right --bits" in refuse(good, bits=10)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    assert "too large" in refuse(tmp_path / "bomb.png")
