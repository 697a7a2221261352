"""What a committee costs over a real network: `python -m benchmarks.committee`.

For each size a testnet of real processes on loopback makes a committee's keys and mines a few steps of the
default network with 128-bit keys, two batches a step. Members don't mine, so that no member learns a root
that it could claim; there are as many miners as confirm a batch, more than a third of all organisations.

*Ceremony*: from its creation to keys that all have confirmed, with this profile's blocks, and what a member
sent in that time, everything included. *Opening*: from the moment when a member had checked everything to
the opening that it submitted, which holds twice `custody.settle_ms`; what each member's worker spent on it,
seconds on the clock and of the processor; the bytes that one sent but for blobs, and their requests, by step.
All processes share this machine's cores. `--write` renews the table in docs/COSTS.md.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.costs import read_usage
from benchmarks.testbed import Testbed, wait
from benchmarks.timing import get_machine
from node.processes import LOG_FILE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "COSTS.md"
BEGIN, END = "<!-- committees -->", "<!-- end of committees -->"
BATCHES = 2
OPENED = re.compile(r"opened the (\w+) of step \d+ in attempt \d.* ([\d.]+) s of them after checks")
MINED = re.compile(r"mined step (\d+) batch (\d+) of")
BLOB_KINDS = frozenset({"chunk", "manifest"})


@dataclass(frozen=True, slots=True)
class Row:
    """Of one committee."""

    members: int
    threshold: int
    miners: int
    ceremony_s: float
    blocks: int
    ceremony_bytes: float
    """Sent by a member, mean."""
    gradient_s: float
    loss_s: float
    work_s: float
    """Of a member's worker for its parts and sums, by step, and of the processor for these."""
    cpu_s: float
    step_bytes: float
    bundles: float
    """Computed by miners for each batch that was opened."""
    epsilon: str


def count_miners(members: int) -> int:
    """The least number of organisations that are more than a third of themselves and the members."""
    return next(miners for miners in range(1, members + 2) if 3 * miners > members + miners)


def measure(bed: Testbed, members: int, steps: int, base_port: int, timeout_s: float) -> Row:
    miners, threshold = count_miners(members), members // 2 + 1
    bed.init(members + miners, miners, base_port)
    names = ["node1", *(f"node{number}" for number in range(miners + 2, miners + members + 1))]
    for name in names:
        bed.configure(name, {"roles": ["validator", "custody"]})
    bed.bmif("testnet", "up", "--dir", str(bed.directory))
    started, height, before = time.monotonic(), get_height(bed), count_sent(bed, names)
    ceremony = bed.make_keys(names, threshold, timeout_s)
    ceremony_s, blocks = time.monotonic() - started, get_height(bed) - height
    moved = sum(count_sent(bed, names)) - sum(before)
    task, epsilon = publish(bed, ceremony, steps)
    # Blobs are counted apart: bundles travel for every kind of custody.
    before = count_sent(bed, names, blobs=False)
    wait(lambda: bed_step(bed, task) >= steps, "the steps are opened", timeout_s)
    sent = sum(count_sent(bed, names, blobs=False)) - sum(before)
    work, cpu = (
        [read_jobs(bed, name, metric) for name in names]
        for metric in ("bmif_job_seconds_sum", "bmif_job_cpu_seconds_total")
    )
    times = [read_times(bed, name) for name in names]
    gradients, losses = (
        [seconds for found in times for kind, seconds in found if kind == wanted]
        for wanted in ("gradient", "loss")
    )
    mined = [found for number in range(2, miners + 2) for found in read_mined(bed, f"node{number}", steps)]
    return Row(
        members,
        threshold,
        miners,
        ceremony_s,
        blocks,
        moved / members,
        statistics.median(gradients),
        statistics.median(losses),
        sum(work) / members / steps,
        sum(cpu) / members / steps,
        sent / members / steps,
        len(mined) / (BATCHES * steps),
        epsilon,
    )


