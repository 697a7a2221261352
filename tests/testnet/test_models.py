"""Networks of other shapes, with planes and targets from whole pairs: drafted, encrypted, checked, mined."""

from collections.abc import Iterator

import pytest

from tests.testnet.fleet import Fleet, Recipe, run_fleet
from workloads.fusion import FusionSpec

NAMES = ("node1", "node2", "node3")
"""node1 is the custody, node2 mines and contributes."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with run_fleet(tmp_path_factory.mktemp("models") / "fleet", 3, 1, NAMES) as running:
        yield running


@pytest.mark.slow
def test_inception_branches_a_plane_and_energy_targets_are_mined(fleet: Fleet) -> None:
    """The clear twin's losses are .048, .038, .024, .011: one step at least is mined for each rung."""
    options = ("--kernels", "1,3", "--planes", "saliency", "--target", "energy")
    task = fleet.publish(Recipe(("0.043:1000", "0.03:500"), learning_rate=0.08, model=options))
    fleet.wait_complete(task, "node3")
    fleet.wait_agreement(NAMES)
    fleet.wait_recomputed(task, NAMES)
    client = fleet.api("node3")
    model = client.call(client.api.get_model(task))
    spec = FusionSpec(5, (1, 3), 3, ("saliency",), 1, "mean", "energy")
    assert bytes.fromhex(model.specification) == spec.encode()
    assert len(model.weights) == spec.parameters
    losses = [o.loss_value for o in fleet.get_openings("node3", task) if o.kind == "loss"]
    assert losses[0] == pytest.approx(0.048, rel=0.05)
    assert losses[-1] is not None
    assert losses[-1] <= 0.03
