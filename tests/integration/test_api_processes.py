"""A testnet of real processes behind its public and operator APIs: start, pay, kill -9, restart, stop."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.task import Transfer
from consensus.types import Address, Amount, Hash32
from node.api.client import Client
from node.config import NodeConfig
from node.processes import get_pid, get_statuses, start_nodes, stop_nodes
from node.testnet import Profile, Testnet, TestnetError, init_testnet

CONFIGS = Path(__file__).parents[2] / "configs"
DEADLINE_S = 60.0


def find_base_port(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for base in range(20_000, 30_000, 10):
        try:
            for port in range(base, base + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports")


@pytest.fixture
def testnet(tmp_path: Path) -> Iterator[Testnet]:
    profile = Profile.load(CONFIGS / "minimal.yaml")
    made = init_testnet(tmp_path / "net", 2, 0, profile=profile, base_port=find_base_port(6))
    yield made
    stop_nodes(made, deadline_s=10)


def connect(testnet: Testnet, name: str) -> Client:
    config = NodeConfig.load(testnet.get_config_path(name))
    return Client(
        testnet.get_api_url(testnet.select((name,))[0]),
        operator_url=f"http://127.0.0.1:{config.operator.port}",
        token=config.token_file.read_text().strip(),
    )


async def pay(testnet: Testnet, sender: str, recipient: str, amount: int) -> Hash32:
    """Have a node pay; returns once both nodes have the block."""
    address = Address(bytes.fromhex(testnet.select((recipient,))[0].address))
    async with connect(testnet, sender) as here, connect(testnet, recipient) as there:
        after = (await there.get_status()).last_event_id
        transaction = await here.sign_and_submit(Transfer(address, Amount(amount)))
        async with asyncio.timeout(DEADLINE_S):
            async for _ in there.stream_events(after=after, kinds=("head",)):
                found = {record.id async for record in iterate_included(there)}
                if transaction.hex() in found:
                    return transaction
    raise AssertionError("the stream of events ended")


async def iterate_included(client: Client):
    async for summary in client.iterate_blocks():
        for transaction in (await client.get_block(summary.hash)).transactions:
            yield transaction


async def test_a_testnet_pays_survives_a_kill_and_stops(testnet: Testnet) -> None:
    started = await asyncio.to_thread(start_nodes, testnet, deadline_s=DEADLINE_S)
    assert [node.name for node in started] == ["node1", "node2"]
    assert await asyncio.to_thread(start_nodes, testnet, deadline_s=DEADLINE_S) == ()
    first = await pay(testnet, "node1", "node2", 7)

    directory = testnet.get_directory("node2")
    pid = get_pid(directory)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)
    assert get_pid(directory) is None
    await asyncio.to_thread(start_nodes, testnet, deadline_s=DEADLINE_S)
    await pay(testnet, "node1", "node2", 5)

    async with connect(testnet, "node2") as client:
        address = testnet.select(("node2",))[0].address
        assert (await client.get_account(address)).balance == 1_000_000 + 12
        assert (await client.get_transaction(first.hex())).status == "included"
    assert all(status.ready for status in await asyncio.to_thread(get_statuses, testnet))
    assert await asyncio.to_thread(stop_nodes, testnet, deadline_s=20) == ()
    assert not any(status.ready for status in await asyncio.to_thread(get_statuses, testnet))
    check = [sys.executable, "-m", "node.cli.main", "ledger", "check", "--config"]
    path = str(testnet.get_config_path("node2"))
    result = await asyncio.to_thread(subprocess.run, [*check, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "0 problems" in result.stdout


async def test_a_node_that_cannot_start_is_named_with_its_log(testnet: Testnet) -> None:
    (testnet.get_directory("node1") / "genesis.json").write_text("{}")
    with pytest.raises(TestnetError, match=r"node1 exited with status 1(.|\n)*genesis\.json"):
        await asyncio.to_thread(start_nodes, testnet, ("node1",), deadline_s=DEADLINE_S)
