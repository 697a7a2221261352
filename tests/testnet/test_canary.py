"""A testnet at its most talkative, with sealed keys: every place where a secret must not be is searched."""

import secrets
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node import processes
from node.config import NodeConfig
from node.custody_keys import SECRET_FILE, find_folders, read_secrets, unlock_folder
from node.keystore import open_tls_key
from node.passphrase import Purpose, read_passphrase_file
from tests.testnet.canary import ENOUGH, Finder
from tests.testnet.fleet import DEADLINE_S, NODE, PROFILE, Fleet, Recipe, find_free_ports, get_workers
from workloads import sealed

pytestmark = pytest.mark.slow

NAMES = ("node1", "node2", "node3")
TALKATIVE = {"log": {"level": "debug", "access": True}, "custody": {"encrypted": True}}
RECIPE = Recipe(("0.036:1000", "0.000001:500"), steps=40, learning_rate=0.08)
"""The second rung is out of reach, so that the task stays open."""
PIECES = (100_000, 300_000, 500_000)
"""Bytes at which pieces of a CKKS secret key are taken. The file holds the secret first (655,360 bytes or
more at ring 16384), then the public and the relinearisation keys, which everybody may have."""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Files of both passphrases, named by the environment as a service would."""
    folder = tmp_path_factory.mktemp("words")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for purpose in (Purpose.NODE, Purpose.CUSTODY):
            path = found[purpose.value] = folder / f"{purpose.value}.txt"
            path.write_text(secrets.token_urlsafe(24), encoding="utf-8")
            path.chmod(0o600)
            patch.setenv(f"{purpose.variable}_FILE", str(path))
        yield found


@pytest.fixture(scope="module")
def fleet(words: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes, none started; one writes JSON records, the others lines for people."""
    made = Fleet(tmp_path_factory.mktemp("canary") / "fleet")
    profile = made.directory.with_suffix(".yaml")
    profile.write_text(yaml.safe_dump({**PROFILE, "node": {**NODE, **TALKATIVE}}), encoding="utf-8")
    ports = ("--base-port", str(find_free_ports(50)), "--profile", str(profile))
    made.bmif("testnet", "init", "--nodes", "3", "--miners", "1", *ports, "--dir", str(made.directory))
    path = made.testnet.get_config_path("node1")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["log"]["format"] = "json"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    try:
        yield made
    finally:
        for node in made.testnet.nodes:
            print(f"--- {node.name}\n{processes.get_log_tail(made.testnet.get_directory(node.name))}")
        made.end()


def read_scalar(path: Path) -> bytes:
    """The secret number of a TLS key."""
    key = open_tls_key(path)
    if isinstance(key, EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8)
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())[-32:]


def open_account(path: Path, words: Path) -> bytes:
    """The seed that a sealed file holds."""
    data = path.read_bytes()
    key = sealed.unlock(sealed.read_header(data), read_passphrase_file(words).reveal())
    return sealed.open_sealed(data, key, "account-key")


def collect_live(fleet: Fleet) -> dict[str, bytes]:
    """What running nodes show: metrics, the operator's debug route, command lines and environments."""
    found = {}
    for name in NAMES:
        url = fleet.testnet.get_api_url(fleet.testnet.select((name,))[0])
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
            found[f"{name} /metrics"] = reply.read()
        operator = fleet.operate(name)
        found[f"{name} debug"] = operator.call(operator.api.get_debug()).model_dump_json().encode()
        pid = processes.get_pid(fleet.testnet.get_directory(name))
        assert pid is not None
        for process in (pid, *get_workers(pid)):
            for file in ("cmdline", "environ"):
                found[f"{name} {process} {file}"] = Path(f"/proc/{process}/{file}").read_bytes()
    return found


def test_no_secret_is_anywhere_but_in_its_own_file(
    fleet: Fleet, words: dict[str, Path], tmp_path: Path
) -> None:
    canaries = {name: path.read_bytes() for name, path in words.items()}
    settings = {name: NodeConfig.load(fleet.testnet.get_config_path(name)) for name in NAMES}
    for name, config in settings.items():
        tls = fleet.testnet.get_directory(name) / "tls.key"
        canaries[f"{name} TLS text"] = tls.read_bytes().splitlines()[2][
            :32
        ]  # what a log of the PEM would show
        canaries[f"{name} TLS"] = read_scalar(tls)
        assert f"{name} TLS text (raw)" in Finder(canaries).find(tls.read_bytes())
        fleet.bmif("keys", "encrypt", str(config.account_key))
        fleet.bmif("keys", "encrypt", str(tls), "--pem")
        assert read_scalar(tls) == canaries[f"{name} TLS"]  # the sealed file holds it, when opened
        canaries[f"{name} account"] = open_account(config.account_key, words["node"])
    fleet.up(*NAMES)
    task = fleet.publish(RECIPE)
    fleet.wait_step(task, 1, "node3")
    for name, config in settings.items():
        canaries[f"{name} token"] = config.token_file.read_bytes().strip()

    folder = next(find_folders(fleet.testnet.get_directory("node1") / "data"))
    assert folder.is_sealed
    opened = read_secrets(folder, unlock_folder(folder))
    for file, data in opened.items():
        if file == SECRET_FILE:
            for at in PIECES:
                canaries[f"{file} at {at}"] = data[at : at + 2 * ENOUGH]
        else:
            canaries[file] = data[:32]
    finder = Finder(canaries)
    # The search finds what is there: each secret in the file that is its own, once that is opened.
    for file, data in opened.items():
        assert {hit for hit in finder.find(data) if hit.startswith(file)}
    for name, config in settings.items():
        assert f"{name} account (raw)" in finder.find(open_account(config.account_key, words["node"]))
    for name, path in words.items():
        assert f"{name} (raw)" in finder.find(path.read_bytes())

    shown = collect_live(fleet)
    for name in NAMES:
        dump = tmp_path / f"{name}.tar.gz"
        fleet.bmif("debug", "dump", "-o", str(dump), *fleet.config(name))
        with tarfile.open(dump) as archive:
            for member in archive:
                content = archive.extractfile(member)
                data = content.read() if content else b""
                shown[f"{name} dump {member.name}"] = member.name.encode() + data
    assert len(shown) > 30
    assert {place: hits for place, data in shown.items() if (hits := finder.find(data))} == {}

    processes.stop_nodes(fleet.testnet, deadline_s=DEADLINE_S)
    assert "/v1/operator/" in fleet.read_log("node1")
    assert '"level"' in fleet.read_log("node1")
    assert "/v1/operator/" in fleet.read_log("node2")
    # Keys are sealed, so of all secrets the tokens alone may be read on any disk, each in its own file.
    found = set(finder.find_in_files(fleet.directory))
    assert found == {(config.token_file, f"{name} token (raw)") for name, config in settings.items()}
