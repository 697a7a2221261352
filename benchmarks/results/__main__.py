"""`python -m benchmarks.results`: real pairs, mined under encryption, with the tables of docs/RESULTS.md.

`BMIF_DATA=FOLDER` must hold `fusion/manifest.csv` (columns id, modality, file_a, file_b and the patient).
Without options one fold of one modality is mined and its table printed. `--full` mines every fold of every
modality that `out/results` does not have yet, trains the full networks, and renews docs/RESULTS.md. A fold
that fails is told of and left out; the exit code is then 1, and a second start tries it again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from benchmarks.results.cases import CASES, CONVERGENCE, CONVERGENCE_LASTS, LASTS, Case, compute_digest
from benchmarks.results.folds import Fold, build_folds
from benchmarks.results.full import FullSettings, train_full
from benchmarks.results.mining import NODES, TOLERANCE, Mined, mine_fold
from benchmarks.results.page import SHOWN, Entry, write_page
from benchmarks.results.scoring import Scored, score_modality
from benchmarks.testbed import Testbed, TestbedError, console, get_cores
from fusion_model.backbone import Backbone
from fusion_model.importers.png import import_manifest
from node.api.client import ApiError
from workloads.base import WorkloadError

HOSPITALS = ("node2", "node3")
"""Nodes that contribute."""
OUT = Path(__file__).parents[2] / "out" / "results"
MIN_FALL = 1.5
FAILURES = (TestbedError, ApiError, WorkloadError, OSError, ValueError, RuntimeError)
"""What a fold may end with without ending the others."""


@dataclass(slots=True)
class Plan:
    """A modality's folds, and those that are mined so far."""

    case: Case
    digest: str
    folds: tuple[Fold, ...]
    mined: list[Mined]
    lasts: tuple[float, ...] = LASTS
    """Of the ladder."""


def find_manifest() -> Path:
    """The manifest in the data folder. Raises TestbedError naming the setting."""
    folder = os.environ.get("BMIF_DATA", "")
    manifest = Path(folder) / "fusion" / "manifest.csv"
    if not folder or not manifest.is_file():
        raise TestbedError("BMIF_DATA must name a folder that holds fusion/manifest.csv; see README.md")
    return manifest.resolve()


def check_fold(mined: Mined) -> None:
    """Raises TestbedError if the task is not what was promised."""
    first, last = mined.losses[0].opened, mined.losses[-1].opened
    if first < MIN_FALL * last:
        raise TestbedError(f"the loss fell {first / last:.2f}-fold, at least {MIN_FALL} was expected")


def mine(plan: Plan, fold: Fold, manifest: Path, options: argparse.Namespace) -> Mined:
    """The fold as it was kept, else mined now on a testnet of its own."""
    path = OUT / f"{plan.case.modality}-{fold.number}-{plan.digest}.json"
    if path.exists() and not options.anew:
        return Mined.load(path)
    bed = Testbed(options.dir.resolve())
    bed.clear()
    try:
        mined = mine_fold(bed, plan.case, fold, manifest, options.base_port, plan.digest, plan.lasts)
    finally:
        if not options.keep:
            bed.clear()
    check_fold(mined)
    mined.save(path)
    console.print(
        f"{plan.case.label}, fold {fold.number}: {mined.steps} steps in {mined.seconds:.0f} s, "
        f"{mined.rungs_settled} of {mined.rungs} rungs, "
        f"weights within {mined.largest_difference:.1e} of the twin's",
        soft_wrap=True,
    )
    return mined


def mine_all(plans: Sequence[Plan], manifest: Path, options: argparse.Namespace) -> list[str]:
    """Mines every fold; returns what failed, in words."""
    failures = []
    for plan in plans:
        for fold in plan.folds:
            try:
                plan.mined.append(mine(plan, fold, manifest, options))
            except FAILURES as error:
                failures.append(f"{plan.case.label}, fold {fold.number}: {error}")
                console.print(f"[bold red]failed:[/] {failures[-1]}", soft_wrap=True)
    return failures


def train_networks(plan: Plan, manifest: Path, settings: FullSettings) -> dict[int, Backbone]:
    """The full network of every fold that was mined."""
    begun = time.monotonic()
    mined = {fold.fold for fold in plan.mined}
    folds = [fold for fold in plan.folds if fold.number in mined]
    found = train_full(manifest, plan.case.modality, folds, settings, OUT)
    console.print(f"{plan.case.modality}: full networks in {time.monotonic() - begun:.0f} s")
    return found


def score(plan: Plan, manifest: Path, full: dict[int, Backbone]) -> Scored:
    return score_modality(plan.case.modality, import_manifest(manifest, plan.case.modality), plan.mined, full)


