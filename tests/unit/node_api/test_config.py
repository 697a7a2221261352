"""Settings: file, environment, and refusals that name the field and the remedy."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from node.config import ConfigError, NodeConfig, Role

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
