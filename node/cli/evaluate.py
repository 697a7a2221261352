"""`bmif evaluate`: a model's fusion quality in figures, beside the methods to beat."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from node.cli.common import ApiOption, ConfigOption, JsonOption, err, out, print_json
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
from node.cli.model import ModelOption, TaskOption, build_fuser, describe_model, get_model

if TYPE_CHECKING:
    from workloads.evaluation import Estimate, Evaluation

CsvOption = Annotated[Path | None, typer.Option("--csv", help="CSV of every pair and method")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Self-contained HTML page: tables, pictures, provenance")
]
PictureOption = Annotated[Path | None, typer.Option("--picture", help="PNG of pairs by all methods")]
CountOption = Annotated[int, typer.Option("--pictures", help="How many pairs are shown", min=1, max=100)]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the intervals", min=0)]


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
    csv: CsvOption = None,
    report: ReportOption = None,
    picture: PictureOption = None,
    pictures: CountOption = 6,
    seed: SeedOption = 0,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Fusion metrics of a model beside average, pixel maximum and Laplacian pyramid.

    Means over pairs with 95 % intervals by bootstrap over patients, and differences from the pixel maximum on
    the same pairs. Higher is better; EN, SD, SF and AG also rise with noise. What can't be read or fused is
    left out and named at the end.
    """
    trained = get_model(model, task, api, config)
    from workloads.evaluation import evaluate_pairs, save_csv, save_picture, save_report
    from workloads.imaging import PairSource, load_pairs

    fuser = build_fuser(trained)
    source = PairSource(
        first, second, manifest, modality, phantoms, phantom_seed, first_phantom, tuple(patient or ())
    )
    left_out: list[str] = []
    pairs = load_pairs(source, left_out)
    with _build_progress() as bar:
        line = bar.add_task("evaluating", total=len(pairs))

        def show(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        found = evaluate_pairs(
            fuser,
            pairs,
            seed=seed,
            pictures=pictures if report is not None or picture is not None else 0,
            left_out=left_out,
            progress=show,
        )
    if csv is not None:
        save_csv(csv, found.scores)
    if report is not None:
        save_report(report, found, f"Fusion quality of {trained.title}", describe_model(trained))
    if picture is not None:
        save_picture(picture, found)
    if json:
        print_json(describe_evaluation(found))
    else:
        print_evaluation(found)
        for path in (csv, report, picture):
            if path is not None:
                out.print(f"wrote {path}", soft_wrap=True)
    for reason in found.left_out:
        err.print(f"left out: {reason}", markup=False, soft_wrap=True)


def describe_evaluation(found: "Evaluation") -> dict[str, JsonValue]:
    """A JSON document: means, differences from the pixel maximum, figures by pair."""
    summary = found.summary
    return {
        "pairs": summary.pairs,
        "patients": summary.patients,
        "seed": summary.seed,
        "methods": _convert(summary.means),
        "differences_from_maximum": _convert(summary.differences),
        "scores": [
            {
                "pair": entry.name,
                "patient": entry.patient,
                "methods": {name: dict(asdict(figures)) for name, figures in entry.methods.items()},
            }
            for entry in found.scores
        ],
        "left_out": list(found.left_out),
    }


def print_evaluation(found: "Evaluation") -> None:
    """Two tables: means by method, and differences from the pixel maximum."""
    summary = found.summary
    single = summary.patients < 2
    intervals = "" if single else ", with 95 % intervals"
    out.print(_build_table(f"Means over {summary.extent}{intervals}", summary.means, signed=False))
    if summary.differences:
        title = "Above the pixel maximum on the same pairs"
        note = "" if single else "; *: the interval excludes 0"
        out.print(_build_table(title + note, summary.differences, signed=True))
    if summary.caution is not None:
        out.print(summary.caution)


def _build_table(title: str, rows: "Mapping[str, Mapping[str, Estimate]]", *, signed: bool) -> Table:
    table = Table("metric", title=title, title_justify="left", header_style="bold")
    for method in rows:
        table.add_column(method, justify="right", no_wrap=True)
    for metric in next(iter(rows.values())):
        table.add_row(metric, *(_format(row[metric], signed) for row in rows.values()))
    return table


def _format(estimate: "Estimate", signed: bool) -> str:
    """Mean, half the interval's width, and for a difference whether it is one."""
    mean = f"{estimate.mean:+.3f}" if signed else f"{estimate.mean:.3f}"
    if estimate.low is None or estimate.high is None:
        return mean
    star = ("*" if estimate.excludes_zero else " ") if signed else ""
    return f"{mean} ±{(estimate.high - estimate.low) / 2:.3f}{star}"


def _convert(table: "Mapping[str, Mapping[str, Estimate]]") -> dict[str, JsonValue]:
    return {
        method: {metric: dict(asdict(estimate)) for metric, estimate in row.items()}
        for method, row in table.items()
    }


def _build_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
