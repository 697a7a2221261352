"""`bmif task`: draft, contribute, publish (through the node's operator API), list, show."""

import json as json_module
import math
import random
import secrets
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.task import (
    Batch,
    Contribute,
    Draft,
    DraftTask,
    ExpireTask,
    Milestone,
    Optimizer,
    PatientRange,
    PublishTask,
)
from consensus.types import MAX_TIME_MS, Amount, Hash32, Millis
from node.api.client import SyncClient
from node.api.payloads import build_core
from node.api.task_payloads import ContributePayload
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    TimeoutOption,
    connect,
    connect_operator,
    err,
    load_config,
    out,
    parse_hash,
    print_facts,
    print_json,
    print_table,
    shorten,
    wait_included,
)
from node.cli.data import CONTRIBUTION_FILE
from node.config import NodeConfig
from workloads.base import WorkloadError

app = typer.Typer(no_args_is_help=True, help="Training tasks.")

KIND = "fusion-training"
SHIFT = 40
"""Learning rates are integers in units of 2^-SHIFT per patch of a step."""


def _parse_kernels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise CliError(f"--kernels {text!r}: expected odd sides by commas, such as 1,3,3,5") from error


@app.command()
def draft(
    title: Annotated[str, typer.Option(help="Title that contributors read")] = "Fusion",
    preset: Annotated[
        str | None, typer.Option(help="CKKS preset [the smallest that the network fits]")
    ] = None,
    patch: Annotated[int, typer.Option(help="Side of a patch, pixels", min=5, max=16)] = 6,
    channels: Annotated[int, typer.Option(help="Channels of the hidden layer", min=1, max=64)] = 4,
    kernels: Annotated[
        str | None,
        typer.Option(help="Sides of the first kernels, one a channel, such as 1,1,3,5 [--channels of 3]"),
    ] = None,
    second: Annotated[int, typer.Option(help="Side of the second kernels", min=1, max=15)] = 3,
    planes: Annotated[
        str,
        typer.Option(help="Inputs that contributors compute beside the images, such as saliency,contrast"),
    ] = "",
    skip: Annotated[str, typer.Option(help="What the network corrects: mean, maximum ...")] = "mean",
    target: Annotated[str, typer.Option(help="Training targets: maximum, energy ...")] = "maximum",
    gradient_weight: Annotated[int, typer.Option(help="Weight of the gradient loss", min=0, max=64)] = 1,
    steps: Annotated[int, typer.Option(help="Most gradient openings", min=1)] = 40,
    loss_openings: Annotated[int, typer.Option(help="Most loss openings", min=1)] = 9,
    clip: Annotated[float, typer.Option(help="L2 bound of one patch's gradient", min=0)] = 0.5,
    noise: Annotated[
        float, typer.Option(help="Noise of an opened gradient sum, multiples of --clip", min=0)
    ] = 32.0,
    loss_clip: Annotated[float, typer.Option(help="Bound of one patch's loss", min=0)] = 0.125,
    loss_noise: Annotated[
        float, typer.Option(help="Noise of an opened sum of losses, multiples of --loss-clip", min=0)
    ] = 10.0,
    scale_bits: Annotated[
        int, typer.Option(help="Opened numbers are in units of 2^-this", min=8, max=40)
    ] = 20,
    weight_bound: Annotated[float, typer.Option(help="Every weight stays within +- this", min=0.1)] = 4.0,
    batches: Annotated[int, typer.Option(help="Planned training batches (privacy statement)", min=1)] = 2,
    batches_per_step: Annotated[int, typer.Option(help="Planned batches a step (same)", min=1)] = 2,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Make a task's keys and post its draft. Run it where the custody's data directory is."""
    settings = load_config(config)
    from node.custody import get_keys_directory
    from workloads.custodian import generate_keys
    from workloads.fusion import FusionSpec
    from workloads.planning import plan_model
    from workloads.privacy import OpeningPlan, build_statement, compute_privacy_cost

    spec = FusionSpec(
        patch,
        (3,) * channels if kernels is None else _parse_kernels(kernels),
        second,
        tuple(name.strip() for name in planes.split(",") if name.strip()),
        gradient_weight,
        skip,
        target,
    )
    planned = plan_model(spec, preset, settings.limits.max_blob_bytes)
    unit = 2**scale_bits
    gradient_units, loss_units = max(1, round(clip * unit)), max(1, round(loss_clip * unit))
    plan = OpeningPlan(
        gradient_clip=gradient_units,
        gradient_noise=round(noise * gradient_units),
        gradient_openings=steps,
        loss_clip=loss_units,
        loss_noise=round(loss_noise * loss_units),
        loss_openings=loss_openings,
        batches=batches,
        batches_per_step=batches_per_step,
    )
    try:
        statement = build_statement(compute_privacy_cost(plan))
    except ValueError as error:
        raise CliError(str(error)) from error
    if not json:
        for line in planned.describe():
            out.print(line, highlight=False, markup=False)
    with connect_operator(settings) as client:
        chain_id = parse_hash(client.call(client.api.get_status()).chain_id, "chain")
        fresh = settings.data_dir / "custody" / f"new-{secrets.token_hex(8)}"
        err.print("making keys ...")
        files = generate_keys(planned.preset, fresh)
        public_key = client.call(client.api.put_blob(files.public_key))
        relin_keys = client.call(client.api.put_blob(files.relin_keys))
        # The custody's service finds the secret by the root of its public key.
        home = get_keys_directory(settings.data_dir, public_key.root)
        fresh.rename(home)
        made = Draft(
            kind=KIND,
            title=title,
            salt=secrets.token_bytes(16),
            preset=planned.preset,
            model=spec.encode(),
            parameters=spec.parameters,
            weight_box=round(weight_bound * 2**20),
            public_key=public_key,
            relin_keys=relin_keys,
            clipping="per-patch",
            gradient_scale_bits=scale_bits,
            gradient_clip=plan.gradient_clip,
            gradient_noise=plan.gradient_noise,
            loss_scale_bits=scale_bits,
            loss_clip=plan.loss_clip,
            loss_noise=plan.loss_noise,
            max_gradient_openings=steps,
            max_loss_openings=loss_openings,
            privacy=statement,
        )
        transaction = client.call(client.api.sign_and_submit(DraftTask(made)))
        height = wait_included(client, transaction, timeout)
    draft_hash = compute_draft_hash(chain_id, made).hex()
    if json:
        print_json(
            {
                "draft": draft_hash,
                "transaction": transaction.hex(),
                "height": height,
                "privacy": statement,
                "plan": asdict(planned),
            }
        )
        return
    out.print(f"draft {draft_hash}, in block {height}")
    out.print(statement)
    out.print(f"Contributors go on with: bmif data encrypt {draft_hash} -o DIR ...")


def _read_contribution(directory: Path) -> dict[str, list[dict[str, JsonValue]]]:
    path = directory / CONTRIBUTION_FILE
    try:
        document: dict[str, list[dict[str, JsonValue]]] = json_module.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CliError(f"{path} is damaged: {error}; run `bmif data encrypt` again") from error
    return document


@app.command()
def contribute(
    directory: Annotated[Path, typer.Argument(help="Directory that `bmif data encrypt` wrote")],
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Upload encrypted batches to the node and sign the contribution with its key."""
    document = _read_contribution(directory)
    settings = load_config(config)
    with connect_operator(settings) as client:
        try:
            batches = {
                side: tuple(
                    Batch(
                        client.call(client.api.put_blob(directory / str(entry["file"]))),
                        int(str(entry["patches"])),
                    )
                    for entry in document[side]
                )
                for side in ("training", "validation")
            }
            patients = tuple(
                PatientRange(
                    int(str(entry["patient"])),
                    entry["validation"] is True,
                    int(str(entry["batch"])),
                    int(str(entry["start"])),
                    int(str(entry["stop"])),
                )
                for entry in document["patients"]
            )
            draft_hash = parse_hash(str(document["draft"]), "draft")
        except (KeyError, TypeError, ValueError) as error:
            raise CliError(
                f"{directory / CONTRIBUTION_FILE} is damaged ({error!r}); encrypt again"
            ) from error
        payload = Contribute(draft_hash, batches["training"], batches["validation"], patients)
        transaction = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, transaction, timeout)
    if json:
        print_json({"contribution": transaction.hex(), "height": height})
    else:
        out.print(f"contribution {transaction.hex()}, in block {height}")


