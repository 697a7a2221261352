"""What a milestone costs each party: processor seconds, bytes and disk, on a testnet of real processes.

`python -m benchmarks.costs` mines the task of the demo with a single custodian on four nodes and counts, for
each node, the processor seconds of its process and its workers, what it sent and received by kind of message,
and what its disk holds at the end. `--write` renews the table in docs/COSTS.md.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.table import Table

from benchmarks.demo import MINERS, NODES, build_recipe
from benchmarks.testbed import Run, Testbed, TestbedError, console
from benchmarks.timing import get_machine
from node.processes import get_pid

PAGE = Path(__file__).resolve().parent.parent / "docs" / "COSTS.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
LEAST_SHARE = 0.01
"""Kinds of messages below this share of a node's bytes are summed up as others."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one node used so far."""

    cpu_s: float
    """User and system time of the process and of its workers."""
    sent: Counter[str]
    """Bytes by kind of message."""
    received: Counter[str]
    disk: int

    def minus(self, before: "Usage") -> "Usage":
        """What came since; the disk is what it holds now."""
        return Usage(
            self.cpu_s - before.cpu_s,
            Counter({kind: count - before.sent[kind] for kind, count in self.sent.items()}),
            Counter({kind: count - before.received[kind] for kind, count in self.received.items()}),
            self.disk,
        )


def read_usage(bed: Testbed, name: str) -> Usage:
    """Raises: TestbedError if the node does not run."""
    home = bed.testnet.get_directory(name)
    pid = get_pid(home)
    if pid is None:
        raise TestbedError(f"{name} does not run")
    cpu_s = 0.0
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        cpu_s += times.user + times.system
        if member.pid == pid:  # workers that ended already
            cpu_s += times.children_user + times.children_system
    sent: Counter[str] = Counter()
    received: Counter[str] = Counter()
    with bed.connect(name) as client:
        for peer in client.call(client.api.get_peers()).items:
            sent.update(peer.sent_bytes)
            received.update(peer.received_bytes)
    disk = sum(
        (Path(folder) / file).stat().st_blocks * 512
        for folder, _, files in os.walk(home / "data")
        for file in files
        if (Path(folder) / file).is_file()
    )
    return Usage(cpu_s, sent, received, disk)


def measure(directory: Path, base_port: int, timeout_s: float) -> tuple[Run, dict[str, Usage]]:
    """Mine the demo's task; the use of each node from before the draft to the last settled milestone."""
    bed = Testbed(directory, show=False)
    try:
        bed.start(NODES, MINERS, base_port)
        names = [node.name for node in bed.testnet.nodes]
        before = {name: read_usage(bed, name) for name in names}
        run = bed.mine(bed.publish(build_recipe()).task, "node2", timeout_s)
        return run, {name: read_usage(bed, name).minus(before[name]) for name in names}
    finally:
        bed.stop()


def build_page(run: Run, usage: dict[str, Usage], roles: dict[str, str]) -> str:
    """The measured part of the page."""
    steps, milestones = run.task.gradient_openings.spent, run.task.rungs_settled
    lines = [
        f"Machine: {get_machine()}.",
        "",
        f"One task of {steps} steps of {run.task.batches_per_step} batches, {milestones} milestones, mined "
        f"in {run.seconds:.0f} s: {run.task.training_patches:,} training and {run.task.validation_patches:,} "
        "validation patches. A node's processor seconds are its process and its workers together.",
        "",
        "| node | role | processor s | s a step | sent | received | disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, used in usage.items():
        moved = f"{used.sent.total() / 1e6:.0f} MB | {used.received.total() / 1e6:.0f} MB"
        step_s = used.cpu_s / max(1, steps)
        lines.append(
            f"| {name} | {roles[name]} | {used.cpu_s:.0f} | {step_s:.1f} | {moved} "
            f"| {used.disk / 1e6:.0f} MB |"
        )
    everything = sum((used.sent for used in usage.values()), Counter[str]())
    total = everything.total()
    large = {kind: count for kind, count in everything.most_common() if count >= LEAST_SHARE * total}
    shares = ", ".join(f"{kind} {count / 1e6:.0f} MB" for kind, count in large.items())
    cpu = sum(used.cpu_s for used in usage.values())
    lines += [
        "",
        f"All nodes together: {cpu:.0f} processor seconds and {total / 1e6:.0f} MB sent, so "
        f"{cpu / milestones:.0f} s and {total / 1e6 / milestones:.0f} MB a milestone. Sent: {shares}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the table in docs/COSTS.md")
    parser.add_argument("--base-port", type=int, default=8300, help="first of twelve ports")
    parser.add_argument("--timeout", type=float, default=1500, help="longest mining, seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bmif-costs-") as folder:
        directory = Path(folder) / "net"
        run, usage = measure(directory, options.base_port, options.timeout)
        nodes = Testbed(directory).testnet.nodes
        roles = {node.name: ", ".join(role for role in node.roles if role != "contributor") for node in nodes}
    text = build_page(run, usage, roles)
    table = Table("node", "processor s", "sent MB", "received MB", "disk MB")
    for name, used in usage.items():
        table.add_row(
            name,
            f"{used.cpu_s:.1f}",
            f"{used.sent.total() / 1e6:.1f}",
            f"{used.received.total() / 1e6:.1f}",
            f"{used.disk / 1e6:.1f}",
        )
    console.print(table)
    console.print(text, markup=False)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
