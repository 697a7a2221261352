"""One testnet for the tests of this folder: four of its five nodes run, the fifth joins late."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.testnet.fleet import Fleet, Recipe, run_fleet

NAMES = ("node1", "node2", "node3", "node4")
"""node1 is the custody, node2 and node3 mine."""
LATE = "node5"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with run_fleet(tmp_path_factory.mktemp("testnet") / "fleet", 5, 2, NAMES) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Mined:
    """A task that was mined to its last milestone, and the money before and after it."""

    task: str
    before: dict[str, int]
    after: dict[str, int]


@pytest.fixture(scope="module")
def mined(fleet: Fleet) -> Mined:
    """Four milestones; a loss that falls fast enough takes the last two at once."""
    before = fleet.count_money("node4")
    rungs = ("0.036:1000", "0.024:1001", "0.012:500", "0.0075:333")
    task = fleet.publish(Recipe(rungs, learning_rate=0.08))
    fleet.wait_complete(task)
    fleet.wait_agreement(NAMES)
    return Mined(task, before, fleet.count_money("node4"))
