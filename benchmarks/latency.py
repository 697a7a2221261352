"""How long a transaction takes to every node of a local testnet: `python -m benchmarks.latency`.

Four node processes over HTTPS with mutual TLS; the clock runs from the moment a client begins to submit at
one node until the last of the four says by its own API that it has the transaction.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.figures import Figure, describe_spread, format_table
from benchmarks.source import MINERS, PAYERS, TaskPlan, Transfers, build_draft
from benchmarks.sync_speed import build_testnet
from consensus.codec import encode
from consensus.task import DraftTask
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction
from consensus.types import Hash32
from node.api.client import ApiError, Client
from node.processes import start_nodes, stop_nodes
from node.testnet import Testnet

NODES = 4
POLL_S = 0.004
PAUSE_S = 0.1
"""Between two transactions, so that each is alone on its way."""
WARM_UP = 5
DEADLINE_S = 30.0
PULLED_BYTES = 3_000
"""An object above 2 KiB is announced and then pulled, as is the opening of a step of four batches."""


class LatencyError(Exception):
    """A transaction did not reach every node in time."""


async def _wait_known(client: Client, transaction: str, deadline: float) -> None:
    while True:
        try:
            await client.get_transaction(transaction)
            return
        except ApiError as error:
            if error.status != 404 or time.perf_counter() > deadline:
                raise LatencyError(f"{transaction}: {error}") from error
        await asyncio.sleep(POLL_S)


async def _measure_one(clients: Sequence[Client], at: int, transaction: SignedTransaction) -> float:
    begun = time.perf_counter()
    identifier = compute_transaction_id(transaction).hex()
    async with asyncio.TaskGroup() as group:
        group.create_task(clients[at].submit_transaction(transaction))
        for client in clients:
            group.create_task(_wait_known(client, identifier, begun + DEADLINE_S))
    return time.perf_counter() - begun


def _build_pulled(chain_id: Hash32, number: int) -> SignedTransaction:
    draft = build_draft(TaskPlan(number + 1, 1, 1, 1), "x" * PULLED_BYTES)
    transaction = sign_transaction(MINERS[0], chain_id, number, DraftTask(draft))
    if len(encode(transaction)) <= 2_048:
        raise LatencyError("the transaction is small enough to be pushed")
    return transaction


async def measure(testnet: Testnet, count: int) -> tuple[list[float], list[float]]:
    """Seconds of transactions that are pushed with their announcement, and of such that are pulled."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(testnet.get_api_url(node))) for node in testnet.nodes
        ]
        chain_id = Hash32(bytes.fromhex((await clients[0].get_status()).chain_id))
        pushed = Transfers(chain_id, PAYERS).take(count + WARM_UP)
        pulled = [_build_pulled(chain_id, number) for number in range(count + WARM_UP)]
        series: list[list[float]] = []
        for transactions in (pushed, pulled):
            times = []
            for number, transaction in enumerate(transactions):
                times.append(await _measure_one(clients, number % NODES, transaction))
                await asyncio.sleep(PAUSE_S)
            series.append(times[WARM_UP:])
    return series[0], series[1]


def run(directory: Path, base_port: int, *, quick: bool) -> list[Figure]:
    testnet, _ = build_testnet(directory / "latency", base_port, 0)
    try:
        start_nodes(testnet)
        pushed, pulled = asyncio.run(measure(testnet, 20 if quick else 100))
    finally:
        stop_nodes(testnet)
    size = f"{PULLED_BYTES / 1e3:.0f} kB"
    return [
        Figure("latency: a transfer, submitted at one, known to all 4 nodes", describe_spread(pushed)),
        Figure(
            f"latency: {size}, pulled (as an opening of 4 batches), known to all 4", describe_spread(pulled)
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer transactions")
    parser.add_argument("--base-port", type=int, default=18_340, help="first of twelve ports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(format_table(run(Path(scratch), options.base_port, quick=options.quick)))


if __name__ == "__main__":
    main()
