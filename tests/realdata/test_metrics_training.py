"""Forty clear steps with the task's integers on real MRI-CT pairs, patients held back."""

import os
from pathlib import Path

from benchmarks.clear_training import Settings, compute_linear_loss, compute_table, load_data, run_training
from fusion_model.config import NetworkConfig

FOLDER = Path(os.environ.get("BMIF_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fusion"


def test_loss_falls_and_the_network_beats_the_average_on_held_patients() -> None:
    config, settings = NetworkConfig(), Settings()
    data = load_data(config, str(FOLDER), (28, 34))
    steps = run_training(config, settings, data, every=40)
    first, last = (step.loss for step in steps if step.loss is not None)
    assert first / last > 5
    assert last < 0.5 * compute_linear_loss(config, data)
    table = compute_table(config, {"network": steps[-1].weights}, data.held)
    for name in ("SF", "SCD", "VIF", "Qabf", "SSIM", "SSIM2"):
        assert getattr(table["network"], name) > getattr(table["average"], name), name
