"""Settings: file, environment, and refusals that name the field and the remedy."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from node.cli.main import app
from node.config import ConfigError, NodeConfig, Role, find_origins

CONFIGS = Path(__file__).parents[3] / "configs"
BASE = {
    "name": "node1",
    "data_dir": "data",
    "genesis": "genesis.json",
    "account_key": "account.key",
    "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
}


def write(directory: Path, **changes: object) -> Path:
    path = directory / "node.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = NodeConfig.load(write(tmp_path, roles=["validator", "miner"]))
    assert config.data_dir == tmp_path / "data"
    assert config.tls.key == tmp_path / "tls.key"
    assert config.token_file == tmp_path / "data" / "operator.token"
    assert config.roles == {Role.VALIDATOR, Role.MINER}
    assert config.advertised == "127.0.0.1:8102"


def test_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMIF_API__PORT", "9000")
    monkeypatch.setenv("BMIF_WORKERS", "3")
    config = NodeConfig.load(write(tmp_path, api={"port": 7000, "host": "0.0.0.0"}))
    assert (config.api.port, config.api.host, config.workers) == (9000, "0.0.0.0", 3)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"api": {"prot": 1}}, "api.prot", "Did you mean `port`"),
        ({"worker": 1}, "worker", "Did you mean `workers`"),
        ({"api": {"port": 70000}}, "api.port", "BMIF_API__PORT"),
        ({"workers": "many"}, "workers", "BMIF_WORKERS"),
        ({"roles": ["miner", "king"]}, "roles.1", "'custody'"),
        ({"roles": ["miner", "custody"]}, "roles", "choose custody or miner"),
        ({"name": "Node One"}, "name", "pattern"),
        ({"peer": {"peers": ["nowhere"]}}, "peer.peers.0", "pattern"),
        ({"peer": {"port": 8100}}, "peer.port", "already taken by api.port"),
        ({"tls": {"authority": "a", "certificate": "b"}}, "tls.key", "BMIF_TLS__KEY"),
        ({"limits": {"event_history": 1}}, "limits.event_history", "16"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(
    tmp_path: Path, changes: dict[str, object], field: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(write(tmp_path, **changes))
    problem = caught.value.problems[0]
    assert problem.field == field
    assert words in str(problem)
    assert problem.remedy


@pytest.mark.parametrize("text", ["name: [", "- a\n- b", "just text", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is not YAML|is not a mapping"):
        NodeConfig.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        NodeConfig.load(tmp_path / "absent.yaml")


def test_missing_and_open_files_are_found(tmp_path: Path) -> None:
    config = NodeConfig.load(write(tmp_path))
    for name in ("genesis.json", "account.key", "ca.pem", "tls.pem", "tls.key"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    assert config.check_files() == ()
    (tmp_path / "account.key").chmod(0o644)
    (tmp_path / "genesis.json").unlink()
    problems = {problem.field: problem.remedy for problem in config.check_files()}
    assert set(problems) == {"genesis", "account_key"}
    assert "chmod 600" in problems["account_key"]


def get_settings(model: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= get_settings(kind, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def test_every_setting_is_in_the_commented_example() -> None:
    path = CONFIGS / "node.yaml"
    NodeConfig.load(path)
    # Settings without a default, or that exclude another, are there as comments.
    document = yaml.safe_load(re.sub(r"^  # (\w+:)", r"  \1", path.read_text(), flags=re.MULTILINE))
    written = {
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in document.items()
        for inner in (value if isinstance(value, dict) else [name])
    }
    assert written == get_settings(NodeConfig)


def test_flags_go_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMIF_API__PORT", "9000")
    monkeypatch.setenv("BMIF_PEER__PEERS", '["node2:8102"]')
    path = write(tmp_path, api={"port": 7000, "posts_per_minute": 60}, workers=2)
    flags = ["api.port=9100", "roles=[miner]", "workers=3", 'peer.advertise="[::1]:7"']
    config = NodeConfig.load(path, flags)
    assert (config.api.port, config.api.posts_per_minute, config.workers) == (9100, 60, 3)
    assert (config.roles, config.peer.peers) == ({Role.MINER}, ("node2:8102",))
    origins = find_origins(path, flags)
    assert origins["api.port"] == origins["roles"] == origins["workers"] == "flag"
    assert (origins["peer.peers"], origins["api.posts_per_minute"]) == ("environment", "file")
    assert "api.host" not in origins


@pytest.mark.parametrize(
    ("flag", "field", "words"),
    [
        ("workers", "workers", "--set section.field=value"),
        ("=3", "=3", "--set section.field=value"),
        ("api..port=1", "api..port=1", "--set section.field=value"),
        ("api.port=[", "api.port", "is not YAML"),
        ("api.prot=1", "api.prot", "Did you mean `port`"),
        ("api=3", "api", "Correct `api`"),
        ("workers=0", "workers", "BMIF_WORKERS"),
    ],
)
def test_a_wrong_flag_is_named(tmp_path: Path, flag: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(write(tmp_path), [flag])
    problem = caught.value.problems[0]
    assert problem.field == field
    assert words in str(problem)


def test_a_variable_that_is_no_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMIF_ROLES", "miner")
    with pytest.raises(ConfigError, match="BMIF_ROLES is not JSON"):
        NodeConfig.load(write(tmp_path))


def test_the_settings_in_force_are_shown_with_their_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMIF_WORKERS", "3")
    arguments = ["config", "show", "-c", str(write(tmp_path)), "--set", "api.port=9100", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["api.port"] == {"value": 9100, "origin": "flag"}
    assert shown["workers"] == {"value": 3, "origin": "environment"}
    assert shown["name"] == {"value": "node1", "origin": "file"}
    assert shown["log.level"] == {"value": "info", "origin": "default"}
    assert set(shown) == get_settings(NodeConfig)
    table = CliRunner().invoke(app, arguments[:-1])
    assert table.exit_code == 0
    assert "9100" in table.stdout
