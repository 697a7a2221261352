"""`bmif governance`: a proposal file is made, approved by several keys, shown; wrong ones are refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from consensus.governance import sign_governance
from consensus.payload import Govern, ScheduleUpgrade, SetValidators
from consensus.types import Height
from node.api.payloads import decode_payload, payload_adapter
from node.cli.main import app
from node.keystore import create_account_key, load_account_key
from tests.unit.node_api.fakes import CUSTODY, MINER, FakeNode
from tests.unit.node_api.test_cli import Served

runner = CliRunner()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(FakeNode(tmp_path), tmp_path)
    yield served
    served.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a node with an account key of its own."""
    create_account_key(tmp_path / "account.key")
    path = tmp_path / "node.yaml"
    files = {"authority": "ca.pem", "certificate": "node.pem", "key": "node.key"}
    document = {"name": "node9", "genesis": "genesis.json", "account_key": "account.key", "tls": files}
    path.write_text(yaml.safe_dump(document | {"data_dir": "data"}))
    return path


def propose(served: Served, path: Path) -> None:
    members = [f"{CUSTODY.address.hex()}=100", f"{MINER.address.hex()}=50"]
    made = runner.invoke(
        app, ["governance", "set-validators", *members, "-o", str(path), "--api", served.url]
    )
    assert made.exit_code == 0, made.stderr


def read(path: Path) -> Govern:
    document = json.loads(path.read_text())
    payload = decode_payload(payload_adapter.validate_json(json.dumps(document["govern"])))
    assert isinstance(payload, Govern)
    return payload


def test_a_proposal_gathers_approvals(served: Served, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "proposal.json"
    propose(served, path)
    again = runner.invoke(app, ["governance", "reinstate", "lab", "-o", str(path), "--api", served.url])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    for _ in range(2):  # approving twice counts once
        done = runner.invoke(
            app, ["governance", "approve", str(path), "--config", str(config), "--api", served.url]
        )
        assert done.exit_code == 0, done.stderr
    payload = read(path)
    key = load_account_key(tmp_path / "account.key")
    assert payload.approvals == (sign_governance(key, served.node.chain_id, payload.governance),)
    action = payload.governance.action
    assert isinstance(action, SetValidators)
    assert [member.stake for member in action.validators] == [100, 50]
    shown = runner.invoke(app, ["governance", "show", str(path), "--api", served.url, "--json"])
    assert json.loads(shown.stdout)["quorum"] is False  # its key is no validator's


def test_the_chains_validators_and_treasury_are_shown(served: Served) -> None:
    served.node.state = served.node.state.with_forfeit(77)
    table = runner.invoke(app, ["governance", "show", "--api", served.url])
    assert table.exit_code == 0, table.stderr
    assert "77" in table.stdout
    plain = runner.invoke(app, ["governance", "show", "--api", served.url, "--json"])
    assert json.loads(plain.stdout)["governance"]["treasury"] == 77


def test_wrong_proposals_are_refused_with_their_remedy(served: Served, config: Path, tmp_path: Path) -> None:
    bad = runner.invoke(
        app, ["governance", "set-validators", "00=1", "-o", str(tmp_path / "x"), "--api", served.url]
    )
    assert bad.exit_code == 1
    assert "64 hexadecimal digits" in bad.stderr
    path = tmp_path / "proposal.json"
    propose(served, path)
    document = json.loads(path.read_text())
    for changed, message in (
        (document | {"chain_id": "ab" * 32}, "this node is of"),
        (document | {"surprise": 1}, "surprise"),
        ({**document, "govern": document["govern"] | {"approvals": "none"}}, "approvals"),
    ):
        path.write_text(json.dumps(changed))
        done = runner.invoke(
            app, ["governance", "approve", str(path), "--config", str(config), "--api", served.url]
        )
        assert done.exit_code == 1
        assert message in done.stderr
    document["govern"]["governance"]["sequence"] = 3
    path.write_text(json.dumps(document))
    stale = runner.invoke(
        app, ["governance", "approve", str(path), "--config", str(config), "--api", served.url]
    )
    assert "propose it again" in stale.stderr


def test_an_upgrade_is_proposed_with_notice_and_for_known_versions(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "upgrade.json"

    def schedule(*arguments: str) -> Result:
        command = ["governance", "schedule-upgrade", *arguments, "-o", str(path), "--api", served.url]
        return runner.invoke(app, command)

    near = schedule("2", "1000")
    assert near.exit_code == 1
    assert "--min-delay" in near.stderr
    unknown = schedule("99", "9000")
    assert unknown.exit_code == 1
    assert "install a release" in " ".join(unknown.stderr.split())
    assert not path.exists()
    made = schedule("2", "9000")
    assert made.exit_code == 0, made.stderr
    assert read(path).governance.action == ScheduleUpgrade(2, Height(9_000))
    none = runner.invoke(
        app, ["governance", "cancel-upgrade", "-o", str(tmp_path / "cancel.json"), "--api", served.url]
    )
    assert none.exit_code == 1
    assert "no upgrade is scheduled" in none.stderr