def _parse_rungs(rungs: list[str], unit: int) -> tuple[Milestone, ...]:
    ladder = []
    for text in rungs:
        target, _, reward = text.partition(":")
        try:
            value, amount = float(target), int(reward)
        except ValueError as error:
            raise CliError(f"--rung {text!r}: expected LOSS:REWARD such as 0.05:1000") from error
        if not math.isfinite(value) or value <= 0 or amount < 0:
            raise CliError(f"--rung {text!r}: the loss must be positive and the reward not negative")
        ladder.append(Milestone(round(value * unit), Amount(amount)))
    if any(later.target >= former.target for former, later in pairwise(ladder)):
        raise CliError("--rung: losses must fall from rung to rung")
    return tuple(ladder)


def _get_contribution(client: SyncClient, text: str) -> ContributePayload:
    identifier = parse_hash(text, "--contribution").hex()
    payload = client.call(client.api.get_transaction(identifier)).transaction.payload
    if not isinstance(payload, ContributePayload):
        raise CliError(f"--contribution {text}: that transaction is a {payload.kind}, not a contribution")
    return payload


def _check_contribution(
    client: SyncClient, settings: NodeConfig, draft: Draft, text: str, payload: ContributePayload
) -> None:
    """Decrypt every batch before the task depends on it: what is dishonest or damaged is refused now."""
    from node.custody import get_clear_path, get_keys_directory
    from workloads.custodian import PrepareJob, SingleCustodian

    custodian = SingleCustodian(get_keys_directory(settings.data_dir, draft.public_key.root))
    core = build_core(Contribute, payload)
    for validation, batches in ((False, core.training), (True, core.validation)):
        for index, batch in enumerate(batches):
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "batch"
                client.call(client.api.get_blob(batch.blob, path))
                output = get_clear_path(settings.data_dir, draft.public_key.root, batch.blob.root)
                job = PrepareJob(draft.preset, draft.model, path, batch.patches, validation, output)
                try:
                    custodian.run_prepare(job)
                except WorkloadError as error:
                    side = "validation" if validation else "training"
                    raise CliError(
                        f"--contribution {text}, {side} batch {index}: {error}; publish without it, or ask "
                        "the contributor to encrypt again"
                    ) from error


