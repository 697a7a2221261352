"""Every figure that the project promises, in one run and one table: `python -m benchmarks.bench`.

`--quick` takes smaller samples, `--only` some of the parts, `--write` renews docs/BENCHMARKS.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from benchmarks import (
    chain_speed,
    clear_fusion,
    encrypted_fusion,
    encrypted_step,
    latency,
    lease_scaling,
    sync_speed,
)
from benchmarks.figures import Figure, format_table
from benchmarks.timing import Timing, get_machine
from workloads.encrypted_fusion import EncryptedFusion

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "BENCHMARKS.md"
PRESET = "ckks-16384-60x5"
MIN_PATCHES_PER_S = 3_000.0
MIN_SPEED_UP = 1.8
MAX_LOSS_S = 1.0
MAX_WORKER_MIB = 1.1 * 1024
DEFAULT_BATCH_S = 2.0
"""Seconds of a batch in the simulation where the encrypted step was not measured."""

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """How this run was asked for."""

    quick: bool
    base_port: int
    directory: Path


def get_memory() -> str:
    """Of the machine, where the system tells."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return "unknown memory"
    total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return f"{int(total.split()[1]) / 2**20:.0f} GiB of memory"


# --- parts ------------------------------------------------------------------------------------


def run_encrypted_step(setting: Setting) -> tuple[list[Figure], float]:
    """The figures of `encrypted_step`, and the processor seconds of one batch."""
    directory = setting.directory / "step"
    directory.mkdir()
    found = encrypted_step.run(PRESET, 1 if setting.quick else 3, directory)

    def number(name: str) -> float:
        return float(cast(float, found[name]))

    def time_of(name: str) -> Timing:
        return Timing(**cast(dict[str, float], found[name]))

    patches, gradient, loss = number("patches"), time_of("gradient"), time_of("loss")
    rate, cpu_rate = patches / gradient.wall_s, patches / gradient.cpu_s
    one, two = number("two_batches_one_process_s"), number("two_batches_two_processes_s")
    check = time_of("custody_check")
    figures = [
        Figure(
            "patches a second and core: 6x6, 4 channels, batch of 8192",
            f"{rate:,.0f}/s ({gradient.wall_s:.2f} s a batch)",
            f">= {MIN_PATCHES_PER_S:,.0f}/s",
            rate >= MIN_PATCHES_PER_S,
            f"{cpu_rate:,.0f}/s ({gradient.cpu_s:.2f} s)",
        ),
        Figure(
            "two batches: on two cores against one after the other",
            f"{one / two:.2f}x ({one:.2f} s, {two:.2f} s)",
            f">= {MIN_SPEED_UP}x",
            one / two >= MIN_SPEED_UP,
        ),
        Figure(
            "a milestone's loss recomputed, 8192 encrypted patches, blobs at hand",
            f"{loss.wall_s:.2f} s",
            f"<= {MAX_LOSS_S:.1f} s",
            loss.wall_s <= MAX_LOSS_S,
            f"{loss.cpu_s:.2f} s",
        ),
        Figure(
            "memory of a miner's worker, at its peak",
            f"{number('worker_peak_mib'):,.0f} MiB",
            f"< {MAX_WORKER_MIB:,.0f} MiB",
            number("worker_peak_mib") < MAX_WORKER_MIB,
        ),
        Figure("custody's check of a bundle", f"{check.wall_s:.2f} s", cpu=f"{check.cpu_s:.2f} s"),
    ]
    return figures, gradient.cpu_s


def run_encrypted_fusion(setting: Setting) -> list[Figure]:
    """An encrypted pair of the default network and, in full samples, of the Inception one."""
    directory = setting.directory / "encrypted-fusion"
    directory.mkdir()
    names = ("default",) if setting.quick else tuple(clear_fusion.NETWORKS)
    rows: list[Figure] = []
    for name in names:
        found = encrypted_fusion.run(name, EncryptedFusion(), clear_fusion.SIDE, 1, directory)
        what = f"an encrypted {clear_fusion.SIDE}x{clear_fusion.SIDE} pair: {name}"
        owner = found.make_keys + found.encrypt + found.decrypt
        rows += [
            Figure(
                f"{what}, at the peer", f"{found.evaluate.wall_s:.1f} s", cpu=f"{found.evaluate.cpu_s:.1f} s"
            ),
            Figure(
                f"{what}, keys, encryption, decryption", f"{owner.wall_s:.1f} s", cpu=f"{owner.cpu_s:.1f} s"
            ),
            Figure(
                f"{what}, what travels",
                f"{found.upload_bytes / 1e6:.1f} MB up, {found.download_bytes / 1e6:.1f} MB down",
            ),
        ]
    return rows


PARTS = ("clear", "fusion", "step", "chain", "sync", "latency", "leases")


