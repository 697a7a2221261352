"""A node with few descriptors under a flood of connections: blocks go on, and it recovers."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from consensus.task import Transfer
from consensus.types import Address, Amount
from node.config import NodeConfig
from node.descriptors import LEAST_API, LEAST_PEERS, compute_fixed
from tests.testnet.fleet import DEADLINE_S, Fleet, poll, run_fleet

pytestmark = pytest.mark.slow
OTHERS = ("node1", "node3", "node4")
FLOOD = 600
"""Connections held open: many times what there is room for."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with run_fleet(tmp_path_factory.mktemp("descriptors") / "fleet", 4, 0, OTHERS) as running:
        yield running


def start(fleet: Fleet, limit: int, log: Path) -> subprocess.Popen[bytes]:
    """node2, with a hard limit of open files."""
    run = f"ulimit -n {limit} && exec {sys.executable} -m node.cli.main run {' '.join(fleet.config('node2'))}"
    with log.open("ab") as file:
        return subprocess.Popen(["sh", "-c", run], stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def get_least(fleet: Fleet) -> int:
    config = NodeConfig.load(fleet.testnet.get_config_path("node2"))
    return compute_fixed(config) + LEAST_PEERS + LEAST_API


def test_too_low_a_limit_is_refused_with_the_remedy(fleet: Fleet, tmp_path: Path) -> None:
    log = tmp_path / "node2.log"
    assert start(fleet, get_least(fleet) - 1, log).wait(DEADLINE_S) == 1
    assert re.search(r"raise the\s+limit \(LimitNOFILE=", log.read_text())


def test_a_flood_of_connections_takes_no_descriptor_from_the_chain(fleet: Fleet, tmp_path: Path) -> None:
    log = tmp_path / "node2.log"
    process = start(fleet, get_least(fleet) + 4, log)
    try:
        node = fleet.testnet.select(("node2",))[0]
        host, port = fleet.testnet.get_api_url(node).removeprefix("http://").split(":")
        poll(lambda: "is up" in log.read_text(), "node2 is up")
        fleet.wait_agreement((*OTHERS, "node2"))
        client = fleet.operate("node1")
        payee = Address(bytes.fromhex(node.address))
        fleet.clients.pop("node2")
        with ExitStack() as flood:
            for _ in range(FLOOD):
                held = flood.enter_context(socket.create_connection((host, int(port)), timeout=30))
                held.setblocking(False)
            before = fleet.get_status("node1").head.height
            proposed = log.read_text().count("proposed block")
            for _ in range(8):
                paid = client.call(client.api.sign_and_submit(Transfer(payee, Amount(1)))).hex()
                poll(lambda paid=paid: paid not in fleet.get_pending("node1"), "it is paid")
            assert fleet.get_status("node1").head.height >= before + 8
            poll(lambda: log.read_text().count("proposed block") > proposed, "node2 makes blocks")
            poll(lambda: "connections of the API were shed" in log.read_text(), "node2 says so")
            assert process.poll() is None
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < get_least(fleet)
            # Who asks something is answered while the others are held.
            fleet.wait_agreement((*OTHERS, "node2"))
        poll(lambda: fleet.get_status("node2").ready, "node2 recovers")
        text = log.read_text()
        assert text.count("were shed since") < 10
        assert "Too many open files" not in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        fleet.check_ledger("node2")
    finally:
        process.kill()
        process.wait()
        print(log.read_text()[-3_000:])
