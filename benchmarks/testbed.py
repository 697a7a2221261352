"""A testnet driven as its operators drive it: by the `bmif` commands, each printed before it runs."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from node.api.client import SyncClient
from node.api.schemas import OpeningModel, TaskModel
from node.api.trust import MilestonesModel
from node.config import NodeConfig, read_yaml
from node.testnet import MANIFEST, Testnet
from workloads.imaging import PairSource

console = Console(highlight=False)

AGREEMENT_DEADLINE_S = 60.0
POLL_S = 0.2


class TestbedError(Exception):
    """The testnet did not do what it should; the text says what was seen."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class Contributor:
    """A hospital and the pairs that it encrypts."""

    node: str
    source: PairSource
    validation_patients: int
    """How many patients, the last by number, are held for validation."""
    training_batches: int = 1
    validation_batches: int = 1

    def build_arguments(self) -> list[str]:
        """Options of `bmif data encrypt`."""
        source = self.source
        arguments = ["--training-batches", str(self.training_batches)]
        arguments += ["--validation-batches", str(self.validation_batches)]
        arguments += ["--validation-patients", str(self.validation_patients)]
        if source.manifest is not None:
            arguments += ["--manifest", str(source.manifest), "--modality", source.modality or ""]
        else:
            arguments += ["--phantoms", str(source.phantoms), "--phantom-seed", str(source.phantom_seed)]
            arguments += ["--first-phantom", str(source.first_phantom)]
        for patient in source.patients:
            arguments += ["--patient", str(patient)]
        return arguments


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task from draft to ladder; what it leaves open has the commands' defaults."""

    title: str
    contributors: tuple[Contributor, ...]
    rungs: tuple[str, ...]
    """LOSS:REWARD, losses falling."""
    draft: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """Ids of a task and of the transaction that published it."""

    task: str
    transaction: str


@dataclass(frozen=True, slots=True)
class Run:
    """What mining a task took."""

    task: TaskModel
    losses: tuple[OpeningModel, ...]
    milestones: MilestonesModel
    seconds: float

    @property
    def fall(self) -> float:
        """First opened loss over the last."""
        first, last = self.losses[0].loss_value, self.losses[-1].loss_value
        if first is None or not last:
            raise TestbedError("the losses have no value")
        return first / last


