"""`python -m benchmarks.results`: real pairs, mined under encryption, with the tables of docs/RESULTS.md.

`BMIF_DATA=FOLDER` must hold `fusion/manifest.csv` (columns id, modality, file_a, file_b and the patient).
Without options one fold of one modality is mined and its table printed. `--full` mines every fold of every
modality that `out/results` does not have yet, and renews docs/RESULTS.md.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from benchmarks.results.cases import CASES, Case
from benchmarks.results.folds import Fold, build_folds
from benchmarks.results.full import train_full
from benchmarks.results.mining import Mined, mine_fold
from benchmarks.results.page import SHOWN, write_page
from benchmarks.results.scoring import Scored, score_modality
from benchmarks.testbed import Testbed, TestbedError, console, get_cores
from fusion_model.importers.png import import_manifest

NODES = ("node2", "node3")
"""Hospitals that contribute."""
OUT = Path(__file__).parents[2] / "out" / "results"
MIN_FALL = 2.5


def find_manifest() -> Path:
    """The manifest in the data folder. Raises TestbedError naming the setting."""
    folder = os.environ.get("BMIF_DATA", "")
    manifest = Path(folder) / "fusion" / "manifest.csv"
    if not folder or not manifest.is_file():
        raise TestbedError("BMIF_DATA must name a folder that holds fusion/manifest.csv; see README.md")
    return manifest.resolve()


def get_folds(case: Case, manifest: Path) -> tuple[Fold, ...]:
    return build_folds([pair.patient for pair in import_manifest(manifest, case.modality)], NODES)


def get_path(case: Case, fold: Fold) -> Path:
    kind = "noisy" if case.schedule.noise else "noiseless"
    return OUT / f"{case.modality}-{fold.number}-{case.schedule.steps}-{kind}.json"


def check_fold(mined: Mined) -> None:
    """Raises TestbedError if the task is not what was promised."""
    first, last = mined.losses[0][1], mined.losses[-1][1]
    if first < MIN_FALL * last:
        raise TestbedError(f"the loss fell {first / last:.2f}-fold, at least {MIN_FALL} was expected")


def mine(case: Case, fold: Fold, manifest: Path, options: argparse.Namespace) -> Mined:
    """The fold as it was kept, else mined now on a testnet of its own."""
    path = get_path(case, fold)
    if path.exists() and not options.anew:
        return Mined.load(path)
    bed = Testbed(options.dir.resolve())
    bed.clear()
    try:
        bed.start(4, 2, options.base_port)
        mined = mine_fold(bed, case, fold, manifest)
    finally:
        bed.clear()
    check_fold(mined)
    mined.save(path)
    return mined


def run_case(case: Case, folds: tuple[Fold, ...], manifest: Path, options: argparse.Namespace) -> Scored:
    mined = [mine(case, fold, manifest, options) for fold in folds]
    full = {}
    if options.full:
        full = {
            fold.number: train_full(
                manifest, case.modality, fold, OUT / f"{case.modality}-{fold.number}-full.json"
            )
            for fold in folds
        }
    scored = score_modality(case.modality, import_manifest(manifest, case.modality), mined, full)
    print_scores(scored)
    return scored


def print_scores(scored: Scored) -> None:
    shown = Table("method", *SHOWN, title=f"{scored.modality}: means over {scored.summary.extent}")
    for name, estimates in scored.summary.means.items():
        shown.add_row(name, *(f"{estimates[metric].mean:.3f}" for metric in SHOWN))
    console.print(shown)
    for fold in scored.folds:
        losses = ", ".join(f"{step}: {opened:.5f} ({clear:.5f})" for step, opened, clear in fold.losses)
        console.print(
            f"fold {fold.fold}, {fold.steps} steps in {fold.seconds:.0f} s; losses opened (and twin's)"
        )
        console.print(f"  {losses}", soft_wrap=True)
        console.print(f"  largest difference of a weight from the twin's: {fold.largest_difference:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path("run/results"), help="directory of testnets (replaced)"
    )
    parser.add_argument("--base-port", type=int, default=8300, help="first of twelve ports")
    parser.add_argument("--modality", choices=[case.modality for case in CASES], help="only this one")
    parser.add_argument("--fold", type=int, nargs="+", help="only these folds")
    parser.add_argument("--full", action="store_true", help="every fold, the full network, and the page")
    parser.add_argument("--steps", type=int, help="another number of encrypted steps")
    parser.add_argument("--noiseless", action="store_true", help="without the noise of privacy")
    parser.add_argument("--anew", action="store_true", help="mine again what out/results has")
    options = parser.parse_args()
    cases = [case for case in CASES if options.modality in (None, case.modality)]
    if options.steps is not None:
        cases = [replace(case, schedule=replace(case.schedule, steps=options.steps)) for case in cases]
    if not options.full and options.modality is None:
        cases = cases[:1]
    try:
        manifest = find_manifest()
        begun = time.monotonic()
        entries = []
        for case in cases:
            if options.noiseless:
                case = replace(case, schedule=replace(case.schedule, noise=0.0, loss_noise=0.0))
            folds = get_folds(case, manifest)
            if options.fold is not None or not options.full:
                folds = tuple(fold for fold in folds if fold.number in (options.fold or [0]))
            entries.append((case, run_case(case, folds, manifest, options)))
        if options.full:
            write_page(entries, f"Folds: {', '.join(str(len(scored.folds)) for _, scored in entries)}.")
        console.print(f"results in {time.monotonic() - begun:.0f} s on {get_cores()} cores")
    except TestbedError as error:
        console.print(f"[bold red]failed:[/] {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
