"""`bmif task`: list, show, expire; drafting and publishing have modules of their own."""

from typing import Annotated

import typer

from consensus.task import ExpireTask
from node.cli.common import (
    ApiOption,
    ConfigOption,
    JsonOption,
    TimeoutOption,
    connect,
    parse_hash,
    print_facts,
    print_json,
    print_table,
    shorten,
    submit_alone,
)
from node.cli.task_draft import draft
from node.cli.task_publish import contribute, publish

app = typer.Typer(no_args_is_help=True, help="Training tasks.")
app.command()(draft)
app.command()(contribute)
app.command()(publish)


@app.command()
def expire(
    task: Annotated[str, typer.Argument(help="Task id")],
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """End a task that is past its deadline or has spent its openings: fees are paid, the rest refunded."""
    submit_alone(ExpireTask(parse_hash(task, "task")), f"task {task} expired", config, timeout, json)


@app.command("list")
def list_tasks(api: ApiOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List all tasks, oldest first."""
    with connect(api, config) as client:
        tasks = client.collect(client.api.iterate_tasks())
    if json:
        print_json(tasks)
        return
    print_table(
        None,
        ("task", "title", "status", "step", "loss", "next target", "rungs taken"),
        (
            (
                task.id,
                task.title,
                task.status,
                task.step,
                None if task.last_loss_value is None else f"{task.last_loss_value:.5f}",
                None if task.next_target_value is None else f"{task.next_target_value:.5f}",
                f"{task.rungs_taken} of {task.rungs}",
            )
            for task in tasks
        ),
    )


@app.command()
def show(
    task: Annotated[str, typer.Argument(help="Task id")],
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show a task: ladder, credits, openings spent, escrow, privacy."""
    with connect(api, config) as client:
        found = client.call(client.api.get_task(parse_hash(task, "task").hex()))
    if json:
        print_json(found)
        return
    committee = found.committee
    custody = f"{found.custody_organisation} ({shorten(found.custody)})"
    if committee is not None:
        custody = f"{committee.threshold} of {len(committee.members)} members, led by {custody}"
    epsilon = None if found.privacy is None else found.privacy.epsilon
    delta = "" if found.privacy is None else f" at delta {found.privacy.delta:g} per {found.privacy.unit}"
    print_facts(
        [
            ("task", found.id),
            ("title", found.title),
            ("status", found.status),
            ("custody", custody),
            ("step", found.step),
            ("loss", found.last_loss_value),
            ("openings of gradients", f"{found.gradient_openings.spent} of {found.gradient_openings.most}"),
            ("openings of losses", f"{found.loss_openings.spent} of {found.loss_openings.most}"),
            ("batches", f"{found.batches}, {found.batches_per_step} a step"),
            ("patches", f"{found.training_patches} to train, {found.validation_patches} to validate"),
            ("escrow and bond", f"{found.escrow} and {found.bond}, fee {found.batch_fee} a batch"),
            ("epsilon so far", "unbounded or unknown" if epsilon is None else f"{epsilon:.3g}{delta}"),
        ]
    )
    print_table(
        "Ladder",
        ("rung", "target", "reward", "state", "step", "loss", "height", "proposer"),
        (
            (
                r.rung,
                f"{r.target_value:.5f}",
                r.reward,
                r.state,
                r.step,
                None if r.loss_value is None else f"{r.loss_value:.5f}",
                r.height,
                None if r.proposer is None else shorten(r.proposer),
            )
            for r in found.ladder
        ),
    )
    print_table(
        "Credits",
        ("organisation", "miner", "batches"),
        ((c.organisation, c.miner, c.batches) for c in found.credits),
    )
