"""`bmif diagnose train` and `bmif diagnose sequence train`: what they write and print can be compiled."""

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from fusion_model.phantom import build_phantoms
from node.cli.main import app

RUNNER = CliRunner()


def invoke(*arguments: object) -> str:
    """In this process, as other tests of training: what takes long of a process of its own is its start."""
    done = RUNNER.invoke(app, ["diagnose", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_train(tmp_path: Path) -> None:
    pairs = build_phantoms(9, 120, slices=1, size=12)
    images = np.stack([np.rint(pair.first * 255) for pair in pairs]).astype(np.uint8)
    images[1::2, 3:8, 3:8] = 255
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(120) % 2)
    options = ("-o", tmp_path / "network", "--epochs", "25", "--seed", "3", "--even-contrast", "--json")
    document = json.loads(invoke("train", tmp_path / "data.npz", *options))
    assert document["images"] == [84, 18, 18]
    assert document["seed"] == 3
    assert document["metrics"]["auc"][0] > 0.9
    provenance = json.loads((tmp_path / "network.json").read_text())
    assert provenance["data_sha256"] == document["data_sha256"]
    assert provenance["even_contrast"]
    plan = invoke("compile", tmp_path / "network", "-o", tmp_path / "model", "--packing", "batch")
    assert "predicted" in plan


def test_train_sequences(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    images = draw.integers(0, 100, (48, 8, 8)).astype(np.uint8)
    case = np.repeat(np.arange(16), 3)
    images[case % 2 == 1, 2:6, 2:6] += 150
    np.savez(tmp_path / "data.npz", images=images, case=case, order=np.tile(np.arange(3), 16), label=case % 2)
    options = ("-o", tmp_path / "network", "--side", "8", "--features", "2", "--epochs", "8", "--json")
    document = json.loads(invoke("sequence", "train", tmp_path / "data.npz", *options))
    assert document["patients"] == [12, 4]
    provenance = json.loads((tmp_path / "network.json").read_text())
    assert provenance["auc"] == document["auc"]
    assert 0.0 <= document["auc"][1] <= document["auc"][0] <= document["auc"][2] <= 1.0
    invoke("sequence", "compile", tmp_path / "network", "-o", tmp_path / "models")
    assert (tmp_path / "models" / "first.model.json").read_text() == (tmp_path / "network.json").read_text()
