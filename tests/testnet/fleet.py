"""A testnet of real processes on free ports, driven by the operators' commands and read by REST alone."""

import contextlib
import json
import os
import random
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml
from typer.testing import CliRunner

from node import processes
from node.api.client import SyncClient
from node.api.jobs import InferenceJob
from node.api.schemas import (
    BlockModel,
    OpeningModel,
    Page,
    StatusModel,
    TaskModel,
    TaskSummaryModel,
    TransactionSummaryModel,
)
from node.cli.main import app
from node.config import NodeConfig
from node.testnet import MANIFEST, PORTS_PER_NODE, Testnet

T = TypeVar("T")

DEADLINE_S = 240.0
"""Far more than anything here takes: a shared machine can be many times slower than an idle one."""
POLL_S = 0.05
BATCH_FEE = 3
BOND = 1_000
PROFILE = {
    "name": "fleet",
    "params": {
        "min_block_ms": 100,
        "idle_ms": 300,
        "slot_ms": 800,
        "rank_ms": 2_000,
        "lease_ms": 6_000,
        "verdict_ms": 3_000,
    },
}
"""Short turns, so that the tests wait little; leases short enough to see one pass on."""
NODE = {"workers": 1, "stop_timeout_s": 10}
EVALUATING = {"evaluator": {"enabled": True}}
"""Settings of nodes that evaluate what is asked of the chain, so far as they may."""


def find_free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens at now."""
    while True:
        base = random.randrange(20_000, 32_000)
        with ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return base


def poll(read: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer that is neither None nor False; fails after the deadline, saying what was awaited."""
    end = time.monotonic() + deadline_s
    while True:
        found = read()
        if found is not None and found is not False:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(POLL_S)


def get_workers(pid: int) -> list[int]:
    """The process ids of a node's children, by /proc."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and is nobody's child to reap does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task whose step is cheap: small patches, one channel, few slots used, little noise."""

    rungs: tuple[str, ...]
    """LOSS:REWARD, losses falling."""
    steps: int = 12
    loss_every: int = 1
    batches: int = 2
    learning_rate: float = 0.02
    seed: int = 1
    model: tuple[str, ...] = ("--channels", "1")
    """Options of the draft that choose the network, its inputs and its targets."""

    def build_draft(self) -> tuple[str, ...]:
        return (
            "--patch", "5", *self.model, "--steps", str(self.steps),
            "--loss-openings", str(self.steps + 1), "--clip", "0.5", "--noise", "0.5",
            "--loss-clip", "0.5", "--loss-noise", "0.01",
        )  # fmt: skip

    def build_pairs(self) -> tuple[str, ...]:
        return (
            "--phantoms", "4", "--phantom-seed", str(self.seed), "--patches-per-batch", "512",
            "--training-batches", str(self.batches), "--validation-batches", "1",
            "--validation-patients", "1",
        )  # fmt: skip

    def build_publication(self) -> tuple[str, ...]:
        rungs = tuple(part for rung in self.rungs for part in ("--rung", rung))
        return (
            *rungs, "--batches-per-step", str(self.batches), "--learning-rate", str(self.learning_rate),
            "--loss-every", str(self.loss_every), "--batch-fee", str(BATCH_FEE), "--bond", str(BOND),
        )  # fmt: skip


