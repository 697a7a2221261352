"""`BMIF_DATA=FOLDER python -m benchmarks.federation [--write]`: federated capsule networks, measured.

`FOLDER/diagnosis/covid_ct_64.npz` has the images. Every arm of every fold runs in a process of its own, in
which training and the encryption library never meet, and leaves its results in `out/federation`, where what
is finished is not repeated; `--anew` makes all of it again. `--write` renews docs/FEDERATED.md.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.diagnosis.stages import apart
from benchmarks.federation.arms import Outcome, train_apart, train_averaged, train_central
from benchmarks.federation.encrypted import Encrypted, run_encrypted
from benchmarks.federation.page import Dealt, Everything, build_page
from benchmarks.federation.scores import Scored, Truth, compute_figures
from benchmarks.federation.setting import OUT, SEED, SHARES, TESTS, build_study
from benchmarks.timing import get_machine
from workloads.capsnet_data import CapsuleData

PAGE = Path(__file__).parents[2] / "docs" / "FEDERATED.md"
ARMS = (
    "central",
    *(f"{arm}-{kind}" for kind in SHARES for arm in ("apart", "averaged", "encrypted")),
)
PHANTOM_ARMS = ("central", "encrypted-skewed", "encrypted-IID", "averaged-IID")
PHANTOMS = -1


def find_data() -> Path:
    folder = os.environ.get("BMIF_DATA", "")
    path = Path(folder) / "diagnosis" / "covid_ct_64.npz"
    if not folder or not path.is_file():
        raise SystemExit("BMIF_DATA must name a folder that holds diagnosis/covid_ct_64.npz")
    return path


def get_file(arm: str, fold: int) -> Path:
    return OUT / f"{arm}-{'phantoms' if fold == PHANTOMS else fold}.json"


def get_outcome(path: Path, arm: str, fold: int) -> tuple[Outcome, Encrypted | None]:
    """As it was kept, else made now."""
    file = get_file(arm, fold)
    if not file.exists():
        print(f"{file.stem}: running", flush=True)
        outcome, encrypted = _run(path, arm, fold)
        fields = {"outcome": asdict(outcome), "encrypted": asdict(encrypted) if encrypted else None}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(fields))
        os.replace(part, file)
        print(f"{file.stem}: {outcome.cpu_s:.0f} s of processor time", flush=True)
    fields = json.loads(file.read_text())
    kept = fields["outcome"]
    outcome = Outcome(
        tuple(Scored(tuple(one["val"]), tuple(one["test"])) for one in kept["networks"]),
        tuple(tuple(one) for one in kept["dice"]),
        tuple(kept["outside"]),
        kept["cpu_s"],
    )
    return outcome, Encrypted(**fields["encrypted"]) if fields["encrypted"] else None


def _run(path: Path, arm: str, fold: int) -> tuple[Outcome, Encrypted | None]:
    name, _, kind = arm.partition("-")
    if name == "encrypted":
        return apart(run_encrypted, path, fold, kind)
    if name == "central":
        return apart(train_central, path, fold), None
    return apart(train_apart if name == "apart" else train_averaged, path, fold, kind), None


def describe_dealing(path: Path, fold: int) -> tuple[Dealt, Truth]:
    study = build_study(path, fold)
    groups = [len(np.unique(part.groups)) for part in (study.train, study.val, study.test)]
    dealt = Dealt(
        {kind: [_count(data) for data in study.deal(kind)] for kind in SHARES},
        _count(study.train),
        _count(study.val),
        _count(study.test),
        (groups[0], groups[1], groups[2]),
    )
    return dealt, Truth(study.val.labels, study.test.labels, study.test.groups)


def _count(data: CapsuleData) -> tuple[int, int]:
    without, having = np.bincount(data.labels, minlength=2).tolist()
    return without, having


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew docs/FEDERATED.md")
    parser.add_argument("--anew", action="store_true", help="keep nothing of earlier runs")
    parser.add_argument("--kept", action="store_true", help="train nothing; leave out what is not finished")
    options = parser.parse_args()
    path = find_data()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.anew:
        for file in OUT.iterdir():
            file.unlink()
    machine = get_machine()
    print(f"seed {SEED}", flush=True)
    found = [describe_dealing(path, fold) for fold in range(len(TESTS))]
    folds = range(len(TESTS))

    def is_wanted(arm: str, *needed: int) -> bool:
        return not options.kept or all(get_file(arm, fold).exists() for fold in needed)

    outcomes = {
        arm: [get_outcome(path, arm, fold) for fold in folds] for arm in ARMS if is_wanted(arm, *folds)
    }
    phantoms = {arm: get_outcome(path, arm, PHANTOMS) for arm in PHANTOM_ARMS if is_wanted(arm, PHANTOMS)}
    figures = {
        arm: compute_figures(
            [truth for _, truth in found],
            {fold: outcome.networks for fold, (outcome, _) in enumerate(each)},
            SEED,
        )
        for arm, each in outcomes.items()
    }
    page = build_page(
        Everything(
            machine,
            [dealt for dealt, _ in found],
            figures,
            {arm: sum(outcome.cpu_s for outcome, _ in each) for arm, each in outcomes.items()},
            {
                arm.partition("-")[2]: [one for _, one in each if one is not None]
                for arm, each in outcomes.items()
                if arm.startswith("encrypted-")
            },
            {arm: outcome for arm, (outcome, _) in phantoms.items()},
            {arm.partition("-")[2]: one for arm, (_, one) in phantoms.items() if one is not None},
        )
    )
    print(page)
    if options.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
