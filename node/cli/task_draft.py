"""`bmif task draft`: the custody's keys, the network, what is opened and how it is noised."""

import math
import secrets
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from consensus.identifiers import compute_draft_hash
from consensus.task import BlobRef, Draft, DraftTask
from consensus.types import ZERO_HASH, Hash32
from node.api.ceremonies import Ceremony
from node.api.client import SyncClient
from node.api.payloads import build_core
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
    wait_included,
)
from node.config import NodeConfig

KIND = "fusion-training"
NOISE = 32.0
LOSS_NOISE = 10.0
EPSILON = 8.0
TARGET_LIMIT = 0.5
"""Of a committee's task, which can't clip: what one patch can change follows from it."""
MULTIPLIER_UNIT = 2**20
"""Denominator of a committee's noise multipliers."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """Of a task: a custodian's own, or a committee's."""

    public_key: BlobRef
    relin_keys: BlobRef
    ceremony: Hash32 = ZERO_HASH


def _parse_kernels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise CliError(f"--kernels {text!r}: expected odd sides by commas, such as 1,3,3,5") from error


def _make_keys(client: SyncClient, settings: NodeConfig, preset: str) -> _Keys:
    """New ones, of which this node's custody alone has the secret."""
    from node.custody import get_keys_directory
    from node.custody_keys import make_sealing_key
    from workloads.custodian import generate_keys

    sealing = make_sealing_key(settings.custody_dir, encrypted=settings.custody.encrypted)
    fresh = settings.custody_dir / "custody" / f"new-{secrets.token_hex(8)}"
    err.print("making keys ...")
    files = generate_keys(preset, fresh, key=sealing)
    public_key = client.call(client.api.put_blob(files.public_key))
    relin_keys = client.call(client.api.put_blob(files.relin_keys))
    # The custody's service finds the secret by the root of its public key.
    fresh.rename(get_keys_directory(settings.custody_dir, public_key.root))
    return _Keys(public_key, relin_keys)


def _find_ceremony(client: SyncClient, text: str, preset: str | None) -> Ceremony:
    """The ceremony that made the keys, with who has the shares now. Refuses what the chain would refuse."""
    found = client.call(client.api.get_ceremony(parse_hash(text, "--ceremony").hex()))
    while found.renews is not None:
        found = client.call(client.api.get_ceremony(found.renews))
    current = found
    while current.renewed_by is not None:
        current = client.call(client.api.get_ceremony(current.renewed_by))
    if found.status != "ready":
        raise CliError(
            f"--ceremony {text}: it is {found.status}, its keys are not ready; see `bmif custody status`"
        )
    own = client.call(client.api.get_status()).address
    if own not in current.members:
        raise CliError(
            f"--ceremony {text}: this node's account {own} is no member; a member drafts its tasks"
        )
    if preset not in (None, found.preset):
        raise CliError(f"--preset {preset}: the ceremony's keys are of {found.preset}; leave --preset out")
    return found.model_copy(update={"members": current.members, "threshold": current.threshold})


def _take_keys(found: Ceremony) -> _Keys:
    made = found.confirmations[0]
    return _Keys(
        build_core(BlobRef, made.public_key),
        build_core(BlobRef, made.relin_keys),
        Hash32(bytes.fromhex(found.id)),
    )


