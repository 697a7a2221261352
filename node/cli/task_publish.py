"""`bmif task contribute` and `publish`: from encrypted batches to a task that is mined."""

import json as json_module
import math
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from consensus.identifiers import compute_task_id
from consensus.task import Batch, Contribute, Draft, Milestone, Optimizer, PatientRange, PublishTask
from consensus.types import MAX_TIME_MS, ZERO_HASH, Amount, Hash32, Millis
from node.api.client import SyncClient
from node.api.payloads import build_core
from node.api.task_payloads import ContributePayload
from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    TimeoutOption,
    connect_operator,
    err,
    load_config,
    out,
    parse_hash,
    print_json,
    shorten,
    wait_included,
)
from node.cli.data import CONTRIBUTION_FILE
from node.cli.schedule import SHIFT, build_rates
from node.config import NodeConfig
from workloads.base import WorkloadError

RATE = 0.115
COMMITTEE_RATE = 0.03
"""Sums that nobody clips have more noise."""


def _read_contribution(directory: Path) -> dict[str, list[dict[str, JsonValue]]]:
    path = directory / CONTRIBUTION_FILE
    try:
        document: dict[str, list[dict[str, JsonValue]]] = json_module.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CliError(f"{path} is damaged: {error}; run `bmif data encrypt` again") from error
    return document


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


def parse_rungs(rungs: list[str], unit: int) -> tuple[Milestone, ...]:
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
    from node.custody_keys import CustodyKeys
    from workloads.custodian import PrepareJob, SingleCustodian

    root = draft.public_key.root
    keys = CustodyKeys(settings.custody_dir).unlock("custody", root.hex())
    custodian = SingleCustodian(get_keys_directory(settings.custody_dir, root), keys=keys)
    core = build_core(Contribute, payload)
    for validation, batches in ((False, core.training), (True, core.validation)):
        for index, batch in enumerate(batches):
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "batch"
                client.call(client.api.get_blob(batch.blob, path))
                output = get_clear_path(settings.custody_dir, root, batch.blob.root)
                job = PrepareJob(draft.preset, draft.model, path, batch.patches, validation, output)
                try:
                    custodian.run_prepare(job)
                except WorkloadError as error:
                    side = "validation" if validation else "training"
                    raise CliError(
                        f"--contribution {text}, {side} batch {index}: {error}; publish without it, or ask "
                        "the contributor to encrypt again"
                    ) from error


def publish(
    draft: Annotated[str, typer.Argument(help="Hash of the draft")],
    contribution: Annotated[list[str], typer.Option(help="Transaction id of a contribution; repeat")],
    rung: Annotated[list[str], typer.Option(help="LOSS:REWARD of one milestone, losses falling; repeat")],
    batches_per_step: Annotated[int, typer.Option(help="Batches a step", min=1)] = 2,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"Step on the mean gradient of a patch [{RATE:g}; of a committee's task {COMMITTEE_RATE:g}]",
            min=0,
        ),
    ] = None,
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
        is_committee = core.ceremony != ZERO_HASH
        if is_committee:
            err.print("nobody can look into what is contributed to a committee's task; sizes were checked")
        if learning_rate is None:
            learning_rate = COMMITTEE_RATE if is_committee else RATE
        for text, payload in zip(() if is_committee else contribution, given, strict=not is_committee):
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
            ladder=parse_rungs(rung, 2**core.loss_scale_bits),
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
