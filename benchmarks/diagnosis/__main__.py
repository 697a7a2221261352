"""`BMIF_DATA=FOLDER python -m benchmarks.diagnosis [--write]`: encrypted diagnosis of pneumonia, measured.

`FOLDER/diagnosis/pneumonia_28.npz` has the splits. Networks are trained, planned, and evaluated on
ciphertexts, each in a process of its own: the training and the encryption library are never in one. What
`out/diagnosis` has already is kept; `--anew` makes all of it again. `--write` renews docs/DIAGNOSIS.md.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.diagnosis.encrypted import Measured
from benchmarks.diagnosis.page import build_page
from benchmarks.diagnosis.stages import OUT, apart, evaluate, plan_rows, train
from benchmarks.timing import Timing, get_machine
from he.program import PACKINGS, WEIGHT_KINDS, Packing, WeightKind

PAGE = Path(__file__).parents[2] / "docs" / "DIAGNOSIS.md"


def find_data() -> Path:
    folder = os.environ.get("BMIF_DATA", "")
    path = Path(folder) / "diagnosis" / "pneumonia_28.npz"
    if not folder or not path.is_file():
        raise SystemExit("BMIF_DATA must name a folder that holds diagnosis/pneumonia_28.npz")
    return path


def get_path(blocks: int, packing: str, weights: str, fold: bool, absorb: bool) -> Path:
    return OUT / f"encrypted-{blocks}-{packing}-{weights}-{fold:d}{absorb:d}.json"


def get_evaluated(
    path: Path,
    blocks: int,
    packing: Packing,
    weights: WeightKind,
    fold: bool,
    absorb: bool,
    threshold: float,
    requests: int,
    kept: bool = False,
) -> Measured | None:
    """The figures as they were kept, else measured now; None, with a line that says why, if it can't be.

    If `kept`, None where there are none yet.
    """
    file = get_path(blocks, packing, weights, fold, absorb)
    if not file.exists() and kept:
        return None
    if not file.exists():
        print(f"{file.stem}: running", flush=True)
        found = apart(evaluate, path, blocks, packing, weights, fold, absorb, threshold, requests)
        if isinstance(found, str):
            print(f"{file.stem}: {found}", flush=True)
            return None
        file.write_text(json.dumps(asdict(found)))
    fields = json.loads(file.read_text())
    return Measured(
        **{
            name: Timing(**value)
            if isinstance(value, dict)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in fields.items()
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew docs/DIAGNOSIS.md")
    parser.add_argument("--anew", action="store_true", help="keep nothing of earlier runs")
    parser.add_argument("--kept", action="store_true", help="measure nothing that was not measured before")
    parser.add_argument(
        "--longest", type=float, default=40.0, help="ablation rows predicted longer are not run, seconds"
    )
    parser.add_argument("--requests", type=int, default=220, help="requests measured in single packing")
    options = parser.parse_args()
    path = find_data()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.anew:
        for file in OUT.iterdir():
            file.unlink()
    noted = OUT / "machine"
    if not (options.kept and noted.exists()):
        noted.write_text(get_machine())
    machine = noted.read_text()
    trained = apart(train, path)
    main_model = next(
        one for one in trained if (one.blocks, one.activation, one.seed) == (2, "polynomial", 0)
    )
    plans = apart(plan_rows, path)
    measured = [
        found
        for packing in PACKINGS
        for weights in WEIGHT_KINDS
        if (
            found := get_evaluated(
                *(path, 2, packing, weights, True, True, main_model.threshold),
                1 if packing == "batch" else options.requests,
                options.kept,
            )
        )
    ]
    ablation: dict[tuple[int, str, bool, bool], Measured] = {}
    for row in plans:
        key = (row.blocks, row.weights, row.fold, row.absorb)
        known = get_path(row.blocks, "batch", row.weights, row.fold, row.absorb).exists()
        if not row.refusal and row.asked_scale is None and (known or row.predicted_s <= options.longest):
            threshold = next(
                one.threshold
                for one in trained
                if (one.blocks, one.activation, one.seed) == (row.blocks, "polynomial", 0)
            )
            weights: WeightKind = "clear" if row.weights == "clear" else "encrypted"
            found = get_evaluated(
                path, row.blocks, "batch", weights, row.fold, row.absorb, threshold, 1, options.kept
            )
            if found:
                ablation[key] = found
    page = build_page(machine, trained, measured, plans, ablation)
    print(page)
    if options.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
