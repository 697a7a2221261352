"""`bmif fuse`: registered images through a trained model, in clear, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.common import ApiOption, ConfigOption, out
from node.cli.model import ModelOption, TaskOption, build_fuser, get_model


def fuse(
    first: Annotated[Path, typer.Argument(help="PNG of the first modality (8-bit)")],
    second: Annotated[Path, typer.Argument(help="PNG of the second, registered and of equal size")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")],
    model: ModelOption = None,
    task: TaskOption = None,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Fuse two registered images with a trained model, in clear, on this machine."""
    trained = get_model(model, task, api, config)
    from workloads.fusing import fuse_files

    fuser = build_fuser(trained)
    width, height = fuse_files(fuser, first, second, output)
    out.print(f"{output}: {width}x{height} pixels, model settled at step {trained.step}")
