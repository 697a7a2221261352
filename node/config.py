"""Settings of one node: read from YAML, overridden by `BMIF_*` variables, refused with a remedy when wrong.

A nested field is overridden by joining the names with two underscores: `BMIF_API__PORT=8100`.
Relative paths in the file are relative to the file's own directory, so a node's directory can be moved.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX = "BMIF_"
ENV_DELIMITER = "__"

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose one (tests)."""

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")
PeerAddress = Annotated[str, StringConstraints(pattern=rf"^{_HOST_PORT.pattern}$")]
CheckpointText = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,15}:[0-9a-f]{64}$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Role(StrEnum):
    """What a node does beyond following and serving the chain."""

    VALIDATOR = "validator"
    MINER = "miner"
    CUSTODY = "custody"
    CONTRIBUTOR = "contributor"


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong with a configuration, and what to do about it."""

    field: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}. {self.remedy}"


class ConfigError(ValueError):
    """A configuration was refused; `problems` names every field at fault."""

    def __init__(self, source: Path, problems: Sequence[ConfigProblem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(f"{source}: " + "; ".join(str(problem) for problem in problems))


class Section(BaseModel):
    """A nested group of settings; immutable and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiSettings(Section):
    """The public REST listener."""

    host: str = "127.0.0.1"
    port: Port = 8100
    max_event_streams: int = Field(default=64, ge=1, le=10_000)
    """Most server-sent-event streams open at once."""
    posts_per_minute: int = Field(default=6_000, ge=1)
    """Most transactions that one client address may post in a minute."""


class OperatorSettings(Section):
    """The operator's listener: signs with the node's key, so keep it on loopback."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8101
    token_file: Path | None = None
    """Bearer token, made on first start with mode 0600; default `<data_dir>/operator.token`."""


class PeerSettings(Section):
    """The peer listener (msgpack over HTTPS with mutual TLS)."""

    host: str = "127.0.0.1"
    port: Port = 8102
    advertise: PeerAddress | None = None
    """host:port that other nodes should dial; default host:port of the listener."""
    peers: tuple[PeerAddress, ...] = ()
    """Peers to dial, host:port."""
    seeds: tuple[PeerAddress, ...] = ()
    """Nodes to ask for other peers, host:port; dialled while there is nobody better."""
    discover: bool = True
    """Find peers beyond the configured ones: by seeds, by each other, by who dials this node."""
    private_addresses: bool = True
    """Also dial private addresses that peers tell (10.0.0.0/8, 192.168.0.0/16 and the like)."""
    max_peers: int = Field(default=32, ge=1, le=1_024)
    """Most peers linked."""
    outbound: int = Field(default=8, ge=0, le=64)
    """Of these, links that this node chooses itself from what it has found."""
    max_connections: int = Field(default=512, ge=16, le=65_536)
    """Most connections open at the peer listener."""
    max_connections_per_address: int = Field(default=128, ge=8, le=65_536)
    """Most of one IP address; more for many nodes on one machine."""


class TlsSettings(Section):
    """Mutual TLS of the peer port; PEM files."""

    authority: Path
    certificate: Path
    key: Path


class VerdictSettings(Section):
    """A validator's own pairs, on which it judges milestones; without any it gives no verdict."""

    pairs: Path | None = Field(default=None, repr=False)
    """Folder of pairs: with `manifest.csv`, or with the folders `first` and `second` of PNG twins."""
    modality: str | None = Field(default=None, repr=False)
    """Only these rows of the manifest."""
    phantoms: int = Field(default=0, ge=0, le=10_000, repr=False)
    """So many synthetic patients instead of a folder, for testnets."""
    phantom_seed: int = Field(default=0, ge=0, repr=False)
    patches: int = Field(default=8_192, ge=1, le=1_000_000)
    """Most patches to judge on."""
    noise: float | None = Field(default=None, ge=0, le=1e6)
    """Noise of a published sum of losses, multiples of the bound of one patch; default the task's own."""
    tolerance: float | None = Field(default=None, ge=0, le=1e6)
    """How much larger the loss may become, in its own unit; default one standard deviation of the noise."""

    @property
    def is_given(self) -> bool:
        """Whether there is anything to judge on."""
        return self.pairs is not None or self.phantoms > 0


class RetentionSettings(Section):
    """How long blobs are kept that no living task needs."""

    policy: Literal["standard", "archive"] = "standard"
    """`standard` drops an ended task's blobs `evidence_ms` after its end; `archive` keeps everything."""
    bundle_steps: int = Field(default=2, ge=0, le=1_000_000)
    """A miner keeps its bundles until so many later steps are opened."""


class FusionRequestSettings(Section):
    """Encrypted fusion for others: pairs that clients encrypt under keys of their own."""

    waiting: int = Field(default=0, ge=0, le=1_024)
    """Most requests held at once, from the first byte of an upload to the end of its result; 0: none."""
    per_client: int = Field(default=1, ge=1, le=1_024)
    """Of these, requests of one client address."""
    max_upload_bytes: int = Field(default=256 * 1024 * 1024, ge=1_024)
    """Largest request; each holds so much of the disk at most."""
    upload_s: float = Field(default=600.0, gt=0, le=86_400)
    """Longest upload."""
    keep_s: float = Field(default=600.0, gt=0, le=86_400)
    """How long a result is kept for its client."""