def write(
    plans: Sequence[Plan],
    manifest: Path,
    full: dict[str, dict[int, Backbone]],
    convergence: Sequence[Mined],
    note: str = "",
) -> None:
    """The page, of what there is so far."""
    entries = []
    for plan in plans:
        if plan.mined:
            there = {fold.fold for fold in plan.mined}
            failed = tuple(fold.number for fold in plan.folds if fold.number not in there)
            scored = score(plan, manifest, full.get(plan.case.modality, {}))
            entries.append(Entry(plan.case, plan.digest, scored, failed))
            if full:
                print_scores(scored)
    write_page(entries, note, convergence)


def print_scores(scored: Scored) -> None:
    shown = Table("method", *SHOWN, "ahead", title=f"{scored.modality}: means over {scored.summary.extent}")
    for name, estimates in scored.summary.means.items():
        figures = (f"{estimates[metric].mean:.3f}" for metric in SHOWN)
        shown.add_row(name, *figures, str(scored.count_ahead(name)))
    console.print(shown)
    for fold in scored.folds:
        console.print(
            f"fold {fold.fold}, {fold.steps} steps in {fold.seconds:.0f} s, converged {fold.converged:.6f}; "
            "losses opened (twin's, without noise)"
        )
        losses = (f"{p.step}: {p.opened:.6f} ({p.twin:.6f}, {p.noiseless:.6f})" for p in fold.losses)
        console.print(f"  {', '.join(losses)}", soft_wrap=True)
        console.print(f"  largest difference of a weight from the twin's: {fold.largest_difference:.2e}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path("run/results"), help="directory of testnets (replaced)"
    )
    parser.add_argument("--base-port", type=int, default=8300, help="first of nine ports")
    parser.add_argument("--modality", nargs="+", choices=[case.modality for case in CASES], help="only these")
    parser.add_argument("--fold", type=int, nargs="+", help="only these folds")
    parser.add_argument("--full", action="store_true", help="every fold, the full network, and the page")
    settings = FullSettings()
    parser.add_argument("--full-width", type=int, default=settings.width, help="channels of the full network")
    parser.add_argument("--full-steps", type=int, default=settings.steps, help="its steps of training")
    parser.add_argument("--steps", type=int, help="another number of encrypted steps")
    parser.add_argument("--noiseless", action="store_true", help="without the noise of privacy")
    parser.add_argument("--anew", action="store_true", help="mine again what out/results has")
    parser.add_argument("--keep", action="store_true", help="leave the last testnet's directory")
    return parser.parse_args()


def build_plans(manifest: Path, options: argparse.Namespace) -> list[Plan]:
    cases = sorted(
        (case for case in CASES if options.modality is None or case.modality in options.modality),
        key=lambda case: options.modality.index(case.modality) if options.modality else 0,
    )
    if not options.full and options.modality is None:
        cases = cases[-1:]  # a network of 1x1 kernels: three minutes
    plans = []
    for case in cases:
        if options.steps is not None:
            case = replace(case, schedule=replace(case.schedule, steps=options.steps))
        if options.noiseless:
            case = replace(case, schedule=replace(case.schedule, noise=0.0, loss_noise=0.0))
        folds = build_folds([pair.patient for pair in import_manifest(manifest, case.modality)], HOSPITALS)
        if options.fold is not None or not options.full:
            folds = tuple(fold for fold in folds if fold.number in (options.fold or [0]))
        plans.append(Plan(case, compute_digest(case, TOLERANCE, NODES), folds, []))
    return plans


def build_convergence(manifest: Path) -> Plan:
    """One fold of a task that shows how many steps it takes."""
    case = CONVERGENCE
    folds = build_folds([pair.patient for pair in import_manifest(manifest, case.modality)], HOSPITALS)
    return Plan(case, compute_digest(case, TOLERANCE, NODES), folds[:1], [], CONVERGENCE_LASTS)


def main() -> None:
    options = parse_options()
    begun = time.monotonic()
    try:
        manifest = find_manifest()
        plans = build_plans(manifest, options)
        failures = mine_all(plans, manifest, options)
        if options.full:
            extra = build_convergence(manifest)
            failures += mine_all([extra], manifest, options)
            write(plans, manifest, {}, extra.mined)  # whatever becomes of the networks
            settings = FullSettings(options.full_width, options.full_steps)
            full = {plan.case.modality: train_networks(plan, manifest, settings) for plan in plans}
            write(plans, manifest, full, extra.mined, f"The full network has {settings.label}.")
        else:
            for plan in plans:
                if plan.mined:
                    print_scores(score(plan, manifest, {}))
    except TestbedError as error:
        failures = [str(error)]
    for failure in failures:
        console.print(f"[bold red]failed:[/] {failure}", soft_wrap=True)
    console.print(f"results in {time.monotonic() - begun:.0f} s on {get_cores()} cores")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
