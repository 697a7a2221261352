"""A new node to the head, in full and by snapshot: `python -m benchmarks.sync_speed`.

A chain of carrier blocks with transfers and everyone's votes is written into the ledgers of two node
processes, which then serve it over HTTPS with mutual TLS, on loopback, to others that have nothing but the
genesis document.
"""

import argparse
import os
import platform
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import Figure, format_table
from benchmarks.source import PAYERS, Transfers
from benchmarks.voted_chain import VotedChain
from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.genesis import build_genesis_state
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.params import Genesis, GenesisAccount
from consensus.types import Amount, Millis
from node.api.client import ApiError, SyncClient
from node.genesis import load_genesis, save_genesis
from node.keystore import load_account_key
from node.ledger.chainstore import HeadChange, Ledger
from node.ledger.level import LevelStore
from node.processes import get_pid, start_nodes, stop_nodes
from node.testnet import Testnet, TestnetNode, init_testnet

BLOCKS = 10_000
QUICK_BLOCKS = 500
TRANSFERS_PER_BLOCK = 2
SERVING, FULL, SNAPSHOT = ("node1", "node2"), "node3", "node4"
QUIET_BLOCKS = 3
"""Empty ones at the end, so that everything is final and nobody has cause to add another."""
MAX_BLOCK_MS = 20.0
"""Promised of a block in full: judging it, and everything that brings it here."""
MAX_SNAPSHOT_S = 60.0
DEADLINE_S = 1_800.0
POLL_S = 0.05


class SyncError(Exception):
    """The nodes did not come to the same head in time."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one node, from the start of its process."""

    answered_s: float
    """To its first answer..."""
    head_s: float
    """...and to the head."""
    cpu_s: float
    received: int
    """Bytes of replies and requests that came over the peer port."""

    @property
    def sync_s(self) -> float:
        return self.head_s - self.answered_s


def get_cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, its finished children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build_testnet(directory: Path, base_port: int, blocks: int) -> tuple[Testnet, Genesis]:
    """Two servers that validate and two nodes that follow; the chain was founded so long ago that none of
    its blocks lies in the future."""
    testnet = init_testnet(directory, 4, 0, base_port=base_port)
    genesis = load_genesis(directory / "genesis.json")
    past = (blocks + 100) * genesis.params.idle_ms
    genesis = replace(
        genesis,
        time=Millis(genesis.time - past),
        validators=genesis.validators[: len(SERVING)],
        accounts=genesis.accounts
        + tuple(GenesisAccount(payer.address, Amount(10**12), "bank") for payer in PAYERS),
    )
    for node in testnet.nodes:
        save_genesis(testnet.get_directory(node.name) / "genesis.json", genesis)
    return testnet, genesis


def write_chain(testnet: Testnet, genesis: Genesis, blocks: int, transfers: int) -> bytes:
    """Carrier blocks of so many transfers and everyone's votes in both servers' ledgers; the head's hash."""
    keys = [load_account_key(testnet.get_directory(node.name) / "account.key") for node in testnet.nodes]
    first, second = (testnet.get_directory(name) / "data" for name in SERVING)
    first.mkdir(parents=True, exist_ok=True)
    store = LevelStore(first / "ledger")
    try:
        head = _write(store, genesis, keys, blocks, transfers)
    finally:
        store.close()
    second.mkdir(parents=True, exist_ok=True)
    for path in first.glob("ledger*"):
        if path.is_dir():
            shutil.copytree(path, second / path.name)
        else:
            shutil.copy2(path, second / path.name)
    return head


def _write(store: LevelStore, genesis: Genesis, keys: list[SigningKey], blocks: int, transfers: int) -> bytes:
    chain = VotedChain(genesis, {key.address: key for key in keys}, keeps=False)
    nodes = dict(build_genesis_state(genesis).tree.new_nodes())
    ledger = Ledger.open(store, compute_chain_id(genesis), nodes)
    chain.state.tree.mark_stored()
    waiting = Transfers(chain.chain_id, PAYERS)
    for number in range(blocks):
        is_quiet = number >= blocks - QUIET_BLOCKS
        block = chain.add(() if is_quiet else waiting.take(transfers))
        name = compute_block_hash(block.header)
        new = dict(chain.state.tree.new_nodes())
        ledger.put_block(block, new, encoded=encode(block), head=HeadChange((name,)))
        chain.state.tree.mark_stored()
    return bytes(ledger.head)


