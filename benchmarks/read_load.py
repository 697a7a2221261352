"""What readers cost a node that mines: `python -m benchmarks.read_load`.

A custody and a miner as processes; the miner's public API is read by 100 connections at a fixed rate, status
and blocks in turns, while it trains. Phases without and with readers alternate in one run, so that other work
on the machine disturbs both alike. Latency counts from the moment that a request was due, not from when it
could be sent. Then a thousand readers of events: what each costs in memory, and how long an event takes to
all of them.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.table import Table

from benchmarks.testbed import Contributor, Recipe, Testbed, TestbedError, console
from benchmarks.timing import get_machine
from node.processes import get_pid
from workloads.imaging import PairSource

MINER = "node2"
HEAD_END = b"\r\n\r\n"
DRAFT = ("--patch", "5", "--kernels", "1,3", "--steps", "2000", "--batches", "1", "--batches-per-step", "1",
         "--loss-openings", "100")  # fmt: skip
PUBLISH = ("--batches-per-step", "1", "--learning-rate", "0.01", "--loss-every", "50", "--batch-fee", "0")
UNREACHABLE = "0.0000001:1000"


@dataclass(frozen=True, slots=True)
class Load:
    """What the readers saw in one phase."""

    answered: int
    seconds: float
    latencies_ms: tuple[float, ...]
    refused: int
    """Answers that were not 200."""
    cpu_s: float
    """Of the readers' own process."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of mining, read or not."""

    steps: int
    blocks: int
    seconds: float
    node_cpu_s: float
    """Of the node's own process, its workers not counted."""
    load: Load | None


# --- readers, in a process of their own -------------------------------------------------------


class _Connection(asyncio.Protocol):
    """Sends a request whenever one is due, one at a time; answers have a Content-Length."""

    def __init__(self, requests: list[bytes], every_s: float, first: float, end: float) -> None:
        self._requests, self._every_s, self._due, self._end = requests, every_s, first, end
        self._buffer = b""
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.latencies: list[float] = []
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop.call_at(self._due, self._send)

    def _send(self) -> None:
        assert self._transport is not None
        self._transport.write(self._requests[self._number % len(self._requests)])
        self._number += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(HEAD_END)
        if not found:
            return
        lower = head.lower()
        start = lower.index(b"content-length: ") + 16
        if len(body) < int(lower[start:].split(b"\r", 1)[0]):
            return
        self._buffer = b""
        self.latencies.append(self._loop.time() - self._due)
        self.refused += not head.startswith(b"HTTP/1.1 200")
        self._due += self._every_s
        if self._due >= self._end:
            if not self.done.done():
                self.done.set_result(None)
        else:
            self._loop.call_at(self._due, self._send)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the node closed a connection"))


def run_load(port: int, paths: tuple[str, ...], connections: int, rate: float, seconds: float) -> Load:
    """Ask at `rate` requests a second over so many connections."""

    async def main() -> Load:
        loop = asyncio.get_running_loop()
        texts = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for path in paths]
        begin, cpu = loop.time() + 0.5, time.process_time()
        every = connections / rate
        readers: list[_Connection] = []
        for number in range(connections):
            first = begin + every * number / connections
            requests = texts[number % len(texts) :] + texts[: number % len(texts)]
            _, reader = await loop.create_connection(
                lambda first=first, requests=requests: _Connection(requests, every, first, begin + seconds),
                "127.0.0.1",
                port,
            )
            readers.append(reader)
        await asyncio.gather(*(reader.done for reader in readers))
        latencies = [1000 * latency for reader in readers for latency in reader.latencies]
        refused = sum(reader.refused for reader in readers)
        return Load(len(latencies), loop.time() - begin, tuple(latencies), refused, time.process_time() - cpu)

    return asyncio.run(main())


def run_subscribers(port: int, count: int, seconds: float) -> tuple[int, list[float]]:
    """Hold `count` event streams; how many were held, and each event's seconds from first to last arrival."""

    async def main() -> tuple[int, list[float]]:
        arrivals: dict[bytes, list[float]] = {}
        loop = asyncio.get_running_loop()
        held = 0

        async def read() -> None:
            nonlocal held
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            status = await reader.readline()
            held += b" 200 " in status
            try:
                while line := await reader.readline():
                    if line.startswith(b"id: "):
                        arrivals.setdefault(line, []).append(loop.time())
            finally:
                writer.close()

        tasks = [asyncio.create_task(read()) for _ in range(count)]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held, [max(times) - min(times) for times in arrivals.values() if len(times) == held]

    return asyncio.run(main())


# --- the measurement --------------------------------------------------------------------------


def build_recipe() -> Recipe:
    """A task that goes on for as long as it is watched."""
    source = PairSource(phantoms=6, phantom_seed=1, first_phantom=100)
    return Recipe("Read load", (Contributor(MINER, source, 2),), (UNREACHABLE,), DRAFT, PUBLISH)


