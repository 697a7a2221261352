"""What a benchmark reports: a figure beside what was promised, and the table of all of them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: `holds` is None where nothing was promised."""

    what: str
    reached: str
    promised: str = ""
    holds: bool | None = None
    cpu: str = ""
    """Processor time of the same work, which other load on the machine disturbs less."""

    @property
    def verdict(self) -> str:
        return "" if self.holds is None else "yes" if self.holds else "no"


@dataclass(slots=True)
class Stopwatch:
    """Wall and processor seconds of this process, one entry a `with` block."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    _begun: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.walls.append(time.perf_counter() - self._begun[0])
        self.cpus.append(time.process_time() - self._begun[1])

    @property
    def wall_s(self) -> float:
        return sum(self.walls)

    @property
    def cpu_s(self) -> float:
        return sum(self.cpus)


def compute_quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def describe_spread(values: Sequence[float]) -> str:
    """Median and 95th percentile of seconds, in milliseconds."""
    median, high = statistics.median(values), compute_quantile(values, 0.95)
    return f"{median * 1e3:.1f} ms median, {high * 1e3:.1f} ms p95"


def format_table(figures: Sequence[Figure]) -> str:
    """A table in Markdown, its columns aligned."""
    rows = [("figure", "promised", "reached", "processor time", "holds")]
    rows += [(f.what, f.promised, f.reached, f.cpu, f.verdict) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
