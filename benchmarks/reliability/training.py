"""An encrypted training task on the net, published by the commands that its operators type."""

import json
from dataclasses import dataclass

from benchmarks.reliability.backend import Backend, poll
from benchmarks.reliability.manifest import TaskPlan
from node.api.client import ApiError, Client
from node.api.schemas import TaskSummaryModel

CUSTODY, HOSPITAL = "node1", "node2"
BATCHES = 2
BOND = 1_000
POLL_S = 0.5
ENDED = ("complete", "expired", "closed")


async def publish(backend: Backend, plan: TaskPlan) -> str:
    """Draft by the custody, synthetic pairs of a hospital, publication; the task's id.

    The smallest real task: patches of five pixels, one channel, few slots used, little noise.
    """
    draft = await _ask(
        backend, CUSTODY, "draft", "task", "draft", "--title", "Reliability", "--patch", "5",
        "--channels", "1", "--steps", str(plan.steps), "--loss-openings", str(plan.steps + 1),
        "--clip", "0.5", "--noise", "0.5", "--loss-clip", "0.5", "--loss-noise", "0.01",
    )  # fmt: skip
    encrypted = backend.get_scratch(HOSPITAL, "encrypted")
    await backend.bmif(
        HOSPITAL, "data", "encrypt", draft, "-o", encrypted, "--phantoms", "4", "--phantom-seed", "1",
        "--patches-per-batch", "512", "--training-batches", str(BATCHES), "--validation-batches", "1",
        "--validation-patients", "1",
    )  # fmt: skip
    contribution = await _ask(backend, HOSPITAL, "contribution", "task", "contribute", encrypted)
    rungs = [part for rung in plan.rungs for part in ("--rung", rung)]
    return await _ask(
        backend, CUSTODY, "task", "task", "publish", draft, "--contribution", contribution, *rungs,
        "--batches-per-step", str(BATCHES), "--learning-rate", str(plan.learning_rate),
        "--loss-every", str(plan.loss_every), "--batch-fee", str(plan.batch_fee), "--bond", str(BOND),
        "--deadline-hours", f"{plan.deadline_s / 3600:.6f}",
    )  # fmt: skip


async def _ask(backend: Backend, name: str, key: str, *arguments: str) -> str:
    return str(json.loads(await backend.bmif(name, *arguments, "--json"))[key])


@dataclass(frozen=True, slots=True)
class TaskView:
    """A published task as some node sees it."""

    backend: Backend
    id: str

    async def read(self, client: Client) -> TaskSummaryModel | None:
        """None where the node does not answer or does not know the task."""
        try:
            async for item in client.iterate_tasks():
                if item.id == self.id:
                    return item
        except ApiError:
            pass
        return None

    async def wait_step(self, client: Client, step: int, bound_s: float) -> None:
        """Return once so many steps are opened on the node's chain, or the task ended."""

        async def is_there() -> bool:
            found = await self.read(client)
            return found is not None and (found.step >= step or found.status in ENDED)

        await poll(is_there, f"step {step} of the task", bound_s, POLL_S)

    async def wait_ended(self, client: Client, bound_s: float) -> str:
        """The status with which the task ended on the node's chain."""
        status = ""

        async def is_over() -> bool:
            nonlocal status
            found = await self.read(client)
            status = "" if found is None else found.status
            return status in ENDED

        await poll(is_over, "the task's end", bound_s, POLL_S)
        return status
