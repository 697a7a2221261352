"""The faults: each is begun, held, checked meanwhile, ended, and timed until the net is whole again."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.reliability.backend import Backend, BackendError
from benchmarks.reliability.load import Load
from benchmarks.reliability.manifest import Step
from benchmarks.reliability.training import CUSTODY, TaskView
from benchmarks.reliability.watch import Watcher

GIVE_UP = 3
"""A recovery is waited for up to so many times its bound, so that the table says how late it was."""
IN_FLIGHT_S = 8.0
"""Votes and blocks that were under way when a fault began may still finalise something."""
EXPIRY_S = 120.0
"""From a task's deadline until somebody ended it: others than the custody wait half a minute first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault, once."""

    step: Step
    hit: tuple[str, ...]
    lasted_s: float
    recovery_s: float | None
    """From the fault's end; None if the net did not recover."""
    meanwhile: str
    """What finality did; empty where nobody asked."""
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class Perturber:
    """Applies steps to one running net."""

    backend: Backend
    watcher: Watcher
    load: Load
    choose: random.Random
    task: TaskView | None = None
    deadline: float = 0.0
    """Of the task, on the monotonic clock."""
    outcomes: list[Outcome] = field(default_factory=list)

    async def apply(self, step: Step) -> None:
        """All times of one step. Raises: BackendError when the net does not come back at all."""
        for _ in range(step.times):
            await wait_until(time.monotonic() + self.choose.uniform(*step.gap_s))
            outcome = await self._apply_once(step)
            self.outcomes.append(outcome)
            print(f"  {describe(outcome)}", flush=True)
            if outcome.recovery_s is None:
                raise BackendError(f"{step.do}: the net did not recover")

    async def _apply_once(self, step: Step) -> Outcome:
        hit = self._choose_hit(step)
        problems: list[str] = []
        begun = time.monotonic()
        await self._begin(step, hit)
        held_from = time.monotonic()
        await wait_until(held_from + self.choose.uniform(*step.for_s))
        expiry = await self._await_expiry(problems) if step.do == "custody-away" else ""
        meanwhile = "; ".join(filter(None, (self._judge_meanwhile(step, hit, held_from, problems), expiry)))
        ended = time.monotonic()
        await self._end(step, hit)
        recovery_s: float | None = None
        try:
            await self.load.probe(GIVE_UP * step.bound_s)
            recovery_s = time.monotonic() - ended
            if recovery_s > step.bound_s:
                problems.append(f"recovered in {recovery_s:.1f} s, the bound is {step.bound_s:.0f} s")
        except TimeoutError:
            problems.append(f"not recovered after {GIVE_UP * step.bound_s:.0f} s")
        return Outcome(step, hit, ended - begun, recovery_s, meanwhile, tuple(problems))

    def _choose_hit(self, step: Step) -> tuple[str, ...]:
        """Nodes that the fault hits; of a partition, one side."""
        if step.do == "none":
            return ()
        if step.do == "custody-away":
            return (CUSTODY,)
        if step.do == "partition":
            if step.groups:
                return step.groups[0]
            names = self.choose.sample(self.backend.names, len(self.backend.names) // 2)
            return tuple(sorted(names))
        return tuple(sorted(self.choose.sample(step.nodes or self.backend.names, step.count)))

    async def _begin(self, step: Step, hit: Sequence[str]) -> None:
        backend = self.backend
        others = [name for name in backend.names if name not in hit]
        match step.do:
            case "none":
                pass
            case "kill" | "wipe" | "down":
                await asyncio.gather(*map(backend.kill, hit))
            case "custody-away":
                if self.task is None:
                    raise BackendError("there is no task")
                await self.task.wait_step(self.load.get_client("node4"), 2, EXPIRY_S)
                await backend.kill(CUSTODY)
                if time.monotonic() > self.deadline:
                    raise BackendError("the task's deadline passed before two steps were opened")
            case "restart":
                await asyncio.gather(*map(backend.stop, hit))
            case "pause":
                await asyncio.gather(*map(backend.pause, hit))
            case "disconnect":
                await backend.part([*((name,) for name in hit), others])
            case "partition":
                await backend.part(step.groups or (hit, others))
            case "clock":
                await asyncio.gather(*(backend.set_clock(name, step.offset_s) for name in hit))

    async def _end(self, step: Step, hit: Sequence[str]) -> None:
        backend = self.backend
        match step.do:
            case "none":
                pass
            case "wipe":
                await asyncio.gather(*map(backend.wipe, hit))
                self.watcher.forgetful.update(hit)
                await asyncio.gather(*map(backend.start, hit))
            case "kill" | "down" | "restart" | "custody-away":
                await asyncio.gather(*map(backend.start, hit))
            case "pause":
                await asyncio.gather(*map(backend.resume, hit))
            case "disconnect" | "partition":
                await backend.heal()
            case "clock":
                await asyncio.gather(*(backend.set_clock(name, 0.0) for name in hit))

    async def _await_expiry(self, problems: list[str]) -> str:
        """The custody stays away until others ended its task."""
        if self.task is None:
            raise BackendError("there is no task")
        await wait_until(self.deadline)
        status = await self.task.wait_ended(self.load.get_client("node4"), EXPIRY_S)
        if status != "expired":
            problems.append(f"the task is {status}, not expired")
        return f"task {status} {time.monotonic() - self.deadline:.0f} s after its deadline"

    def _judge_meanwhile(self, step: Step, hit: Sequence[str], held_from: float, problems: list[str]) -> str:
        """What finality did meanwhile, in words, at the nodes that were not hit and at those that were."""
        until = time.monotonic()
        others = [name for name in self.backend.names if name not in hit]
        rise = self._get_rise(held_from, until, others)
        own = self._get_rise(held_from, until, hit)
        if rise is None and (step.meanwhile != "any" or step.lag_blocks is not None):
            problems.append(f"nobody answered for longer than {IN_FLIGHT_S:.0f} s")
        if step.meanwhile == "finalises" and not rise:
            problems.append("finality stood still meanwhile")
        if step.meanwhile == "stops" and rise:
            problems.append(f"finality went on by {rise} blocks meanwhile")
        if own and (step.do in ("disconnect", "pause") or step.meanwhile == "stops"):
            problems.append(f"{', '.join(hit)} finalised {own} blocks meanwhile")
        if rise is None:
            return ""
        said = f"+{rise} blocks" if rise else "stands still"
        if own is not None and hit:
            said += f" ({', '.join(hit)}: +{own})" if own != rise else ""
        if step.lag_blocks is not None:
            lags = Counter(s.lag for s in self.watcher.get_heights(held_from, until, others))
            looks = ", ".join(f"{lag} in {count} looks" for lag, count in sorted(lags.items()))
            said += f"; blocks from the final one to the head: {looks}"
            if max(lags, default=0) > step.lag_blocks:
                problems.append(f"finality was {max(lags)} blocks behind, not {step.lag_blocks}")
        return said

    def _get_rise(self, held_from: float, until: float, names: Sequence[str]) -> int | None:
        """By how many blocks finality rose at the node that got furthest, once nothing was in flight."""
        rises = []
        for name in names:
            heights = [s.finalized for s in self.watcher.get_heights(held_from + IN_FLIGHT_S, until, (name,))]
            if heights:
                rises.append(max(heights) - heights[0])
        return max(rises, default=None)


def describe(outcome: Outcome) -> str:
    """One line for the log of a run."""
    recovered = "never" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s"
    parts = [
        f"{outcome.step.do} {' '.join(outcome.hit)}".strip(),
        f"lasted {outcome.lasted_s:.1f} s",
        outcome.meanwhile,
        f"recovered in {recovered} (bound {outcome.step.bound_s:.0f} s)",
        *(f"PROBLEM: {problem}" for problem in outcome.problems),
    ]
    return ", ".join(part for part in parts if part)


async def wait_until(moment: float) -> None:
    """Return at a moment of the monotonic clock: the manifest's schedule."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
