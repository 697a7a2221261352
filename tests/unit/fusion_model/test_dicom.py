"""Reading of DICOM: what pixels mean, where they lie, and what is refused with the file and the remedy."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from fusion_model.importers.dicom import is_dicom, read_series
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.rendering import FILE_WINDOW, WindowChoice, render
from fusion_model.importers.stack import Pixels, Stack
from tests.medical import (
    NAME,
    NUMBER,
    build_dicom,
    build_enhanced,
    build_slices,
    compress,
    save_dicom,
    save_series,
    store,
)

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64


def read(path: Path) -> Stack:
    found = read_series([path])
    assert not found.omissions
    return found.stacks[0]


def read_pixels(tmp_path: Path, dataset: FileDataset) -> Pixels:
    return read(save_dicom(tmp_path / "a.dcm", dataset)).planes[0].read()


def show(pixels: Pixels, window: str = "file") -> np.ndarray:
    return render(pixels, WindowChoice.parse(window), (0.0, 1.0)).luminance


def refuse(tmp_path: Path, dataset: FileDataset, cut: int | None = None) -> str:
    """The reason and remedy for which a file is left out, be it on listing or on reading pixels."""
    path = save_dicom(tmp_path / "bad.dcm", dataset)
    path.write_bytes(path.read_bytes()[:cut])
    found = read_series([path])
    if found.omissions:
        assert found.omissions[0].path == path
        return f"{found.omissions[0].reason}; {found.omissions[0].remedy}"
    with pytest.raises(ImportRefusedError) as refused:
        found.stacks[0].planes[0].read()
    assert refused.value.path == path
    assert refused.value.remedy
    return str(refused.value)


def test_rescale_and_window_follow_the_standard(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP, "CT")
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -1024
    dataset.WindowCenter, dataset.WindowWidth = [40, 300], [80, 1500]
    pixels = read_pixels(tmp_path, dataset)
    hounsfield = RAMP * 0.5 - 1024
    np.testing.assert_array_equal(pixels.values, hounsfield)
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), clipped.
    np.testing.assert_allclose(show(pixels), np.clip((hounsfield - 39.5) / 79 + 0.5, 0, 1))
    np.testing.assert_allclose(show(pixels, "file:2"), np.clip((hounsfield - 299.5) / 1499 + 0.5, 0, 1))
    np.testing.assert_allclose(show(pixels, "100/400"), np.clip((hounsfield - 100) / 400 + 0.5, 0, 1))
    np.testing.assert_allclose(show(pixels, "brain"), np.clip(hounsfield / 80, 0, 1))
    np.testing.assert_allclose(show(pixels, "full"), (hounsfield + 1024) / (0.5 * 4095))
    with pytest.raises(ValueError, match="proposes 2 windows, so there is no number 3"):
        show(pixels, "file:3")


def test_other_window_functions(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2000, 1000, "SIGMOID"
    expected = 1 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 1000))
    np.testing.assert_allclose(show(read_pixels(tmp_path, dataset)), expected)
    dataset.VOILUTFunction = "LINEAR_EXACT"
    np.testing.assert_allclose(
        show(read_pixels(tmp_path, dataset)), np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1)
    )


def test_tables_of_modality_and_display(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP // 64, bits=8)
    for keyword, table in (
        ("ModalityLUTSequence", np.arange(64) * 2),
        ("VOILUTSequence", np.arange(128)[::-1] * 2),
    ):
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [len(table), 0, 8], table.tolist()
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        if keyword == "ModalityLUTSequence":
            item.ModalityLUTType = "US"
        setattr(dataset, keyword, [item])
    pixels = read_pixels(tmp_path, dataset)
    np.testing.assert_array_equal(pixels.values, RAMP / 64 * 2)
    np.testing.assert_allclose(show(pixels), (127 - RAMP / 64 * 2) * 2 / 255)


def test_white_is_least_in_monochrome1(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    shown = show(read_pixels(tmp_path, dataset))
    assert shown[0, 0] == pytest.approx(1, abs=1e-3)
    assert shown[7, 7] == pytest.approx(1 - RAMP[7, 7] / 4095, abs=1e-3)


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, np.uint8), (12, np.uint16), (16, np.uint16), (12, np.int16), (16, np.int16)]
)
def test_stored_bits_and_signs(tmp_path: Path, bits: int, kind: type[np.integer]) -> None:
    low = -(2 ** (bits - 1)) if kind is np.int16 else 0
    stored = np.random.default_rng(2).integers(low, low + 2**bits, (6, 5)).astype(kind)
    dataset = build_dicom(stored, bits=bits)
    pixels = read_pixels(tmp_path, dataset)
    np.testing.assert_array_equal(pixels.values, stored)
    assert pixels.limits == (low, low + 2**bits - 1)
    assert pixels.fills == (bits == 8)


def test_overlays_above_the_stored_bits_are_dropped(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP)
    dataset.PixelData = (RAMP | 0x8000).tobytes()
    np.testing.assert_array_equal(read_pixels(tmp_path, dataset).values, RAMP)


def test_colour_spaces(tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = read_pixels(tmp_path, build_dicom(rgb, "PT", bits=8))
    np.testing.assert_array_equal(pixels.colour, rgb)
    grey = render(pixels, FILE_WINDOW, (0, 1))
    assert grey.chroma is not None
    np.testing.assert_allclose(
        grey.luminance * 255, np.rint(rgb @ np.array([0.299, 0.587, 0.114])), atol=1e-9
    )

    dataset = build_dicom(np.full((8, 8, 3), (76, 85, 255), dtype=np.uint8), "NM", bits=8)
    dataset.PhotometricInterpretation = "YBR_FULL"  # that is red
    found = read_pixels(tmp_path, dataset).colour
    assert found is not None
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 2

    indices = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    dataset = build_dicom(indices, "PT", bits=8)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for name, table in (("Red", [0, 255, 0, 10]), ("Green", [0, 0, 255, 20]), ("Blue", [0, 0, 0, 30])):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{name}PaletteColorLookupTableData", (np.array(table, "<u2") * 257).tobytes())
    found = read_pixels(tmp_path, dataset).colour
    np.testing.assert_array_equal(found, [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [10, 20, 30]]])


def test_orientation_is_brought_to_the_display(tmp_path: Path) -> None:
    """Rows to the front and columns to the right, as some scanners store axial slices."""
    image = RAMP[:6]
    plain = build_dicom(image, place=(10.0, 20.0, 30.0), spacing=(2.0, 0.5))
    turned = build_dicom(
        np.ascontiguousarray(image[::-1, ::-1].T),
        directions=(0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
        place=(10.0 + 7 * 0.5, 20.0 + 5 * 2.0, 30.0),
        spacing=(0.5, 2.0),
    )
    one, other = (read(save_dicom(tmp_path / f"{n}.dcm", d)).planes[0] for n, d in enumerate((plain, turned)))
    np.testing.assert_array_equal(one.read().values, image)
    np.testing.assert_array_equal(other.read().values, image)
    assert one.geometry == other.geometry
    assert other.size == (6, 8)


def test_series_are_ordered_by_place_and_kept_apart(tmp_path: Path) -> None:
    images, others = build_slices(slices=5)
    ct = save_series(tmp_path / "ct", images, "CT")
    mr = save_series(tmp_path / "mr", others, "MR", series=2)
    found = read_series(sorted(ct + mr))
    assert [stack.modality for stack in found.stacks] == ["CT", "MR"]
    for stack, slices in zip(found.stacks, (images, others), strict=True):
        assert [plane.geometry.depth for plane in stack.planes if plane.geometry] == [0, 3, 6, 9, 12]
        for plane, image in zip(stack.planes, slices, strict=True):
            np.testing.assert_array_equal(plane.read().values, np.rint(image * 4095))
        assert stack.patient.label == NUMBER
        assert stack.patient.identified


def test_frames_have_places_and_rescale_of_their_own(tmp_path: Path) -> None:
    images, _ = build_slices(slices=3)
    stack = read(save_dicom(tmp_path / "e.dcm", build_enhanced(images)))
    assert [plane.geometry.depth for plane in stack.planes if plane.geometry] == [0, 3, 6]
    for plane, image in zip(stack.planes, images, strict=True):
        np.testing.assert_array_equal(plane.read().values, np.rint(image * 4095) * 2 - 100)
    assert stack.planes[1].name == "e frame 2"


def test_compressed_pixels_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_pixels(tmp_path, compress(build_dicom(RAMP))).values, RAMP)


def test_bad_files_are_refused_with_reason_and_remedy(tmp_path: Path) -> None:
    assert "is truncated: 78 bytes of pixels where 128 are due; the file is cut" in refuse(
        tmp_path, build_dicom(RAMP), -50
    )
    assert "holds no image (document), or ends before it" in refuse(tmp_path, build_dicom(RAMP), 300)
    assert "not a DICOM file" in refuse(tmp_path, build_dicom(RAMP), 60)

    colour = build_dicom(np.zeros((8, 8, 3), dtype=np.uint8), "CT", bits=8)
    assert "is in colour (RGB), but CT is grey" in refuse(tmp_path, colour)

    packed = build_dicom(RAMP)
    packed.PixelData = encapsulate([packed.PixelData])
    packed.file_meta.TransferSyntaxUID = JPEGLSLossless
    assert "JPEG-LS Lossless Image Compression, for which no plugin is installed; install pyjpegls" in refuse(
        tmp_path, packed
    )
    huge = build_dicom(RAMP)
    huge.Rows = huge.Columns = 60000
    assert "60000x60000 pixels" in refuse(tmp_path, huge)
    many = build_dicom(RAMP)
    many.NumberOfFrames = 10**6
    assert "1000000 planes" in refuse(tmp_path, many)
    skewed = build_dicom(RAMP, directions=(1.0, 0.0, 0.0, 0.5, 0.9, 0.0))
    assert "right angles" in refuse(tmp_path, skewed)
    burned = build_dicom(RAMP)
    burned.BurnedInAnnotation = "YES"
    assert "text is burned into its pixels" in refuse(tmp_path, burned)
    localizer = build_dicom(RAMP)
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert "is a localizer" in refuse(tmp_path, localizer)
    odd = build_dicom(RAMP)
    odd.PhotometricInterpretation = "HSV"
    assert "colour space HSV" in refuse(tmp_path, odd)
    deflated = build_dicom(RAMP)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "deflated as a whole" in refuse(tmp_path, deflated)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    dataset = build_dicom(RAMP)
    store(dataset, RAMP)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    values = np.ones((8, 8), dtype=np.float32)
    values[3, 3] = np.nan
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    assert "NaN or infinite" in refuse(tmp_path, dataset)


def test_errors_quote_no_patient(tmp_path: Path) -> None:
    for cut in range(140, 1200, 37):
        path = save_dicom(tmp_path / "cut.dcm", build_dicom(RAMP))
        path.write_bytes(path.read_bytes()[:cut])
        for omission in read_series([path]).omissions:
            assert NUMBER not in omission.reason
            assert NAME not in omission.reason


def test_files_are_known_by_mark_or_name(tmp_path: Path) -> None:
    assert is_dicom(save_dicom(tmp_path / "IM0001", build_dicom(RAMP)))
    (tmp_path / "short.dcm").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("text")
    assert is_dicom(tmp_path / "short.dcm")
    assert not is_dicom(tmp_path / "notes.txt")


SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.filterwarnings("error")
def test_what_the_library_is_tested_with_is_read_or_refused() -> None:
    """Odd, damaged and compressed files of many makers: pixels, or a reason with a remedy; no warnings."""
    read: set[str] = set()
    remedies: list[str] = []
    for path in sorted(SAMPLES.glob("*.dcm")):
        found = read_series([path])
        for stack in found.stacks:
            try:
                shown = render(stack.planes[0].read(), FILE_WINDOW, (0, 1)).luminance
            except ImportRefusedError as error:
                remedies.append(error.remedy)
                continue
            assert np.isfinite(shown).all()
            read.add(path.name)
        assert all(each.reason and each.remedy for each in found.omissions)
    assert {"CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"} <= read
    assert len(read) > 40
    assert all(remedies)


def test_compression_does_not_change_what_is_read() -> None:
    plain, *others = (
        read(SAMPLES / name).planes[0].read().values
        for name in (
            "MR_small.dcm",
            "MR_small_RLE.dcm",
            "MR_small_jp2klossless.dcm",
            "MR_small_bigendian.dcm",
        )
    )
    for other in others:
        np.testing.assert_array_equal(other, plain)
