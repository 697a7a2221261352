"""The table of all faults, as text and as docs/RELIABILITY.md."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import compute_quantile
from benchmarks.reliability.manifest import Step
from benchmarks.reliability.perturb import IN_FLIGHT_S, Outcome
from benchmarks.reliability.runner import Run
from benchmarks.timing import get_machine

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "RELIABILITY.md"
TEMPLATE = Path(__file__).parent / "template.md"
MANY = 4
"""From so many times on a row tells quantiles instead of each."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    times: int
    meanwhile: str
    recovery: str
    bound: str
    holds: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A run, as it is kept and printed."""

    manifest: str
    about: str
    backend: str
    seed: int
    seconds: float
    machine: str
    load: float
    """Of the machine at the end: this run alone keeps it at one to three."""
    rows: tuple[Row, ...]
    findings: tuple[tuple[str, str, str], ...]
    """What, seen, holds."""
    failure: str


def describe_fault(step: Step, outcomes: Sequence[Outcome]) -> str:
    """In words, with the times that it lasted."""
    least, most = min(o.lasted_s for o in outcomes), max(o.lasted_s for o in outcomes)
    lasted = f"{most:.0f} s" if most - least < 1 else f"{least:.0f}-{most:.0f} s"
    one = step.count == 1
    who = "a node" if one else f"{step.count} nodes"
    if step.nodes and len(step.nodes) == step.count:
        who = ", ".join(step.nodes)
    match step.do:
        case "none":
            return f"no fault for {lasted}"
        case "kill":
            return f"kill -9 of {who}, down {lasted}"
        case "pause":
            return f"{who} frozen for {lasted}"
        case "disconnect":
            return f"{who} cut off for {lasted}"
        case "partition":
            return f"partition 2+2 for {lasted}"
        case "restart":
            return f"graceful restart of {who}, down {lasted}"
        case "wipe":
            return f"{who} killed, disk wiped, down {lasted}"
        case "clock":
            return f"clock of {who} wrong by {step.offset_s / 60:+.0f} min for {lasted}"
        case "down":
            return f"{who} down for {lasted}"
        case "custody-away":
            return f"custody away for {lasted}, past its task's deadline"


def build_row(step: Step, outcomes: Sequence[Outcome]) -> Row:
    known = [o.recovery_s for o in outcomes if o.recovery_s is not None]
    if not known:
        recovery = "never"
    elif len(known) < MANY:
        recovery = ", ".join(f"{seconds:.1f} s" for seconds in known)
    else:
        recovery = (
            f"{statistics.median(known):.1f} s median, {compute_quantile(known, 0.95):.1f} s p95, "
            f"{max(known):.1f} s worst"
        )
    said = [o.meanwhile for o in outcomes if o.meanwhile]
    problems = sum(not o.holds for o in outcomes)
    holds = "yes" if not problems and len(outcomes) == step.times else f"no ({problems} of {step.times})"
    return Row(
        describe_fault(step, outcomes),
        len(outcomes),
        "; ".join(dict.fromkeys(said)),
        recovery,
        f"{step.bound_s:.0f} s",
        holds,
    )


def build_entry(run: Run) -> Entry:
    rows = []
    for step in run.manifest.steps:
        outcomes = [o for o in run.outcomes if o.step is step]
        if outcomes:
            rows.append(build_row(step, outcomes))
    findings = tuple((f.what, f.seen, "; ".join(f.problems) or "yes") for f in run.findings)
    return Entry(
        run.manifest.name,
        run.manifest.about,
        run.backend,
        run.seed,
        run.seconds,
        get_machine().partition(", load")[0],
        os.getloadavg()[0],
        tuple(rows),
        findings,
        run.failure,
    )


def format_entry(entry: Entry) -> str:
    """Two tables in Markdown."""
    setting = f"{entry.backend}, seed {entry.seed}, {entry.seconds:.0f} s, machine's load {entry.load:.1f}"
    head = f"**{entry.manifest}** ({setting}): {entry.about}"
    faults = [("fault", "times", "finality meanwhile", "recovered in", "bound", "holds")]
    faults += [(r.fault, str(r.times), r.meanwhile, r.recovery, r.bound, r.holds) for r in entry.rows]
    parts = [head, align(faults)]
    if entry.findings:
        parts.append(align([("afterwards, on every node", "seen", "holds"), *entry.findings]))
    if entry.failure:
        parts.append(f"The run broke off: {entry.failure}")
    return "\n\n".join(parts)


def format_run(run: Run) -> str:
    return format_entry(build_entry(run))


def align(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# --- kept results -----------------------------------------------------------------------------


def save_result(path: Path, run: Run) -> None:
    """Keep a run beside those of other manifests; an earlier one of its own goes."""
    entries = [entry for entry in load_results(path) if entry.manifest != run.manifest.name]
    entries.append(build_entry(run))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n", encoding="utf-8")


def load_results(path: Path) -> list[Entry]:
    """None where there is no file."""
    entries: list[Entry] = []
    if not path.exists():
        return entries
    for document in json.loads(path.read_text(encoding="utf-8")):
        document["rows"] = tuple(Row(**row) for row in document["rows"])
        document["findings"] = tuple(tuple(finding) for finding in document["findings"])
        entries.append(Entry(**document))
    return entries


def write_document(entries: Sequence[Entry], expected: Sequence[str]) -> None:
    """Renew docs/RELIABILITY.md from results of both backends; manifests without a result are named."""
    machines = dict.fromkeys(entry.machine for entry in entries)
    sections = []
    for kind in ("processes", "containers"):
        found = [entry for entry in entries if entry.backend == kind]
        missing = [name for name in expected if name not in {entry.manifest for entry in found}]
        sections.append(f"## Nodes as {kind}")
        sections += map(format_entry, found)
        if missing:
            sections.append(f"Without a complete run on this page: {', '.join(missing)}.")
    text = TEMPLATE.read_text(encoding="utf-8").format(
        machines="; ".join(machines), tables="\n\n".join(sections), in_flight=IN_FLIGHT_S
    )
    DOCUMENT.write_text(text, encoding="utf-8")
