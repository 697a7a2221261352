"""`bmif task watch`: a task as it is mined, live from the node's events."""

import asyncio
import json as json_module
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node.api.client import ApiError, Client, StreamedEvent
from node.api.schemas import TaskModel
from node.api.trust import MilestonesModel
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    connect,
    err,
    out,
    parse_hash,
    shorten,
)
from node.cli.curve import Target, build_curve

ENDED = ("complete", "expired", "closed")
KINDS = ("step", "opening", "milestone", "verdict", "task", "head")
RECENT = 8
RUNG_STATES = {
    "qualified": "[yellow]met[/]",
    "taken": "[cyan]taken[/]",
    "settled": "[green]settled[/]",
    "void": "[red]void[/]",
}
REACHED = ("qualified", "taken", "settled")
WIDEST = 110
"""Characters of a curve on a wide screen."""


@dataclass(slots=True)
class Picture:
    """What the screen shows."""

    task: TaskModel
    organisations: dict[str, str]
    losses: list[tuple[int, float]] = field(default_factory=list)
    recent: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def get_name(self, address: object) -> str:
        """The organisation of an account, else the head of its address."""
        text = str(address)
        return self.organisations.get(text) or shorten(text)

    def add_step(self, step: object, miners: Sequence[tuple[object, object]]) -> None:
        who = ", ".join(f"{self.get_name(miner)} ({batches})" for miner, batches in miners)
        self.recent.append((str(step), "step", f"batches by {who}"))

    def add_loss(self, step: int, loss: float) -> None:
        if not any(known == step for known, _ in self.losses):  # an event may tell what was loaded already
            self.losses.append((step, loss))
        self.recent.append((str(step), "loss", f"{loss:.6f}"))

    def add(self, event: StreamedEvent) -> bool:
        """Take up one event of this task; True if it is worth a line."""
        data = event.data
        step, loss = data.get("step"), data.get("loss_value")
        if event.kind == "step":
            miners = data.get("miners")
            named = [m for m in miners if isinstance(m, dict)] if isinstance(miners, list) else []
            self.add_step(step, [(m.get("miner"), m.get("batches")) for m in named])
        elif event.kind == "opening" and isinstance(loss, float | int) and isinstance(step, int):
            self.add_loss(step, float(loss))
        elif event.kind == "milestone":
            rungs = f"{data.get('first_rung')} to {data.get('last_rung')}"
            who = self.get_name(data.get("proposer"))
            self.recent.append(
                (str(step), "milestone", f"rungs {rungs} taken by {who} in block {data.get('height')}")
            )
        elif event.kind == "verdict":
            self.add_verdict(data)
        else:
            return False
        return True

    def add_verdict(self, data: Mapping[str, JsonValue]) -> None:
        """A validator's judgement of a milestone on pairs of its own."""
        word = "accepts" if data.get("accept") is True else "rejects"
        before, after = data.get("before_value"), data.get("after_value")
        numbers = ""
        if isinstance(before, float | int) and isinstance(after, float | int):
            numbers = f": its loss {before:.6f} -> {after:.6f}"
        self.recent.append(("-", "verdict", f"{self.get_name(data.get('validator'))} {word}{numbers}"))


def draw_curve(picture: Picture, width: int, *, ascii_only: bool = False) -> Text:
    """The validation losses over the steps, with the ladder's targets as lines."""
    targets = [Target(rung.rung, rung.target_value, rung.state in REACHED) for rung in picture.task.ladder]
    return build_curve(picture.losses, targets, min(width, WIDEST), ascii_only=ascii_only)


def render(picture: Picture, width: int = 78, *, ascii_only: bool = False) -> Group:
    """The whole screen, `width` characters wide."""
    task = picture.task
    loss = "-" if task.last_loss_value is None else f"{task.last_loss_value:.6f}"
    target = "all met" if task.next_target_value is None else f"{task.next_target_value:.6f}"
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_row("[bold]task[/]", f"{shorten(task.id)} {task.title}", "[bold]status[/]", task.status)
    facts.add_row("[bold]loss[/]", loss, "[bold]next target[/]", target)
    facts.add_row(
        "[bold]step[/]",
        str(task.step),
        "[bold]milestones[/]",
        f"{task.rungs_taken} of {task.rungs}, {task.rungs_settled} settled",
    )
    gradients, losses = task.gradient_openings, task.loss_openings
    facts.add_row(
        "[bold]gradient openings[/]",
        f"{gradients.spent} of {gradients.most}",
        "[bold]loss openings[/]",
        f"{losses.spent} of {losses.most}",
    )
    ladder = Table("rung", "target", "state", "loss", "by", title="Ladder", title_justify="left")
    for rung in task.ladder:
        ladder.add_row(
            str(rung.rung),
            f"{rung.target_value:.6f}",
            RUNG_STATES.get(rung.state, rung.state),
            "-" if rung.loss_value is None else f"{rung.loss_value:.6f}",
            "-" if rung.proposer is None else picture.get_name(rung.proposer),
        )
    credits = Table("miner", "batches", title="Credits", title_justify="left")
    for credit in task.credits:
        credits.add_row(credit.organisation or shorten(credit.miner), str(credit.batches))
    recent = Table("step", "what", "detail", title="Latest", title_justify="left")
    for row in picture.recent:
        recent.add_row(*row)
    side = Table.grid(padding=(0, 3))
    side.add_row(ladder, credits)
    curve = draw_curve(picture, width, ascii_only=ascii_only)
    bar = ProgressBar(total=max(1, task.rungs), completed=task.rungs_settled, width=60)
    progress = Table.grid()
    progress.add_row(bar)
    return Group(facts, progress, curve, side, recent)


