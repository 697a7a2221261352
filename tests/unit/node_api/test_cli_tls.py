"""`bmif tls` from request to revocation, as a node and the consortium's authority use it."""

import json
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from consensus.crypto import SigningKey
from node.cli.main import app
from node.keystore import create_account_key, load_account_key
from node.tls import TlsError, load_certificate
from node.tls_requests import make_request, read_request

RUNNER = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    done = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's directory with key and settings, and the authority's certificate."""
    home = tmp_path / "node"
    home.mkdir()
    create_account_key(home / "account.key")
    files = {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key", "revoked": "revoked.pem"}
    document = {
        "name": "node9",
        "data_dir": "data",
        "genesis": "genesis.json",
        "account_key": "account.key",
        "peer": {"advertise": "node9.example.org:8102"},
        "tls": files,
    }
    (home / "node.yaml").write_text(yaml.safe_dump(document))
    run("tls", "authority", tmp_path / "ca", "--name", "consortium")
    (home / "ca.pem").write_bytes((tmp_path / "ca" / "ca.pem").read_bytes())
    run("tls", "revoke", "--authority", tmp_path / "ca")
    (home / "revoked.pem").write_bytes((tmp_path / "ca" / "revoked.pem").read_bytes())
    return home


def get_states(node: Path, code: int = 0) -> dict[str, str]:
    found = json.loads(run("tls", "check", "-c", node / "node.yaml", "--json", code=code))
    return {finding["check"]: finding["state"] for finding in found}


def issue(node: Path, *options: object) -> Path:
    run("tls", "request", "-c", node / "node.yaml", "--organisation", "hospital-9")
    made, ca = node.parent / "made.pem", node.parent / "ca"
    arguments = ("--authority", ca, "--organisation", "hospital-9", "-o", made, *options)
    run("tls", "sign", node / "tls.csr", *arguments)
    return made


def test_from_request_to_revocation(node: Path) -> None:
    config, ca = node / "node.yaml", node.parent / "ca"
    assert stat.S_IMODE((ca / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((ca / "issued.json").stat().st_mode) == 0o600
    assert get_states(node, code=1)["key"] == "failed"
    made = issue(node)
    assert stat.S_IMODE((node / "tls.key").stat().st_mode) == 0o600
    assert "node9.example.org" in run("tls", "show", node / "tls.csr")
    run("tls", "install", made, "-c", config)
    assert set(get_states(node).values()) == {"ok"}
    shown = json.loads(run("tls", "show", node / "tls.pem", "--json"))
    assert shown["node"] == "node9"
    assert shown["account"] == load_account_key(node / "account.key").address.hex()
    # Renewed while the old pair stays in its place until the new one is installed.
    before = (node / "tls.key").read_bytes()
    made = issue(node, "--days", 20)
    assert (node / "tls.key").read_bytes() == before
    run("tls", "request", "-c", config, "--organisation", "hospital-9", code=1)
    run("tls", "install", made, "-c", config)
    assert (node / "tls.key").read_bytes() != before
    assert not (node / "tls.key.new").exists()
    assert get_states(node)["validity"] == "warning"
    # Revoked by node id: both certificates.
    output = run("tls", "revoke", "node9", "--authority", ca)
    assert f"{load_certificate(node / 'tls.pem').serial:x}" in output.replace("\n", "").replace(" ", "")
    (node / "revoked.pem").write_bytes((ca / "revoked.pem").read_bytes())
    assert get_states(node, code=1)["trust"] == "failed"
    assert "serials" in run("tls", "show", node / "revoked.pem")
    run("tls", "revoke", "node8", "--authority", ca, code=1)


def test_the_authority_refuses(node: Path) -> None:
    issue(node)
    ca, out = node.parent / "ca", node.parent / "other.pem"

    def sign(account: SigningKey, name: str, organisation: str, told: str) -> str:
        pem, _ = make_request(account, name, organisation, ["10.0.0.1"])
        request = node / "other.csr"
        request.write_bytes(pem)
        done = RUNNER.invoke(
            app,
            list(map(str, ("tls", "sign", request, "--organisation", told, "--authority", ca, "-o", out))),
        )
        assert done.exit_code == 1
        assert not out.exists()
        return done.output

    mine, other = load_account_key(node / "account.key"), SigningKey(bytes(32))
    assert "find out who handed it in" in sign(other, "node1", "hospital-9", "hospital-1")
    assert "in use by account" in sign(other, "node9", "hospital-1", "hospital-1")
    assert "has a certificate as hospital-9" in sign(mine, "node10", "hospital-1", "hospital-1")


def test_what_is_no_request_of_a_node_is_refused(node: Path) -> None:
    pem, _ = make_request(SigningKey(bytes(32)), "node1", "hospital-1", ["10.0.0.1"])
    other, _ = make_request(SigningKey(bytes(32)), "node1", "hospital-2", ["10.0.0.1"])
    assert read_request(pem).hosts == ("10.0.0.1",)
    middle = len(pem) // 2
    for data in (b"", pem[:-40], bytes(20_000), pem[:middle] + other[middle:]):
        with pytest.raises(TlsError):
            read_request(data)


def test_checks_name_what_is_wrong(node: Path) -> None:
    run("tls", "install", issue(node), "-c", node / "node.yaml")
    (node / "tls.key").chmod(0o640)
    assert get_states(node, code=1)["key"] == "failed"
    (node / "tls.key").chmod(0o600)
    text = (node / "node.yaml").read_text()
    (node / "node.yaml").write_text(text.replace("node9.example.org:8102", "elsewhere:8102"))
    assert get_states(node, code=1)["host"] == "failed"
    (node / "node.yaml").write_text(text.replace("name: node9", "name: node8"))
    assert get_states(node)["certificate"] == "warning"
    (node / "node.yaml").write_text(text)
    (node / "account.key").unlink()
    create_account_key(node / "account.key")
    assert get_states(node, code=1)["account"] == "failed"
    run("tls", "authority", node / "ca2", "--name", "consortium")
    (node / "ca.pem").write_bytes((node / "ca2" / "ca.pem").read_bytes())
    assert get_states(node, code=1)["authority"] == "failed"  # the list is another authority's
