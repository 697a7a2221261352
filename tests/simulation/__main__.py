"""Runs the simulator: `python -m tests.simulation --runs 1000`, or one run with `--seed N --verbose`."""

import argparse
import os
import sys
import time

from tests.simulation.batch import Summary, run_all
from tests.simulation.run import simulate
from tests.simulation.scenario import build_attack, build_scenario

REPORT_S = 30


def replay(seed: int, kind: str, is_verbose: bool) -> bool:
    """One run; True if it holds."""
    scenario = build_attack(seed) if kind == "attack" else build_scenario(seed)
    if is_verbose:
        print(scenario)
    outcome = simulate(seed, kind, is_verbose)
    print(
        f"seed {seed}: {outcome.nodes} nodes, height {outcome.height}, final {outcome.final}, "
        f"{outcome.messages} messages, {outcome.cpu_s:.2f} s of CPU"
    )
    print(", ".join(f"{key} {count}" for key, count in sorted(outcome.events.items())))
    print(outcome.violation or "no violation")
    return not outcome.violation


def run_batch(first: int, runs: int, kind: str, jobs: int) -> bool:
    """Many runs; True if all hold."""
    print(f"seeds {first} to {first + runs - 1} ({kind}), {jobs} at a time", flush=True)
    summary = Summary(kind)
    started = reported = time.monotonic()
    for outcome in run_all(range(first, first + runs), kind, jobs):
        summary.add(outcome)
        if outcome.violation:
            print(f"seed {outcome.seed}: {outcome.violation}\n  replay: {outcome.command}", flush=True)
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            print(f"  {summary.runs} runs, {len(summary.failures)} violations", flush=True)
    print(summary.format())
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return not summary.failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="only this run")
    parser.add_argument("--runs", type=int, default=1_000, help="runs with less than a third of liars")
    parser.add_argument("--attacks", type=int, default=0, help="runs with a third or more")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--attack", action="store_true", help="with --seed: the run with a third or more")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="with --seed: print what happens")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return not replay(arguments.seed, "attack" if arguments.attack else "random", arguments.verbose)
    is_good = not arguments.runs or run_batch(arguments.first, arguments.runs, "random", arguments.jobs)
    if arguments.attacks:
        is_good = run_batch(arguments.first, arguments.attacks, "attack", arguments.jobs) and is_good
    return not is_good


if __name__ == "__main__":
    sys.exit(main())
