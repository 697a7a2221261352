"""`bmif task draft`: the custody's keys, the network, what is opened and how it is noised."""

import secrets
from dataclasses import asdict
from typing import Annotated

import typer

from consensus.identifiers import compute_draft_hash
from consensus.task import Draft, DraftTask
from consensus.types import ZERO_HASH
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

KIND = "fusion-training"


def _parse_kernels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise CliError(f"--kernels {text!r}: expected odd sides by commas, such as 1,3,3,5") from error


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
    from node.custody_keys import make_sealing_key
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
    sealing = make_sealing_key(settings.custody_dir, encrypted=settings.custody.encrypted)
    with connect_operator(settings) as client:
        chain_id = parse_hash(client.call(client.api.get_status()).chain_id, "chain")
        fresh = settings.custody_dir / "custody" / f"new-{secrets.token_hex(8)}"
        err.print("making keys ...")
        files = generate_keys(planned.preset, fresh, key=sealing)
        public_key = client.call(client.api.put_blob(files.public_key))
        relin_keys = client.call(client.api.put_blob(files.relin_keys))
        # The custody's service finds the secret by the root of its public key.
        home = get_keys_directory(settings.custody_dir, public_key.root)
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
            ceremony=ZERO_HASH,
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
