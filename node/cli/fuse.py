"""`bmif fuse`: registered images through a trained model, in clear, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from node.api.schemas import TrainedModel
from node.cli.common import ApiOption, CliError, ConfigOption, JsonOption, err, out, print_json
from node.cli.data import ManifestOption, ModalityOption
from node.cli.model import ModelOption, TaskOption, build_fuser, get_model, get_version

if TYPE_CHECKING:
    from workloads.fusing import Provenance

FirstArgument = Annotated[
    Path | None,
    typer.Argument(help="First modality: a PNG, TIFF, DICOM or NIfTI file, or a folder of them"),
]
SecondArgument = Annotated[
    Path | None, typer.Argument(help="Second modality, registered: the same kind, the same names")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="File (.png, .nii, .nii.gz, .dcm), or a folder for several")
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="png, nifti or dicom [default: by --output, else as the first source]"),
]
IdentityOption = Annotated[
    bool,
    typer.Option(
        "--keep-identity",
        help="DICOM: take over patient and study of the first source [default: a new, de-identified object]",
    ),
]
FigureOption = Annotated[
    Path | None, typer.Option("--figure", help="PNG of both sources beside the (middle) result")
]
FirstWindowOption = Annotated[
    str,
    typer.Option(help="Grey values shown: file, file:2, full, percentile, CENTRE/WIDTH, or brain, bone, ..."),
]
AxisOption = Annotated[str, typer.Option(help="Slices of NIfTI volumes: axial, coronal, sagittal")]
SlicesOption = Annotated[str, typer.Option(help="Of a volume, START:STOP or START:STOP:STEP")]
RegistrationOption = Annotated[
    str, typer.Option(help="Pairs that look unregistered: refuse, warn, off; other grids are always refused")
]


def fuse(
    output: OutputOption,
    first: FirstArgument = None,
    second: SecondArgument = None,
    manifest: ManifestOption = None,
    modality: ModalityOption = None,
    format: FormatOption = None,
    keep_identity: IdentityOption = False,
    figure: FigureOption = None,
    first_window: FirstWindowOption = "file",
    second_window: FirstWindowOption = "file",
    axis: AxisOption = "axial",
    slices: SlicesOption = "::",
    registration: RegistrationOption = "warn",
    model: ModelOption = None,
    task: TaskOption = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Fuse registered images with a trained model: a pair, two folders, a manifest's pairs, two volumes.

    Every result names the task, the block and the weights that made it. What can not be fused is left out
    with the reason; exit 1 if nothing could.
    """
    trained = get_model(model, task, api, config)
    from workloads.fusing import FuseRequest, fuse_files
    from workloads.importing import ImportRequest, parse_options

    options = parse_options(
        ImportRequest(
            output,
            first_window=first_window,
            second_window=second_window,
            axis=axis,
            slices=slices,
            registration=registration,
        )
    )
    request = FuseRequest(output, options, first, second, manifest, modality, format, keep_identity, figure)
    with Progress(
        TextColumn("fused {task.completed} images"), TimeElapsedColumn(), console=err, transient=True
    ) as bar:
        line = bar.add_task("fusing", total=None)

        def show(count: int) -> None:
            bar.advance(line, count)

        done = fuse_files(build_fuser(trained), request, build_provenance(trained), show)
    lost = sum(omission.count for omission in done.omissions)
    if json:
        print_json(
            {
                "files": [str(path) for path in done.files],
                "images": done.planes,
                "left_out": [
                    {
                        "path": str(item.path),
                        "reason": item.reason,
                        "remedy": item.remedy,
                        "count": item.count,
                    }
                    for item in done.omissions
                ],
                "notes": list[JsonValue](done.notes),
                "provenance": {
                    "task": trained.task,
                    "block": trained.block,
                    "weights": trained.weights_digest,
                },
            }
        )
    for note in done.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    for item in done.omissions:
        times = f" ({item.count} images)" if item.count > 1 else ""
        err.print(f"left out: {item.path}: {item.reason}{times}. {item.remedy}", markup=False, soft_wrap=True)
    if not done.files:
        raise CliError(f"nothing was fused; {lost} left out")
    if not json:
        where = done.files[0] if len(done.files) == 1 else f"{len(done.files)} files in {output}"
        height, width = done.size
        tail = f", {lost} left out" if lost else ""
        out.print(
            f"{where}: {done.planes} of {width}x{height} pixels{tail}; model settled at step {trained.step}",
            soft_wrap=True,
        )


def build_provenance(trained: TrainedModel) -> "Provenance":
    from workloads.fusing import Provenance

    return Provenance(
        trained.title,
        trained.task,
        trained.block,
        trained.height,
        trained.weights_digest,
        f"bmif {get_version()}",
    )