class EvaluatorSettings(Section):
    """Jobs of encrypted inference: a peer evaluates models on requests, both of which it can't read."""

    enabled: bool = False
    """Evaluate whatever is asked for on the chain, if governance lists this account's organisation."""
    minimum_fee: int = Field(default=1, ge=0)
    """Least fee above the model's price that a job must offer, smallest units."""
    max_blob_bytes: int = Field(default=1024 * 1024 * 1024, ge=1_024)
    """Largest model, keys, request or result; longer ones are left to others."""
    max_waiting: int = Field(default=16, ge=1, le=1_024)
    """Most jobs that are fetched or evaluated at once; one is evaluated at a time."""
    max_seconds: float = Field(default=3_600.0, gt=0)
    """Longest evaluation, predicted of a quiet core from the model's bytes; others take longer ones."""


class FederationSettings(Section):
    """Federated rounds: a validator checks and adds encrypted updates, and judges models on its own data."""

    enabled: bool = True
    """Take a validator's part in every federation of the chain."""
    data: Path | None = Field(default=None, repr=False)
    """Labelled scans of this validator's own (`.npz`), on which it judges; without any it judges nothing."""
    max_seconds: float = Field(default=3_600.0, gt=0)
    """Longest check, sum or judgement; what takes longer is given up."""


