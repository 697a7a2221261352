"""`bmif model export`, `bmif fuse`, `bmif evaluate`: trained weights and what they make of images."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from node.api.schemas import TrainedModel
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    connect,
    out,
    parse_hash,
    print_json,
    print_table,
)
from node.cli.data import (
    FirstOption,
    FirstPhantomOption,
    ManifestOption,
    ModalityOption,
    PatientsOption,
    PhantomSeedOption,
    PhantomsOption,
    SecondOption,
)

model_app = typer.Typer(no_args_is_help=True, help="Trained models.")

ModelOption = Annotated[Path | None, typer.Option("--model", "-m", help="File of `bmif model export`")]
TaskOption = Annotated[
    str | None, typer.Option("--task", "-t", help="Take the model of this task from a node")
]


@model_app.callback()
def group() -> None:
    """Trained models."""


def _get_model(path: Path | None, task: str | None, api: str | None, config: Path | None) -> TrainedModel:
    if (path is None) == (task is None):
        raise CliError("give --model FILE or --task ID")
    if path is not None:
        try:
            return TrainedModel.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise CliError(f"{path} is not a model: {error.errors()[0]['msg']}") from error
    with connect(api, config) as client:
        return client.call(client.api.get_model(parse_hash(task or "", "task").hex()))


@model_app.command()
def export(
    task: Annotated[str, typer.Argument(help="Task id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New JSON file")],
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Save the weights at a task's last settled milestone, in units of 2^-20, with their specification.

    Settled means that validators tried it on pairs of their own, or let the time for verdicts pass.
    """
    model = _get_model(None, task, api, config)
    with output.open("x", encoding="utf-8") as file:
        file.write(model.model_dump_json(indent=1) + "\n")
    out.print(f"settled at step {model.step}, validation loss {model.loss_value:.6f}: {output}")


def fuse(
    first: Annotated[Path, typer.Argument(help="PNG of the first modality (8-bit)")],
    second: Annotated[Path, typer.Argument(help="PNG of the second, registered and of equal size")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")],
    figure: Annotated[
        Path | None, typer.Option("--figure", help="PNG of both sources beside the result")
    ] = None,
    model: ModelOption = None,
    task: TaskOption = None,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Fuse two registered images with a trained model, in clear, on this machine."""
    trained = _get_model(model, task, api, config)
    from workloads.imaging import fuse_files

    width, height = fuse_files(
        bytes.fromhex(trained.specification), trained.weights, first, second, output, figure
    )
    out.print(f"{output}: {width}x{height} pixels, model settled at step {trained.step}")


def evaluate(
    first: FirstOption = None,
    second: SecondOption = None,
    manifest: ManifestOption = None,
    modality: ModalityOption = None,
    phantoms: PhantomsOption = 0,
    phantom_seed: PhantomSeedOption = 1,
    first_phantom: FirstPhantomOption = 0,
    patient: PatientsOption = None,
    model: ModelOption = None,
    task: TaskOption = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Mean fusion metrics of a model beside average, maximum and Laplacian pyramid; higher is better."""
    trained = _get_model(model, task, api, config)
    from workloads.imaging import PairSource, evaluate_pairs, load_pairs

    pairs = load_pairs(
        PairSource(
            first, second, manifest, modality, phantoms, phantom_seed, first_phantom, tuple(patient or ())
        )
    )
    results = evaluate_pairs(bytes.fromhex(trained.specification), trained.weights, pairs)
    if json:
        print_json({"pairs": len(pairs), "methods": {name: dict(means) for name, means in results.items()}})
        return
    metrics = list(next(iter(results.values())))
    print_table(
        f"Means over {len(pairs)} pairs",
        ("metric", *results),
        ((metric, *(f"{means[metric]:.3f}" for means in results.values())) for metric in metrics),
    )
