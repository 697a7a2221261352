"""Many runs over the cores, and what they add up to."""

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.run import Outcome, simulate


@dataclass
class Summary:
    """Of many runs of one kind."""

    kind: str
    runs: int = 0
    cpu_s: float = 0.0
    longest_gap_ms: int = 0
    conflicts: int = 0
    least_guilty: float = 1.0
    """Smallest share of stake convicted where two conflicting blocks are final."""
    sizes: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.cpu_s += outcome.cpu_s
        self.longest_gap_ms = max(self.longest_gap_ms, outcome.gap_ms)
        self.sizes[outcome.validators] += 1
        self.events += outcome.events
        self.reasons.update(outcome.reasons)
        if outcome.conflict:
            self.conflicts += 1
            self.least_guilty = min(self.least_guilty, outcome.guilty_share)
        if outcome.violation:
            self.failures.append(outcome)

    def format(self) -> str:
        sizes = ", ".join(f"{count} of {size}" for size, count in sorted(self.sizes.items()))
        lines = [
            f"{self.runs} runs ({self.kind}): {len(self.failures)} violations, {self.cpu_s:.0f} s of CPU",
            f"  validators: {sizes}",
            f"  longest stand of finality on a network that works: {self.longest_gap_ms / 1000:.1f} s",
        ]
        if self.conflicts:
            share = f"{100 * self.least_guilty:.1f} %"
            lines.append(f"  conflicting final blocks: {self.conflicts} runs; least stake convicted: {share}")
        lines.append("  " + ", ".join(f"{key} {count}" for key, count in sorted(self.events.items())))
        lines.append(
            "  refusals: " + ", ".join(f"{key} {count}" for key, count in sorted(self.reasons.items()))
        )
        lines += [f"seed {bad.seed}: {bad.violation}\n  replay: {bad.command}" for bad in self.failures]
        return "\n".join(lines)


def run_all(seeds: Iterable[int], kind: str, jobs: int) -> Iterator[Outcome]:
    """The outcomes of all seeds, as they come."""
    job = partial(simulate, kind=kind)
    if jobs == 1:
        yield from map(job, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(job, seeds, chunksize=4)


def summarise(seeds: Iterable[int], kind: str = "random", jobs: int = 1) -> Summary:
    summary = Summary(kind)
    for outcome in run_all(seeds, kind, jobs):
        summary.add(outcome)
    return summary
