"""A testnet of real processes passes a protocol upgrade; a node of older software stops before it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.task import Transfer
from consensus.types import Address, Amount
from node.processes import get_pid
from node.protocol import EXIT_UPGRADE, LIMIT_VARIABLE
from tests.testnet import fleet as fleets
from tests.testnet.fleet import Fleet, poll

pytestmark = pytest.mark.slow
NOTICE = 20
UPGRADED = ("node1", "node2", "node3")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    params = {**fleets.PROFILE["params"], "evidence_ms": 100 * NOTICE}  # type: ignore[dict-item]
    monkeypatch.setitem(fleets.PROFILE, "params", params)
    with fleets.run_fleet(tmp_path / "fleet", 4, 0, UPGRADED) as running:
        yield running


def drive(fleet: Fleet, height: int) -> None:
    """Pays until the chain is so high: an idle chain makes no blocks."""
    client = fleet.operate("node1")
    payee = Address(bytes.fromhex(fleet.get_address("node2")))

    def is_there() -> bool:
        status = fleet.get_status("node1")
        if status.head.height < height and not status.mempool:
            client.call(client.api.sign_and_submit(Transfer(payee, Amount(1))))
        return status.head.height >= height

    poll(is_there, f"height {height}")


def test_a_testnet_passes_an_upgrade_and_an_old_node_stops_before_it(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setenv(LIMIT_VARIABLE, "1")
        fleet.up("node4")
        environment = dict(os.environ)
    height = fleet.get_status("node1").head.height + NOTICE + 12
    change = str(tmp_path / "upgrade.json")
    fleet.bmif(
        "governance", "schedule-upgrade", "2", str(height), "--min-delay", str(NOTICE), "-o", change,
        *fleet.config("node1"),
    )  # fmt: skip
    for name in UPGRADED:
        fleet.bmif("governance", "approve", change, *fleet.config(name))
    fleet.bmif("governance", "submit", change, *fleet.config("node1"))

    # Named long before: in the log, by governance, and by readiness, which it does not spoil yet.
    poll(lambda: f"version 2 from height {height}" in fleet.read_log("node4"), "node4 names the upgrade")
    client = fleet.api("node4")
    protocol = client.call(client.api.get_governance()).protocol
    assert (protocol.version, protocol.known, protocol.supported) == (1, 1, False)
    assert [(item.version, item.height) for item in protocol.upgrades] == [(2, height)]
    assert fleet.get_status("node4").ready
    assert "UNKNOWN" not in fleet.read_log("node1")

    drive(fleet, height + 3)
    home = fleet.testnet.get_directory("node4")
    poll(lambda: get_pid(home) is None, "node4 stops")
    assert f"the block of height {height} obeys protocol version 2" in fleet.read_log("node4")
    command = [sys.executable, "-m", "node.cli.main", "run", *fleet.config("node4")]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == EXIT_UPGRADE, again
    assert "Install a release of bmif that knows version 2" in again.stderr
    assert fleet.check_ledger("node4") == height - 1

    fleet.up("node4")
    fleet.wait_agreement((*UPGRADED, "node4"))
    client = fleet.api("node4")
    heights = (1, height - 1, height)
    assert [client.call(client.api.get_block(str(at))).header.version for at in heights] == [1, 1, 2]
    drive(fleet, height + 5)
    poll(lambda: fleet.get_status("node4").finalized.height > height, "node4 sees what follows final")
