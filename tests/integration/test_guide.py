"""docs/FUSION.md does what it says: commands that need no network are run, the others' options are known."""

import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from node.cli.main import app
from tests.integration.guide_data import build_guide_data
from tests.integration.model_file import save_model

PAGE = Path(__file__).parents[2] / "docs" / "FUSION.md"
NETWORK = ("-c", "--task", "testnet")


def read_commands() -> list[tuple[list[str], list[str]]]:
    """Arguments of each command of the page, and the lines that it shows of the answer."""
    commands: list[tuple[list[str], list[str]]] = []
    for block in PAGE.read_text(encoding="utf-8").split("```console\n")[1:]:
        for line in block.partition("```")[0].splitlines():
            if line.startswith("$ "):
                name, *arguments = shlex.split(line[2:])
                assert name == "bmif"
                commands.append((arguments, []))
            else:
                commands[-1][1].append(line)
    return commands


def check_options(arguments: list[str]) -> None:
    """Raises a usage error for options and arguments that the command has not."""
    command, name = get_command(app), "bmif"
    while isinstance(command, TyperGroup):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


def test_every_command_is_as_the_page_has_it() -> None:
    commands = [arguments for arguments, _ in read_commands()]
    for arguments in commands:
        check_options(arguments)
    told = {" ".join(arguments[:2]) for arguments in commands}
    assert {"data import", "data encrypt", "task contribute", "task watch", "model export"} <= told
    assert {"fuse", "evaluate", "fuse-encrypted"} <= {arguments[0] for arguments in commands}


def test_what_needs_no_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_guide_data(tmp_path)
    save_model(tmp_path / "model.json")
    ran = []
    for arguments, answer in read_commands():
        if any(word in arguments for word in NETWORK):
            continue
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        for line in answer:
            assert line in done.stdout
        ran.append(arguments[0])
    assert ran == ["data"] * 3 + ["fuse"] * 3 + ["evaluate"]
    made = ("study/preview.png", "fused.png", "figure.png", "fused.dcm", "fused.nii.gz", "scores.csv",
            "report.html", "methods.png")  # fmt: skip
    assert [name for name in made if not (tmp_path / name).stat().st_size] == []
