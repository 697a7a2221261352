"""`python -m benchmarks.adversary`: attacks on honest nodes, and what each of them gained.

Ends with 1 if an attack gained what it must not. `--write` renews docs/ADVERSARIES.md.
"""

import argparse
import asyncio
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.adversary.profile import Profile, Scene
from benchmarks.adversary.report import DOCUMENT, Entry, format_entry, format_summary, write_document
from benchmarks.adversary.suite import PROFILES, find_profiles


def run_profile(profile: Profile, scene: Scene) -> Entry:
    """Carry the attack out; a profile that can't be finished is a failed one."""
    begun = time.perf_counter()
    try:
        outcome = asyncio.run(profile.run(scene.move(profile.name)))
    except Exception as error:
        logging.getLogger(__name__).exception("%s", profile.name)
        return Entry(profile, None, time.perf_counter() - begun, f"{type(error).__name__}: {error}")
    return Entry(profile, outcome, time.perf_counter() - begun)


def run_all(profiles: Sequence[Profile], seed: int, *, quick: bool = False) -> list[Entry]:
    entries = []
    with tempfile.TemporaryDirectory(prefix="bmif-adversary.") as scratch:
        scene = Scene(Path(scratch) / "none", seed, quick)
        for profile in profiles:
            entries.append(run_profile(profile, scene))
            print(f"\n{format_entry(entries[-1])}\n\n({entries[-1].seconds:.0f} s)", flush=True)
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="profiles to run; all without any")
    parser.add_argument("--list", action="store_true", help="only name the profiles")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of every choice")
    parser.add_argument("--quick", action="store_true", help="smaller attacks of the same kinds")
    parser.add_argument(
        "--write", action="store_true", help=f"renew {DOCUMENT.name} if every profile ran to its end"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for profile in PROFILES:
            print(f"{profile.name:24}{profile.attack}")
        return 0
    try:
        profiles = find_profiles(options.names)
    except KeyError as error:
        parser.error(f"no profile {error}; --list names them")
    print(f"seed {options.seed}", flush=True)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # hostile peers fill any log; failures are told below
    try:
        entries = run_all(profiles, options.seed, quick=options.quick)
    finally:
        logging.disable(before)
    print(f"\n{format_summary(entries)}")
    if options.write and len(entries) == len(PROFILES) and all(entry.outcome for entry in entries):
        write_document(entries, options.seed)
        print(f"{DOCUMENT.name} renewed")
    for entry in entries:
        if not entry.holds:
            print(
                f"PROBLEM: {entry.profile.name}: {entry.failure or 'it gained what it must not'}", flush=True
            )
    return 0 if all(entry.holds for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