def render_for(picture: Picture, console: Console) -> Group:
    """The whole screen, as wide as the console and in letters that it has."""
    return render(picture, console.width - 2, ascii_only=console.options.ascii_only)


def describe_latest(picture: Picture) -> str:
    """The last thing that happened, as one line for logs and pipes."""
    task = picture.task
    step, what, detail = picture.recent[-1] if picture.recent else ("-", "task", task.status)
    loss = "-" if task.last_loss_value is None else f"{task.last_loss_value:.6f}"
    target = "all met" if task.next_target_value is None else f"{task.next_target_value:.6f}"
    openings = f"{task.gradient_openings.spent}+{task.loss_openings.spent} openings"
    rungs = f"{task.rungs_taken}/{task.rungs} milestones, {task.rungs_settled} settled"
    return f"step {step:>3} {what:<9} {detail} | loss {loss}, target {target}, {rungs}, {openings}"


async def _load(client: Client, task: str) -> Picture:
    validators = await client.get_validators()
    picture = Picture(await client.get_task(task), {v.address: v.organisation for v in validators.items})
    async for step in client.iterate_steps(task):
        if step.loss_value is not None:
            picture.add_loss(step.step, step.loss_value)
        if step.opening is not None:
            picture.add_step(step.step, [(credit.miner, credit.batches) for credit in step.miners])
    return picture


async def _follow(
    client: Client, task: str, after: int
) -> AsyncIterator[tuple[StreamedEvent, TaskModel | None]]:
    """The task's events, each with the task as it then stands if it may have changed; ends with the task."""
    async for event in client.stream_events(after=after, kinds=KINDS):
        is_ours = event.data.get("task") == task
        if not is_ours and event.kind not in ("head", "gap"):
            continue
        try:
            found = await client.get_task(task)
        except ApiError as error:
            if error.status is not None:
                raise
            found = None  # the node restarts; the stream reconnects by itself
        yield event, found
        # A block's steps and milestones come before its `task` event: print those first.
        if found is not None and found.status in ENDED and event.kind in ("task", "head", "gap"):
            return


async def _watch(client: Client, task: str, json: bool) -> TaskModel:
    # The position first: what happens between the two reads is then seen twice, never missed.
    after = (await client.get_status()).last_event_id
    picture = await _load(client, task)
    if picture.task.status in ENDED:
        _finish(picture, json)
        return picture.task
    if json:
        async for event, found in _follow(client, task, after):
            if event.kind != "head":
                line = {"id": event.id, "kind": event.kind, "data": event.data}
                typer.echo(json_module.dumps(line))
            picture.task = found or picture.task
    elif not out.is_terminal:
        async for event, found in _follow(client, task, after):
            picture.task = found or picture.task
            if event.data.get("task") == task and picture.add(event):
                out.print(describe_latest(picture), soft_wrap=True)
        _finish(picture, json)
    else:
        with Live(render_for(picture, out), console=out, refresh_per_second=4) as live:
            async for event, found in _follow(client, task, after):
                if event.data.get("task") == task:
                    picture.add(event)
                picture.task = found or picture.task
                live.update(render_for(picture, out))
    if json:
        _finish(picture, json)
    return picture.task


async def _watch_for(client: Client, task: str, json: bool, timeout_s: float | None) -> str | None:
    """Follow the task to its end; what to say of it unless it is complete."""
    async with client, asyncio.timeout(timeout_s):
        ended = await _watch(client, task, json)
        if ended.status == "complete":
            return None
        return describe_end(ended, await client.get_milestones(task))


def _finish(picture: Picture, json: bool) -> None:
    task = picture.task
    if json:
        end = {
            "kind": "end",
            "data": {
                "task": task.id,
                "status": task.status,
                "loss_value": task.last_loss_value,
                "rungs_settled": task.rungs_settled,
            },
        }
        typer.echo(json_module.dumps(end))
    else:
        out.print(render_for(picture, out))


def describe_end(task: TaskModel, milestones: MilestonesModel) -> str:
    """Why a task that is not complete has ended, and what there is of it."""
    settled = [rung for rung in task.ladder if rung.state == "settled"]
    model = f"its model is that of step {settled[-1].step}" if settled else "it has no model"
    count = f"{len(settled)} of {task.rungs} rungs are settled"
    if task.status == "expired":
        return f"the task is expired, its deadline or its openings are over: {count}, {model}"
    rejected = [item for item in milestones.items if 3 * item.rejected_stake > milestones.total_stake]
    why = "by evidence against its custody, who lost the bond"
    if rejected:
        why = f"validators with more than a third of stake rejected the model of step {rejected[0].step}"
    return f"the task is closed, {why}: {count}, {model}"


def watch(
    task: Annotated[str, typer.Argument(help="Task id")],
    timeout: Annotated[float | None, typer.Option("--timeout", help="Give up after so many seconds")] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Follow a task until it ends: exit 0 when it is complete, 1 when it expired or was closed.

    With --json every event of the task is one line, and the last line is of kind `end`.
    """
    identifier = parse_hash(task, "task").hex()
    client = connect(api, config).api
    try:
        end = asyncio.run(_watch_for(client, identifier, json, timeout))
    except TimeoutError as error:
        raise CliError(f"the task did not end in {timeout:.0f} s") from error
    if end is not None:
        err.print(end, soft_wrap=True)
        raise typer.Exit(1)
