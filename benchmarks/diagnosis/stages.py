"""What the benchmark does in processes of their own: the training and the encryption library never meet."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.diagnosis.encrypted import Measured, Planned, plan_row, run
from benchmarks.diagnosis.trained import SEEDS, Trained, get_network_path, train_all
from he.autoplan import PlanRefused
from he.errors import HeError
from he.network import decode
from he.program import WEIGHT_KINDS, Packing, WeightKind
from workloads.diagnosis_data import load_data

P = ParamSpec("P")
T = TypeVar("T")
OUT = Path(__file__).parents[2] / "out" / "diagnosis"
SWITCHES = ((False, False), (True, False), (False, True), (True, True))
FINE_SCALE_BITS = 40


def apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call in a fresh process, which ends after it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args, **kwargs).result()


def train(path: Path) -> list[Trained]:
    return train_all(load_data(path), OUT)


def evaluate(
    path: Path,
    blocks: int,
    packing: Packing,
    weights: WeightKind,
    fold: bool,
    absorb: bool,
    threshold: float,
    requests: int,
) -> Measured | str:
    """Figures, or why there are none."""
    data = load_data(path)
    network = decode(get_network_path(OUT, blocks).read_bytes())
    try:
        return run(
            network,
            data.train,
            data.test,
            threshold,
            packing,
            weights,
            fold=fold,
            absorb=absorb,
            requests=requests,
        )
    except (PlanRefused, HeError) as error:
        return str(error)


def plan_rows(path: Path) -> list[Planned]:
    data = load_data(path)
    return [
        plan_row(
            decode(get_network_path(OUT, blocks).read_bytes()),
            blocks,
            data.train,
            weights,
            fold,
            absorb,
            scale_bits,
        )
        for scale_bits in (None, FINE_SCALE_BITS)
        for blocks in SEEDS
        for weights in WEIGHT_KINDS
        for fold, absorb in SWITCHES
    ]
