"""What the experiment trains, on what, and how images are dealt; all choices of it in one place.

Nothing here loads torch or the encryption library.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.capsnet_data import CapsuleData, build_chest_phantoms, deal_groups, load_capsule_data

OUT = Path(__file__).parents[2] / "out" / "federation"

CONFIG = CapsuleConfig(side=64, channels=(16, 32), strides=(2, 2, 2))
LOCAL = LocalSettings(epochs=4, batch=16, rate=1e-3, decay=1e-2, shift=4, contrast=0.3)
ROUNDS = 9
"""Other arms train as many epochs as all rounds have together."""
HOSPITALS = 4
SEED = 0

_EIGHTHS = 8
VALIDATION = (2, 3)
"""Eighths of the groups on which everything was chosen; never trained on, never tested on."""
TESTS = ((0, 1), (4, 5), (6, 7))
"""Eighths that each fold tests on; it trains on the other two folds'."""

Shares = tuple[tuple[float, float], ...]
SHARES: dict[str, Shares] = {
    "IID": ((0.25, 0.25),) * HOSPITALS,
    "skewed": ((0.05, 0.45), (0.05, 0.45), (0.45, 0.05), (0.45, 0.05)),
}
"""Of the images of label 0 and of label 1, for each hospital."""

PHANTOM_CONFIG = CapsuleConfig(side=32, channels=(16, 32), strides=(2, 1, 2), segmentation=True)
PHANTOM_LOCAL = LocalSettings(epochs=4, batch=8, rate=2e-3, shift=2, contrast=0.2)
PHANTOM_ROUNDS = 10
PHANTOM_SEED = 1
PHANTOMS = (160, 80)
"""Patients to train on, and to test on."""


@dataclass(frozen=True, slots=True)
class Study:
    """One split with its network."""

    config: CapsuleConfig
    local: LocalSettings
    rounds: int
    seed: int
    train: CapsuleData
    val: CapsuleData
    test: CapsuleData

    def deal(self, kind: str) -> list[CapsuleData]:
        """The hospitals' own images, whole groups to each."""
        return deal_groups(self.train, SHARES[kind], self.seed + 1)


def build_study(path: Path, fold: int) -> Study:
    """Of the given fold of COVID-CT."""
    eighths = deal_groups(
        load_capsule_data(path, CONFIG.side), ((1 / _EIGHTHS, 1 / _EIGHTHS),) * _EIGHTHS, SEED
    )
    training = [part for number, parts in enumerate(TESTS) if number != fold for part in parts]
    train, val, test = (
        join([eighths[part] for part in parts]) for parts in (training, VALIDATION, TESTS[fold])
    )
    return Study(CONFIG, LOCAL, ROUNDS, SEED + fold, train, val, test)


def build_phantom_study() -> Study:
    """Phantoms with known masks. No threshold is chosen on them: the validation part is the training part."""
    train = build_chest_phantoms(PHANTOM_SEED, PHANTOMS[0], PHANTOM_CONFIG.side)
    test = build_chest_phantoms(PHANTOM_SEED, PHANTOMS[1], PHANTOM_CONFIG.side, first_patient=PHANTOMS[0])
    return Study(PHANTOM_CONFIG, PHANTOM_LOCAL, PHANTOM_ROUNDS, SEED, train, train, test)


def join(parts: list[CapsuleData]) -> CapsuleData:
    """All images of the parts, without masks."""
    return CapsuleData(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )
