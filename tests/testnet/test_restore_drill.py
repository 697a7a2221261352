"""The restore drill: a validator's directory is lost, and made again from a snapshot file and its keys."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from consensus.task import Transfer
from consensus.types import Address, Amount, Hash32, Height, Signature
from consensus.vote import Checkpoint, Vote, is_slashable
from node.api.fields import CheckpointModel, VoteModel
from tests.testnet.fleet import BOND, Fleet, Recipe, poll, run_fleet

NAMES = ("node1", "node2", "node3", "node4")
RECIPE = Recipe(("0.033:300", "0.024:300", "0.015:300"), loss_every=2, learning_rate=0.03)
"""Four steps or a few more: the custody is lost in the midst of them."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with (
        tempfile.TemporaryDirectory() as directory,
        run_fleet(Path(directory) / "drill", 4, 1) as running,
    ):
        yield running


def pay(fleet: Fleet, name: str = "node1") -> int:
    """Something happens on the chain; height of its block."""
    operator = fleet.operate(name)
    payee = Address(bytes.fromhex(fleet.get_address("node2")))
    paid = operator.call(operator.api.sign_and_submit(Transfer(payee, Amount(1)))).hex()

    def find() -> int | None:
        found = operator.call(operator.api.get_transaction(paid))
        return None if found.inclusion is None else int(found.inclusion.height)

    return poll(find, "the payment is in a block")


def wait_final(fleet: Fleet, height: int, name: str = "node1") -> None:
    poll(lambda: fleet.get_status(name).finalized.height >= height, f"height {height} is final at {name}")


def wait_voting(fleet: Fleet, name: str, by: str = "node1") -> None:
    """Its votes count again: blocks hold votes of it that it signed since."""
    address, since = fleet.get_address(name), fleet.get_status(by).head.height

    def has_voted() -> bool:
        top = pay(fleet, by)
        client = fleet.api(by)
        blocks = [client.call(client.api.get_block(str(height))) for height in range(since, top + 1)]
        votes = [vote for block in blocks for vote in block.votes]
        return any(vote.validator == address and vote.target.height > since for vote in votes)

    poll(has_voted, f"votes of {name}")


def read_votes(fleet: Fleet, name: str, by: str = "node1") -> set[Vote]:
    """Every vote of the node in the head chain."""
    address = fleet.get_address(name)
    votes = (vote for block in fleet.get_head_chain(by) for vote in block.votes)
    return {_build_vote(vote) for vote in votes if vote.validator == address}


def _build_vote(model: VoteModel) -> Vote:
    def build(checkpoint: CheckpointModel) -> Checkpoint:
        return Checkpoint(Height(checkpoint.height), Hash32(bytes.fromhex(checkpoint.hash)))

    return Vote(
        Address(bytes.fromhex(model.validator)),
        build(model.source),
        build(model.target),
        Signature(bytes.fromhex(model.signature)),
    )


def check_votes(fleet: Fleet, name: str, before: set[Vote], by: str = "node1") -> None:
    """It votes again, and only above all that it signed `before` it was lost; nobody is convicted."""
    votes = read_votes(fleet, name, by)
    assert before
    assert before < votes
    newest = max(vote.target.height for vote in before)
    assert all(vote.source.height > newest for vote in votes - before)
    assert not any(is_slashable(*pair) for pair in itertools.combinations(votes, 2))
    client = fleet.api(by)
    validators = client.call(client.api.get_validators()).items
    assert len(validators) == len(NAMES)
    assert not any(item.jailed for item in validators)


def back_up(home: Path, backup: Path) -> None:
    """What an operator keeps of a node: settings, genesis, account key, certificates; nothing that grows."""
    backup.mkdir()
    for entry in home.iterdir():
        if entry.is_file() and entry.name not in ("node.pid", "node.log"):
            shutil.copy2(entry, backup)


def lose(fleet: Fleet, name: str) -> None:
    """The machine dies, and its disk with it."""
    fleet.kill(name)
    fleet.clients.clear()
    shutil.rmtree(fleet.testnet.get_directory(name))


def set_roles(fleet: Fleet, name: str, roles: list[str]) -> list[str]:
    """Change the settings of a stopped node; the roles that it had."""
    path = fleet.testnet.get_config_path(name)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = list(settings["roles"])
    path.write_text(yaml.safe_dump({**settings, "roles": roles}), encoding="utf-8")
    return before