def wait(is_done: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Raises: TestbedError if it is not done in time."""
    end = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > end:
            raise TestbedError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def _knows(client: SyncClient, ceremony: str) -> bool:
    return any(item.id == ceremony for item in client.collect(client.api.iterate_ceremonies()))


@dataclass(slots=True)
class Testbed:
    """One testnet directory; `bmif` runs with this interpreter."""

    __test__ = False

    directory: Path
    show: bool = True
    _testnet: Testnet | None = field(default=None, repr=False)

    @property
    def testnet(self) -> Testnet:
        if self._testnet is None:
            self._testnet = Testnet.load(self.directory)
        return self._testnet

    def bmif(self, *arguments: str, capture: bool = False) -> str:
        """Run a command as a person would; its standard output if `capture`.

        Raises TestbedError if it fails.
        """
        if self.show:
            console.print(f"[bold]$ bmif {shlex.join(arguments)}[/]", soft_wrap=True)
        command = [sys.executable, "-m", "node.cli.main", *arguments]
        done = subprocess.run(
            command, stdout=subprocess.PIPE if capture else None, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise TestbedError(f"`bmif {shlex.join(arguments)}` ended with {done.returncode}")
        return done.stdout or ""

    def bmif_json(self, *arguments: str) -> dict[str, JsonValue]:
        return cast(dict[str, JsonValue], json.loads(self.bmif(*arguments, "--json", capture=True)))

    def config(self, node: str) -> str:
        return str(self.testnet.get_config_path(node))

    def connect(self, node: str) -> SyncClient:
        return SyncClient(self.testnet.get_api_url(self.testnet.select((node,))[0]))

    # --- life ---------------------------------------------------------------------------------

    def start(self, nodes: int, miners: int, base_port: int, *, up: Sequence[str] = ()) -> None:
        """Make a testnet and start its nodes (all unless `up` names some)."""
        self.init(nodes, miners, base_port)
        self.bmif("testnet", "up", *up, "--dir", str(self.directory))

    def init(self, nodes: int, miners: int, base_port: int) -> None:
        """Make a testnet."""
        options = ["--nodes", str(nodes), "--miners", str(miners), "--base-port", str(base_port)]
        self.bmif("testnet", "init", *options, "--dir", str(self.directory))

    def configure(self, node: str, settings: Mapping[str, JsonValue]) -> None:
        """Replace whole sections of a node's file, as its operator would before it starts.

        Raises ConfigError for what is no setting.
        """
        path = self.testnet.get_config_path(node)
        text = yaml.safe_dump(read_yaml(path) | dict(settings), sort_keys=False)
        path.write_text(text, encoding="utf-8")
        NodeConfig.load(path)

    def stop(self) -> None:
        self.bmif("testnet", "down", "--dir", str(self.directory))

    def clear(self) -> None:
        """Stop the nodes of an earlier run and remove its directory."""
        if (self.directory / MANIFEST).exists():
            self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- a committee --------------------------------------------------------------------------

    def make_keys(self, names: Sequence[str], threshold: int, timeout_s: float) -> str:
        """A ceremony of these nodes, custodies all; its id once the keys are ready. Raises: TestbedError."""
        addresses = [self.testnet.select((name,))[0].address for name in names]
        members = [part for address in addresses for part in ("--member", address)]
        options = ("--threshold", str(threshold), "--config", self.config(names[0]))
        ceremony = str(self.bmif_json("custody", "create", *members, *options)["ceremony"])
        for name in names[1:]:
            with self.connect(name) as client:
                wait(lambda client=client: _knows(client, ceremony), f"{name} knows it", timeout_s)  # type: ignore[misc]
            self.bmif("custody", "join", ceremony, "--config", self.config(name))
        with self.connect(names[0]) as client:

            def is_ready() -> bool:
                return client.call(client.api.get_ceremony(ceremony)).status == "ready"

            wait(is_ready, "the keys are ready", timeout_s)
        return ceremony

    # --- a task -------------------------------------------------------------------------------

    def publish(self, recipe: Recipe) -> Published:
        """Draft, encrypt, contribute, publish."""
        custody = self.config("node1")
        draft = str(
            self.bmif_json("task", "draft", "--title", recipe.title, *recipe.draft, "--config", custody)[
                "draft"
            ]
        )
        contributions: list[str] = []
        for contributor in recipe.contributors:
            config = self.config(contributor.node)
            encrypted = self.directory / f"{contributor.node}-encrypted-{draft[:12]}"
            arguments = ("-o", str(encrypted), *contributor.build_arguments(), "--config", config)
            self.bmif("data", "encrypt", draft, *arguments)
            made = self.bmif_json("task", "contribute", str(encrypted), "--config", config)
            contributions += ["--contribution", str(made["contribution"])]
        rungs = [part for rung in recipe.rungs for part in ("--rung", rung)]
        published = self.bmif_json(
            "task", "publish", draft, *contributions, *rungs, *recipe.publish, "--config", custody
        )
        return Published(str(published["task"]), str(published["transaction"]))

    def mine(self, task: str, node: str, timeout_s: float, *, expires: bool = False) -> Run:
        """Watch a task to its end.

        Raises TestbedError unless it completes; with `expires` it may also use up its openings.
        """
        begun = time.monotonic()
        watch = ("task", "watch", task, "--timeout", f"{timeout_s:.0f}", "--config", self.config(node))
        failure: TestbedError | None = None
        try:
            self.bmif(*watch)
        except TestbedError as error:
            if not expires:
                raise
            failure = error
        seconds = time.monotonic() - begun
        with self.connect(node) as client:
            found = client.call(client.api.get_task(task))
            if failure is not None and found.status != "expired":
                raise failure
            openings = client.collect(client.api.iterate_openings(task))
            milestones = client.call(client.api.get_milestones(task))
        losses = tuple(opening for opening in openings if opening.kind == "loss")
        return Run(found, losses, milestones, seconds)

    def check_agreement(self, task: str, nodes: Sequence[str] = ()) -> None:
        """Print each node's head, state root and own recomputations.

        Raises TestbedError unless all agree and each recomputed every loss, within a deadline.
        """
        deadline = time.monotonic() + AGREEMENT_DEADLINE_S
        names = tuple(node.name for node in self.testnet.select(tuple(nodes)))
        while True:
            rows, heads, complete = self._read_agreement(task, names)
            if len(heads) == 1 and complete:
                break
            if time.monotonic() > deadline:
                self._print_agreement(rows)
                raise TestbedError("the nodes do not agree, or have not recomputed every loss themselves")
            time.sleep(0.5)  # a poll with a deadline: nodes hear of the last block one after the other
        self._print_agreement(rows)

    def _read_agreement(
        self, task: str, names: Sequence[str]
    ) -> tuple[list[tuple[str, ...]], set[tuple[str, str]], bool]:
        rows: list[tuple[str, ...]] = []
        heads: set[tuple[str, str]] = set()
        complete = True
        for name in names:
            with self.connect(name) as client:
                status = client.call(client.api.get_status())
                openings = client.collect(client.api.iterate_openings(task))
            losses = [opening for opening in openings if opening.kind == "loss"]
            own = sum(opening.recomputed is True for opening in losses)
            complete = complete and bool(losses) and own == len(losses)
            heads.add((status.head.hash, status.head.state_root))
            rows.append(
                (
                    name,
                    status.organisation,
                    str(status.head.height),
                    status.head.hash[:16],
                    status.head.state_root[:16],
                    f"{own} of {len(losses)}",
                )
            )
        return rows, heads, complete

    def _print_agreement(self, rows: Sequence[tuple[str, ...]]) -> None:
        table = Table("node", "organisation", "height", "head", "state root", "losses recomputed itself")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def get_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
