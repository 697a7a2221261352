"""How benchmarks time one piece of work, and what machine they ran on."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds on the clock, and of this process's processor time, which other load disturbs less."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def measure(call: Callable[[], T], repetitions: int) -> tuple[Timing, T]:
    """The least of each time over the repetitions, and the last result."""
    if repetitions < 1:
        raise ValueError(f"at least one repetition is needed, got {repetitions}")
    walls, cpus = [], []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Timing(min(walls), min(cpus)), result


def get_machine() -> str:
    """Processor, cores, Python and the load before the measurement."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} at the start"
    )