@pytest.mark.slow
def test_a_lost_validator_comes_back_from_a_snapshot_and_its_keys(fleet: Fleet, tmp_path: Path) -> None:
    heights = [pay(fleet) for _ in range(3)]
    wait_final(fleet, heights[-1])
    home = fleet.testnet.get_directory("node4")
    # From another node while it runs: any of them will do.
    file = tmp_path / "state.snapshot"
    made = json.loads(fleet.bmif("ledger", "snapshot", "-o", str(file), "--json", *fleet.config("node1")))
    assert made["height"] >= heights[-1]
    back_up(home, tmp_path / "kept")
    lose(fleet, "node4")
    # Three of four go on without it.
    wait_final(fleet, pay(fleet))
    votes = read_votes(fleet, "node4")

    shutil.copytree(tmp_path / "kept", home)
    restored = json.loads(fleet.bmif("ledger", "restore", str(file), "--json", *fleet.config("node4")))
    assert restored["checkpoint"] == made["checkpoint"]
    assert fleet.check_ledger("node4") == made["height"]
    fleet.up("node4")
    wait_voting(fleet, "node4")
    fleet.wait_agreement(NAMES)
    check_votes(fleet, "node4", votes)
    # It serves others.
    client = fleet.api("node4")
    assert client.call(client.api.get_block(str(made["height"]))).header.height == made["height"]


@pytest.mark.slow
def test_a_validator_with_an_old_copy_of_its_ledger_contradicts_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.down("node3")
    ledger, old = fleet.testnet.get_directory("node3") / "data" / "ledger", tmp_path / "old"
    shutil.copytree(ledger, old)
    fleet.up("node3")
    wait_voting(fleet, "node3")
    fleet.down("node3")
    shutil.rmtree(ledger)
    wait_final(fleet, pay(fleet))
    votes = read_votes(fleet, "node3")

    shutil.copytree(old, ledger)
    fleet.up("node3")
    wait_voting(fleet, "node3")
    fleet.wait_agreement(NAMES)
    check_votes(fleet, "node3", votes)


@pytest.mark.slow
def test_a_lost_custody_opens_again_with_the_keys_of_its_backup(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fleet.count_money("node4")
    task = fleet.publish(RECIPE)
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("three of these words are enough", encoding="utf-8")
    monkeypatch.setenv("BMIF_BACKUP_PASSPHRASE_FILE", str(passphrase))
    archive = tmp_path / "custody.archive"
    home, config = fleet.testnet.get_directory("node1"), fleet.config("node1")
    fleet.bmif("custody", "backup", "-o", str(archive), *config)
    held = fleet.bmif("custody", "keys", "--json", *config)
    back_up(home, tmp_path / "kept")

    fleet.wait_step(task, 1)
    # Anybody's file will do, also for the custody: state and proofs, and nobody's secrets.
    file = tmp_path / "state.snapshot"
    fleet.bmif("ledger", "snapshot", "-o", str(file), *fleet.config("node3"))
    fleet.wait_step(task, 2)
    lose(fleet, "node1")
    wait_final(fleet, pay(fleet, "node2"), "node2")
    opened = fleet.get_openings("node4", task)
    assert fleet.get_summary("node4", task).status == "open"
    votes = read_votes(fleet, "node1", "node2")

    shutil.copytree(tmp_path / "kept", home)
    fleet.bmif("ledger", "restore", str(file), *config)
    fleet.bmif("custody", "restore", str(archive), *config)
    assert fleet.bmif("custody", "keys", "--json", *config) == held
    # First without the role: it must know what is opened before it opens anything.
    roles = set_roles(fleet, "node1", [])
    fleet.up("node1")
    fleet.wait_agreement(NAMES)
    fleet.down("node1")
    fleet.clients.clear()
    assert "custody" in roles
    set_roles(fleet, "node1", roles)
    fleet.up("node1")
    fleet.wait_complete(task)

    found = fleet.get_openings("node4", task)
    assert [item.hash for item in found[: len(opened)]] == [item.hash for item in opened]
    assert len(found) > len(opened)
    assert len({(item.kind, item.step) for item in found}) == len(found), "no step is opened twice"
    fleet.wait_agreement(NAMES)
    # All of it is paid, and the bond is locked: nobody reported two openings of a step.
    assert sum(fleet.count_money("node4").values()) == sum(before.values())
    assert fleet.count_money("node4")["locks"] == BOND
    wait_voting(fleet, "node1", "node2")
    check_votes(fleet, "node1", votes, "node2")
