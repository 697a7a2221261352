"""Which files run first: they are dealt out to the cores in this order (`make test`), and one that takes
long but begins last leaves the other cores idle. And what they leave on the disk: nothing but what failed.
"""

import shutil
from collections.abc import Iterator
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


KEPT = "session-"
"""Beginning of the names of folders that fixtures of more than one file's tests make by `mktemp`."""


@pytest.fixture(scope="module", autouse=True)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes what a file's fixtures made, unless one of its tests failed: ledgers and keys of a whole run
    are tens of gigabytes. (`tmp_path` goes by `tmp_path_retention_policy`.)
    """
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(base.iterdir())
    yield
    if request.session.testsfailed == failed:
        for made in set(base.iterdir()) - before:
            if made.is_symlink():
                made.unlink()  # `mktemp` names the newest folder so
            elif made.is_dir() and not made.name.startswith(KEPT):
                shutil.rmtree(made)
