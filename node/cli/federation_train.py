"""`bmif federation join|train`: a hospital's part, from its own scans to encrypted updates of every round.

What a round's update is, is decided once: the encrypted file is on disk before it is sent, and whoever starts
again sends that one. Encrypting anew would give other bytes, and training anew another update.
"""

import fcntl
import hashlib
import json as json_module
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from consensus.federations import SubmitUpdate
from consensus.task import BlobRef
from node.api.client import ApiError, SyncClient
from node.api.federations import Federation, RoundModel
from node.api.fields import BlobRefModel
from node.cli.common import (
    POLL_S,
    CliError,
    ConfigOption,
    JsonOption,
    connect_operator,
    err,
    load_config,
    out,
    parse_hash,
    print_facts,
    print_json,
    shorten,
)
from node.config import NodeConfig

FederationArgument = Annotated[str, typer.Argument(metavar="FEDERATION", help="Federation id")]


class Joined(BaseModel):
    """What `join` leaves for `train`."""

    data: str
    own_noise: int
    """Standard deviation, units."""


def get_work_folder(settings: NodeConfig, federation: str) -> Path:
    """Where a hospital keeps what it sent, and the blobs that it trains with."""
    return settings.data_dir / "federations" / "work" / federation


def to_ref(model: BlobRefModel) -> BlobRef:
    return BlobRef(parse_hash(model.root, "root"), model.length)


def fetch_blob(client: SyncClient, folder: Path, name: str, model: BlobRefModel) -> Path:
    """The blob as a file named by its root, fetched once."""
    path = folder / f"{name}-{model.root}"
    if not path.exists():
        client.call(client.api.get_blob(to_ref(model), path))
    return path


def get_weight(found: Federation, address: str) -> int:
    """Of this participant. Raises: CliError if the account is none."""
    weights = {item.address: item.weight for item in found.members}
    if address not in weights:
        raise CliError(
            f"account {address} is no participant of federation {shorten(found.id)}; "
            "run this with the settings of a node whose account is"
        )
    return weights[address]


