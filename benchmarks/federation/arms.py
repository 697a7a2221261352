"""Training of every arm; for processes that load torch and never the encryption library.

An arm begins with the same weights and, in a federation, hospital i draws the same batches in round r.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.federation.scores import Scored
from benchmarks.federation.setting import Study, build_phantom_study, build_study
from workloads.capsnet_data import CapsuleData
from workloads.capsnet_training import build_initial, compute_dice, predict, train_local

Flat = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm's networks (one, or one for each hospital) say, and what training cost."""

    networks: tuple[Scored, ...]
    dice: tuple[tuple[float, ...], ...]
    """Of each network, of each test image with the finding; empty without masks."""
    outside: tuple[float, ...]
    """Of each network: share of pixels drawn in test images without the finding; empty without masks."""
    cpu_s: float


def get_study(path: Path, fold: int) -> Study:
    """Fold -1 is the phantoms."""
    return build_phantom_study() if fold < 0 else build_study(path, fold)


def train_central(path: Path, fold: int) -> Outcome:
    """All hospitals' images in one place."""
    study = get_study(path, fold)
    started = time.process_time()
    flat = _train_alone(study, study.train, 0)
    return evaluate(study, [flat], time.process_time() - started)


def train_apart(path: Path, fold: int, kind: str) -> Outcome:
    """Each hospital with its own images only."""
    study = get_study(path, fold)
    started = time.process_time()
    flats = [_train_alone(study, data, number) for number, data in enumerate(study.deal(kind))]
    return evaluate(study, flats, time.process_time() - started)


def train_averaged(path: Path, fold: int, kind: str) -> Outcome:
    """Plain federated averaging in single precision: the reference of the encrypted one."""
    study = get_study(path, fold)
    started = time.process_time()
    hospitals = study.deal(kind)
    weights = np.array([len(data) for data in hospitals], dtype=np.float64)
    flat = build_initial(study.config, study.seed)
    for number in range(study.rounds):
        trained = train_round(study, hospitals, flat, number)
        # As the published algorithm: the mean weighed by images.
        mean = sum(one.astype(np.float64) * weight for one, weight in zip(trained, weights, strict=True))
        flat = np.asarray(mean / weights.sum(), dtype=np.float32)
    return evaluate(study, [flat], time.process_time() - started)


def train_round(study: Study, hospitals: Sequence[CapsuleData], flat: Flat, number: int) -> list[Flat]:
    """Each hospital's weights after its local epochs of a round."""
    return [
        train_local(study.config, flat, data, study.local, get_seed(study, number, hospital))
        for hospital, data in enumerate(hospitals)
    ]


def get_seed(study: Study, number: int, hospital: int) -> int:
    """Of a hospital's batches in a round."""
    return study.seed * 100_000 + number * 100 + hospital


def evaluate(study: Study, flats: Sequence[Flat], cpu_s: float) -> Outcome:
    networks, dice, outside = [], [], []
    for flat in flats:
        val, test = (predict(study.config, flat, part.images) for part in (study.val, study.test))
        networks.append(
            Scored(tuple(val.compute_suspicion().tolist()), tuple(test.compute_suspicion().tolist()))
        )
        if test.masks is not None and study.test.masks is not None:
            sick = study.test.labels == 1
            dice.append(tuple(compute_dice(test.masks[sick], study.test.masks[sick]).tolist()))
            outside.append(float((test.masks[~sick] >= 0.5).mean()))
    return Outcome(tuple(networks), tuple(dice), tuple(outside), cpu_s)


def _train_alone(study: Study, data: CapsuleData, hospital: int) -> Flat:
    """In stretches as long as a federation's rounds, whose optimiser begins anew alike."""
    flat = build_initial(study.config, study.seed)
    for number in range(study.rounds):
        flat = train_local(study.config, flat, data, study.local, get_seed(study, number, hospital))
    return flat
