"""How a step's time falls with the number of miners: `python -m benchmarks.lease_scaling --seconds 2.5`.

Simulated: the real miner's loop, presence, leases and claims of one node a miner, on a clock that only the
simulation moves, with a wait in place of the computation of a bundle and a network without delay.
Measured: one miner against two on this machine, real testnets of processes with full-size batches.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.chain_speed import CIPHERTEXT
from benchmarks.figures import Figure, format_table
from benchmarks.source import (
    CUSTODY,
    KEYS,
    MINERS,
    Source,
    SourceError,
    TaskPlan,
    build_core,
    build_genesis,
    build_gradient,
    build_loss,
    publish_task,
    require_task,
)
from benchmarks.testbed import Contributor, Recipe, Testbed, TestbedError
from consensus.codec import decode
from consensus.task import Batch, BlobRef, Claim, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction, sign_transaction
from consensus.types import Hash32
from node.blobs import BlobStore
from node.clock import ManualClock
from node.core import Core
from node.fetch import BlobFetcher
from node.gossip.messages import Kind
from node.ledger.store import MemoryStore
from node.miner import Miner
from node.processes import LOG_FILE
from node.tasks import TaskDefinition
from node.testnet import Profile, init_testnet
from node.work import VerdictBook, WorkService
from workloads.imaging import PairSource

BATCHES_PER_STEP = 4
MAX_TURNS = 2_000
TICKS_PER_BATCH = 2
NO_RUNG = 2 * 10**6
"""A loss that meets no milestone."""
RUNG = "0.000001:1"
"""A milestone out of reach: the measured testnet mines until it is stopped."""
MAX_STEPS = 60
MINE_DEADLINE_S = 420.0


# --- simulated --------------------------------------------------------------------------------


class _Pace(WorkService):
    """Takes a fixed time on the clock for a bundle; nothing is encrypted."""

    def __init__(
        self, blobs: BlobStore, verdicts: VerdictBook, workers: int, clock: ManualClock, seconds: float
    ) -> None:
        super().__init__(blobs, verdicts, workers)
        self._clock = clock
        self._seconds = seconds
        self.begun = 0

    async def compute_bundle(
        self, definition: TaskDefinition, batch: int, weights: tuple[int, ...], output: Path
    ) -> None:
        self.begun += 1
        await self._clock.sleep(self._seconds)
        output.write_bytes(b"%d" % batch)  # noqa: ASYNC240 - a few bytes

    async def check_keys(self, definition: TaskDefinition) -> None:
        return

    async def check_batch(self, definition: TaskDefinition, batch: Batch, validation: bool) -> None:
        return


class _NoFetch(BlobFetcher):
    """Every blob is at hand."""

    async def fetch(self, ref: BlobRef, *, patience_s: float = 30.0) -> Path:
        return Path()


class _Wire:
    """Hands what one core announces to the others, at once."""

    def __init__(self, own: Core, others: list[Core]) -> None:
        self._own = own
        self._others = others
        self.claims: set[Hash32] = set()
        """Of the own miner."""

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        takes: dict[Kind, Callable[[Core], object]] = {
            Kind.CLAIM: lambda core: core.take_claim(data),
            Kind.PRESENCE: lambda core: core.take_presence(data),
            Kind.TRANSACTION: lambda core: core.admit(decode(SignedTransaction, data)),
        }
        if kind is Kind.CLAIM and decode(Claim, data).miner == self._own.address:
            self.claims.add(object_id)
        take = takes.get(kind)
        for core in self._others:
            if take is not None and core is not self._own and not core.has_object(kind, object_id):
                take(core)


@dataclass(slots=True)
class _Stage:
    """The nodes of a simulation: the custody's first, then the miners'."""

    clock: ManualClock
    cores: list[Core]
    paces: list[_Pace]
    wires: list[_Wire]

    async def settle(self) -> None:
        """Return once every bundle begun is either being waited for on the clock or claimed."""
        for _ in range(MAX_TURNS):
            for core in self.cores:
                core.pulse.beat()
            for _ in range(20):
                await asyncio.sleep(0)
            begun = sum(pace.begun for pace in self.paces)
            if begun - sum(len(wire.claims) for wire in self.wires) == self.clock.sleepers:
                return
            await asyncio.sleep(0.001)  # a bundle is on its way to disk in a thread
        raise SourceError("the miners did not come to rest")


async def simulate_steps(directory: Path, miners: int, batch_s: float, steps: int) -> float:
    """Mean seconds of a step on the simulated clock, its opening taken as free."""
    genesis = build_genesis()
    clock = ManualClock(genesis.time)
    paces: list[_Pace] = []

    def build_pace(blobs: BlobStore, verdicts: VerdictBook, workers: int) -> WorkService:
        paces.append(_Pace(blobs, verdicts, workers, clock, batch_s))
        return paces[-1]

    cores = [
        build_core(genesis, MemoryStore(), key, clock, directory / str(at), build_pace)
        for at, key in enumerate((CUSTODY, *MINERS[:miners]))
    ]
    source = Source(cores[0], clock, KEYS)
    # One step more than is measured: in the first, miners learn of each other.
    plan = TaskPlan(steps + 1, 2 * BATCHES_PER_STEP, BATCHES_PER_STEP, 1)
    task, blocks = publish_task(source, plan)
    first = build_loss(task, require_task(cores[0], task), NO_RUNG, CIPHERTEXT)
    blocks.append(source.carry([source.sign(CUSTODY, first, counted=False)]))
    for core in cores[1:]:
        for block in blocks:
            core.take_block(block)
    stage = _Stage(clock, cores, paces, [_Wire(core, cores) for core in cores])
    for core, wire in zip(cores, stage.wires, strict=True):
        core.attach_network(wire, _NoFetch(core.blobs, lambda: (), clock))
    jobs = [
        asyncio.create_task(Miner(core, 1, directory / f"scratch-{at}").run())
        for at, core in enumerate(cores[1:])
    ]
    try:
        times = [await _run_step(stage, task, step, batch_s) for step in range(steps + 1)]
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
    return statistics.mean(times[1:])


async def _run_step(stage: _Stage, task: Hash32, step: int, batch_s: float) -> float:
    """Let the miners work until each batch is claimed, then open the step and its loss; seconds it took."""
    custody, clock = stage.cores[0], stage.clock
    definition, tip = custody.get_definition(task), custody.get_tip(task)
    if definition is None or tip is None or tip.state.step != step:
        raise SourceError(f"the task is not at step {step}")
    batches = definition.get_step_batches(step)
    begun = clock.monotonic()
    while not all(custody.claims.get_for(task, step, batch) for batch in batches):
        await stage.settle()
        clock.advance(batch_s / TICKS_PER_BATCH)
        await stage.settle()
        if clock.monotonic() > begun + 100 * batch_s:
            raise SourceError(f"step {step} was not claimed")
    seconds = clock.monotonic() - begun
    claims = tuple(custody.claims.get_for(task, step, batch)[0] for batch in batches)
    _open(custody, build_gradient(task, tip.state, claims))
    tip = custody.get_tip(task)
    if tip is not None:
        _open(custody, build_loss(task, tip.state, NO_RUNG, CIPHERTEXT))
    return seconds


def _open(custody: Core, opening: OpenGradient | OpenLoss) -> None:
    admission = custody.admit(sign_transaction(CUSTODY, custody.chain.chain_id, 0, opening))
    if not admission.accepted:
        raise SourceError(f"an opening was refused: {admission.reason} {admission.detail}")


def simulate(directory: Path, batch_s: float, steps: int) -> dict[int, float]:
    """Mean seconds of a step by number of miners."""
    return {
        miners: asyncio.run(simulate_steps(directory / f"simulated-{miners}", miners, batch_s, steps))
        for miners in range(1, len(MINERS) + 1)
    }


# --- measured ---------------------------------------------------------------------------------


def _build_recipe() -> Recipe:
    """Two full training batches, both in every step; one loss, before the first."""
    contributors = tuple(
        Contributor(node, PairSource(phantoms=6, phantom_seed=3, first_phantom=first), 2)
        for node, first in (("node2", 100), ("node3", 200))
    )
    return Recipe(
        "Bench: leases",
        contributors,
        (RUNG,),
        draft=("--channels", "4", "--steps", str(MAX_STEPS)),
        publish=("--loss-every", str(10 * MAX_STEPS)),
    )


def _read_log(bed: Testbed, node: str, start: str) -> dict[int, float]:
    """When a node logged a message that begins so, by the number that follows."""
    found: dict[int, float] = {}
    for line in (bed.testnet.get_directory(node) / LOG_FILE).read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if str(entry["message"]).startswith(start):
                step = int(str(entry["message"]).removeprefix(start).split()[0])
                found[step] = datetime.fromisoformat(entry["time"]).timestamp()
    return found


def _wait_steps(bed: Testbed, after: Callable[[], int | None], steps: int, deadline: float) -> list[float]:
    """Seconds of each of the `steps` steps that follow the step `after`; None while that is not known."""
    while True:
        opened, first = _read_log(bed, "node1", "opened step "), after()
        if first is not None and max(opened, default=-1) >= first + steps:
            times = [opened[step] for step in range(first, first + steps + 1)]
            return [late - early for early, late in pairwise(times)]
        if time.monotonic() > deadline:
            raise TestbedError(f"only steps {sorted(opened)} were opened in time")
        time.sleep(0.25)  # a poll with a deadline


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of steps of two batches, by the number of miners at work."""

    one: list[float]
    two: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.one) / statistics.median(self.two)


