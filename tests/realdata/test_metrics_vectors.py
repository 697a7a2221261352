"""Metrics of real pairs against reference values that an independent evaluator gave."""

import csv
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fusion_model.baselines import fuse_average, fuse_maximum
from fusion_model.fuse import convert_to_bytes
from fusion_model.importers.png import import_manifest
from fusion_model.metrics import METRIC_NAMES, compute_metrics
from fusion_model.pairs import ImagePair

FOLDER = Path(os.environ.get("BMIF_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fusion"


@cache
def load_pairs() -> dict[str, ImagePair]:
    return {pair.name: pair for pair in import_manifest(FOLDER / "manifest.csv")}


def read_vectors() -> list[dict[str, str]]:
    with (FOLDER / "metric_vectors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", read_vectors(), ids=lambda row: f"{row['id']}-{row['fused']}")
def test_metrics_agree_to_four_decimals(row: dict[str, str]) -> None:
    pair = load_pairs()[row["id"]]
    first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
    fused = {"average": fuse_average, "maximum": fuse_maximum}[row["fused"]](first, second)
    figures = compute_metrics(first, second, fused)
    for name in METRIC_NAMES:
        np.testing.assert_allclose(getattr(figures, name), float(row[name]), rtol=0, atol=5e-5, err_msg=name)
