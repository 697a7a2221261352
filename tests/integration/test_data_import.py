"""`bmif data import` as a user runs it: the real command on files of every format, and what comes of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusion_model.phantom import build_phantoms
from node.cli.main import app
from tests.medical import NUMBER, build_slices, save_nifti, save_series
from workloads.imaging import PairSource, load_pairs
from workloads.importing import SplitPatients, get_split_patients


def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "node.cli.main", "data", "import", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_a_hospital_brings_dicom(tmp_path: Path) -> None:
    """One good patient, one whose MRI is cut short, and a stray file: the good one is imported."""
    for number in range(2):
        images, others = build_slices(number, slices=3, size=96)
        for side, modality, slices in (("ct", "CT", images), ("mr", "MR", others)):
            save_series(
                tmp_path / side / str(number), slices, modality, patient=f"{NUMBER}-{number}",
                series=number * 2 + (side == "mr"), frame_of_reference=number,
            )  # fmt: skip
    for path in (tmp_path / "mr" / "1").iterdir():
        path.write_bytes(path.read_bytes()[:-99])
    (tmp_path / "ct" / "notes.txt").write_text("stray")
    out = tmp_path / "set"
    done = run(out, "--first", tmp_path / "ct", "--second", tmp_path / "mr", "--first-window", "full",
               "--second-window", "full", "--seed", "4")  # fmt: skip
    assert f"3 pairs, patients: 1 (1 train, 0 validation, 0 test; seed 4), in {out}" in done.stdout
    assert "is truncated" in done.stdout
    assert "notes.txt" in done.stdout
    assert str(tmp_path / "mr" / "1") in done.stdout.replace("\n", "")
    pairs = load_pairs(PairSource(manifest=out / "manifest.csv", modality="CT-MRI"))
    assert len(pairs) == 3
    assert len(load_pairs(PairSource(manifest=out / "train.csv"))) == 3
    assert get_split_patients(out / "manifest.csv") == SplitPatients((pairs[0].patient,), ())
    with Image.open(out / "preview.png") as sheet:
        assert sheet.size[0] > 3 * 256
    assert NUMBER not in (out / "manifest.csv").read_text()


def test_lists_pair_what_names_do_not(tmp_path: Path) -> None:
    images, others = build_slices(slices=4, size=96)
    save_nifti(tmp_path / "t1.nii.gz", images)
    save_nifti(tmp_path / "ct.nii.gz", others, codes="LPI")
    (tmp_path / "list.csv").write_text(
        "first,second,patient,modality\nt1.nii.gz,ct.nii.gz,ann,MRI-CT\nt1.nii.gz,none.nii.gz,bob,MRI-CT\n"
    )
    done = run(
        tmp_path / "set", "--list", tmp_path / "list.csv", "--axis", "axial", "--slices", "1:", "--json"
    )
    document = json.loads(done.stdout)
    assert [pair["id"] for pair in document["pairs"]] == ["0000_000", "0000_001", "0000_002"]
    assert document["left_out"] == [
        {
            "file": str(tmp_path / "none.nii.gz"),
            "planes": 1,
            "reason": "does not exist",
            "remedy": "check the path",
        }
    ]
    assert Path(document["key"]) == tmp_path / "set.key.csv"


def test_folders_of_pngs_with_a_second_modality_later(tmp_path: Path) -> None:
    """The same people keep numbers and splits when another modality is imported under the same key."""
    for pair in build_phantoms(2, 3, 1, 96):
        for folder, image in (("mri", pair.second), ("ct", pair.first), ("pet", pair.first**2)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(
                tmp_path / folder / f"p{pair.patient}_{pair.name[-1]}.png"
            )
    key = tmp_path / "key.csv"
    documents = []
    for other in ("ct", "pet"):
        sides = ("--first", tmp_path / "mri", "--second", tmp_path / other)
        done = run(tmp_path / f"set-{other}", *sides, "--key", key, "--modality", f"MRI-{other}", "--json")
        documents.append(json.loads(done.stdout))
    assert documents[0]["splits"] == documents[1]["splits"]
    assert len(documents[0]["splits"]) == 3
    assert len(key.read_text().splitlines()) == 7


BOTH = ("--first", "a", "--second", "b")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--first", "a"), "give --first and --second, or --list"),
        (BOTH, "nothing was imported"),
        ((*BOTH, "--list", "c"), "give --first and --second, or --list, not both"),
        ((*BOTH, "--first-window", "wide"), "first-window: window 'wide': give file"),
        ((*BOTH, "--split", "1,2"), "splits: give 3 shares"),
        ((*BOTH, "--slices", "3"), "slices: '3' is not START:STOP"),
        ((*BOTH, "--axis", "up"), "axis: 'up' is none of sagittal, coronal, axial"),
        ((*BOTH, "--patient-pattern", "p.*"), "patient-pattern: has no group"),
        (("--list", "none.csv"), "none.csv: can not be read"),
    ],
)
def test_what_can_not_be_done_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    result = CliRunner().invoke(app, ["data", "import", "set", *arguments])
    assert result.exit_code == 1
    assert error in result.stderr
    assert not (tmp_path / "set").exists()


def test_encryption_follows_the_splits_of_an_import(tmp_path: Path) -> None:
    """Options that contradict the manifest are refused before a node is asked for anything."""
    net = tmp_path / "net"
    made = CliRunner().invoke(app, ["testnet", "init", "--nodes", "2", "--dir", str(net), "--json"])
    config = json.loads(made.stdout)[0]["config"]
    manifest = tmp_path / "manifest.csv"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    header = "id,modality,file_a,file_b,patient,split\n"
    manifest.write_text(header + "x,CT,a.png,a.png,1,train\ny,CT,a.png,a.png,2,test\n")
    encrypt = ["data", "encrypt", "00" * 32, "-o", str(tmp_path / "out"), "--config", config, "--use-split"]
    for arguments, error in (
        (
            ["--manifest", str(manifest), "--patient", "1"],
            "--use-split goes with --manifest, not with --patient",
        ),
        (["--phantoms", "2"], "--use-split goes with --manifest"),
        (["--manifest", str(manifest), "--modality", "PET"], "no patient of the split train"),
    ):
        result = CliRunner().invoke(app, [*encrypt, *arguments])
        assert result.exit_code == 1
        assert error in result.stderr.replace("\n", " ")


def test_readers_load_neither_torch_nor_encryption() -> None:
    probe = "import sys, workloads.importing; print({'torch', 'Pyfhel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
