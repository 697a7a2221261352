"""Which files run first: they are dealt out to the cores in this order (`make test`), and one that takes
long but begins last leaves the other cores idle.
"""

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is a matter of the machine, and of what else runs on it.
settings.register_profile("bmif", deadline=None)
settings.load_profile("bmif")

FOLDER = Path(__file__).parent
FIRST = (
    "testnet/test_faults.py",
    "he/test_training.py",  # between them, so that two testnets seldom run at once
    "testnet/test_mining.py",
    "integration/test_crash_matrix.py",
    "testnet/test_explorer.py",
    "integration/test_damaged_ledger.py",
    "testnet/",
    "unit/benchmarks/",
    "he/",
    "integration/test_hostile_claims.py",
    "integration/test_adversaries.py",
    "integration/test_mining_leases.py",
    "simulation/",
    "integration/",
    "fuzz/",
    "realdata/",
    "property/",
    "unit/fusion_model/",
    "unit/workloads/",
    "unit/keys/",
    "unit/node_api/",
)
"""Beginnings of paths, the longest files first; what is not named takes moments."""


def get_rank(path: Path) -> int:
    """The place of a file among those that run first, behind all of them where it is not named."""
    name = path.relative_to(FOLDER).as_posix()
    return next((rank for rank, beginning in enumerate(FIRST) if name.startswith(beginning)), len(FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order within a file stays."""
    items.sort(key=lambda item: get_rank(item.path))
