"""Runs the simulator: `python -m tests.simulation --runs 1000`, or one run with `--seed N --verbose`."""

import argparse
import sys
import time

from tests.simulation.run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--attack", dest="kind", action="store_const", const="attack", default="random")
    parser.add_argument("--random", dest="kind", action="store_const", const="random")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.runs)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    bad = 0
    for seed in seeds:
        started = time.process_time()
        outcome = simulate(seed, arguments.kind, arguments.verbose)
        spent = time.process_time() - started
        print(f"{seed} {spent:.2f}s {outcome.height} {outcome.final} {outcome.blocks} gap {outcome.gap_ms} jailed {outcome.jailed} set {outcome.changes} settled {outcome.settled} {outcome.conflict} {outcome.guilty_share:.2f} {outcome.violation}", flush=True)
        bad += bool(outcome.violation)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
