"""A node's disk is filled while it writes: it stops and says so, nothing is corrupt, and it goes on."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.api.client import ApiError
from node.blobs import BlobStore
from node.cli.main import app
from node.ledger.damage import EXIT_DISK_FULL
from node.processes import get_pid
from node.testnet import TestnetError
from tests.disks import MIB, fill, small_disk
from tests.testnet.fleet import DEADLINE_S, POLL_S, Fleet, run_fleet
from tests.testnet.test_restore_drill import pay, wait_final

DISK_BYTES = 24 * MIB
LEAST_FREE = 6 * MIB
NAMES = ("node1", "node2", "node3", "node4")


def wait_exit(pid: int) -> int:
    """The exit status of a child."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    raise TimeoutError("the node has not stopped")


@pytest.mark.slow
def test_a_full_disk_stops_the_node_and_damages_nothing(tmp_path: Path) -> None:
    settings = {"limits": {"min_free_bytes": LEAST_FREE}}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "full" / "node4" / "data"
        with (
            run_fleet(Path(directory) / "full", 4, 0, NAMES[:3], settings) as fleet,
            small_disk(home, DISK_BYTES),
        ):
            _fill_and_go_on(fleet, home, tmp_path)


def _fill_and_go_on(fleet: Fleet, data: Path, scratch: Path) -> None:
    fleet.up("node4")
    wait_final(fleet, pay(fleet), "node4")

    # A snapshot of the running node, onto a disk that has no room for it.
    tiny = scratch / "tiny"
    with small_disk(tiny, MIB):
        fill(tiny / "filler")
        given = ("ledger", "snapshot", "-o", str(tiny / "snapshot"), *fleet.config("node4"))
        done = CliRunner().invoke(app, given)
        assert done.exit_code == EXIT_DISK_FULL, done.output
        assert "make room" in done.output
        assert [entry.name for entry in tiny.iterdir()] == ["filler"]

    # Before the disk is full, blobs are refused, and the rest is left to the ledger.
    operator = fleet.operate("node4")
    source, stored, refusal = scratch / "blob", 0, ""
    while not refusal:
        source.write_bytes(os.urandom(MIB))
        try:
            operator.call(operator.api.put_blob(source))
            stored += 1
        except ApiError as error:
            refusal = str(error)
    assert "limits.min_free_bytes" in refusal
    assert stored >= 8
    wait_final(fleet, pay(fleet), "node4")

    # Then something else takes the rest, while blocks come.
    pid = get_pid(data.parent)
    assert pid is not None
    fill(data / "filler")
    for _ in range(5):
        pay(fleet)
    assert wait_exit(pid) == EXIT_DISK_FULL
    log = fleet.read_log("node4")
    assert f"the disk that holds {data / 'ledger'} is full" in log
    assert "make room" in log
    # Started again as it is, it has no room for a log and says the same.
    with pytest.raises(TestnetError, match=f"status {EXIT_DISK_FULL}"):
        fleet.up("node4")

    # Room is made: whole, and it goes on where it was.
    (data / "filler").unlink()
    fleet.check_ledger("node4")
    blobs = BlobStore(data / "blobs")
    assert len(blobs.get_refs()) == stored
    assert not any(blobs.verify(ref.root) for ref in blobs.get_refs())
    fleet.clients.clear()
    fleet.up("node4")
    wait_final(fleet, pay(fleet), "node4")
    fleet.wait_agreement(NAMES)
    fleet.down("node4")
    fleet.check_ledger("node4")
