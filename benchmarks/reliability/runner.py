"""One manifest on one backend, from an empty directory to the invariants."""

import asyncio
import random
import time
import traceback
from dataclasses import dataclass

from benchmarks.reliability.backend import Backend, BackendError
from benchmarks.reliability.invariants import Finding, check_net, count_money
from benchmarks.reliability.load import Load
from benchmarks.reliability.manifest import Manifest
from benchmarks.reliability.perturb import Outcome, Perturber
from benchmarks.reliability.training import TaskView, publish
from benchmarks.reliability.watch import Watcher

DRAIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one manifest showed."""

    manifest: Manifest
    backend: str
    seed: int
    seconds: float
    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...]
    failure: str = ""
    """Why the run broke off; empty when it did not."""

    @property
    def problems(self) -> tuple[str, ...]:
        faults = (f"{o.step.do}: {problem}" for o in self.outcomes for problem in o.problems)
        broken = (f"{f.what}: {problem}" for f in self.findings for problem in f.problems)
        return (*faults, *broken, *((self.failure,) if self.failure else ()))


async def run_manifest(manifest: Manifest, backend: Backend, seed: int) -> Run:
    """Never raises for what the net does: that is in the result."""
    begun = time.monotonic()
    print(f"{manifest.name} on {backend.kind}, seed {seed}: {manifest.about}", flush=True)
    story = _Story(manifest, backend, random.Random(seed))
    failure = ""
    try:
        await backend.begin()
        print(f"  net is up after {time.monotonic() - begun:.0f} s", flush=True)
        await story.tell()
    except Exception as error:
        # Whatever broke is this run's result; the other manifests still have theirs to show.
        failure = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        print(await backend.read_logs(), flush=True)
    finally:
        await backend.end()
    run = Run(
        manifest,
        backend.kind,
        seed,
        time.monotonic() - begun,
        tuple(story.outcomes),
        story.findings,
        failure,
    )
    for finding in run.findings:
        print(f"  {finding.what}: {'; '.join(finding.problems) or 'yes'} ({finding.seen})", flush=True)
    print(f"{manifest.name} on {backend.kind}: {len(run.problems)} problems, {run.seconds:.0f} s", flush=True)
    return run


class _Story:
    def __init__(self, manifest: Manifest, backend: Backend, choose: random.Random) -> None:
        self._manifest = manifest
        self._backend = backend
        self._choose = choose
        self.outcomes: list[Outcome] = []
        self.findings: tuple[Finding, ...] = ()

    async def tell(self) -> None:
        """Load and task begin, the faults happen, everything comes to rest and is checked."""
        manifest, backend = self._manifest, self._backend
        async with Watcher(backend) as watcher:
            views = {name: await watcher.look(name) for name in backend.names}
            addresses = {name: view.address for name, view in views.items() if view is not None}
            if len(addresses) != len(views):
                raise BackendError("not every node answers at the beginning")
            # A random number for each part, so that no part's choices shift another's.
            load = Load(
                backend,
                watcher,
                random.Random(self._choose.getrandbits(64)),
                manifest.load.accounts,
                manifest.load.per_second,
            )
            perturber = Perturber(backend, watcher, load, random.Random(self._choose.getrandbits(64)))
            perturber.outcomes = self.outcomes
            try:
                await load.connect()
                before = await count_money(load, "node4", list(addresses.values()))
                old = {task.id async for task in load.get_client("node4").iterate_tasks()}
                await load.fund()
                await self._perturb(perturber, load)
                await load.drain(DRAIN_S)
                self.findings = await check_net(backend, watcher, load, addresses, before, old)
            finally:
                await load.end()

    async def _perturb(self, perturber: Perturber, load: Load) -> None:
        plan = self._manifest.task
        transfers = asyncio.create_task(load.run())
        try:
            if plan is not None:
                perturber.task = TaskView(self._backend, await publish(self._backend, plan))
                perturber.deadline = time.monotonic() + plan.deadline_s
                print(f"  task {perturber.task.id[:12]} published", flush=True)
            for step in self._manifest.steps:
                if transfers.done():
                    break  # its failure is raised below
                await perturber.apply(step)
            if plan is not None and perturber.task is not None:
                status = await perturber.task.wait_ended(load.get_client("node4"), plan.complete_s)
                expired = any(step.do == "custody-away" for step in self._manifest.steps)
                if status != ("expired" if expired else "complete"):
                    raise BackendError(f"the task is {status}")
        finally:
            transfers.cancel()
            results = await asyncio.gather(transfers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
