"""Evaluation on phantoms: figures, tables, pictures, and pairs that are left out."""

import csv
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_model.initial import build_initial_weights
from fusion_model.metrics import METRIC_NAMES
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms
from fusion_model.pictures import convert_to_bytes
from workloads.base import WorkloadError
from workloads.evaluation import Evaluation, evaluate_pairs, save_csv, save_picture, save_report
from workloads.fusing import Fuser
from workloads.fusion import FusionSpec
from workloads.imaging import PairSource, load_pairs


def build_fuser() -> Fuser:
    spec = FusionSpec()
    return Fuser(spec, build_initial_weights(spec.network, 0))


@pytest.fixture(scope="module")
def found() -> Evaluation:
    pairs = build_phantoms(1, 3, slices=2, size=72)
    small = ImagePair("small", 7, np.zeros((20, 20)), np.zeros((20, 20)))
    seen: list[tuple[int, int]] = []
    result = evaluate_pairs(
        build_fuser(), [*pairs, small], pictures=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (7, 7)
    return result


def test_every_pair_is_scored_by_every_method_and_bad_ones_are_left_out(found: Evaluation) -> None:
    assert found.summary.extent == "6 pairs of 3 patients"
    assert [tuple(entry.methods) for entry in found.scores] == [
        ("model", "average", "maximum", "laplacian")
    ] * 6
    assert set(found.summary.differences) == {"model", "average", "laplacian"}
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("small: ")
    assert "at least 64x64" in found.left_out[0]


def test_csv_has_a_row_a_pair_and_method(found: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    save_csv(path, found.scores)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert list(rows[0]) == ["pair", "patient", "method", *METRIC_NAMES]
    mean = np.mean([float(row["VIF"]) for row in rows if row["method"] == "model"])
    assert mean == pytest.approx(found.summary.means["model"]["VIF"].mean, abs=1e-6)


def test_pictures_show_different_patients_by_all_methods(found: Evaluation, tmp_path: Path) -> None:
    assert [picture.caption.split(":")[0] for picture in found.pictures] == [
        found.scores[1].name,
        found.scores[3].name,
    ]
    with Image.open(BytesIO(found.pictures[0].png)) as image:
        assert image.width == 6 * 72 + 5 * 4
    sheet, page = tmp_path / "sheet.png", tmp_path / "report.html"
    save_picture(sheet, found)
    with Image.open(sheet) as image:
        assert image.height == 2 * (72 + 20) + 4
    save_report(page, found, "Phantoms", [("task", "t")])
    assert page.read_text().count("<img") == 2


def test_coloured_pairs_are_shown_in_colour() -> None:
    pair = build_phantoms(1, 1, slices=1, size=72)[0]
    chroma = np.stack([np.full((72, 72), -0.2), np.full((72, 72), 0.3)])
    coloured = ImagePair(pair.name, 0, pair.first, pair.second, chroma)
    result = evaluate_pairs(build_fuser(), [coloured], pictures=1)
    grey = evaluate_pairs(build_fuser(), [pair])
    assert result.scores == grey.scores  # figures are of the luminance
    with Image.open(BytesIO(result.pictures[0].png)) as image:
        pixels = np.asarray(image)[20:]
    first, second, fused = (pixels[:, start : start + 72] for start in (0, 76, 152))
    assert (first[..., 0] == first[..., 2]).all()
    assert (second[..., 0] != second[..., 2]).any()
    assert (fused[..., 0] != fused[..., 2]).any()
    turned = evaluate_pairs(build_fuser(), [replace(coloured, colour_first=True)], pictures=1)
    with Image.open(BytesIO(turned.pictures[0].png)) as image:
        pixels = np.asarray(image)[20:]
    assert (pixels[:, :72, 0] != pixels[:, :72, 2]).any()
    assert (pixels[:, 76:148, 0] == pixels[:, 76:148, 2]).all()


def write_folders(folder: Path) -> tuple[Path, Path]:
    """Three pairs of phantoms as PNG files, of which one is cut short and one lacks its twin."""
    sides = folder / "first", folder / "second"
    for pair in build_phantoms(1, 3, slices=1, size=72):
        for side, image in zip(sides, (pair.first, pair.second), strict=True):
            side.mkdir(exist_ok=True)
            Image.fromarray(convert_to_bytes(image)).save(side / f"{pair.patient}_{pair.name}.png")
    names = sorted(path.name for path in sides[0].iterdir())
    broken = sides[1] / names[0]
    broken.write_bytes(broken.read_bytes()[:60])
    (sides[1] / names[1]).unlink()
    return sides


def test_what_the_importer_refuses_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    first, second = write_folders(tmp_path)
    left_out: list[str] = []
    pairs = load_pairs(PairSource(first, second), left_out)
    assert len(pairs) == 1
    found = evaluate_pairs(build_fuser(), pairs, left_out=left_out)
    assert len(found.scores) == 1
    assert len(found.left_out) == 2
    assert any("no file of the same name" in reason for reason in found.left_out)
    with pytest.raises(WorkloadError, match="no file of the same name"):
        load_pairs(PairSource(first, second))


def test_without_a_usable_pair_the_reasons_are_given() -> None:
    tiny = ImagePair("tiny", 0, np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(WorkloadError, match="no pair could be evaluated: tiny"):
        evaluate_pairs(build_fuser(), [tiny])


def test_a_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(WorkloadError, match="weights: the specification has 112, got 3"):
        Fuser.decode(FusionSpec().encode(), [1, 2, 3])


def test_evaluation_loads_no_encryption() -> None:
    code = "import sys; import workloads.evaluation; print(sorted({'torch', 'Pyfhel'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
