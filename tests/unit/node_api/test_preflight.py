"""A newcomer's first commands: a node's directory, a genesis document, and what the machine can do."""

import json
import socket
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from node.cli.main import app
from node.config import NodeConfig
from node.preflight import (
    Finding,
    Level,
    check_disk,
    check_identity,
    check_memory,
    check_peers,
    check_ports,
    check_processor,
    check_settings,
)
from node.testnet import Testnet, init_testnet


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def find(findings: list[Finding], level: Level) -> list[str]:
    return [f"{f.detail} {f.remedy}" for f in findings if f.level is level]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Testnet:
    return init_testnet(tmp_path_factory.mktemp("preflight") / "net", 2, base_port=43_100)


@pytest.fixture
def config(net: Testnet) -> NodeConfig:
    return NodeConfig.load(net.get_config_path("node2"))


def test_init_genesis_and_preflight_lead_to_each_other(tmp_path: Path) -> None:
    home = tmp_path / "node"
    made = call("init", str(home), "--name", "ward-7", "--role", "miner", "--peer", "b.example:8102",
                "--advertise", "a.example:9102")  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "missing" in made.stdout
    assert "genesis.json, ca.pem, tls.pem, tls.key" in made.stdout
    address = made.stdout.split()[1]
    config = NodeConfig.load(home / "node.yaml")
    assert (config.name, config.advertised, config.peer.port) == ("ward-7", "a.example:9102", 9102)
    assert config.account_key.stat().st_mode & 0o777 == 0o600
    assert {p.field for p in config.check_files()} == {
        "genesis",
        "tls.authority",
        "tls.certificate",
        "tls.key",
    }

    document = home / "genesis.json"
    founded = call("genesis", "new", "-o", str(document), "--member", f"{address}:ward", "--miner", "ward",
                   "--param", "idle_ms=2000", "--validator", f"{address}:7")  # fmt: skip
    assert founded.exit_code == 0, founded.output
    shown = json.loads(call("genesis", "show", str(document), "--json").stdout)
    assert shown["chain_id"] in founded.stdout.replace("\n", "")
    assert shown["accounts"][0]["stake"] == 7
    assert shown["accounts"][0]["mines"]
    checked = call("preflight", "-c", str(home / "node.yaml"), "--quick", "--json")
    assert checked.exit_code == 1
    failed = {f["check"] for f in json.loads(checked.stdout) if f["level"] == "failed"}
    # The default ports may be somebody's on this machine.
    assert failed - {"ports"} == {"settings", "certificate"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--member", "12:ward"), "64 hexadecimal digits"),
        (("--member", "ab" * 32), "ADDRESS:ORGANISATION"),
        (("--member", "ab" * 32 + ":ward", "--miner", "other"), "no member is of other"),
        (("--member", "ab" * 32 + ":ward", "--param", "idle_ms=x"), "NAME=VALUE"),
        (("--member", "ab" * 32 + ":ward", "--param", "idle=1"), "unknown"),
        (("--member", "ab" * 32 + ":ward", "--param", "idle_ms=1"), "idle_ms"),
        (("--member", "ab" * 32 + ":ward", "--validator", "ab" * 32 + ":0"), "stake"),
        (("--member", "ab" * 32 + ":ward", "--member", "ab" * 32 + ":ward"), "listed twice"),
    ],
)
def test_a_genesis_that_can_not_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = call("genesis", "new", "-o", str(tmp_path / "g.json"), *arguments)
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "g.json").exists()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    assert call("init", str(tmp_path)).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = call("init", str(tmp_path), "--name", "other")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    bad = call("init", str(tmp_path / "b"), "--name", "No Name")
    assert bad.exit_code == 1
    assert list((tmp_path / "b").iterdir()) == []


def test_a_testnets_node_is_in_order(config: NodeConfig) -> None:
    found = [*check_settings(config), *check_ports(config), *check_identity(config)]
    assert find(found, Level.FAILED) == find(found, Level.WARNING) == []
    assert "node2 of hospital-1" in " ".join(find(found, Level.OK))


async def test_what_is_wrong_is_named(config: NodeConfig, net: Testnet, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.api.port))
        taken.listen()
        (failed,) = find(check_ports(config), Level.FAILED)
    assert f"api 127.0.0.1:{config.api.port}" in failed
    assert "api.port" in failed
    (silent,) = find(await check_peers(config), Level.WARNING)
    assert config.peer.peers[0] in silent
    assert check_processor(100_000).level is Level.WARNING
    assert check_memory(config.model_copy(update={"workers": 256})).level is Level.WARNING
    room = check_disk(tmp_path, 2**62)[0]
    assert room.level is not Level.OK
    assert "blob_quota_bytes" in room.remedy or "Make room" in room.remedy


def test_another_organisations_certificate_is_found(net: Testnet, tmp_path: Path) -> None:
    own, other = net.get_config_path("node2"), net.get_directory("node1")
    document = yaml.safe_load(own.read_text())
    document.update(
        genesis=str(own.parent / "genesis.json"),
        account_key=str(own.parent / "account.key"),
        tls={
            "authority": str(other / "ca.pem"),
            "certificate": str(other / "tls.pem"),
            "key": str(other / "tls.key"),
        },
    )
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(document))
    (failed,) = find(check_identity(NodeConfig.load(path)), Level.FAILED)
    assert "certificate of custody-org, account of hospital-1" in failed
    document["tls"]["key"] = str(own.parent / "tls.key")
    path.write_text(yaml.safe_dump(document))
    (failed,) = find(check_identity(NodeConfig.load(path)), Level.FAILED)
    assert "not for this key" in failed


@pytest.mark.slow
def test_a_training_batch_is_timed(net: Testnet) -> None:
    # What else is found (a port in use, little memory beside other tests) is not this test's matter.
    done = call("preflight", "-c", str(net.get_config_path("node2")), "--json")
    (found,) = [f for f in json.loads(done.stdout) if f["check"] == "training"]
    assert "patches/s" in found["detail"], done.output