@dataclass(slots=True)
class Fleet:
    """One testnet; commands run in this process, which has loaded everything they need already."""

    directory: Path
    clients: dict[str, SyncClient] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    published: int = 0

    @property
    def testnet(self) -> Testnet:
        return Testnet.load(self.directory)

    def bmif(self, *arguments: str) -> str:
        """A command's standard output."""
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, f"bmif {' '.join(arguments)}: {result.output} {result.exception!r}"
        return result.stdout

    def bmif_json(self, key: str, *arguments: str) -> str:
        """One entry of what a command prints with `--json`."""
        return str(json.loads(self.bmif(*arguments, "--json"))[key])

    def config(self, name: str) -> tuple[str, str]:
        return "--config", str(self.testnet.get_config_path(name))

    def publish(self, recipe: Recipe) -> str:
        """Draft by node1, pairs of node2, publication; the task's id."""
        self.published += 1
        custody, hospital = self.config("node1"), self.config("node2")
        title = ("--title", f"task {self.published}")
        draft = self.bmif_json("draft", "task", "draft", *title, *recipe.build_draft(), *custody)
        encrypted = str(self.directory / f"encrypted-{self.published}")
        self.bmif("data", "encrypt", draft, "-o", encrypted, *recipe.build_pairs(), *hospital)
        contribution = self.bmif_json("contribution", "task", "contribute", encrypted, *hospital)
        publication = ("--contribution", contribution, *recipe.build_publication(), *custody)
        return self.bmif_json("task", "task", "publish", draft, *publication)

    def begin(
        self, nodes: int, miners: int, up: Sequence[str] = (), settings: Mapping[str, object] | None = None
    ) -> None:
        """Make the testnet, with `settings` for every node, and start the named nodes, or all."""
        profile = self.directory.with_suffix(".yaml")
        text = yaml.safe_dump({**PROFILE, "node": {**NODE, **(settings or {})}})
        profile.write_text(text, encoding="utf-8")
        ports = find_free_ports(PORTS_PER_NODE * nodes)
        counts = ("--nodes", str(nodes), "--miners", str(miners), "--base-port", str(ports))
        self.bmif("testnet", "init", *counts, "--profile", str(profile), "--dir", str(self.directory))
        self.up(*up)

    def up(self, *names: str) -> None:
        processes.start_nodes(self.testnet, names, deadline_s=DEADLINE_S)

    def down(self, *names: str) -> None:
        """Stop gracefully."""
        killed = processes.stop_nodes(self.testnet, names, deadline_s=DEADLINE_S)
        assert not killed

    def end(self) -> None:
        """Stop everything, whatever happened."""
        self.stack.close()
        processes.stop_nodes(self.testnet, deadline_s=20.0)

    def kill(self, *names: str) -> None:
        """kill -9 of the nodes' own processes; their workers have to notice by themselves."""
        workers: list[int] = []
        for name in names:
            pid = processes.get_pid(self.testnet.get_directory(name))
            assert pid is not None, f"{name} does not run"
            workers += get_workers(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        poll(lambda: not any(map(is_alive, workers)), f"workers of {', '.join(names)} end")

    def api(self, name: str) -> SyncClient:
        """An open client of the node."""
        if name not in self.clients:
            url = self.testnet.get_api_url(self.testnet.select((name,))[0])
            self.clients[name] = self.stack.enter_context(SyncClient(url))
        return self.clients[name]

    def operate(self, name: str) -> SyncClient:
        """An open client of the node that may sign with its key."""
        if f"{name} operator" not in self.clients:
            settings = NodeConfig.load(self.testnet.get_config_path(name))
            self.clients[f"{name} operator"] = self.stack.enter_context(
                SyncClient(
                    self.testnet.get_api_url(self.testnet.select((name,))[0]),
                    operator_url=f"http://{settings.operator.host}:{settings.operator.port}",
                    token=settings.token_file.read_text(encoding="utf-8").strip(),
                )
            )
        return self.clients[f"{name} operator"]

    def get_pending(self, name: str) -> dict[str, str]:
        """Kinds of the node's pending transactions by id."""
        url = self.testnet.get_api_url(self.testnet.select((name,))[0])
        with urllib.request.urlopen(f"{url}/v1/mempool?limit=100", timeout=30) as reply:
            page = Page[TransactionSummaryModel].model_validate_json(reply.read())
        return {item.id: item.kind for item in page.items}

    def check_ledger(self, name: str) -> int:
        """The height that a stopped node's ledger has; everything in it is consistent."""
        found = json.loads(self.bmif("ledger", "check", "--json", *self.config(name)))
        assert found["problems"] == []
        return int(found["height"])

    def get_status(self, name: str) -> StatusModel:
        client = self.api(name)
        return client.call(client.api.get_status())

    def get_job(self, job: str, name: str = "node1") -> InferenceJob:
        """A job of encrypted inference as the named node sees it."""
        client = self.api(name)
        return client.call(client.api.get_job(job))

    def get_task(self, name: str, task: str) -> TaskModel:
        client = self.api(name)
        return client.call(client.api.get_task(task))

    def get_openings(self, name: str, task: str) -> list[OpeningModel]:
        client = self.api(name)
        return client.collect(client.api.iterate_openings(task))

    def get_head_chain(self, name: str) -> list[BlockModel]:
        """Every block above genesis, ascending."""
        client = self.api(name)
        top = self.get_status(name).head.height
        return [client.call(client.api.get_block(str(height))) for height in range(1, top + 1)]

    def get_address(self, name: str) -> str:
        return self.testnet.select((name,))[0].address

    def get_summary(self, name: str, task: str) -> TaskSummaryModel:
        """The task's entry in the list: unlike the whole task it costs the node no accounting of privacy."""
        client = self.api(name)
        return next(item for item in client.collect(client.api.iterate_tasks()) if item.id == task)

    def wait_known(self, task: str, name: str) -> None:
        """Return once the node's chain has the task's publication."""

        def read() -> bool:
            client = self.api(name)
            return any(item.id == task for item in client.collect(client.api.iterate_tasks()))

        poll(read, f"{name} knows task {task[:12]}")

    def wait_complete(self, task: str, name: str = "node4") -> None:
        """Return once the task's last milestone is settled, as this node sees it."""

        self.wait_known(task, name)

        def read() -> bool:
            found = self.get_summary(name, task)
            assert found.status in ("pending", "open", "complete"), found
            return found.status == "complete"

        poll(read, f"task {task[:12]} completes")

    def wait_step(self, task: str, step: int, name: str = "node4") -> None:
        """Return once this many steps are opened on the chain, or the task is complete."""

        self.wait_known(task, name)

        def read() -> bool:
            found = self.get_summary(name, task)
            return found.step >= step or found.status == "complete"

        poll(read, f"step {step} of task {task[:12]}")

    def wait_agreement(self, names: Sequence[str]) -> StatusModel:
        """All the nodes' common head."""

        def read() -> StatusModel | None:
            statuses = [self.get_status(name) for name in names]
            heads = {(status.head.hash, status.head.state_root) for status in statuses}
            return statuses[0] if len(heads) == 1 else None

        return poll(read, f"{', '.join(names)} agree")

    def wait_recomputed(self, task: str, names: Sequence[str]) -> None:
        """Return once each of the nodes has itself recomputed every opened loss of the task."""
        for name in names:

            def read(name: str = name) -> bool:
                losses = [o for o in self.get_openings(name, task) if o.kind == "loss"]
                assert losses
                assert all(loss.recomputed is not False for loss in losses)
                return all(loss.recomputed for loss in losses)

            poll(read, f"{name} recomputes the losses of task {task[:12]}")

    def count_money(self, name: str) -> dict[str, int]:
        """Every account's balance, all escrows and bonds, and the bonds of complete tasks, read at one block.

        Those stay locked for as long as evidence is admissible, which is longer than any test.
        """

        def read() -> dict[str, int] | None:
            client = self.api(name)
            before = self.get_status(name).head.hash
            accounts = [client.call(client.api.get_account(node.address)) for node in self.testnet.nodes]
            listed = client.collect(client.api.iterate_tasks())
            # Nothing is left in a task that is complete; the tests of pay see to that.
            tasks = [self.get_task(name, task.id) for task in listed if task.status != "complete"]
            if {account.block for account in accounts} != {before}:
                return None
            if self.get_status(name).head.hash != before:
                return None
            escrow = sum(task.escrow + task.bond for task in tasks)
            locks = BOND * sum(task.status == "complete" for task in listed)
            held = {"escrow": escrow, "locks": locks}
            return {account.address: account.balance for account in accounts} | held

        return poll(read, "accounts and tasks read at one block")

    def read_log(self, name: str) -> str:
        return (self.testnet.get_directory(name) / processes.LOG_FILE).read_text(encoding="utf-8")


@contextlib.contextmanager
def run_fleet(
    directory: Path,
    nodes: int,
    miners: int,
    up: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> Iterator[Fleet]:
    """A running testnet; every process of it is gone afterwards."""
    fleet = Fleet(directory)
    try:
        fleet.begin(nodes, miners, up, settings)
        yield fleet
    finally:
        if (directory / MANIFEST).exists():
            for node in fleet.testnet.nodes:
                print(f"--- {node.name}")
                print(processes.get_log_tail(fleet.testnet.get_directory(node.name)))
            fleet.end()