def run_parts(setting: Setting, names: tuple[str, ...]) -> list[Figure]:
    """The figures of the named parts, in order."""
    batch_s = DEFAULT_BATCH_S
    figures: list[Figure] = []

    def run_step() -> list[Figure]:
        nonlocal batch_s
        found, batch_s = run_encrypted_step(setting)
        return found

    directory, port, quick = setting.directory, setting.base_port, setting.quick
    parts: dict[str, Callable[[], list[Figure]]] = {
        "clear": lambda: clear_fusion.run(quick=quick),
        "fusion": lambda: run_encrypted_fusion(setting),
        "step": run_step,
        "chain": lambda: chain_speed.run(directory, quick=quick),
        "sync": lambda: sync_speed.run(directory, port, quick=quick),
        "latency": lambda: latency.run(directory, port, quick=quick),
        "leases": lambda: lease_scaling.run(directory, port, batch_s, quick=quick),
    }
    for name in names:
        console.print(f"[bold]{name}[/] ...")
        begun = time.monotonic()
        figures += parts[name]()
        console.print(f"[bold]{name}[/] took {time.monotonic() - begun:.0f} s")
    return figures


# --- the document -----------------------------------------------------------------------------

EXPLANATION = """\
# Benchmarks

`make bench` measures every figure below in one run and prints this table; `make bench ARGS=--quick` takes
smaller samples, `ARGS="--only chain sync"` some of the parts, `ARGS=--write` renews this page.

{setting}

{table}

## How it is measured

- **Fusing in clear** (`benchmarks/clear_fusion.py`): synthetic pairs, from two images in memory to the fused
  one: extra planes, skip, network, fading and rounding; each pair's fastest repetition. What is promised is
  promised of one core, so it is held against processor time. *All metrics* are the ten of `bmif evaluate` for
  one fused image. Networks with planes of the public backbone take some 0.1 s more for them.
- **An encrypted pair** (`benchmarks/encrypted_fusion.py`): fused by another process that has public keys
  alone; its gate and loading of keys included, the network between the two left out.
- **Encrypted step** (`benchmarks/encrypted_step.py`): a full batch of 8192 synthetic patches under fresh
  keys, in worker processes as a miner runs them, keys loaded before the clock runs, the fastest repetition.
  Two batches one after the other in one worker and at once in two are timed in turns, so that other load
  disturbs both alike. Memory is the worker's peak resident size, all keys and a batch included.
- **Loss**: what every node does for each opened loss (W4), from encrypted batch to loss ciphertext.
- **Rest of verification** (`benchmarks/chain_speed.py`): from a block's bytes to the moved head: decoding,
  all rules, state root, one synced LevelDB batch, every listener of a running node. The promise is held
  against the median.
- **Transfers**: 20 accounts pay each other in blocks of up to 2,000 transfers; each transfer is signed, its
  signature verified at every node. A proposer verifies its own blocks once more when it stores them.
- **Sync** (`benchmarks/sync_speed.py`): two node processes serve a chain with everyone's votes over mutual
  TLS; a third and then a fourth have nothing but the genesis document, the one judges every block, the other
  takes over a snapshot. From its first answer by REST to the servers' head; bytes are those that came over
  the peer port. Processor time is that of the new process alone.
- **Latency** (`benchmarks/latency.py`): four node processes on one machine; from the beginning of the
  submission at one of them until the last of them answers by REST that it has the transaction, looked at
  every 4 ms.
- **Leases** (`benchmarks/lease_scaling.py`): *simulated* is the real miner's loop, presence, leases and
  claims on a simulated clock, each batch taking the processor seconds measured above; openings and network
  cost nothing there. A miner computes one batch at a time, so three miners are no faster than two at four
  batches. *Measured* is a real testnet of full-size batches on this machine: one miner first, then a second
  one joins; the median step with checks and opening by the custody, which shares the same cores. On a
  machine with other load this ratio flatters: two workers then get a larger share of it than one.

Processor time is that of the measuring process alone and tells what a quiet machine would reach.
"""


def describe_setting(setting: Setting, machine: str) -> str:
    size = "Small samples (`--quick`)." if setting.quick else "Full samples."
    return (
        f"Machine: {machine}, {os.getloadavg()[0]:.1f} at the end, {get_memory()}. The benchmark itself "
        f"keeps one or two processes busy; load beyond that is other work. {size}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the parts")
    parser.add_argument("--write", action="store_true", help="renew docs/BENCHMARKS.md")
    parser.add_argument("--base-port", type=int, default=18_300, help="first of twelve ports")
    options = parser.parse_args()
    if options.write and set(options.only) != set(PARTS):
        parser.error("--write needs all parts: the page is of one run")
    machine = get_machine()
    names = tuple(name for name in PARTS if name in options.only)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(options.quick, options.base_port, Path(scratch))
        figures = run_parts(setting, names)
    described, table = describe_setting(setting, machine), format_table(figures)
    print(f"{described}\n\n{table}")
    if options.write:
        DOCUMENT.write_text(EXPLANATION.format(setting=described, table=table), encoding="utf-8")
    sys.exit(1 if any(figure.holds is False for figure in figures) else 0)


if __name__ == "__main__":
    main()
