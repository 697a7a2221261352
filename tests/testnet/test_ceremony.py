"""A committee makes its keys on a real testnet: three nodes, one of them killed on the way; real keys."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from consensus.types import Hash32
from node.ceremonies import get_ceremony_folder
from node.cli.main import app
from node.config import NodeConfig
from tests.testnet.fleet import Fleet, poll, run_fleet
from workloads.ceremony import ROUNDS

MEMBERS = ("node1", "node2", "node3")
KEPT = ["noise.key", "public.key", "relin.keys", "secret.key"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with run_fleet(tmp_path_factory.mktemp("testnet") / "fleet", 4, 0, ["node1", "node4"]) as running:
        for name in MEMBERS[1:]:
            path = running.testnet.get_config_path(name)
            document = yaml.safe_load(path.read_text())
            document["roles"] = sorted({*document["roles"], "custody"})
            path.write_text(yaml.safe_dump(document))
        running.up(*MEMBERS[1:])
        yield running


def get_folder(fleet: Fleet, name: str, ceremony: str) -> Path:
    settings = NodeConfig.load(fleet.testnet.get_config_path(name))
    return get_ceremony_folder(settings.custody_dir, Hash32(bytes.fromhex(ceremony)))


def show(fleet: Fleet, name: str, ceremony: str) -> dict[str, object]:
    found = json.loads(fleet.bmif("custody", "status", ceremony, "--json", *fleet.config(name)))
    assert isinstance(found, dict)
    return found


def create(fleet: Fleet, *options: str) -> str:
    members = [part for name in MEMBERS for part in ("--member", fleet.get_address(name))]
    return fleet.bmif_json("ceremony", "custody", "create", *members, *options, *fleet.config("node1"))


def test_three_make_keys_of_which_none_holds_the_whole(fleet: Fleet) -> None:
    ceremony = create(fleet, "--threshold", "2", "--title", "cardiac")
    for name in MEMBERS[1:]:
        poll(lambda name=name: is_known(fleet, name, ceremony), f"{name} knows the ceremony")  # type: ignore[misc]
        fleet.bmif("custody", "join", ceremony, *fleet.config(name))
    poll(lambda: get_round(fleet, ceremony) >= 1, "the coins are shown")
    fleet.kill("node3")
    fleet.up("node3")
    poll(lambda: show(fleet, "node4", ceremony)["status"] == "ready", "the keys are ready", 240.0)
    found = show(fleet, "node4", ceremony)
    assert found["round"] == len(ROUNDS)
    confirmations = found["confirmations"]
    assert isinstance(confirmations, list)
    assert len({json.dumps([item["public_key"], item["relin_keys"]]) for item in confirmations}) == 1
    folders = [get_folder(fleet, name, ceremony) for name in MEMBERS]
    for folder in folders:
        poll(partial(is_clean, folder), "what only the ceremony needed is gone")
        assert (folder / "secret.key").stat().st_mode & 0o777 == 0o600
    for name in ("public.key", "relin.keys"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    # Shares differ, and nobody but its owner has one.
    assert len({(folder / "secret.key").read_bytes() for folder in folders}) == len(MEMBERS)
    assert not get_folder(fleet, "node4", ceremony).exists()
    listed = fleet.bmif("custody", "keys", "--json", *fleet.config("node2"))
    assert [item["root"] for item in json.loads(listed)] == [ceremony]


def test_one_that_is_given_up_leaves_no_secrets(fleet: Fleet) -> None:
    ceremony = create(fleet, "--threshold", "3")
    poll(lambda: is_known(fleet, "node2", ceremony), "node2 knows the ceremony")
    fleet.bmif("custody", "join", ceremony, *fleet.config("node2"))
    # The third never joins.
    poll(lambda: len(show(fleet, "node4", ceremony)["committed"]) == 2, "two committed")  # type: ignore[arg-type]
    assert show(fleet, "node4", ceremony)["waits_for"] == [fleet.get_address("node3")]
    text = fleet.bmif("custody", "status", ceremony, *fleet.config("node4"))
    print(text)
    assert ["waits", "for", fleet.get_address("node3")] in map(str.split, text.splitlines())
    print(fleet.bmif("custody", "status", *fleet.config("node4")))
    refused = CliRunner().invoke(app, ["custody", "join", ceremony, *fleet.config("node4")])
    assert (refused.exit_code, "no custody" in refused.output) == (1, True), refused.output
    fleet.bmif("custody", "end", ceremony, *fleet.config("node2"))
    for name in MEMBERS[:2]:
        poll(lambda name=name: not get_folder(fleet, name, ceremony).exists(), "its secrets are erased")  # type: ignore[misc]
    assert show(fleet, "node4", ceremony)["status"] == "ended"


def is_known(fleet: Fleet, name: str, ceremony: str) -> bool:
    found = json.loads(fleet.bmif("custody", "status", "--json", *fleet.config(name)))
    return any(item["id"] == ceremony for item in found)


def get_round(fleet: Fleet, ceremony: str) -> int:
    return int(str(show(fleet, "node4", ceremony)["round"]))


def is_clean(folder: Path) -> bool:
    return sorted(path.name for path in folder.iterdir()) == KEPT