class LimitSettings(Section):
    """Bounds on memory, disk and requests."""

    max_request_bytes: int = Field(default=8 * 1024 * 1024, ge=1_024)
    """Largest request body on the public API."""
    max_blob_bytes: int = Field(default=1024 * 1024 * 1024, ge=1_024)
    """Largest single blob stored or fetched."""
    blob_quota_bytes: int = Field(default=64 * 1024 * 1024 * 1024, ge=1_024)
    """All blobs together."""
    mempool_transactions: int = Field(default=20_000, ge=1)
    mempool_bytes: int = Field(default=64 * 1024 * 1024, ge=1_024)
    event_history: int = Field(default=10_000, ge=16)
    """Events kept for replay after `Last-Event-ID`."""


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class NodeConfig(BaseSettings):
    """Everything `bmif run` needs to know; see `configs/` for commented examples."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, extra="forbid", frozen=True
    )

    name: NodeName
    """Name of this node in logs and to its peers."""
    network: NodeName = "testnet"
    data_dir: Path
    """Ledger, blobs, custody state and logs."""
    genesis: Path
    """The chain's genesis document (JSON)."""
    account_key: Path
    """The node's Ed25519 signing key (PKCS#8 PEM, mode 0600)."""
    roles: frozenset[Role] = frozenset()
    workers: int = Field(default=1, ge=1, le=256)
    """Worker processes for ciphertext work; each takes a core and about a gigabyte of memory."""
    stop_timeout_s: float = Field(default=20.0, gt=0, le=600)
    """Longest graceful shutdown."""
    api: ApiSettings = ApiSettings()
    operator: OperatorSettings = OperatorSettings()
    peer: PeerSettings = PeerSettings()
    tls: TlsSettings
    sync: Literal["full", "snapshot"] = "full"
    """How a node with an empty ledger comes to the head: by judging every block, or by taking over the state
    of a block that its peers prove final."""
    trusted_checkpoint: CheckpointText | None = None
    """HEIGHT:HASH of a final block, from somebody you trust: needed where nobody here knows a recent one."""
    stale_trust: Literal["warn", "refuse"] = "warn"
    """What to do where the last final block here is older than `evidence_ms` and there is no later
    `trusted_checkpoint`: warn and follow what the peers prove, or refuse."""
    verdict: VerdictSettings = VerdictSettings()
    retention: RetentionSettings = RetentionSettings()
    fusion_requests: FusionRequestSettings = FusionRequestSettings()
    evaluator: EvaluatorSettings = EvaluatorSettings()
    federation: FederationSettings = FederationSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file's values, which arrive as init arguments."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse settings that are right alone and wrong together."""
        used = [("api", self.api.port), ("operator", self.operator.port), ("peer", self.peer.port)]
        seen: dict[int, str] = {}
        for section, port in used:
            if port and port in seen:
                raise ValueError(f"{section}.port: {port} is already taken by {seen[port]}.port")
            seen[port] = section
        if {Role.CUSTODY, Role.MINER} <= self.roles:
            raise ValueError("roles: a custody's organisation may not mine, choose custody or miner")
        if self.verdict.pairs is not None and self.verdict.phantoms:
            raise ValueError("verdict.pairs: a folder and phantoms exclude each other, choose one")
        return self

    @classmethod
    def load(cls, path: Path) -> "NodeConfig":
        """Read the file and the environment; every path in the result is absolute.

        Raises: ConfigError naming each wrong field and its remedy.
        """
        document = read_yaml(path)
        try:
            # pyright and mypy see required fields; they come from the merged sources at run time.
            config = cls.model_validate_sources(document)
        except ValidationError as error:
            raise ConfigError(path, [_describe(detail) for detail in error.errors()]) from error
        return config.resolve(path.resolve().parent)

    @classmethod
    def model_validate_sources(cls, document: Mapping[str, object]) -> "NodeConfig":
        """Merge the document below the environment and validate the result."""
        return cls(**document)  # type: ignore[arg-type]

    def resolve(self, base: Path) -> "NodeConfig":
        """The same settings with every relative path taken from `base`."""
        data_dir = base / self.data_dir
        token_file = self.operator.token_file
        operator = self.operator.model_copy(
            update={"token_file": base / token_file if token_file else data_dir / "operator.token"}
        )
        tls = self.tls.model_copy(
            update={name: base / getattr(self.tls, name) for name in ("authority", "certificate", "key")}
        )
        pairs = self.verdict.pairs
        verdict = self.verdict.model_copy(update={"pairs": base / pairs if pairs else None})
        data = self.federation.data
        federation = self.federation.model_copy(update={"data": base / data if data else None})
        return self.model_copy(
            update={
                "data_dir": data_dir,
                "verdict": verdict,
                "federation": federation,
                "genesis": base / self.genesis,
                "account_key": base / self.account_key,
                "operator": operator,
                "tls": tls,
            }
        )

    @property
    def token_file(self) -> Path:
        """Where the operator's bearer token lives."""
        return self.operator.token_file or self.data_dir / "operator.token"

    @property
    def advertised(self) -> str:
        """host:port that peers should dial."""
        return self.peer.advertise or f"{self.peer.host}:{self.peer.port}"

    def check_files(self) -> tuple[ConfigProblem, ...]:
        """What is wrong with the files that the settings name; empty when all is well."""
        problems: list[ConfigProblem] = []
        for field, path in (
            ("genesis", self.genesis),
            ("account_key", self.account_key),
            ("tls.authority", self.tls.authority),
            ("tls.certificate", self.tls.certificate),
            ("tls.key", self.tls.key),
        ):
            if not os.path.isfile(path):  # a name that no file can have is no file
                problems.append(
                    ConfigProblem(
                        field, f"no file {path}", "Create it with `bmif testnet init` or correct the path"
                    )
                )
            elif field in ("account_key", "tls.key") and path.stat().st_mode & 0o077:
                problems.append(
                    ConfigProblem(field, f"{path} is readable by others", f"Run `chmod 600 {path}`")
                )
        pairs = self.verdict.pairs
        if pairs is not None and not (pairs / "manifest.csv").is_file():
            for folder in (pairs / "first", pairs / "second"):
                if not folder.is_dir():
                    remedy = "Give a folder with manifest.csv, or with the folders first and second"
                    problems.append(ConfigProblem("verdict.pairs", f"no folder {folder}", remedy))
        data = self.federation.data
        if data is not None and not data.is_file():
            remedy = "Give an .npz of scans and labels, or leave it out: then nothing is judged"
            problems.append(ConfigProblem("federation.data", f"no file {data}", remedy))
        parent = next(p for p in (self.data_dir, *self.data_dir.parents) if os.path.exists(p))
        if not os.access(parent, os.W_OK):
            problems.append(
                ConfigProblem("data_dir", f"{parent} is not writable", "Choose another directory")
            )
        return tuple(problems)


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping that a YAML file holds.

    Raises: ConfigError when the file is missing, is not YAML, or is not a mapping.
    """
    try:
        document: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = ConfigProblem(
            "(file)", f"cannot be read: {error}", "Give the path of a readable UTF-8 file"
        )
        raise ConfigError(path, [problem]) from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # YAML's own error, or what its constructors of numbers and dates let through.
        text = " ".join(str(error).split())
        problem = ConfigProblem("(file)", f"is not YAML: {text}", "Correct the line that is named")
        raise ConfigError(path, [problem]) from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        problem = ConfigProblem("(file)", "is not a mapping", "Write one `field: value` a line")
        raise ConfigError(path, [problem])
    return document


def _get_fields(location: Sequence[str | int]) -> list[str]:
    """Names of the settings in the section that `location` points into."""
    model: type[BaseModel] = NodeConfig
    for part in location[:-1]:
        info = model.model_fields.get(str(part))
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            return []
        model = info.annotation
    return list(model.model_fields)


def _describe(detail: ErrorDetails) -> ConfigProblem:
    location = detail["loc"]
    field = ".".join(str(part) for part in location)
    variable = ENV_PREFIX + ENV_DELIMITER.join(str(part) for part in location).upper()
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _get_fields(location), n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(_get_fields(location))}"
        return ConfigProblem(field, "unknown field", remedy)
    if kind == "missing":
        return ConfigProblem(field, "is required", f"Add `{field}` to the file or set {variable}")
    if kind == "value_error" and not location:
        field, _, message = message.removeprefix("Value error, ").partition(": ")
        return ConfigProblem(field, message, f"Change `{field}` in the file or by its {ENV_PREFIX}* variable")
    if field.endswith("pattern"):
        field = field.removesuffix("pattern")
    return ConfigProblem(field, message, f"Correct `{field}` in the file or {variable} in the environment")
