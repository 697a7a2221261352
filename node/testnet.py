"""A testnet on disk: keys, authority, certificates, genesis and one directory a node.

A node's directory holds everything its process reads, by relative paths, so it runs from where it is or
mounted into a container. Starting and stopping the processes is `node.processes`.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consensus.params import Genesis, GenesisAccount, Validator
from consensus.types import Address, Amount, Millis
from node.config import ConfigError, ConfigProblem, NodeConfig, Role, read_yaml
from node.genesis import GenesisError, build_params, save_genesis
from node.keystore import create_account_key, load_account_key, write_private_file
from node.tls_issue import make_authority, make_certificate

MANIFEST = "testnet.json"
PORTS_PER_NODE = 3
CUSTODY_ORGANISATION = "custody-org"
LOOPBACK = "127.0.0.1"
PRIVATE_SEED = 10_000
"""Of the first node's private phantoms; tasks of tests and demos are made of others."""


class TestnetError(Exception):
    """A testnet could not be made, found, started or stopped; the text says what to do."""

    __test__ = False


class Profile(BaseModel):
    """What a testnet is made like; `configs/*.yaml` hold profiles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="testnet", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    base_port: int = Field(default=8100, ge=1024, le=65000)
    balance: int = Field(default=1_000_000_000, ge=0)
    """Each account's money at genesis, smallest units."""
    stake: int = Field(default=100_000_000, ge=1)
    """Each validator's stake: locked money beside its account's, forfeited for evidence against it."""
    private_phantoms: int = Field(default=4, ge=0, le=1_000)
    """Synthetic patients that each hospital judges milestones on; other ones at every node."""
    params: dict[str, int] = Field(default_factory=dict)
    """Chain parameters that differ from their defaults (names of `ChainParams`)."""
    node: dict[str, object] = Field(default_factory=dict)
    """Settings written into every node's file (names of `NodeConfig`)."""

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Raises: ConfigError naming the field."""
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as error:
            problems = [
                ConfigProblem(
                    ".".join(map(str, e["loc"])), e["msg"], f"Known fields: {', '.join(cls.model_fields)}"
                )
                for e in error.errors()
            ]
            raise ConfigError(path, problems) from error


@dataclass(frozen=True, slots=True)
class TestnetNode:
    """One node of a testnet, as its operator addresses it."""

    __test__ = False

    name: str
    organisation: str
    roles: tuple[str, ...]
    host: str
    api_port: int
    operator_port: int
    peer_port: int
    address: str
    """The account, hex."""


class _Manifest(BaseModel):
    """The file that describes a testnet."""

    name: str
    nodes: tuple[TestnetNode, ...]


@dataclass(frozen=True, slots=True)
class Testnet:
    """A testnet's manifest and directory."""

    __test__ = False

    directory: Path
    name: str
    nodes: tuple[TestnetNode, ...] = field(default=())

    def get_directory(self, node: str) -> Path:
        return self.directory / node

    def get_config_path(self, node: str) -> Path:
        return self.directory / node / "node.yaml"

    def get_api_url(self, node: TestnetNode) -> str:
        """Where this machine reaches the node's public API, be it a process or a container."""
        return f"http://{LOOPBACK}:{node.api_port}"

    def select(self, names: tuple[str, ...]) -> tuple[TestnetNode, ...]:
        """The named nodes, all of them when no name is given.

        Raises: TestnetError for an unknown name.
        """
        known = {node.name: node for node in self.nodes}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise TestnetError(f"no node {', '.join(unknown)} here; there are {', '.join(known)}")
        return tuple(known[name] for name in names) if names else self.nodes

    @classmethod
    def load(cls, directory: Path) -> "Testnet":
        """Raises: TestnetError when the directory holds no testnet."""
        path = directory / MANIFEST
        try:
            manifest = _Manifest.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TestnetError(
                f"{path} cannot be read; run `bmif testnet init --dir {directory}` first"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "(file)"
            raise TestnetError(f"{path} is not a testnet's manifest: {field}: {first['msg']}") from error
        return cls(directory.resolve(), manifest.name, manifest.nodes)


def _get_roles(number: int, miners: int) -> tuple[Role, ...]:
    if number == 1:
        return (Role.VALIDATOR, Role.CUSTODY)
    if number <= miners + 1:
        return (Role.VALIDATOR, Role.CONTRIBUTOR, Role.MINER)
    return (Role.VALIDATOR, Role.CONTRIBUTOR)


def _build_nodes(
    directory: Path, nodes: int, miners: int, base_port: int, compose: bool
) -> tuple[TestnetNode, ...]:
    built = []
    for number in range(1, nodes + 1):
        name = f"node{number}"
        port = base_port + PORTS_PER_NODE * (number - 1)
        built.append(
            TestnetNode(
                name=name,
                organisation=CUSTODY_ORGANISATION if number == 1 else f"hospital-{number - 1}",
                roles=tuple(role.value for role in _get_roles(number, miners)),
                host=name if compose else LOOPBACK,
                api_port=port,
                operator_port=port + 1,
                peer_port=port + 2,
                address=create_account_key(directory / name / "account.key").hex(),
            )
        )
    return tuple(built)


def build_genesis(name: str, nodes: tuple[TestnetNode, ...], profile: Profile, time_ms: Millis) -> Genesis:
    """All nodes are validators of equal stake; every organisation but the custody's may mine."""
    accounts = tuple(
        GenesisAccount(Address(bytes.fromhex(node.address)), Amount(profile.balance), node.organisation)
        for node in nodes
    )
    return Genesis(
        name=name,
        time=time_ms,
        params=build_params(profile.params),
        accounts=accounts,
        validators=tuple(Validator(account.address, profile.stake) for account in accounts),
        mining_organisations=tuple(n.organisation for n in nodes if n.organisation != CUSTODY_ORGANISATION),
    )


def _get_judges(nodes: tuple[TestnetNode, ...]) -> set[str]:
    """Nodes with private pairs: the hospitals, and the custody too where they are less than 2/3 of stake."""
    hospitals = {node.name for node in nodes if node.organisation != CUSTODY_ORGANISATION}
    return hospitals if 3 * len(hospitals) >= 2 * len(nodes) else {node.name for node in nodes}


def _build_config(
    node: TestnetNode, nodes: tuple[TestnetNode, ...], profile: Profile, name: str
) -> dict[str, object]:
    """The node's settings as the file says them; the profile's `node` section is laid over them."""
    listen = LOOPBACK if node.host == LOOPBACK else "0.0.0.0"
    settings: dict[str, object] = {
        "name": node.name,
        "network": name,
        "data_dir": "data",
        "genesis": "genesis.json",
        "account_key": "account.key",
        "roles": list(node.roles),
        "api": {"host": listen, "port": node.api_port},
        "operator": {"host": LOOPBACK, "port": node.operator_port},
        "peer": {
            "host": listen,
            "port": node.peer_port,
            "advertise": f"{node.host}:{node.peer_port}",
            "peers": [f"{other.host}:{other.peer_port}" for other in nodes if other.name != node.name],
        },
        "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
    }
    if profile.private_phantoms and node.name in _get_judges(nodes):
        seed = PRIVATE_SEED + nodes.index(node)
        settings["verdict"] = {"phantoms": profile.private_phantoms, "phantom_seed": seed}
    for key, value in profile.node.items():
        present = settings.get(key)
        settings[key] = (
            {**present, **value} if isinstance(present, dict) and isinstance(value, dict) else value
        )
    return settings


def init_testnet(
    directory: Path,
    nodes: int,
    miners: int | None = None,
    *,
    profile: Profile | None = None,
    base_port: int | None = None,
    compose: bool = False,
) -> Testnet:
    """Write a complete testnet into a new or empty directory.

    node1 is the custody; the others are hospitals, of which the first `miners` (default: all) mine.
    With `compose`, nodes reach each other by service name and listen on every interface of their container,
    the operator's port excepted.

    Raises: TestnetError.
    """
    profile = profile or Profile()
    if not 2 <= nodes <= 64:
        raise TestnetError(f"--nodes must be 2 to 64 (one custody, at least one hospital), not {nodes}")
    miners = nodes - 1 if miners is None else miners
    if not 0 <= miners <= nodes - 1:
        raise TestnetError(
            f"--miners must be 0 to {nodes - 1}: node1 is the custody and may not mine, not {miners}"
        )
    if directory.exists() and any(directory.iterdir()):
        raise TestnetError(f"{directory} is not empty; choose another --dir or remove it")
    directory.mkdir(parents=True, exist_ok=True)
    base_port = profile.base_port if base_port is None else base_port
    built = _build_nodes(directory, nodes, miners, base_port, compose)
    try:
        genesis = build_genesis(profile.name, built, profile, Millis(time.time_ns() // 1_000_000))
    except GenesisError as error:
        raise TestnetError(f"profile: {error}") from error
    authority = make_authority(profile.name)
    (directory / "ca").mkdir()
    write_private_file(directory / "ca" / "ca.key", authority.key_pem)
    (directory / "ca" / "ca.pem").write_bytes(authority.certificate_pem)
    for node in built:
        home = directory / node.name
        hosts = [node.host, "localhost", LOOPBACK] if node.host != LOOPBACK else [LOOPBACK, "localhost"]
        account = load_account_key(home / "account.key")
        issued = make_certificate(authority, node.name, node.organisation, hosts, account=account)
        write_private_file(home / "tls.key", issued.key_pem)
        (home / "tls.pem").write_bytes(issued.certificate_pem)
        (home / "ca.pem").write_bytes(authority.certificate_pem)
        (home / "data").mkdir(mode=0o700)
        save_genesis(home / "genesis.json", genesis)
        text = yaml.safe_dump(_build_config(node, built, profile, profile.name), sort_keys=False)
        (home / "node.yaml").write_text(
            f"# {node.name} of {profile.name}: {node.organisation}\n{text}", "utf-8"
        )
        NodeConfig.load(home / "node.yaml")  # a profile's mistake shows here, not at `up`
    save_genesis(directory / "genesis.json", genesis)
    manifest = {"name": profile.name, "nodes": [asdict(node) for node in built]}
    temporary = directory / (MANIFEST + ".part")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, directory / MANIFEST)
    return Testnet(directory.resolve(), profile.name, built)
