"""Commands as a user runs them: output, JSON, errors on standard error with a non-zero exit."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from consensus.records import TaskStatus
from node.api.app import build_public_app
from node.cli.main import app
from node.events import EventKind
from tests.unit.node_api.conftest import build_config
from tests.unit.node_api.fakes import START, FakeNode

runner = CliRunner()


class Served:
    """The fake node served from another thread, for commands that run their own event loop."""

    def __init__(self, node: FakeNode, directory: Path) -> None:
        self.node = node
        self.loop = asyncio.new_event_loop()
        self.server = TestServer(build_public_app(node, build_config(directory)))
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait(5)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/"))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.server.start_server())
        self.loop.call_soon(self._started.set)
        self.loop.run_forever()
        self.loop.run_until_complete(self.server.close())
        self.loop.close()

    def end_task_once_watched(self, status: TaskStatus) -> None:
        """When a stream is open: one step, then the end."""

        def poll() -> None:
            if not self.node.events._changed:
                self.loop.call_later(0.01, poll)
                return
            node, task = self.node, self.node.task
            node.events.publish(EventKind.STEP, START, {"task": task.hex(), "step": 1, "miners": []})
            record = node.state.get_task(task)
            assert record is not None
            node.state = node.state.with_task(task, replace(record, status=status))
            node.events.publish(EventKind.TASK, START, {"task": task.hex(), "status": status.value})

        self.loop.call_soon_threadsafe(poll)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(FakeNode(tmp_path), tmp_path)
    yield found
    found.close()


COMMANDS = [
    "run", "status", "fuse", "evaluate", "testnet init", "testnet up", "testnet down", "testnet status",
    "task draft", "task contribute", "task publish", "task expire", "task list", "task show", "task watch",
    "data encrypt", "data import", "model export", "keys show", "keys new", "ledger check", "ledger rebuild",
    "ledger export", "config check", "diagnose register", "diagnose retire", "diagnose submit",
    "diagnose status", "diagnose fetch", "diagnose keys", "diagnose sequence train",
    "diagnose sequence compile", "diagnose sequence start", "diagnose sequence advance",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_keys_are_made_once_and_never_printed(tmp_path: Path) -> None:
    path = tmp_path / "account.key"
    made = runner.invoke(app, ["keys", "new", str(path), "--json"])
    address = json.loads(made.stdout)["address"]
    assert path.stat().st_mode & 0o777 == 0o600
    shown = runner.invoke(app, ["keys", "show", str(path)])
    assert shown.stdout.strip() == address
    assert "PRIVATE" not in made.stdout + shown.stdout
    again = runner.invoke(app, ["keys", "new", str(path)])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert again.stdout == ""


def test_config_check_names_field_and_remedy(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    made = runner.invoke(app, ["testnet", "init", "--nodes", "2", "--dir", str(directory), "--json"])
    config = json.loads(made.stdout)[0]["config"]
    good = runner.invoke(app, ["config", "check", "--config", config])
    assert good.exit_code == 0, good.stderr
    Path(config).write_text(Path(config).read_text().replace("roles:", "rolls:"))
    bad = runner.invoke(app, ["config", "check", "--config", config])
    assert bad.exit_code == 1
    assert "rolls: unknown field. Did you mean `roles`?" in bad.stderr
    status = runner.invoke(app, ["testnet", "status", "--dir", str(directory), "--json"])
    assert status.exit_code == 1
    assert {entry["pid"] for entry in json.loads(status.stdout)} == {None}


def test_status_and_tasks_print_tables_and_json(served: Served) -> None:
    task = served.node.task.hex()
    for command in (["status"], ["task", "list"], ["task", "show", task]):
        table = runner.invoke(app, [*command, "--api", served.url])
        assert table.exit_code == 0, table.stderr
        plain = runner.invoke(app, [*command, "--api", served.url, "--json"])
        assert json.loads(plain.stdout)
    assert "hospital-1" in table.stdout
    assert "settled" in table.stdout


def test_model_export_and_ledger_export(served: Served, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    result = runner.invoke(
        app, ["model", "export", served.node.task.hex(), "-o", str(model), "--api", served.url]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(model.read_text())["weights"] == [1, 2, 3]
    blocks = runner.invoke(app, ["ledger", "export", "--api", served.url])
    heights = [json.loads(line)["header"]["height"] for line in blocks.stdout.splitlines()]
    assert heights == list(range(len(served.node.records)))


@pytest.mark.parametrize(
    ("status", "code"), [(TaskStatus.COMPLETE, 0), (TaskStatus.EXPIRED, 1), (TaskStatus.CLOSED, 1)]
)
@pytest.mark.parametrize("plain", [True, False])
def test_watch_follows_a_task_to_its_end(served: Served, status: TaskStatus, code: int, plain: bool) -> None:
    served.end_task_once_watched(status)
    arguments = ["task", "watch", served.node.task.hex(), "--api", served.url, "--timeout", "20"]
    result = runner.invoke(app, [*arguments, "--json"] if plain else arguments)
    assert result.exit_code == code, result.stderr
    if plain:
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["kind"] for line in lines] == ["step", "task", "end"]
        assert lines[-1]["data"]["status"] == status.value
    else:
        assert status.value in result.stdout
        assert "Ladder" in result.stdout
        assert " rung 0 " in result.stdout or "no loss opened yet" in result.stdout
        assert "\x1b[" not in result.stdout  # no terminal, no colours
        assert max(map(len, result.stdout.splitlines()[1:])) <= 80
    assert (f"the task is {status.value}, " in result.stderr) == (code == 1)
    assert ("rungs are settled" in result.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task", "show", "xyz"], "64 hexadecimal digits"),
        (["task", "show", "ab" * 32], "No task"),
        (["model", "export", "ab" * 32, "-o", "x.json"], "See /v1/tasks"),
    ],
)
def test_errors_go_to_standard_error(served: Served, arguments: list[str], words: str) -> None:
    result = runner.invoke(app, [*arguments, "--api", served.url])
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stdout == ""


def test_an_unreachable_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["status", "--api", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Is the node running?" in result.stderr
    result = runner.invoke(app, ["run"])
    assert "give --config PATH" in result.stderr