class _Watch:
    """Looks at a node through its public API."""

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

    def get_received(self) -> int:
        peers = self._client.call(self._client.api.get_peers()).items
        return sum(sum(peer.received_bytes.values()) for peer in peers)


def measure(testnet: Testnet, name: str, wanted: tuple[int, str]) -> Measured:
    """A new node, from its start to the servers' head."""
    (node,) = (each for each in testnet.nodes if each.name == name)
    with _Watch(testnet, node) as watch:
        begun = time.perf_counter()
        starting = threading.Thread(
            target=start_nodes, args=(testnet, (name,)), kwargs={"deadline_s": DEADLINE_S}
        )
        starting.start()
        answered: float | None = None
        while (head := watch.get_head()) != wanted:
            if head is not None and answered is None:
                answered = time.perf_counter()
            if time.perf_counter() > begun + DEADLINE_S:
                raise SyncError(f"{name} is at {head} after {DEADLINE_S:.0f} s, not at {wanted}")
            time.sleep(POLL_S)
        done = time.perf_counter()
        pid = get_pid(testnet.get_directory(name))
        cpu_s = 0.0 if pid is None else get_cpu_s(pid)
        received = watch.get_received()
        starting.join()
    return Measured((answered or done) - begun, done - begun, cpu_s, received)


def set_snapshot(testnet: Testnet, name: str) -> None:
    """Have a node begin with a snapshot."""
    path = testnet.get_config_path(name)
    path.write_text(path.read_text(encoding="utf-8") + "\nsync: snapshot\n", encoding="utf-8")


def run_both(directory: Path, base_port: int, blocks: int) -> tuple[Measured, Measured]:
    """A node in full, then another by snapshot, each beside the two servers alone."""
    testnet, genesis = build_testnet(directory, base_port, blocks)
    head = write_chain(testnet, genesis, blocks, TRANSFERS_PER_BLOCK)
    wanted = (blocks, head.hex())
    set_snapshot(testnet, SNAPSHOT)
    try:
        start_nodes(testnet, SERVING)
        full = measure(testnet, FULL, wanted)
        stop_nodes(testnet, (FULL,))
        return full, measure(testnet, SNAPSHOT, wanted)
    finally:
        stop_nodes(testnet)


def _describe(found: Measured, blocks: int) -> str:
    return (
        f"{found.sync_s:.1f} s ({found.head_s:.1f} s with the start of the process), "
        f"{blocks / found.sync_s:,.0f} blocks/s, {found.received / 2**20:.1f} MiB"
    )


def run(directory: Path, base_port: int, *, quick: bool, blocks: int | None = None) -> list[Figure]:
    blocks = blocks or (QUICK_BLOCKS if quick else BLOCKS)
    full, snapshot = run_both(directory / "sync", base_port, blocks)
    allowed = MAX_BLOCK_MS * blocks / 1_000
    what = f"a new node to the head, {blocks:,} blocks of {TRANSFERS_PER_BLOCK} transfers with votes"
    return [
        Figure(
            f"{what}: in full",
            _describe(full, blocks),
            f"< {allowed:.0f} s",
            full.sync_s < allowed,
            f"{full.cpu_s:.1f} s with its start",
        ),
        Figure(
            f"{what}: by snapshot",
            _describe(snapshot, blocks),
            f"< {MAX_SNAPSHOT_S:.0f} s",
            snapshot.sync_s < MAX_SNAPSHOT_S,
            f"{snapshot.cpu_s:.1f} s with its start",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BLOCKS} blocks")
    parser.add_argument("--blocks", type=int, default=None, help=f"default {BLOCKS:,}")
    parser.add_argument("--base-port", type=int, default=18_300, help="first of twelve ports")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        found = run(Path(scratch), options.base_port, quick=options.quick, blocks=options.blocks)
        print(format_table(found))


if __name__ == "__main__":
    main()
