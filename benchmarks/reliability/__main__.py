"""`python -m benchmarks.reliability`: nets of real nodes put through faults, and a table of it.

Without options all manifests run, with nodes as processes and then as containers, and docs/RELIABILITY.md is
renewed. `--quick` runs a short selection with processes and leaves the page alone.
"""

import argparse
import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.backend import Backend
from benchmarks.reliability.container_backend import ContainerBackend
from benchmarks.reliability.manifest import Manifest, find_manifest, load_manifest
from benchmarks.reliability.process_backend import ProcessBackend
from benchmarks.reliability.report import DOCUMENT, format_run, load_results, save_result, write_document
from benchmarks.reliability.runner import Run, run_manifest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "out"
COMPOSE = ROOT / "tests" / "testnet" / "compose.sh"
FULL = ("finality", "links", "disks-and-clocks", "kills", "custody")
KINDS = ("processes", "containers")
QUICK = {"processes": ("quick",), "containers": ("quick-containers",)}


def build_backend(kind: str, manifest: Manifest, scratch: Path, *, attach: bool) -> Backend:
    if kind == "processes":
        return ProcessBackend(manifest, scratch / manifest.name)
    return ContainerBackend(manifest, scratch / manifest.name, attach=attach)


async def run_all(options: argparse.Namespace, kind: str, scratch: Path) -> list[Run]:
    names = options.manifest or (QUICK[kind] if options.quick else FULL)
    manifests = [load_manifest(find_manifest(name)) for name in names]
    runs = []
    for manifest in manifests:
        backend = build_backend(kind, manifest, scratch, attach=options.attach)
        runs.append(await run_manifest(manifest, backend, options.seed))
        save_result(get_results(kind), runs[-1])
    return runs


def run_backend(options: argparse.Namespace, kind: str) -> bool:
    """Run the manifests, print and keep what they showed; True if everything held."""
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bmif-reliability.") as scratch:
        runs = asyncio.run(run_all(options, kind, Path(scratch)))
    for run in runs:
        print(f"\n{format_run(run)}")
    problems = [f"{run.manifest.name} on {run.backend}: {p}" for run in runs for p in run.problems]
    for problem in problems:
        print(f"PROBLEM: {problem}", flush=True)
    return not problems


def get_results(kind: str) -> Path:
    return RESULTS / f"reliability-{kind}.json"


def can_have_engine() -> bool:
    """Whether a Docker engine answers, or compose.sh can start one of its own."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return True
    return os.geteuid() == 0 and Path("/etc/debian_version").exists()


def run_everything(options: argparse.Namespace) -> bool:
    """Processes, then containers where that is possible, then the page."""
    for kind in KINDS:
        get_results(kind).unlink(missing_ok=True)
    holds = run_backend(options, "processes")
    if can_have_engine():
        command = ["bash", str(COMPOSE), "reliability", "--seed", str(options.seed)]
        holds = subprocess.run(command).returncode == 0 and holds
    else:
        print("No Docker engine answers, and only root on Debian or Ubuntu can start one: no containers.")
    renew_document()
    return holds


def renew_document() -> None:
    """From the last results of each manifest, in the order in which they run."""
    entries = [entry for kind in KINDS for entry in load_results(get_results(kind))]
    chosen = sorted((e for e in entries if e.manifest in FULL), key=lambda e: FULL.index(e.manifest))
    write_document(chosen, FULL)
    print(f"{DOCUMENT.relative_to(ROOT)} renewed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", choices=KINDS, help="only one, and not the page")
    parser.add_argument("--quick", action="store_true", help="a short selection")
    parser.add_argument("--manifest", nargs="+", help="names in benchmarks/reliability/manifests, or paths")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of every choice")
    parser.add_argument("--attach", action="store_true", help="containers: use the testnet that is up")
    parser.add_argument(
        "--write", action="store_true", help="only renew the page, from the last results (out/)"
    )
    options = parser.parse_args()
    if options.write:
        renew_document()
        return
    if options.backend or options.quick or options.manifest:
        holds = run_backend(options, options.backend or "processes")
    else:
        holds = run_everything(options)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