def measure_pair(directory: Path, base_port: int, steps: int) -> Measured:
    """One task: first a single miner works on it, then a second one joins."""
    profile = Profile(node={"log": {"format": "json"}})
    init_testnet(directory, 3, 2, profile=profile, base_port=base_port)
    bed = Testbed(directory, show=False)
    deadline = time.monotonic() + MINE_DEADLINE_S
    try:
        bed.bmif("testnet", "up", "--dir", str(directory), capture=True)
        bed.publish(_build_recipe())
        bed.bmif("testnet", "down", "node3", "--dir", str(directory), capture=True)

        def find_alone() -> int | None:
            # Node 3 may still hold a lease; its first claim after that is node 2's, one step later.
            mined = _read_log(bed, "node3", "mined step ")
            return max(mined, default=-1) + 2

        def find_joined() -> int | None:
            mined = [step for step in _read_log(bed, "node3", "mined step ") if step > alone]
            return min(mined) + 1 if mined else None

        one = _wait_steps(bed, find_alone, steps, deadline)
        alone = max(_read_log(bed, "node1", "opened step "))
        bed.bmif("testnet", "up", "node3", "--dir", str(directory), capture=True)
        two = _wait_steps(bed, find_joined, steps, deadline)
    finally:
        bed.stop()
    return Measured(one, two)


def run(directory: Path, base_port: int, batch_s: float, *, quick: bool) -> list[Figure]:
    """The figures of this module, `batch_s` being the seconds of one batch."""
    simulated = simulate(directory, batch_s, 2 if quick else 5)
    times = ", ".join(f"{seconds:.2f} s" for seconds in simulated.values())
    gains = ", ".join(f"{simulated[1] / seconds:.2f}x" for seconds in simulated.values())
    pair = measure_pair(directory / "pair", base_port, 2 if quick else 4)
    one, two = statistics.median(pair.one), statistics.median(pair.two)
    return [
        Figure(
            f"simulated: a step of {BATCHES_PER_STEP} batches of {batch_s:.2f} s, 1, 2, 3, 4 miners",
            f"{times} ({gains})",
        ),
        Figure(
            "measured: a step of 2 batches on this machine, one miner, then two",
            f"{one:.1f} s, {two:.1f} s ({pair.ratio:.2f}x), custody's checks included",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of a batch in the simulation")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--base-port", type=int, default=18_320, help="first of nine ports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(format_table(run(Path(scratch), options.base_port, options.seconds, quick=options.quick)))


if __name__ == "__main__":
    main()
