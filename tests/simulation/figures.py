"""What happens at 4, 25, 100 and 1,000 nodes; `python -m tests.simulation.figures` rewrites the page.

All nodes are honest validators on a network that works; only the size changes.
"""

import argparse
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from consensus.codec import encode
from consensus.params import ChainParams
from consensus.validation import validate_block
from consensus.vote import Checkpoint
from tests.simulation.archive import BlockItem, TrueVerifier, remember
from tests.simulation.engine import Weather
from tests.simulation.node import Node
from tests.simulation.run import Simulation
from tests.simulation.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "SIMULATION.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
WEATHER = Weather(50, 250, 0.0, 0.0)
SIZES = ((4, 60), (25, 60), (100, 60), (1_000, 10))
"""Validators, and seconds of virtual time."""


@dataclass(frozen=True, slots=True)
class Figures:
    nodes: int
    virtual_s: int
    blocks: int
    final_s: float
    """Median from a block's time until it is final on every node."""
    final_blocks: float
    votes: float
    vote_bytes: float
    block_bytes: float
    messages: float
    """A block, to each node."""
    cpu_s: float
    """Of the whole simulation, for a minute of virtual time."""
    check_ms: float
    """For one node to judge one block with all its signatures."""


class FinalTimes:
    """When each block was final on the last node."""

    def __init__(self) -> None:
        self.last: dict[int, int] = {}
        self.count: dict[int, int] = {}

    def on_final(self, node: Node, before: Checkpoint, after: Checkpoint) -> None:
        for height in range(before.height + 1, after.height + 1):
            self.last[height] = node.run.engine.now
            self.count[height] = self.count.get(height, 0) + 1


def build_healthy(nodes: int, virtual_s: int) -> Scenario:
    return Scenario(
        seed=nodes,
        params=ChainParams(),
        stakes=(10,) * nodes,
        observers=0,
        habits={},
        twins=(),
        offsets=(0,) * nodes,
        weather=WEATHER,
        outages=(),
        tasks=(),
        changes=(),
        pay_ms=1_500,
        is_attack=True,
        chaos_ms=virtual_s * 1_000,
        liars_ms=virtual_s * 1_000,
        end_ms=virtual_s * 1_000,
    )


def measure(nodes: int, virtual_s: int) -> Figures:
    with remember():
        simulation = Simulation(build_healthy(nodes, virtual_s))
        times = FinalTimes()
        simulation.run.finalisations.append(times)
        started = time.process_time()
        simulation.execute()
        spent = time.process_time() - started
    node = simulation.run.nodes[0]
    chain: list[BlockItem] = []
    item = node.head
    while item.header.height:
        chain.append(item)
        item = simulation.archive.valid[item.parent]
    chain.reverse()
    waits = [
        (times.last[block.header.height] - block.header.time) / 1000
        for block in chain
        if times.count.get(block.header.height) == nodes
    ]
    later = []
    for block in chain:
        final = block.get_state().get_finality().finalized.height
        later += [block.header.height - final] if final else []
    # The first blocks hold no votes yet.
    settled = chain[2:] or chain
    return Figures(
        nodes=nodes,
        virtual_s=virtual_s,
        blocks=len(chain),
        final_s=statistics.median(waits) if waits else float("nan"),
        final_blocks=statistics.median(later) if later else float("nan"),
        votes=statistics.mean(len(block.votes) for block in settled),
        vote_bytes=statistics.mean(sum(vote.size for vote in block.votes) for block in settled),
        block_bytes=statistics.mean(len(encode(block.block)) for block in settled),
        messages=simulation.run.network.messages / len(chain) / nodes,
        cpu_s=spent * 60 / virtual_s,
        check_ms=_time_check(simulation, chain),
    )


def _time_check(simulation: Simulation, chain: list[BlockItem]) -> float:
    """Without anything remembered, as a real node would; the quickest of some blocks."""
    archive, spent = simulation.archive, []
    for block in chain[-5:]:
        parent = archive.valid[block.parent]
        started = time.process_time()
        validate_block(
            parent.header, parent.get_state(), block.block, archive.params, archive.chain_id, TrueVerifier()
        )
        spent.append(time.process_time() - started)
    return 1000 * min(spent)


def format_table(rows: list[Figures]) -> str:
    heads = (
        "Validators",
        "Virtual time",
        "Blocks",
        "Final everywhere after",
        "Blocks until final",
        "Votes a block",
        "Bytes of votes a block",
        "Bytes a block",
        "Messages a node and block",
        "CPU of the simulation for a virtual minute",
        "CPU of one node to check a block",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for row in rows:
        cells = (
            f"{row.nodes:,}",
            f"{row.virtual_s} s",
            f"{row.blocks}",
            f"{row.final_s:.1f} s",
            f"{row.final_blocks:.0f}",
            f"{row.votes:.0f}",
            f"{row.vote_bytes:,.0f}",
            f"{row.block_bytes:,.0f}",
            f"{row.messages:,.0f}",
            f"{row.cpu_s:,.1f} s",
            f"{row.check_ms:,.1f} ms",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.figures", description=__doc__)
    parser.add_argument("--largest", type=int, default=1_000, help="leaves out larger networks")
    parser.add_argument("--dry", action="store_true", help="prints the table only")
    arguments = parser.parse_args()
    rows = []
    for nodes, virtual_s in SIZES:
        if nodes <= arguments.largest:
            rows.append(measure(nodes, virtual_s))
            print(rows[-1], flush=True)
    table = format_table(rows)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{table}\n{memory} MiB at most")
    if not arguments.dry:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{after}")


if __name__ == "__main__":
    main()