def read_progress(bed: Testbed, task: str) -> tuple[int, int]:
    """Steps and height, as the custody's node has them: it is not the one that is read."""
    with bed.connect("node1") as client:
        return client.call(client.api.get_task(task)).step, client.call(client.api.get_status()).head.height


def get_process(bed: Testbed) -> psutil.Process:
    pid = get_pid(bed.testnet.get_directory(MINER))
    if pid is None:
        raise TestbedError(f"{MINER} does not run")
    return psutil.Process(pid)


def _get_cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure_phase(bed: Testbed, task: str, options: argparse.Namespace, is_read: bool) -> Phase:
    """Mine for a while, from one step's end on, with readers or without."""
    process = get_process(bed)
    port = next(node.api_port for node in bed.testnet.nodes if node.name == MINER)
    before, cpu, start = read_progress(bed, task), _get_cpu(process), time.monotonic()
    load = None
    if is_read:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            paths = ("/v1/status", "/v1/blocks/head", "/v1/status", "/v1/blocks?limit=10")
            load = pool.submit(
                run_load, port, paths, options.connections, options.rate, options.seconds
            ).result()
    else:
        time.sleep(options.seconds)  # the phase's length, nothing is waited for
    after, seconds = read_progress(bed, task), time.monotonic() - start
    return Phase(after[0] - before[0], after[1] - before[1], seconds, _get_cpu(process) - cpu, load)


def print_phases(phases: list[Phase]) -> None:
    table = Table("phase", "steps/s", "blocks/s", "node's core", "answers/s", "p50 ms", "p99 ms", "not 200")
    for phase in phases:
        load = phase.load
        cells = ["-"] * 4
        if load is not None:
            cuts = statistics.quantiles(load.latencies_ms, n=100)
            cells = [
                f"{load.answered / load.seconds:.0f}",
                f"{cuts[49]:.1f}",
                f"{cuts[98]:.1f}",
                str(load.refused),
            ]
        table.add_row(
            "quiet" if load is None else "read",
            f"{phase.steps / phase.seconds:.3f}",
            f"{phase.blocks / phase.seconds:.3f}",
            f"{100 * phase.node_cpu_s / phase.seconds:.0f} %",
            *cells,
        )
    console.print(table)
    quiet = [phase for phase in phases if phase.load is None]
    read = [phase for phase in phases if phase.load is not None]
    for name in ("steps", "blocks"):
        slow = sum(getattr(p, name) for p in quiet) / sum(p.seconds for p in quiet)
        fast = sum(getattr(p, name) for p in read) / sum(p.seconds for p in read)
        console.print(
            f"{name} a second with readers, of those without: {fast / slow:.3f}" if slow else f"no {name}"
        )
    answered = sum(p.load.answered for p in read if p.load)
    extra = sum(p.node_cpu_s for p in read) - sum(p.node_cpu_s for p in quiet)
    own = sum(p.load.cpu_s for p in read if p.load)
    console.print(
        f"the node spends {1e6 * extra / answered:.0f} us of a core on an answer; the readers, on the same "
        f"machine, {1e6 * own / answered:.0f} us"
    )


def measure_subscribers(bed: Testbed, options: argparse.Namespace) -> None:
    process = get_process(bed)
    port = next(node.api_port for node in bed.testnet.nodes if node.name == MINER)
    before = process.memory_info().rss
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = pool.submit(run_subscribers, port, options.subscribers, options.seconds)
        peak = before
        while not waiting.done():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.2)  # a sample of memory, nothing is waited for
        held, spreads = waiting.result()
    each = (peak - before) / 1024 / max(held, 1)
    console.print(f"readers of events held: {held} of {options.subscribers}, {each:.0f} KiB of memory each")
    if spreads:
        spread, most = 1000 * statistics.median(spreads), 1000 * max(spreads)
        console.print(
            f"from first to last of them: {spread:.0f} ms median, {most:.0f} ms at most, "
            f"{len(spreads)} events"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1_050, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of phases")
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--base-port", type=int, default=8400)
    options = parser.parse_args()
    console.print(get_machine(), highlight=False)
    with tempfile.TemporaryDirectory(prefix="bmif-read-") as folder:
        bed = Testbed(Path(folder) / "net", show=False)
        try:
            bed.start(2, 1, options.base_port)
            task = bed.publish(build_recipe()).task
            deadline = time.monotonic() + 120
            while read_progress(bed, task)[0] < 3:
                if time.monotonic() > deadline:
                    raise TestbedError("nothing is mined")
                time.sleep(0.5)  # a poll with a deadline
            phases = [
                measure_phase(bed, task, options, is_read)
                for _ in range(options.rounds)
                for is_read in (False, True)
            ]
            print_phases(phases)
            measure_subscribers(bed, options)
        finally:
            bed.stop()


if __name__ == "__main__":
    main()
