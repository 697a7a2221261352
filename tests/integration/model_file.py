"""A model file as `bmif model export` writes it, of untrained weights: for what needs a model alone."""

from pathlib import Path

from consensus.identifiers import compute_weights_digest
from node.api.schemas import TrainedModel
from workloads.fusion import KIND, WORKLOAD, FusionSpec


def save_model(path: Path, spec: FusionSpec | None = None) -> Path:
    chosen = FusionSpec(patch=5, kernels=(1, 3)) if spec is None else spec
    weights = WORKLOAD.build_initial_weights(chosen.encode(), 0)
    model = TrainedModel(
        task="ab" * 32,
        title="Untrained",
        status="open",
        rung=0,
        step=0,
        loss=1,
        loss_value=2.0**-20,
        weights_digest=compute_weights_digest(weights).hex(),
        kind=KIND,
        specification=chosen.encode().hex(),
        weights=weights,
        block="cd" * 32,
        height=7,
    )
    path.write_text(model.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path
