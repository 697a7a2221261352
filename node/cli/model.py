"""`bmif model export`, and where other commands take their model from."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from consensus.identifiers import compute_weights_digest
from node.api.schemas import TrainedModel
from node.cli.common import ApiOption, CliError, ConfigOption, connect, out, parse_hash

if TYPE_CHECKING:
    from workloads.fusing import Fuser

app = typer.Typer(no_args_is_help=True, help="Trained models.")

ModelOption = Annotated[Path | None, typer.Option("--model", "-m", help="File of `bmif model export`")]
TaskOption = Annotated[
    str | None, typer.Option("--task", "-t", help="Take the model of this task from a node")
]


@app.callback()
def group() -> None:
    """Trained models."""


def get_model(path: Path | None, task: str | None, api: str | None, config: Path | None) -> TrainedModel:
    """A model from a file or a node, its weights checked against their digest.

    Raises: CliError naming the file or option.
    """
    if (path is None) == (task is None):
        raise CliError("give --model FILE or --task ID")
    if path is None:
        with connect(api, config) as client:
            return client.call(client.api.get_model(parse_hash(task or "", "task").hex()))
    try:
        model = TrainedModel.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CliError(
            f"{path} is not a model: {where + ': ' if where else ''}{first['msg']}; "
            "make the file with `bmif model export TASK -o FILE`"
        ) from error
    if compute_weights_digest(model.weights).hex() != model.weights_digest:
        raise CliError(f"{path}: weights do not match weights_digest; export the model again")
    return model


def build_fuser(model: TrainedModel) -> "Fuser":
    """What fuses whole images with the model; neither torch nor the encryption library is loaded."""
    from workloads.fusing import Fuser

    return Fuser.decode(bytes.fromhex(model.specification), model.weights)


def describe_model(model: TrainedModel) -> list[tuple[str, str]]:
    """What a reader needs to find the model on the chain and to check it."""
    return [
        ("model", model.title),
        ("task", model.task),
        ("settled", f"rung {model.rung}, step {model.step}, validation loss {model.loss_value:.6f}"),
        ("block", f"{model.block}, height {model.height}"),
        ("weights digest", model.weights_digest),
        ("specification", f"{model.kind} {model.specification}"),
        ("weights", str(len(model.weights))),
        ("software", f"bmif {get_version()}"),
    ]


def get_version() -> str:
    return importlib.metadata.version("bmif")


@app.command()
def export(
    task: Annotated[str, typer.Argument(help="Task id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New JSON file")],
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Save the weights at a task's last settled milestone, in units of 2^-20, with their specification.

    Settled means that validators tried it on pairs of their own, or let the time for verdicts pass. The file
    names the task and the milestone's block, and holds the digest that the block commits to.
    """
    model = get_model(None, task, api, config)
    with output.open("x", encoding="utf-8") as file:
        file.write(model.model_dump_json(indent=1) + "\n")
    out.print(f"settled at step {model.step}, validation loss {model.loss_value:.6f}: {output}")
