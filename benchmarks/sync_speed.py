"""Synchronising between two real node processes: `python -m benchmarks.sync_speed`.

A chain of carrier blocks is written into the ledger of one node, which then serves it over HTTPS with
mutual TLS to another that has nothing but the genesis document.
"""

import argparse
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Figure, format_table
from benchmarks.source import PAYERS, Source, Transfers, open_core
from consensus.params import GenesisAccount
from consensus.types import Amount, Millis
from node.api.client import ApiError, SyncClient
from node.clock import ManualClock
from node.genesis import load_genesis, save_genesis
from node.keystore import load_account_key
from node.processes import get_pid, start_nodes, stop_nodes
from node.testnet import Testnet, TestnetNode, init_testnet

BLOCKS = 1_000
TRANSFERS_PER_BLOCK = 10
MAX_SYNC_S = 20.0
SERVING, FOLLOWING = "node1", "node2"
DEADLINE_S = 120.0
POLL_S = 0.02


class SyncError(Exception):
    """The nodes did not come to the same head in time."""


def get_cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, its finished children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build_testnet(directory: Path, base_port: int, nodes: int, blocks: int) -> Testnet:
    """A chain founded so long ago that none of so many blocks lies in the future; payers have accounts."""
    testnet = init_testnet(directory, nodes, 0, base_port=base_port)
    genesis = load_genesis(directory / "genesis.json")
    past = (blocks + 100) * (genesis.params.idle_ms + nodes * genesis.params.slot_ms)
    genesis = replace(
        genesis,
        time=Millis(genesis.time - past),
        accounts=genesis.accounts
        + tuple(GenesisAccount(payer.address, Amount(10**12), "bank") for payer in PAYERS),
    )
    for node in testnet.nodes:
        save_genesis(testnet.get_directory(node.name) / "genesis.json", genesis)
    return testnet


def write_chain(testnet: Testnet, blocks: int, transfers: int) -> None:
    """Carrier blocks of so many transfers, signed by both nodes in turn, in the serving node's ledger."""
    home = testnet.get_directory(SERVING)
    genesis = load_genesis(home / "genesis.json")
    keys = [load_account_key(testnet.get_directory(node.name) / "account.key") for node in testnet.nodes]
    clock = ManualClock(genesis.time)
    with open_core(genesis, keys[0], clock, home / "data") as core:
        source = Source(core, clock, {key.address: key for key in keys})
        waiting = Transfers(core.chain.chain_id, PAYERS)
        for _ in range(blocks):
            source.carry(waiting.take(transfers))


class _Watch:
    """Looks at a node's head through its public API."""

    def __init__(self, testnet: Testnet, node: TestnetNode) -> None:
        self._client = SyncClient(testnet.get_api_url(node), timeout_s=5.0)

    def __enter__(self) -> "_Watch":
        self._client.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._client.__exit__(None, None, None)

    def get_head(self) -> tuple[int, str] | None:
        """Height and hash; None while nobody answers."""
        try:
            head = self._client.call(self._client.api.get_status()).head
        except ApiError:
            return None
        return head.height, head.hash


def measure(directory: Path, base_port: int, blocks: int) -> tuple[float, float, float]:
    """Seconds from the follower's first answer to the server's head, from its start, and of its processor."""
    testnet = build_testnet(directory, base_port, 2, blocks)
    write_chain(testnet, blocks, TRANSFERS_PER_BLOCK)
    serving, following = testnet.nodes
    try:
        start_nodes(testnet, (SERVING,))
        with _Watch(testnet, serving) as server, _Watch(testnet, following) as follower:
            wanted = server.get_head()
            if wanted is None or wanted[0] != blocks:
                raise SyncError(f"expected a head at height {blocks}, got {wanted}")
            begun = time.perf_counter()
            starting = threading.Thread(target=start_nodes, args=(testnet, (FOLLOWING,)))
            starting.start()
            answered: float | None = None
            while (head := follower.get_head()) != wanted:
                if head is not None and answered is None:
                    answered = time.perf_counter()
                if time.perf_counter() > begun + DEADLINE_S:
                    raise SyncError(f"the follower is at {head} after {DEADLINE_S:.0f} s, not at {wanted}")
                time.sleep(POLL_S)
            done = time.perf_counter()
            pid = get_pid(testnet.get_directory(FOLLOWING))
            cpu_s = 0.0 if pid is None else get_cpu_s(pid)
            starting.join()
        return done - (answered or begun), done - begun, cpu_s
    finally:
        stop_nodes(testnet)


def run(directory: Path, base_port: int, *, quick: bool) -> list[Figure]:
    blocks = 200 if quick else BLOCKS
    answered_s, whole_s, cpu_s = measure(directory / "sync", base_port, blocks)
    # A short run is held to its share of the promise.
    allowed = MAX_SYNC_S * blocks / BLOCKS
    return [
        Figure(
            f"sync of {blocks:,} carrier blocks of {TRANSFERS_PER_BLOCK} transfers over mutual TLS",
            f"{answered_s:.1f} s ({whole_s:.1f} s with the start of the process)",
            f"< {allowed:.0f} s",
            answered_s < allowed,
            f"{cpu_s:.1f} s with its start",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    parser.add_argument("--base-port", type=int, default=18_300, help="first of six ports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(format_table(run(Path(scratch), options.base_port, quick=options.quick)))


if __name__ == "__main__":
    main()