def draft(
    title: Annotated[str, typer.Option(help="Title that contributors read")] = "Fusion",
    preset: Annotated[
        str | None, typer.Option(help="CKKS preset [the smallest that the network fits]")
    ] = None,
    patch: Annotated[int, typer.Option(help="Side of a patch, pixels", min=2, max=16)] = 6,
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
        float | None,
        typer.Option(
            help="Noise of an opened gradient sum, multiples of --clip; of a committee's, of what one patch "
            f"can change [{NOISE:g}; a committee's by --epsilon]",
            min=0,
        ),
    ] = None,
    loss_clip: Annotated[float, typer.Option(help="Bound of one patch's loss", min=0)] = 0.125,
    loss_noise: Annotated[
        float | None,
        typer.Option(
            help="Noise of an opened sum of losses, multiples of --loss-clip; a committee's as --noise "
            f"[{LOSS_NOISE:g}; a committee's by --epsilon]",
            min=0,
        ),
    ] = None,
    scale_bits: Annotated[
        int, typer.Option(help="Opened numbers are in units of 2^-this", min=8, max=40)
    ] = 20,
    weight_bound: Annotated[float, typer.Option(help="Every weight stays within +- this", min=0.1)] = 4.0,
    batches: Annotated[int, typer.Option(help="Planned training batches (privacy statement)", min=1)] = 2,
    batches_per_step: Annotated[int, typer.Option(help="Planned batches a step (same)", min=1)] = 2,
    ceremony: Annotated[
        str | None,
        typer.Option(
            help="Keys of this ceremony, of which this node is a member: a committee opens, nobody alone "
            "(`bmif custody create`) [this node's own new keys]"
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(
            help="Of a committee's task: epsilon of all openings of gradients, and of all of losses", min=0.01
        ),
    ] = EPSILON,
    target_limit: Annotated[
        float | None,
        typer.Option(
            help=f"Contributors cut every |R| of the loss off at this [none; a committee's {TARGET_LIMIT:g}]",
            min=0.01,
            max=1,
        ),
    ] = None,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Post a task's draft, with keys made for it or a committee's. Run it where the custody's keys are."""
    settings = load_config(config)
    from workloads.committee_privacy import build_committee_statement, compute_multiplier
    from workloads.fusion import FusionSpec
    from workloads.planning import plan_model
    from workloads.privacy import (
        OpeningPlan,
        build_statement,
        compute_participations,
        compute_privacy_cost,
    )

    is_committee = ceremony is not None
    if target_limit is None:
        target_limit = TARGET_LIMIT if is_committee else 0.0
    spec = FusionSpec(
        patch,
        (3,) * channels if kernels is None else _parse_kernels(kernels),
        second,
        tuple(name.strip() for name in planes.split(",") if name.strip()),
        gradient_weight,
        skip,
        target,
        target_limit=0 if not target_limit else max(1, round(target_limit * 2 * FusionSpec().levels)),
    )
    unit = 2**scale_bits
    clips = (max(1, round(clip * unit)), max(1, round(loss_clip * unit)))
    plan = OpeningPlan(
        gradient_clip=MULTIPLIER_UNIT if is_committee else clips[0],
        gradient_noise=0,
        gradient_openings=steps,
        loss_clip=MULTIPLIER_UNIT if is_committee else clips[1],
        loss_noise=0,
        loss_openings=loss_openings,
        batches=batches,
        batches_per_step=batches_per_step,
    )
    try:
        if noise is None:
            noise = compute_multiplier(epsilon, compute_participations(plan)) if is_committee else NOISE
        if loss_noise is None:
            loss_noise = compute_multiplier(epsilon, loss_openings) if is_committee else LOSS_NOISE
        plan = replace(
            plan,
            gradient_noise=math.ceil(noise * plan.gradient_clip),
            loss_noise=math.ceil(loss_noise * plan.loss_clip),
        )
        cost = compute_privacy_cost(plan)
    except ValueError as error:
        raise CliError(str(error)) from error
    if is_committee and not (plan.gradient_noise and plan.loss_noise):
        raise CliError("--noise, --loss-noise: a committee opens nothing without noise")
    planned = plan_model(spec, preset, settings.limits.max_blob_bytes)
    with connect_operator(settings) as client:
        chain_id = parse_hash(client.call(client.api.get_status()).chain_id, "chain")
        found = None if ceremony is None else _find_ceremony(client, ceremony, preset)
        if found is not None and planned.preset != found.preset:
            planned = plan_model(spec, found.preset, settings.limits.max_blob_bytes)
        if not json:
            for line in planned.describe():
                out.print(line, highlight=False, markup=False)
        if found is None:
            keys, statement = _make_keys(client, settings, planned.preset), build_statement(cost)
        else:
            keys = _take_keys(found)
            statement = build_committee_statement(cost, target_limit, len(found.members), found.threshold)
        made = Draft(
            kind=KIND,
            title=title,
            salt=secrets.token_bytes(16),
            preset=planned.preset,
            model=spec.encode(),
            parameters=spec.parameters,
            weight_box=round(weight_bound * 2**20),
            public_key=keys.public_key,
            relin_keys=keys.relin_keys,
            clipping="box" if is_committee else "per-patch",
            gradient_scale_bits=scale_bits,
            gradient_clip=plan.gradient_clip,
            gradient_noise=plan.gradient_noise,
            loss_scale_bits=scale_bits,
            loss_clip=plan.loss_clip,
            loss_noise=plan.loss_noise,
            max_gradient_openings=steps,
            max_loss_openings=loss_openings,
            privacy=statement,
            ceremony=keys.ceremony,
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
