"""Bad input of every kind costs itself alone, and is told with a reason and a remedy."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from node.cli.main import app
from tests.integration.model_file import save_model
from tests.medical import NUMBER, build_dicom, build_slices, save_dicom, save_nifti

SIDE = 96
FULL = ("--first-window", "full", "--second-window", "full")

BAD = {
    "truncated": ("cut.dcm", "is truncated", "copy or export it again"),
    "colour": ("colour.dcm", "is in colour (RGB), but CT is grey", "export"),
    "sizes": ("small.png", "80x80 pixels", "resample it onto its twin's grid"),
    "nan": ("nan.nii.gz", "has values that are NaN or infinite", "set them"),
    "empty": ("empty", "is an empty folder", "name the folder that holds the images"),
    "bits": ("deep.png", "more than 12 bits hold", "give the right --bits"),
    "turned": ("turned.nii.gz", "has orientation axial", "resample it onto its twin's grid"),
    "flipped": ("flipped.png", "looks flipped top-bottom against its twin", "--registration warn"),
    "patients": ("other.dcm", "is of another patient than", "pair"),
}
"""File, what is said of it, and what to do."""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def save_png(path: Path, image: np.ndarray, bits: int = 8) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    Image.fromarray(np.rint(image * (2**bits - 1)).astype(kind)).save(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind: a good first image and a second one that is bad in one way; "good" and "twelve" are good."""
    folder = tmp_path_factory.mktemp("bad")
    (ct,), (mri,) = build_slices(0, 1, SIDE)
    first, volume, second = folder / "mri.dcm", folder / "mri.nii.gz", {}
    save_dicom(first, build_dicom(mri, "MR"))
    save_png(folder / "mri.png", mri)
    save_png(folder / "mri12.png", mri, 12)
    save_nifti(volume, [mri] * 3)

    def save_ct(name: str, image: np.ndarray = ct, **facts: object) -> Path:
        return save_dicom(folder / name, build_dicom(image, "CT", series=2, **facts))  # type: ignore[arg-type]

    second["good"] = save_ct("good.dcm")
    second["truncated"] = save_ct("cut.dcm")
    second["truncated"].write_bytes(second["truncated"].read_bytes()[:-500])
    second["colour"] = save_ct("colour.dcm", np.zeros((SIDE, SIDE, 3), dtype=np.uint8), bits=8)
    second["patients"] = save_ct("other.dcm", patient=f"{NUMBER}-other")
    spoiled = ct.copy()
    spoiled[5, 5] = np.nan
    second["nan"] = save_nifti(folder / "nan.nii.gz", [spoiled] * 3)
    angle = np.radians(5)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = nib.Nifti1Image(
        np.stack([ct.T] * 3, axis=2).astype(np.float32), tilt @ np.diag([-1, -1, 3, 1.0])
    )
    nib.save(turned, folder / "turned.nii.gz")
    second["turned"] = folder / "turned.nii.gz"
    for kind, name, image, bits in (
        ("sizes", "small.png", ct[8:-8, 8:-8], 8),
        ("flipped", "flipped.png", ct[::-1], 8),
        ("twelve", "ct12.png", ct, 12),
        ("bits", "deep.png", ct, 16),
    ):
        save_png(folder / name, image, bits)
        second[kind] = folder / name
    second["empty"] = folder / "empty"
    second["empty"].mkdir()
    firsts = {"nan": volume, "turned": volume, "sizes": folder / "mri.png", "flipped": folder / "mri.png"}
    firsts |= dict.fromkeys(("twelve", "bits"), folder / "mri12.png")
    return {kind: (firsts.get(kind, first), path) for kind, path in second.items()}


def test_an_import_leaves_out_each_and_keeps_the_good(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("first", "second", "patient"))
        writer.writerows((*files, kind) for kind, files in pairs.items())
    done = run("data", "import", tmp_path / "set", "--list", listed, "--bits", "12", *FULL, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["pairs"]) == 2
    left_out = {Path(entry["file"]).name: entry for entry in document["left_out"]}
    assert set(left_out) == {name for name, _, _ in BAD.values()}
    for name, reason, remedy in BAD.values():
        assert reason in left_out[name]["reason"]
        assert remedy in left_out[name]["remedy"]
    assert NUMBER not in done.stdout
    with (tmp_path / "set" / "manifest.csv").open(newline="") as file:
        assert {row["bits_b"] for row in csv.DictReader(file)} == {"12"}
    told = run("data", "import", tmp_path / "again", "--list", listed, "--bits", "12", *FULL)
    assert told.exit_code == 0
    assert "2 pairs, patients: 2" in told.stdout
    assert "Left out" in told.stdout


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "bits"])
def test_fusing_says_what_is_wrong(kind: str, pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """`bmif fuse` takes 16 bits as they are; all else is refused as an import refuses it."""
    model = save_model(tmp_path / "model.json")
    done = run(
        "fuse", *pairs[kind], "-o", tmp_path / "out", "--model", model, *FULL, "--registration", "refuse"
    )
    assert done.exit_code == 1
    _, reason, remedy = BAD[kind]
    assert reason in done.stderr
    assert remedy in done.stderr
    assert "nothing was fused" in done.stderr
    assert NUMBER not in done.stderr
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_fusing_goes_on_past_the_bad(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    for side, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        for kind in ("sizes", "flipped", "nan", "twelve"):
            source = pairs[kind][side]
            name = kind + "".join(source.suffixes)
            (tmp_path / folder / name).write_bytes(source.read_bytes())
    model = save_model(tmp_path / "model.json")
    options = (*FULL, "--registration", "refuse", "--model", model)
    done = run("fuse", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["twelve.png"]
    assert "1 of 96x96 pixels, 5 left out" in done.stdout
    for kind in ("sizes", "flipped", "nan"):
        assert f"left out: {tmp_path}/b/{kind}" in done.stderr
        assert BAD[kind][1] in done.stderr
