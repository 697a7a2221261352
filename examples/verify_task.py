"""Proves a task's state without believing the node: `python examples/verify_task.py URL GENESIS TASK`.

Follows finality from the genesis document by votes, then checks a Merkle proof under a final header.
"""

import argparse
import asyncio
from pathlib import Path

from consensus.types import Hash32
from node.clock import SystemClock
from node.genesis import load_genesis
from node.light import LightApi, LightNode, trust_genesis


async def verify(url: str, genesis_path: Path, task: str, wait_s: float) -> None:
    """Raises: LightError for what the node can't prove, or not in `wait_s` seconds."""
    genesis = load_genesis(genesis_path)
    async with LightApi(url) as api:
        node = LightNode(api, trust_genesis(genesis), SystemClock(), genesis.params.evidence_ms)
        await node.catch_up(wait_s)  # finality lags what the node's head says by a few blocks
        header, state = await node.get_task(Hash32(bytes.fromhex(task)))
    if state is None:
        raise SystemExit(f"final block {header.height} proves that there is no task {task}")
    print(f"final block {header.height} proves: {state.status.name.lower()}, step {state.step}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a node's public API, http://127.0.0.1:8100")
    parser.add_argument("genesis", type=Path, help="the chain's genesis document, from somebody you trust")
    parser.add_argument("task", help="64 hexadecimal digits")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds for the head to become final")
    options = parser.parse_args()
    asyncio.run(verify(options.url, options.genesis, options.task, options.wait))
