"""The demo on real MRI-CT pairs, split by patient, with the metric table of what was mined.

`BMIF_DATA=FOLDER python -m benchmarks.results` expects FOLDER/fusion/manifest.csv (columns id, modality,
file_a, file_b and the patient). Two hospitals contribute three patients each, one of them held for
validation; two more patients are seen by nobody before the metrics. `--write` renews docs/RESULTS.md.
"""

import argparse
import multiprocessing
import os
import platform
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.table import Table

from benchmarks.demo import check_run, print_run
from benchmarks.testbed import Contributor, Recipe, Run, Testbed, TestbedError, console, get_cores
from benchmarks.twin import collect_twin
from consensus.task import Draft, PublishTask
from consensus.types import Hash32
from fusion_model.train import TrainingStep
from node.api.client import SyncClient
from node.api.payloads import build_core
from node.api.task_payloads import PublishPayload
from workloads.imaging import PairSource, evaluate_pairs, load_pairs

MODALITY = "MRI-CT"
HOSPITALS = (("node2", (2, 20, 28)), ("node3", (32, 33, 34)))
"""Patients of each hospital; the last is held for validation."""
TEST_PATIENTS = (37, 41)
RUNGS = ("0.0275:1000", "0.011:1000", "0.007:1000", "0.0055:2000", "0.0049:3000")
MIN_FALL = 2.5
SHOWN = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM", "SSIM2")
RESULTS = Path(__file__).parent.parent / "docs" / "RESULTS.md"


def find_manifest() -> Path:
    """The manifest in the data folder. Raises TestbedError naming the setting."""
    folder = Path(os.environ.get("BMIF_DATA", ""))
    manifest = folder / "fusion" / "manifest.csv"
    if not os.environ.get("BMIF_DATA") or not manifest.is_file():
        raise TestbedError("BMIF_DATA must name a folder that holds fusion/manifest.csv; see README.md")
    return manifest.resolve()


def build_recipe(manifest: Path) -> Recipe:
    contributors = tuple(
        Contributor(node, PairSource(manifest=manifest, modality=MODALITY, patients=patients), 1)
        for node, patients in HOSPITALS
    )
    return Recipe("MRI-CT fusion", contributors, RUNGS)


def run_task_twin(client: SyncClient, transaction: str, recipe: Recipe, last: int) -> list[TrainingStep]:
    """The clear twin of a published task, up to step `last`."""
    found = client.call(client.api.get_transaction(transaction)).transaction.payload
    if not isinstance(found, PublishPayload):
        raise TestbedError("the task's publication is no publication")
    publication = build_core(PublishTask, found)
    draft = build_core(Draft, client.call(client.api.get_draft(Hash32(publication.draft).hex())).draft)
    contributions = [(c.source, c.validation_patients) for c in recipe.contributors]
    # In a process of its own: the twin's data come by way of the encryption library, which must not
    # share a process with torch (see workloads/imaging.py).
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        job = pool.submit(collect_twin, draft, publication, contributions, secrets.token_bytes(32), last)
        return job.result()


def print_losses(run: Run, twin: Sequence[TrainingStep]) -> list[tuple[int, float, float]]:
    """Opened losses beside the twin's clear ones."""
    clear = {step.step: step.loss for step in twin if step.loss is not None}
    rows = [(o.step, o.loss_value or 0.0, clear[o.step] or 0.0) for o in run.losses]
    table = Table("step", "mined, opened with noise", "clear twin")
    for step, opened, own in rows:
        table.add_row(str(step), f"{opened:.6f}", f"{own:.6f}")
    console.print(table)
    return rows


def write_results(
    run: Run, rows: Sequence[tuple[int, float, float]], table: dict[str, dict[str, float]], pairs: int
) -> None:
    """docs/RESULTS.md, wholly made here."""
    lines = [
        "# Results on real images",
        "",
        f"Made by `make results ARGS=--write` on {get_cores()} cores ({platform.machine()}, "
        f"Python {platform.python_version()}).",
        "",
        f"{MODALITY} pairs of the Harvard Whole Brain Atlas, split by patient. Two hospitals contribute one "
        "encrypted training and one encrypted validation batch of 8192 patches each; patients "
        f"{', '.join(map(str, TEST_PATIENTS))} ({pairs} pairs) are seen by nobody before the metrics below.",
        "",
        f"The task was mined to its last of {run.task.rungs} milestones in "
        f"{run.task.gradient_openings.spent} steps and {run.seconds:.0f} s; the opened validation loss fell "
        f"{run.fall:.1f}-fold.",
        "",
        "| step | mined, opened with noise | clear twin |",
        "|---|---|---|",
        *(f"| {step} | {opened:.6f} | {own:.6f} |" for step, opened, own in rows),
        "",
        "The twin trains in clear on the same data with the same weights, order, clip, optimiser and "
        "strength of noise, and draws of its own.",
        "",
        "| method | " + " | ".join(SHOWN) + " |",
        "|---|" + "---|" * len(SHOWN),
        *(
            f"| {name} | " + " | ".join(f"{means[metric]:.3f}" for metric in SHOWN) + " |"
            for name, means in table.items()
        ),
        "",
        "Higher is better. SSIM2 is the published tables' variant (data range 2), kept for comparison only.",
        "",
        "What this says: training under encryption costs no quality against its clear twin. What it does not "
        "say: that the small network is the best there is. Pixel maximum still leads on MI, VIF and Qabf; "
        "the targets and inputs limit the network more than its size does.",
        "",
    ]
    if run.task.privacy is not None:
        lines += ["Privacy: " + run.task.privacy.statement, ""]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path("run/results"), help="directory of the testnet (replaced)"
    )
    parser.add_argument("--base-port", type=int, default=8300, help="first of twelve ports")
    parser.add_argument("--timeout", type=float, default=1500, help="longest mining, seconds")
    parser.add_argument("--write", action="store_true", help="renew docs/RESULTS.md")
    options = parser.parse_args()
    bed = Testbed(options.dir.resolve())
    failed = True
    try:
        manifest = find_manifest()
        bed.clear()
        begun = time.monotonic()
        bed.start(4, 2, options.base_port)
        recipe = build_recipe(manifest)
        published = bed.publish(recipe)
        task = published.task
        run = bed.mine(task, "node2", options.timeout)
        print_run(run)
        bed.check_agreement(task)
        with bed.connect("node4") as client:
            model = client.call(client.api.get_model(task))
            twin = run_task_twin(client, published.transaction, recipe, run.losses[-1].step)
        rows = print_losses(run, twin)
        pairs = load_pairs(PairSource(manifest=manifest, modality=MODALITY, patients=TEST_PATIENTS))
        specification = bytes.fromhex(model.specification)
        mined = evaluate_pairs(specification, model.weights, pairs)
        own = evaluate_pairs(specification, twin[-1].weights, pairs)
        table = {"mined model": mined["model"], "clear twin": own["model"]}
        table |= {name: mined[name] for name in ("average", "maximum", "laplacian")}
        shown = Table("method", *SHOWN, title=f"means over {len(pairs)} pairs of unseen patients")
        for name, means in table.items():
            shown.add_row(name, *(f"{means[metric]:.3f}" for metric in SHOWN))
        console.print(shown)
        if options.write:
            write_results(run, rows, table, len(pairs))
        check_run(run, MIN_FALL)
        console.print(f"results in {time.monotonic() - begun:.0f} s on {get_cores()} cores")
        failed = False
    except TestbedError as error:
        console.print(f"[bold red]failed:[/] {error}", soft_wrap=True)
    finally:
        bed.clear()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
