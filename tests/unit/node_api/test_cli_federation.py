"""`bmif federation`: what is refused before keys are made or anything is trained, and what is shown."""

import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from node.api.federations import build_federation
from node.cli.common import CliError
from node.cli.federation_create import parse_participants
from node.cli.federation_train import Joined, get_weight, load_joined
from node.cli.main import app
from tests.unit.node_api.fakes import FakeNode
from tests.unit.node_api.test_cli import Served

runner = CliRunner()
GUIDE = Path(__file__).parents[3] / "docs" / "FEDERATION.md"
FIRST, SECOND = "02" * 32, "01" * 32


def test_participants_are_sorted() -> None:
    found = parse_participants([f"{FIRST}:3", f"{SECOND}:4096"])
    assert [(item.address.hex(), item.weight) for item in found] == [(SECOND, 4096), (FIRST, 3)]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([f"{FIRST}:1"], "2 to 64"),
        ([FIRST, f"{SECOND}:1"], "ADDRESS:WEIGHT"),
        ([f"{FIRST}:0", f"{SECOND}:1"], "from 1 to 4096"),
        ([f"{FIRST}:4097", f"{SECOND}:1"], "from 1 to 4096"),
        ([f"{FIRST}:1", f"{FIRST}:2"], "named twice"),
        (["0102:1", f"{SECOND}:1"], "64 hexadecimal digits"),
    ],
)
def test_bad_participants_are_named(texts: list[str], words: str) -> None:
    with pytest.raises(CliError, match=words):
        parse_participants(texts)


def test_who_has_not_joined_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"bmif federation join ab DATA\.npz"):
        load_joined(tmp_path, "ab")
    (tmp_path / "joined.json").write_text("{}")
    with pytest.raises(CliError, match="damaged"):
        load_joined(tmp_path, "ab")
    (tmp_path / "joined.json").write_text(Joined(data="/a.npz", own_noise=3).model_dump_json())
    assert load_joined(tmp_path, "ab") == Joined(data="/a.npz", own_noise=3)


def test_only_participants_take_part(node: FakeNode) -> None:
    record = node.state.get_federation(node.federation)
    assert record is not None
    found = build_federation(node.state, node.federation, record)
    assert {get_weight(found, item.address) for item in found.members} == {1, 3}
    with pytest.raises(CliError, match="is no participant"):
        get_weight(found, "00" * 32)


def test_federations_and_rounds_are_shown(tmp_path: Path) -> None:
    served = Served(FakeNode(tmp_path), tmp_path)
    identifier = served.node.federation.hex()
    try:
        for arguments in ([], [identifier]):
            for form in ([], ["--json"]):
                result = runner.invoke(app, ["federation", "status", *arguments, *form, "--api", served.url])
                assert result.exit_code == 0, result.output
                assert "accepted" in result.stdout
        unknown = runner.invoke(app, ["federation", "status", "00" * 32, "--api", served.url])
        assert unknown.exit_code == 1
        assert "federation" in unknown.stderr
    finally:
        served.close()


def test_what_can_not_be_is_refused_without_a_node(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    made = runner.invoke(app, ["testnet", "init", "--nodes", "4", "--miners", "1", "--dir", str(directory)])
    assert made.exit_code == 0, made.output
    config = str(directory / "node1" / "node.yaml")
    members = ["--participant", f"{FIRST}:1", "--participant", f"{SECOND}:1"]
    for options, words in (
        (["--min", "3"], "--min 3"),
        (["--rounds", "2", "--openings", "3"], "--openings 3"),
        (["--channels", "32"], "--channels"),
        (["--side", "7"], "side: expected"),
        (["--clip", "1e12"], "smaller clip"),
        (["--rung", "x"], "--rung"),
    ):
        result = runner.invoke(app, ["federation", "create", *members, *options, "-c", config])
        assert result.exit_code == 1
        assert words in result.stderr
    taken = tmp_path / "model.npz"
    taken.touch()
    for name, words in ((taken, "exists already"), (tmp_path / "model.pt", "ends in .npz")):
        result = runner.invoke(app, ["federation", "export", FIRST, "-o", str(name), "-c", config])
        assert result.exit_code == 1
        assert words in result.stderr


def test_every_command_of_the_guide_is_as_it_says() -> None:
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.startswith("bmif federation ")]
    named = set()
    for line in lines:
        _, _, name, *arguments = shlex.split(line)
        command = get_command(app)
        assert isinstance(command, TyperGroup)
        group = command.commands["federation"]
        assert isinstance(group, TyperGroup)
        group.commands[name].make_context(name, arguments)
        named.add(name)
    assert named == {"create", "join", "train", "status", "export"}
