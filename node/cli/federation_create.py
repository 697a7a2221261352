"""`bmif federation create`: keys, network and first model of a federation, by its custody."""

import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from consensus.federations import CreateFederation, Participant
from consensus.types import MAX_TIME_MS, Address, Millis
from node.api.client import SyncClient
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
from node.cli.task_publish import parse_rungs
from workloads.capsnet_config import CapsuleConfig, LocalSettings

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
LOSS_UNIT = 1_000_000


def parse_participants(texts: list[str]) -> tuple[Participant, ...]:
    """ADDRESS:WEIGHT each, by ascending address. Raises: CliError naming the one that is wrong."""
    found = []
    for text in texts:
        address, _, weight = text.partition(":")
        if not weight.isascii() or not weight.isdigit() or not 1 <= int(weight) <= 4096:
            raise CliError(f"--participant {text!r}: expected ADDRESS:WEIGHT with a weight from 1 to 4096")
        found.append(Participant(Address(parse_hash(address, "--participant")), int(weight)))
    found.sort(key=lambda item: item.address)
    if len({item.address for item in found}) != len(found):
        raise CliError("--participant: an address is named twice")
    if not 2 <= len(found) <= 64:
        raise CliError(f"--participant: a federation has 2 to 64, got {len(found)}; repeat the option")
    return tuple(found)


def _check_organisations(client: SyncClient, participants: tuple[Participant, ...]) -> None:
    """Refuse, before keys are made, what the chain would refuse."""
    names: dict[str, str] = {}
    for item in participants:
        address = item.address.hex()
        name = client.call(client.api.get_account(address)).organisation
        if not name:
            raise CliError(f"--participant {address}: belongs to no organisation of this chain")
        if name in names:
            raise CliError(f"--participant {address}: {name} takes part already as {shorten(names[name])}")
        names[name] = address


