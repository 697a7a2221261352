"""Validators' private pairs: the hospitals' own patients, in a folder of each node's own."""

import csv
import shutil
from pathlib import Path

from pydantic import JsonValue

from benchmarks.results.folds import Hospital
from fusion_model.importers.png import import_manifest, list_manifest

FOLDER = "pairs"
"""In a node's directory."""


def get_judged(hospital: Hospital) -> tuple[int, ...]:
    """The patients on whom a hospital judges milestones: those that it validates with, else all its own."""
    return hospital.validation or hospital.training


def write_pairs(folder: Path, manifest: Path, modality: str, patients: tuple[int, ...]) -> int:
    """A manifest of these patients' pairs, with copies of their images; returns how many pairs.

    Copies, because a manifest names no file outside of its folder.
    """
    folder.mkdir(parents=True)
    pairs, files = import_manifest(manifest, modality), list_manifest(manifest, modality)
    chosen = [(pair, found) for pair, found in zip(pairs, files, strict=True) if pair.patient in patients]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "modality", "file_a", "file_b", "patient"))
        for pair, found in chosen:
            names = [f"{pair.name}-{side}{path.suffix}" for side, path in zip("ab", found, strict=True)]
            for name, path in zip(names, found, strict=True):
                shutil.copyfile(path, folder / name)
            rows.writerow((pair.name, modality, *names, pair.patient))
    return len(chosen)


def build_settings(modality: str, tolerance: float) -> dict[str, JsonValue]:
    """The section `verdict` of a node with such a folder; `tolerance` in the unit of the loss."""
    return {"pairs": FOLDER, "modality": modality, "tolerance": tolerance}
