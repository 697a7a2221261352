"""`make fuzz`: the coverage-guided fuzzer over all targets or some, with a table of what it found."""

import argparse
import fnmatch
import secrets
import sys

from tests.fuzz import corpus

try:
    from tests.fuzz.engine import Result, fuzz, load_measured_targets
except ModuleNotFoundError as error:
    sys.exit(f"{error}: run `make fuzz`; atheris has wheels for Python 3.11 to 3.13 on x86-64")
from tests.fuzz.target import ROOT, Target

OUT = ROOT / "out" / "fuzz"
LEAST_S = 2
KEPT_FILES, KEPT_BYTES = 4, 600
"""Most found inputs that a target's corpus holds, and their bytes together."""
COLUMNS = "{:28} {:>6} {:>10} {:>7} {:>7} {:>5} {:>8}"


def keep(target: Target, result: Result) -> int:
    """Adds what was found to the corpus: every crash, and small inputs that reach new code."""
    saved = [corpus.save(target, corpus.CRASH, path.read_bytes()) for path in result.crashes]
    kept = [data for name, data in corpus.load_corpus(target).items() if name.startswith(corpus.FOUND)]
    files, room = KEPT_FILES - len(kept), KEPT_BYTES - sum(map(len, kept))
    small = [path for path in result.found if path.stat().st_size <= KEPT_BYTES // 2]
    # From the largest down, in even steps: small ones tell of the first lines alone.
    for path in small[:: -max(1, len(small) // KEPT_FILES)]:
        data = path.read_bytes()
        if files > 0 and len(data) <= room and corpus.save(target, corpus.FOUND, data) is not None:
            files, room = files - 1, room - len(data)
            saved.append(path)
    return sum(path is not None for path in saved)


def describe(name: str, results: list[Result]) -> str:
    return COLUMNS.format(
        name,
        round(sum(result.seconds for result in results)),
        sum(result.executions for result in results),
        sum(result.edges for result in results),
        sum(result.edges - result.first_edges for result in results),
        sum(len(result.found) for result in results),
        sum(len(result.crashes) for result in results),
    )


def conclude(results: list[tuple[Target, Result]]) -> int:
    """Names every fault; 1 if there is one."""
    faults = 0
    for target, result in results:
        for path in result.crashes:
            text = path.with_suffix(".txt")
            last = (
                text.read_text(encoding="utf-8").strip().splitlines()[-1] if text.exists() else "see the log"
            )
            print(f"{target.name}: {path.relative_to(ROOT)}: {last[:160]}")
        if result.failure:
            print(f"{target.name}: {result.failure}")
        faults += len(result.crashes) + bool(result.failure)
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (default: 600)")
    parser.add_argument("--target", default="*", help="a name or pattern, e.g. 'codec.*' (default: all)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31 - 1) + 1)
    parser.add_argument("--keep", action="store_true", help="add what is found to the corpus")
    arguments = parser.parse_args()
    found = load_measured_targets()
    targets = [target for name, target in found.items() if fnmatch.fnmatch(name, arguments.target)]
    if not targets:
        parser.error(f"no target matches {arguments.target}; there are {', '.join(found)}")
    share = arguments.seconds / sum(target.effort for target in targets)
    print(f"seed {arguments.seed}, {len(targets)} targets, {arguments.seconds} s in all; details in {OUT}")
    print(COLUMNS.format("target", "s", "runs", "edges", "gained", "new", "crashes"), flush=True)
    results: list[tuple[Target, Result]] = []
    for target in targets:
        seconds = max(LEAST_S, round(share * target.effort))
        result = fuzz(target, seconds, arguments.seed, OUT / target.name)
        results.append((target, result))
        print(describe(target.name, [result]), flush=True)
        if arguments.keep:
            keep(target, result)
    print(describe("total", [result for _, result in results]))
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
