"""`bmif data import`: medical images of two modalities become a data set that names nobody."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from node.cli.common import CliError, JsonOption, err, out, print_json, print_table

if TYPE_CHECKING:
    from workloads.importing import ImportSummary

_SPLITS = ("train", "validation", "test")
_SHOWN = 3
"""Places of one reason in the summary."""


def import_images(
    output: Annotated[Path, typer.Argument(help="New folder for the data set")],
    first: Annotated[
        Path | None,
        typer.Option("--first", help="File or folder of the first modality: DICOM, NIfTI, PNG, TIFF"),
    ] = None,
    second: Annotated[
        Path | None, typer.Option("--second", help="File or folder of the second, registered with the first")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--list", help="Instead: CSV with first, second[, patient, modality]")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Private key from patients to numbers [default: OUTPUT.key.csv]"),
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="The manifest's word for the pairs, such as MRI-CT")
    ] = None,
    first_window: Annotated[
        str,
        typer.Option(
            "--first-window",
            help="file, file:NUMBER, full, percentile, CENTRE/WIDTH, or brain, subdural, stroke, bone, "
            "soft-tissue, lung",
        ),
    ] = "file",
    second_window: Annotated[str, typer.Option("--second-window", help="The same for the second")] = "file",
    axis: Annotated[str, typer.Option(help="Slices of NIfTI volumes: axial, coronal or sagittal")] = "axial",
    slices: Annotated[
        str, typer.Option(help="START:STOP[:STEP] of the slices that both volumes have")
    ] = "::",
    bits: Annotated[
        int | None, typer.Option(help="Used bits of 16-bit PNG and TIFF files, such as 12", min=8, max=16)
    ] = None,
    patient_pattern: Annotated[
        str,
        typer.Option(help="Its group, at the start of a path in the folder, is the patient (not of DICOM)"),
    ] = "([^_/.]+)",
    colour: Annotated[
        str, typer.Option(help="Which may be in colour: either, first, second, none")
    ] = "either",
    registration: Annotated[
        str, typer.Option(help="Pairs that look unregistered: refuse, warn or off")
    ] = "refuse",
    max_shift: Annotated[float, typer.Option(help="Of the side, for that check", min=0, max=1)] = 0.05,
    min_information: Annotated[
        float, typer.Option(help="Least normalised mutual information, 1 to 2", min=1, max=2)
    ] = 1.0,
    min_content: Annotated[
        float, typer.Option(help="Least share of pixels that are not black", min=0, max=1)
    ] = 0.01,
    split: Annotated[str, typer.Option(help="Shares of patients: train,validation,test")] = "70,15,15",
    seed: Annotated[int, typer.Option(help="Seed of the split", min=0)] = 1,
    preview: Annotated[bool, typer.Option(help="Write sheets of all pairs as PNG")] = True,
    json: JsonOption = False,
) -> None:
    """Make a data set of registered image pairs, without names: for `--manifest` of the other commands.

    What can not be used is left out with its reason; exit status 1 if nothing could be.
    """
    from workloads.importing import ImportRequest, run_import

    request = ImportRequest(
        *(output, first, second, pairs, key, modality, first_window, second_window, axis, slices, bits),
        *(
            patient_pattern,
            colour,
            registration,
            max_shift,
            min_information,
            min_content,
            split,
            seed,
            preview,
        ),
    )
    with _build_progress() as bar:
        line = bar.add_task("importing", total=None)

        def report(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        summary = run_import(request, report)
    if json:
        print_json(_describe(summary, request.key_path))
    else:
        _print_summary(summary, output, request.key_path, seed)
    if not summary.pairs:
        raise CliError(f"nothing was imported, and {output} was not made; the reasons are above")


def _print_summary(summary: "ImportSummary", output: Path, key: Path, seed: int) -> None:
    for note in summary.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    if summary.omissions:
        print_table("Left out", ("planes (#)", "why, and what to do", "where"), _group(summary))
    if not summary.pairs:
        return
    splits = list(summary.splits.values())
    counts = ", ".join(f"{splits.count(name)} {name}" for name in _SPLITS)
    out.print(
        f"{len(summary.pairs)} pairs, patients: {len(splits)} ({counts}; seed {seed}), in {output}",
        soft_wrap=True,
    )
    out.print(f"Look at {output / 'preview.png'} first: pixels, too, can name people.", soft_wrap=True)
    out.print(f"{key} leads back to the patients: keep it private.", soft_wrap=True)


def _group(summary: "ImportSummary") -> list[tuple[str, str, str]]:
    """Omissions by reason, each with its first places; `--json` has them all."""
    groups: dict[tuple[str, str], list[tuple[Path, int]]] = {}
    for each in summary.omissions:
        groups.setdefault((each.reason, each.remedy), []).append((each.path, each.count))
    rows = []
    for (reason, remedy), places in groups.items():
        names = "\n".join(str(path) for path, _ in places[:_SHOWN])
        if len(places) > _SHOWN:
            names += f"\nand {len(places) - _SHOWN} more (--json lists all)"
        rows.append((str(sum(count for _, count in places)), f"{reason}; {remedy}", names))
    return rows


def _describe(summary: "ImportSummary", key: Path) -> dict[str, JsonValue]:
    return {
        "pairs": [
            {"id": pair.name, "patient": pair.patient, "modality": pair.facts.modality}
            for pair in summary.pairs
        ],
        "splits": {str(number): split for number, split in sorted(summary.splits.items())},
        "left_out": [
            {"file": str(each.path), "planes": each.count, "reason": each.reason, "remedy": each.remedy}
            for each in summary.omissions
        ],
        "notes": list(summary.notes),
        "key": str(key),
    }


def _build_progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=err)
