"""Miners of a testnet stopped in the middle of a batch: gracefully, and by a second signal."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.task import Transfer
from consensus.types import Address, Amount
from node.processes import get_pid
from tests.testnet.fleet import Fleet, Recipe, poll, run_fleet

pytestmark = pytest.mark.slow
STOP_S = 40
"""Far more than a batch takes here on a shared machine."""
RECIPE = Recipe(("0.033:300", "0.022:300", "0.012:300"), loss_every=2, batches=3)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("drain") / "fleet"
    with run_fleet(directory, 4, 2, settings={"stop_timeout_s": STOP_S}) as running:
        yield running


def wait_computing(fleet: Fleet, name: str) -> None:
    """Return while the node computes a batch."""
    client = fleet.operate(name)

    def read() -> bool:
        found = client.call(client.api.get_drain())
        assert not found.draining
        return any(item.kind == "batches" for item in found.under_way) and bool(find_scratch(fleet, name))

    poll(read, f"{name} computes a batch")


def find_scratch(fleet: Fleet, name: str) -> list[str]:
    """Work that is not finished, by the worker processes that do it or by files."""
    home = fleet.testnet.get_directory(name) / "data"
    pid = get_pid(fleet.testnet.get_directory(name))
    children = Path(f"/proc/{pid}/task/{pid}/children")
    busy = children.read_text().split() if pid is not None and children.exists() else []
    return [*busy, *(str(path) for path in (home / "scratch").glob("*"))]


def signal_node(fleet: Fleet, name: str) -> int:
    pid = get_pid(fleet.testnet.get_directory(name))
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    return pid


def check_whole(fleet: Fleet, name: str) -> None:
    """No file is half written and the ledger of the stopped node is consistent."""
    home = fleet.testnet.get_directory(name) / "data"
    assert not list((home / "scratch").glob("*"))
    fleet.bmif("ledger", "check", "--blobs", *fleet.config(name))


def test_a_miner_that_is_stopped_finishes_its_batch(fleet: Fleet) -> None:
    operator = fleet.operate("node3")
    payee = Address(bytes.fromhex(fleet.get_address("node1")))
    # It waits for money that never comes, so no block takes it (nor any other payment of this account).
    kept = operator.call(operator.api.sign_and_submit(Transfer(payee, Amount(10**12)))).hex()
    task = fleet.publish(RECIPE)

    wait_computing(fleet, "node3")
    pid = signal_node(fleet, "node3")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log = fleet.read_log("node3")
    drained = log[log.index("draining: no new work") :]
    assert "mined step" in drained
    assert "given up" not in drained
    assert "stopped" in drained
    check_whole(fleet, "node3")

    fleet.clients.pop("node3 operator", None)
    fleet.up("node3")
    assert kept in fleet.get_pending("node3")
    wait_computing(fleet, "node3")
    pid = signal_node(fleet, "node3")
    poll(lambda: fleet.read_log("node3").count("draining: no new work") == 2, "node2 drains")
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 1)
    check_whole(fleet, "node3")

    fleet.clients.pop("node3 operator", None)
    fleet.up("node3")
    assert kept in fleet.get_pending("node3")
    fleet.wait_complete(task)
    found = fleet.get_task("node4", task)
    assert sum(credit.batches for credit in found.credits) == RECIPE.batches * found.gradient_openings.spent
    # What was computed while it drained was taken: nobody was found at fault, no lease was lost.
    assert "differs" not in fleet.read_log("node1")


def test_drained_by_its_operator_a_node_goes_on_serving(fleet: Fleet) -> None:
    fleet.bmif("drain", "--wait", "60", *fleet.config("node3"))
    status = fleet.get_status("node3")
    assert not status.ready
    assert any("draining" in reason for reason in status.reasons)
    operator = fleet.operate("node3")
    payee = Address(bytes.fromhex(fleet.get_address("node1")))
    with pytest.raises(Exception, match="takes nothing new"):
        operator.call(operator.api.sign_and_submit(Transfer(payee, Amount(1))))
    client = fleet.operate("node4")
    client.call(client.api.sign_and_submit(Transfer(payee, Amount(1))))
    fleet.wait_agreement(("node1", "node3", "node4"))
    fleet.down("node3")