def publish(bed: Testbed, ceremony: str, steps: int) -> tuple[str, str]:
    """The task, and what its draft says of privacy."""
    lead, hospital = bed.config("node1"), bed.config("node2")
    openings = ("--steps", str(2 * steps), "--loss-openings", "6", "--batches", "2")
    made = bed.bmif_json("task", "draft", "--ceremony", ceremony, *openings, "--config", lead)
    draft, folder = str(made["draft"]), str(bed.directory / "encrypted")
    bed.bmif(
        "data", "encrypt", draft, "-o", folder, "--phantoms", "8", "--training-batches", str(BATCHES),
        "--validation-batches", "1", "--validation-patients", "2", "--config", hospital,
    )  # fmt: skip
    given = str(bed.bmif_json("task", "contribute", folder, "--config", hospital)["contribution"])
    made_task = bed.bmif_json(
        "task", "publish", draft, "--contribution", given, "--rung", "0.000001:10",
        "--batches-per-step", str(BATCHES), "--loss-every", str(max(1, steps // 2)), "--config", lead,
    )  # fmt: skip
    found = re.search(r"epsilon[^\d]*([\d.]+)", str(made["privacy"]))
    return str(made_task["task"]), found.group(1) if found else "?"


def bed_step(bed: Testbed, task: str) -> int:
    with bed.connect("node2") as client:
        found = [item.step for item in client.collect(client.api.iterate_tasks()) if item.id == task]
    return found[0] if found else 0


def get_height(bed: Testbed) -> int:
    with bed.connect("node2") as client:
        return client.call(client.api.get_status()).head.height


def count_sent(bed: Testbed, names: Sequence[str], *, blobs: bool = True) -> list[int]:
    """Bytes that each node has sent to peers that it is linked to."""
    return [
        sum(count for kind, count in read_usage(bed, name).sent.items() if blobs or kind not in BLOB_KINDS)
        for name in names
    ]


def read_jobs(bed: Testbed, name: str, metric: str) -> float:
    """Of the worker that opens."""
    url = f"{bed.testnet.get_api_url(bed.testnet.select((name,))[0])}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric and sample.labels["pool"] == "committee"
    )


def read_times(bed: Testbed, name: str) -> list[tuple[str, float]]:
    text = (bed.testnet.get_directory(name) / LOG_FILE).read_text(encoding="utf-8")
    return [(kind, float(seconds)) for kind, seconds in OPENED.findall(text)]


def read_mined(bed: Testbed, name: str, steps: int) -> list[tuple[str, str]]:
    text = (bed.testnet.get_directory(name) / LOG_FILE).read_text(encoding="utf-8")
    return [(step, batch) for step, batch in MINED.findall(text) if int(step) < steps]


def build_table(rows: Sequence[Row]) -> str:
    lines = [
        f"Machine: {get_machine()}.",
        "",
        "| members | miners | ceremony | blocks | sent by a member | gradient opened after | loss after "
        "| work of a member, a step | of the processor | sent, a step | bundles a batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.threshold} of {row.members} | {row.miners} | {row.ceremony_s:.0f} s | {row.blocks} "
            f"| {row.ceremony_bytes / 1e6:.0f} MB | {row.gradient_s:.2f} s | {row.loss_s:.2f} s "
            f"| {row.work_s:.2f} s | {row.cpu_s:.2f} s | {row.step_bytes / 1e3:.0f} kB | {row.bundles:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[3, 4, 8], help="sizes of committees")
    parser.add_argument("--steps", type=int, default=4, help="steps that are mined")
    parser.add_argument("--base-port", type=int, default=8300, help="first of three ports a node")
    parser.add_argument("--timeout", type=float, default=900, help="longest wait, seconds")
    parser.add_argument("--write", action="store_true", help="renew the table in docs/COSTS.md")
    options = parser.parse_args()
    rows = []
    for members in options.members:
        with tempfile.TemporaryDirectory(prefix="bmif-committee-") as folder:
            bed = Testbed(Path(folder) / "net", show=False)
            try:
                rows.append(measure(bed, members, options.steps, options.base_port, options.timeout))
            finally:
                bed.stop()
        show(rows)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{build_table(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


def show(rows: Sequence[Row]) -> None:
    table = Table(title=f"Committees, {get_machine()}")
    for name in (
        "members",
        "miners",
        "ceremony s",
        "blocks",
        "MB sent",
        "gradient s",
        "loss s",
        "work s",
        "cpu s",
    ):
        table.add_column(name, justify="right")
    for name in ("kB a step", "bundles a batch", "epsilon"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.threshold} of {row.members}",
            str(row.miners),
            f"{row.ceremony_s:.1f}",
            str(row.blocks),
            f"{row.ceremony_bytes / 1e6:.1f}",
            f"{row.gradient_s:.2f}",
            f"{row.loss_s:.2f}",
            f"{row.work_s:.2f}",
            f"{row.cpu_s:.2f}",
            f"{row.step_bytes / 1e3:.0f}",
            f"{row.bundles:.1f}",
            row.epsilon,
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
