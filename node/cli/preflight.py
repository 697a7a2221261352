"""`bmif preflight`: what this machine can do for a chain, and what is missing."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.common import (
    ConfigOption,
    FlagsOption,
    JsonOption,
    err,
    load_config,
    out,
    print_json,
    print_table,
)
from node.preflight import Finding, Level, check_all
from node.worker import limit_threads

if TYPE_CHECKING:
    from workloads.rehearsal import Rehearsal

PRESET = "ckks-16384-60x5"


def preflight(
    config: ConfigOption = None,
    flags: FlagsOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without the training step, which takes half a minute")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check this machine against a node's settings; exit 1 if the node could not run.

    Processor, memory, disk, clock, ports, certificate, account, peers, open files; then one encrypted
    training batch is timed. Run it before the first `bmif run`, while no node runs from these settings.
    """
    settings = load_config(config, flags)
    findings = check_all(settings)
    if not quick:
        if not json:
            err.print("one encrypted training batch, about half a minute ...")
        findings.append(_describe(_rehearse(), settings.workers))
    failed = any(finding.level is Level.FAILED for finding in findings)
    if json:
        print_json(
            [
                {"check": f.check, "level": f.level.value, "detail": f.detail, "remedy": f.remedy}
                for f in findings
            ]
        )
    else:
        colours = {
            Level.OK: "[green]ok[/]",
            Level.WARNING: "[yellow]warning[/]",
            Level.FAILED: "[red]failed[/]",
        }
        print_table(
            None,
            ("check", "", "found", "remedy"),
            ((f.check, colours[f.level], f.detail, f.remedy) for f in findings),
        )
        out.print("The node can't run like this." if failed else "The node can run.")
    if failed:
        raise typer.Exit(1)


def _rehearse() -> "Rehearsal":
    """In a process of its own, which ends with the keys that it made."""
    # Imported by name in the child: this process needs no encryption library.
    with tempfile.TemporaryDirectory(prefix="bmif-preflight-") as folder:
        limit_threads()
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_run, Path(folder)).result()


def _run(folder: Path) -> "Rehearsal":
    from workloads.rehearsal import rehearse

    return rehearse(folder, PRESET)


def _describe(found: "Rehearsal", workers: int) -> Finding:
    rate = found.patches / found.gradient_s
    detail = (
        f"a batch of {found.patches} patches: {found.gradient_s:.1f} s to train on, {found.loss_s:.1f} s for "
        f"its loss, {found.encrypt_s:.1f} s to encrypt (one core, {found.preset}, {found.peak_mib:.0f} MiB); "
        f"about {rate * workers:.0f} patches/s with {workers} workers"
    )
    return Finding("training", Level.OK, detail)
