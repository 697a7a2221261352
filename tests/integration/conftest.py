"""What the integration tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.work import WorkerPool
from tests.integration.bench import Bench
from tests.integration.material import Material, make_material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("session-material"))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One worker process for all cores of a module's tests."""
    made = WorkerPool(1)
    yield made
    made.close()


@pytest.fixture
async def bench(tmp_path: Path, material: Material, pool: WorkerPool) -> Bench:
    """With an open task."""
    made = Bench(tmp_path, pool)
    await made.publish(material)
    return made