def _parse_pair(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise CliError(f"--channels {text!r}: expected two numbers such as 32,64")
    return int(parts[0]), int(parts[1])


def create(
    participant: Annotated[list[str], typer.Option(help="ADDRESS:WEIGHT of a hospital; repeat")],
    title: Annotated[str, typer.Option(help="Name")] = "federation",
    statement: Annotated[
        str, typer.Option(help="What is trained on what, before the privacy statement")
    ] = "",
    side: Annotated[int, typer.Option(help="Images are brought to this side")] = 32,
    channels: Annotated[str, typer.Option(help="Of the two convolutions")] = "32,64",
    primary_types: Annotated[int, typer.Option(help="Kinds of primary capsules")] = 4,
    primary_size: Annotated[int, typer.Option(help="Numbers in a primary capsule")] = 8,
    class_size: Annotated[int, typer.Option(help="Numbers in a class capsule")] = 16,
    classes: Annotated[int, typer.Option(help="Labels, from 0")] = 2,
    shared: Annotated[bool, typer.Option(help="One transformation for all places: fewer weights")] = False,
    segmentation: Annotated[bool, typer.Option(help="Learn masks too; all data must have them")] = False,
    epochs: Annotated[int, typer.Option(help="Of a participant in a round")] = 2,
    batch: Annotated[int, typer.Option(help="Images of a training step")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate")] = 1e-3,
    proximal: Annotated[float, typer.Option(help="mu of FedProx, against data that differ much")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the first weights", min=0)] = 0,
    rounds: Annotated[int, typer.Option(help="At most so many, lapsed ones included", min=1, max=4096)] = 20,
    openings: Annotated[
        int | None, typer.Option(help="Sums that may be opened in all [--rounds]", min=1, max=4096)
    ] = None,
    minimum: Annotated[
        int | None, typer.Option("--min", help="No sum of fewer is opened [two thirds, at least 2]", min=2)
    ] = None,
    train_minutes: Annotated[float, typer.Option(help="How long a round takes updates", min=0.01)] = 30.0,
    open_minutes: Annotated[float, typer.Option(help="How long the custody may take", min=0.01)] = 30.0,
    judge_minutes: Annotated[float, typer.Option(help="How long validators may take", min=0.01)] = 30.0,
    clip: Annotated[float, typer.Option(help="L2 bound of an update", min=1e-6)] = 4.0,
    unit_bits: Annotated[int, typer.Option(help="Weights are counted in units of 2^-this")] = 24,
    noise: Annotated[
        float, typer.Option(help="Noise of each weight of the mean, standard deviation", min=0)
    ] = 1e-4,
    epsilon: Annotated[
        float | None, typer.Option(help="Instead of --noise: as much as keeps all openings within it")
    ] = None,
    slack: Annotated[float, typer.Option(help="How much a round may worsen a loss", min=0)] = 0.01,
    rung: Annotated[
        list[str] | None, typer.Option(help="LOSS:REWARD of one milestone, losses falling; repeat")
    ] = None,
    deadline_hours: Annotated[float, typer.Option(help="Hours until it ends", min=0.01)] = 24 * 7,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Make keys and a first model, and found a federation. Run it where the custody's data directory is."""
    settings = load_config(config)
    from node.custody_keys import make_sealing_key
    from node.federations import get_federation_keys
    from workloads import federated, federated_privacy
    from workloads.federated_blobs import FederatedNetwork

    members = parse_participants(participant)
    total = sum(item.weight for item in members)
    largest = max(item.weight for item in members)
    least = max(2, -(-2 * len(members) // 3)) if minimum is None else minimum
    if least > len(members):
        raise CliError(f"--min {least}: there are {len(members)} participants")
    opened = rounds if openings is None else openings
    if opened > rounds:
        raise CliError(f"--openings {opened}: there are {rounds} rounds; a round is opened once")
    network = FederatedNetwork(
        CapsuleConfig(
            side=side,
            channels=_parse_pair(channels),
            primary_types=primary_types,
            primary_size=primary_size,
            class_size=class_size,
            classes=classes,
            shared=shared,
            segmentation=segmentation,
        ),
        LocalSettings(epochs=epochs, batch=batch, rate=rate, proximal=proximal),
        unit_bits,
        max(1, round(clip * 2**unit_bits)),
        total,
    )
    plan = network.build_plan()
    noise_std = round(noise * 2**unit_bits * total)
    if epsilon is not None:
        noise_std = federated_privacy.find_noise_std(
            clip=network.clip, max_weight=largest, openings=opened, epsilon=epsilon
        )
    privacy = federated_privacy.compute_privacy(
        clip=network.clip, max_weight=largest, weights=total, noise_std=noise_std, openings=opened
    )
    words = f"{statement} {federated_privacy.build_statement(privacy)}".strip()
    ladder = parse_rungs(rung or [], LOSS_UNIT)
    if not json:
        out.print(str(plan), markup=False)
    sealing = make_sealing_key(settings.custody_dir, encrypted=settings.custody.encrypted)
    with connect_operator(settings) as client:
        _check_organisations(client, members)
        scratch = settings.custody_dir / "federations" / f"new-{secrets.token_hex(8)}"
        err.print("making keys and the first model ...")
        public = federated.run_apart(federated.make_keys, network, scratch, sealing)
        model = federated.run_apart(federated.build_model, network, seed)
        refs = {}
        for name, data in (("keys", public), ("network", network.encode()), ("model", model)):
            path: Path = scratch / f"{name}.blob"
            path.write_bytes(data)
            refs[name] = client.call(client.api.put_blob(path))
            path.unlink()
        # The custody's service finds the secret by the root of its public key.
        scratch.rename(get_federation_keys(settings.custody_dir, refs["keys"].root))
        payload = CreateFederation(
            title=title,
            statement=words,
            network=refs["network"],
            model=refs["model"],
            parameters=network.parameters,
            keys=refs["keys"],
            update_bytes=plan.update_bytes,
            participants=members,
            min_participants=least,
            rounds=rounds,
            max_openings=opened,
            train_ms=Millis(round(train_minutes * MINUTE_MS)),
            open_ms=Millis(round(open_minutes * MINUTE_MS)),
            judge_ms=Millis(round(judge_minutes * MINUTE_MS)),
            clip=network.clip,
            noise_std=noise_std,
            slack=round(slack * LOSS_UNIT),
            ladder=ladder,
            deadline=Millis(min(MAX_TIME_MS, time.time_ns() // 1_000_000 + round(deadline_hours * HOUR_MS))),
        )
        federation = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, federation, timeout)
    if json:
        print_json(
            {
                "federation": federation.hex(),
                "height": height,
                "parameters": network.parameters,
                "update_bytes": plan.update_bytes,
                "noise_std": noise_std,
                "privacy": words,
            }
        )
        return
    out.print(f"federation {federation.hex()}, in block {height}, seed {seed}")
    out.print(words, markup=False)
    out.print(f"Hospitals go on with: bmif federation join {federation.hex()} DATA.npz")