def build_rates(peak: float, final: float, steps: int, scale: float) -> tuple[int, ...]:
    """The learning-rate table: a half cosine from `peak` to its share `final`, in units of 1/`scale`."""
    phases = (0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps))
    return tuple(round(peak * (final + (1 - final) * phase) * scale) for phase in phases)


@app.command()
def publish(
    draft: Annotated[str, typer.Argument(help="Hash of the draft")],
    contribution: Annotated[list[str], typer.Option(help="Transaction id of a contribution; repeat")],
    rung: Annotated[list[str], typer.Option(help="LOSS:REWARD of one milestone, losses falling; repeat")],
    batches_per_step: Annotated[int, typer.Option(help="Batches a step", min=1)] = 2,
    learning_rate: Annotated[float, typer.Option(help="Step on the mean gradient of a patch", min=0)] = 0.115,
    final_rate: Annotated[
        float, typer.Option(help="Share of the rate left at the end of a half cosine", min=0, max=1)
    ] = 0.5,
    loss_every: Annotated[int, typer.Option(help="Open the loss every so many steps", min=1)] = 5,
    batch_fee: Annotated[int, typer.Option(help="Fee a credited batch, smallest units", min=0)] = 1,
    bond: Annotated[int, typer.Option(help="Bond, returned at the task's end, smallest units", min=0)] = 1000,
    deadline_hours: Annotated[float, typer.Option(help="Hours until the task may be expired", min=0.01)] = 24,
    initial: Annotated[
        str, typer.Option(help="Weights to start from: fresh, or pretrained in clear on phantoms")
    ] = "fresh",
    seed: Annotated[int, typer.Option(help="Seed of initial weights and order of batches", min=0)] = 0,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Publish a drafted task with its contributions; escrows rewards, fees and bond."""
    settings = load_config(config)
    from workloads.base import get_workload

    with connect_operator(settings) as client:
        draft_hash = parse_hash(draft, "draft")
        core = build_core(Draft, client.call(client.api.get_draft(draft_hash.hex())).draft)
        given = [_get_contribution(client, text) for text in contribution]
        patches = [batch.patches for payload in given for batch in payload.training]
        if not 1 <= batches_per_step <= len(patches):
            raise CliError(f"--batches-per-step must be 1 to {len(patches)}, the training batches given")
        order = list(range(len(patches)))
        random.Random(seed).shuffle(order)
        per_step = batches_per_step * sum(patches) / len(patches)
        for text, payload in zip(contribution, given, strict=True):
            err.print(f"checking contribution {shorten(text)} ...")
            _check_contribution(client, settings, core, text, payload)
        # w is in units of 2^-20 and opened gradients are sums over a step's patches.
        scale = 2.0 ** (SHIFT + 20 - core.gradient_scale_bits) / per_step
        rates = build_rates(learning_rate, final_rate, core.max_gradient_openings, scale)
        workload = get_workload(core.kind)
        weights = workload.build_initial_weights(core.model, seed, initial)
        workload.check_weights(core.preset, core.model, weights)
        schedule = tuple(range(0, core.max_gradient_openings + 1, loss_every))[: core.max_loss_openings]
        publication = PublishTask(
            draft=draft_hash,
            contributions=tuple(parse_hash(text, "--contribution") for text in contribution),
            order=tuple(order),
            batches_per_step=batches_per_step,
            initial_weights=weights,
            optimizer=Optimizer(SHIFT, rates),
            loss_schedule=schedule,
            ladder=_parse_rungs(rung, 2**core.loss_scale_bits),
            batch_fee=Amount(batch_fee),
            bond=Amount(bond),
            deadline=Millis(
                min(MAX_TIME_MS, time.time_ns() // 1_000_000 + round(deadline_hours * 3_600_000))
            ),
        )
        transaction = client.call(client.api.sign_and_submit(publication))
        height = wait_included(client, transaction, timeout)
    task: Hash32 = compute_task_id(publication)
    if json:
        print_json({"task": task.hex(), "transaction": transaction.hex(), "height": height})
    else:
        out.print(f"task {task.hex()}, in block {height}")
        out.print(f"Watch it with: bmif task watch {task.hex()}")


@app.command()
def expire(
    task: Annotated[str, typer.Argument(help="Task id")],
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """End a task that is past its deadline or has spent its openings: fees are paid, the rest refunded."""
    with connect_operator(load_config(config)) as client:
        transaction = client.call(client.api.sign_and_submit(ExpireTask(parse_hash(task, "task"))))
        height = wait_included(client, transaction, timeout)
    if json:
        print_json({"transaction": transaction.hex(), "height": height})
    else:
        out.print(f"task {task} expired in block {height}")


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
    epsilon = None if found.privacy is None else found.privacy.epsilon
    delta = "" if found.privacy is None else f" at delta {found.privacy.delta:g} per {found.privacy.unit}"
    print_facts(
        [
            ("task", found.id),
            ("title", found.title),
            ("status", found.status),
            ("custody", f"{found.custody_organisation} ({shorten(found.custody)})"),
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