def join(
    federation: FederationArgument,
    data: Annotated[Path, typer.Argument(help=".npz with images, labels, and perhaps group and masks")],
    own_noise: Annotated[
        float,
        typer.Option(help="Noise of your own in each number of your update, multiples of the clip", min=0),
    ] = 0.0,
    agree: Annotated[
        bool, typer.Option("--agree", help="Agree to what is printed without being asked")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check that your data fit a federation, show what you agree to, and get ready to train."""
    settings = load_config(config)
    identifier = parse_hash(federation, "FEDERATION").hex()
    from workloads import federated, federated_privacy
    from workloads.federated_blobs import read_network

    with connect_operator(settings) as client:
        found = client.call(client.api.get_federation(identifier))
        address = client.call(client.api.get_status()).address
        weight = get_weight(found, address)
        if found.status != "running":
            raise CliError(f"federation {shorten(identifier)} has ended; there is nothing to join")
        folder = get_work_folder(settings, identifier)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        network = fetch_blob(client, folder, "network", found.network)
        federated.check_terms(
            network,
            fetch_blob(client, folder, "model", found.model),
            fetch_blob(client, folder, "keys", found.keys),
            parameters=found.parameters,
            weights=sum(item.weight for item in found.members),
            clip=found.clip,
            update_bytes=found.update_bytes,
        )
    described = read_network(network)
    images = federated.load_data(described, data)
    own_std = round(own_noise * found.clip)
    privacy = federated_privacy.compute_privacy(
        clip=found.clip,
        max_weight=max(item.weight for item in found.members),
        weights=sum(item.weight for item in found.members),
        noise_std=found.noise_std,
        openings=found.max_openings,
        own_noise_std=own_std,
        rounds=found.rounds,
    )
    statement = federated_privacy.build_statement(privacy)
    if json:
        print_json(
            {
                "federation": identifier,
                "address": address,
                "weight": weight,
                "images": len(images),
                "epsilon": str(privacy.epsilon),
                "own_epsilon": str(privacy.own_epsilon),
                "delta": privacy.delta,
            }
        )
    else:
        unit = 2.0**described.unit_bits
        print_facts(
            [
                ("federation", f"{found.title} ({identifier})"),
                ("custody, who opens sums", found.custody),
                ("your weight", f"{weight} of {sum(item.weight for item in found.members)}"),
                ("your data", f"{len(images)} images; they do not leave this machine"),
                ("an update's L2 bound", f"{found.clip / unit:g}"),
                ("noise of each opened number", f"{found.noise_std / unit:g}"),
                ("your own noise in each number", f"{own_std / unit:g}"),
                ("opened at most", f"{found.max_openings} sums of at least {found.min_participants}"),
                ("an update's bytes", found.update_bytes),
            ]
        )
        out.print(statement, markup=False)
    if not agree and not typer.confirm("Do you agree?", err=True):
        raise CliError("not joined: you did not agree")
    part = folder / "joined.part"
    part.write_text(Joined(data=str(data.resolve()), own_noise=own_std).model_dump_json(), encoding="utf-8")
    part.replace(folder / "joined.json")
    if not json:
        out.print(f"Train with: bmif federation train {identifier}")


def load_joined(folder: Path, federation: str) -> Joined:
    """Raises: CliError if `join` was not run here or its file is damaged."""
    path = folder / "joined.json"
    try:
        return Joined.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CliError(f"not joined yet: run `bmif federation join {federation} DATA.npz` first") from error
    except ValidationError as error:
        raise CliError(
            f"{path} is damaged; run `bmif federation join {federation} DATA.npz` again"
        ) from error


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trainer:
    """A participant that follows one federation."""

    client: SyncClient
    folder: Path
    federation: str
    address: str
    joined: Joined
    seed: int
    json: bool

    def say(self, number: int, what: str, **facts: str | int | float) -> None:
        """One line for each thing that happens."""
        if self.json:
            typer.echo(json_module.dumps({"round": number, "event": what} | facts))
        else:
            words = ", ".join(f"{name} {value}" for name, value in facts.items())
            out.print(
                f"round {number}: {what}" + (f" ({words})" if words else ""), markup=False, soft_wrap=True
            )

    def make_update(self, found: Federation) -> Path:
        """The round's update: the one on disk, else trained and encrypted now."""
        from workloads.federated import UpdateJob, train_update

        number = found.current.number
        path = self.folder / f"{number}.update"
        if path.exists():
            self.say(number, "resumed")
            return path
        self.say(number, "training")
        digest = hashlib.sha256(f"{self.seed} {self.federation} {number}".encode()).digest()
        report = train_update(
            UpdateJob(
                network=fetch_blob(self.client, self.folder, "network", found.network),
                keys=fetch_blob(self.client, self.folder, "keys", found.keys),
                model=fetch_blob(self.client, self.folder, "model", found.model),
                data=Path(self.joined.data),
                weight=get_weight(found, self.address),
                seed=int.from_bytes(digest[:4], "big"),
                noise_std=self.joined.own_noise,
                output=path,
            )
        )
        clipped = "clipped" if report.clipped else "within the clip"
        self.say(number, "encrypted", norm=round(report.norm, 4), it_was=clipped, bytes=report.update_bytes)
        return path

    def submit(self, found: Federation) -> bool:
        """True once the round's update is on its way; False if it came too late."""
        number = found.current.number
        ref = self.client.call(self.client.api.put_blob(self.make_update(found)))
        try:
            transaction = self.client.call(
                self.client.api.sign_and_submit(
                    SubmitUpdate(parse_hash(self.federation, "FEDERATION"), number, ref)
                )
            )
        except ApiError as error:
            if error.status is None:
                raise
            reason = "" if error.problem is None else error.problem.reason or ""
            self.say(number, "not taken", reason=reason or str(error))
            return False
        self.say(number, "sent", transaction=transaction.hex())
        return True

    def has_submitted(self, found: Federation) -> bool:
        return any(item.participant == self.address for item in found.current.submissions)

    def report_end(self, ended: RoundModel) -> None:
        listed = "listed" if self.address in ended.listed else "not listed"
        facts: dict[str, str | int | float] = {"own_update": listed, "of": len(ended.listed)}
        if ended.judgements:
            for name in ("before", "after"):
                losses = sorted(getattr(item, name) for item in ended.judgements)
                facts[f"loss_{name}"] = losses[len(losses) // 2] / 1e6
        self.say(ended.number, ended.outcome or "ended", **facts)
        (self.folder / f"{ended.number}.update").unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process a federation: two would encrypt two updates of one round."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CliError(f"{folder}: another `bmif federation train` runs here; end it first") from error
        yield


def follow(trainer: Trainer, rounds: int | None) -> int:
    """Take part until the federation ends or so many rounds are over; how many this account sent."""
    client, sent, waiting, over, given_up = trainer.client, set[int](), None, 0, set[int]()
    while True:
        try:
            found = client.call(client.api.get_federation(trainer.federation))
            number = found.current.number
            if waiting is not None and (number != waiting or found.status != "running"):
                trainer.report_end(client.call(client.api.get_federation_round(trainer.federation, waiting)))
                waiting, over = None, over + 1
            if found.status != "running" or (rounds is not None and over >= rounds):
                return len(sent)
            if trainer.address in found.suspects:
                raise CliError(
                    "rounds were accepted only without this account's updates: it is out for the rest of the "
                    "federation; check the labels of your data"
                )
            if trainer.has_submitted(found):
                sent.add(number)
            if waiting is None:
                waiting = number
                if found.current.left_out == trainer.address:
                    trainer.say(number, "left out, on probation")
                    given_up.add(number)
            is_open = found.current.phase == "training" and number not in sent | given_up
            if is_open and _is_late(found):
                trainer.say(number, "too late for this round")
                given_up.add(number)
            elif is_open and not trainer.submit(found):
                given_up.add(number)
            elif is_open:
                _wait_submitted(trainer, number)
        except ApiError as error:
            if error.status is not None:
                raise
            err.print(f"the node does not answer, trying again: {error}", markup=False)
        time.sleep(POLL_S)


def _is_late(found: Federation) -> bool:
    return time.time_ns() // 1_000_000 >= found.current.started + found.train_ms


def _wait_submitted(trainer: Trainer, number: int) -> None:
    """Until a block has the update, or the round takes none any more."""
    while True:
        found = trainer.client.call(trainer.client.api.get_federation(trainer.federation))
        if trainer.has_submitted(found) and found.current.number == number:
            trainer.say(number, "submitted")
            return
        if found.current.number != number or found.current.phase != "training" or found.status != "running":
            trainer.say(number, "not taken in time")
            return
        time.sleep(POLL_S)


def train(
    federation: FederationArgument,
    rounds: Annotated[
        int | None, typer.Option(help="Stop after so many [until the federation ends]", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order and changes of images", min=0)] = 0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take part in a federation's rounds: train on your data, encrypt, send. Start it again after a crash."""
    settings = load_config(config)
    identifier = parse_hash(federation, "FEDERATION").hex()
    folder = get_work_folder(settings, identifier)
    joined = load_joined(folder, identifier)
    with connect_operator(settings) as client, _alone(folder):
        address = client.call(client.api.get_status()).address
        get_weight(client.call(client.api.get_federation(identifier)), address)
        count = follow(Trainer(client, folder, identifier, address, joined, seed, json), rounds)
    if not json:
        out.print(f"took part in {count} rounds, seed {seed}")
