"""Settings of one node: YAML, below `BMIF_*` variables, below flags; refused with a remedy when wrong.

A nested field is overridden by joining the names with two underscores, `BMIF_API__PORT=8100`, or on the
command line by `--set api.port=8100`.
Relative paths in the file are relative to the file's own directory, so a node's directory can be moved.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from node.settings import (
    ApiSettings,
    ClusterSettings,
    CustodySettings,
    EvaluatorSettings,
    FederationSettings,
    FusionRequestSettings,
    LimitSettings,
    LogSettings,
    OperatorSettings,
    PeerSettings,
    ReadySettings,
    RetentionSettings,
    Section,
    TlsSettings,
    VerdictSettings,
)

ENV_PREFIX = "BMIF_"
ENV_DELIMITER = "__"

YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""YAML's own error, or what its constructors of numbers and dates let through."""

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


class NodeConfig(BaseSettings):
    """Everything `bmif run` needs to know; see `configs/` for commented examples."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    name: NodeName
    """Name of this node in logs and to its peers."""
    network: NodeName = "testnet"
    """A label."""
    data_dir: Path
    """Ledger, blobs, custody state and logs."""
    genesis: Path
    """The chain's genesis document (JSON)."""
    account_key: Path
    """The node's Ed25519 signing key (PKCS#8 PEM, mode 0600)."""
    roles: frozenset[Role] = frozenset()
    """What the node does beyond following and serving the chain."""
    workers: int = Field(default=1, ge=1, le=256)
    """Worker processes for ciphertext work; each takes a core and about a gigabyte of memory."""
    stop_timeout_s: float = Field(default=20.0, gt=0, le=600)
    """Longest graceful shutdown."""
    api: ApiSettings = ApiSettings()
    operator: OperatorSettings = OperatorSettings()
    ready: ReadySettings = ReadySettings()
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
    custody: CustodySettings = CustodySettings()
    cluster: ClusterSettings = ClusterSettings()
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
        """Only what `load` has merged: file, environment and flags arrive as init arguments."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _fill_empty_sections(cls, document: object) -> object:
        """A section whose lines are all comments is one of defaults."""
        if not isinstance(document, dict):
            return document
        sections = {name for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        return {name: {} if value is None and name in sections else value for name, value in document.items()}

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
    def load(cls, path: Path, flags: Sequence[str] = ()) -> "NodeConfig":
        """Read the file, the environment and `flags` (`section.field=value`); every path becomes absolute.

        Raises: ConfigError naming each wrong field and its remedy.
        """
        document = read_yaml(path)
        merged = _merge(_merge(document, _read_environment(path)), parse_flags(path, flags))
        try:
            # mypy sees required fields; they come from the merged sources at run time.
            config = cls(**merged)  # type: ignore[arg-type]
        except ValidationError as error:
            raise ConfigError(path, [_describe(detail) for detail in error.errors()]) from error
        return config.resolve(path.resolve().parent)

    def resolve(self, base: Path) -> "NodeConfig":
        """The same settings with every relative path taken from `base`."""
        data_dir = base / self.data_dir
        token_file = self.operator.token_file
        operator = self.operator.model_copy(
            update={"token_file": base / token_file if token_file else data_dir / "operator.token"}
        )
        revoked = self.tls.revoked
        tls = self.tls.model_copy(
            update={name: base / getattr(self.tls, name) for name in ("authority", "certificate", "key")}
            | {"revoked": base / revoked if revoked else None}
        )
        pairs = self.verdict.pairs
        verdict = self.verdict.model_copy(update={"pairs": base / pairs if pairs else None})
        data = self.federation.data
        federation = self.federation.model_copy(update={"data": base / data if data else None})
        names = ("authority", "certificate", "key")
        given = {name: path for name in names if (path := getattr(self.cluster, name)) is not None}
        cluster = self.cluster.model_copy(update={name: base / path for name, path in given.items()})
        keys_dir = self.custody.keys_dir
        custody = self.custody.model_copy(update={"keys_dir": base / keys_dir if keys_dir else None})
        return self.model_copy(
            update={
                "data_dir": data_dir,
                "verdict": verdict,
                "federation": federation,
                "custody": custody,
                "cluster": cluster,
                "genesis": base / self.genesis,
                "account_key": base / self.account_key,
                "operator": operator,
                "tls": tls,
            }
        )

    @property
    def custody_dir(self) -> Path:
        """Where the custody's keys live."""
        return self.custody.keys_dir or self.data_dir

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
            *(
                (f"cluster.{name}", path)
                for name in ("authority", "certificate", "key")
                if (path := getattr(self.cluster, name)) is not None
            ),
        ):
            if not os.path.isfile(path):  # a name that no file can have is no file
                make = "tls issue" if field.startswith("cluster.") else "testnet init"
                remedy = f"Create it with `bmif {make}` or correct the path"
                problems.append(ConfigProblem(field, f"no file {path}", remedy))
            elif field in ("account_key", "tls.key", "cluster.key") and path.stat().st_mode & 0o077:
                problems.append(
                    ConfigProblem(field, f"{path} is readable by others", f"Run `chmod 600 {path}`")
                )
        if self.cluster.scheduler is not None and find_spec("distributed") is None:
            remedy = "Run `pip install 'bmif[cluster]'`, or leave it out: this machine then computes alone"
            problems.append(ConfigProblem("cluster.scheduler", "Dask is not installed", remedy))
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
    except YAML_ERRORS as error:
        text = " ".join(str(error).split())
        problem = ConfigProblem("(file)", f"is not YAML: {text}", "Correct the line that is named")
        raise ConfigError(path, [problem]) from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        problem = ConfigProblem("(file)", "is not a mapping", "Write one `field: value` a line")
        raise ConfigError(path, [problem])
    return document


def _merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """`below` with the settings of `above` in their places, section by section."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[name] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_environment(path: Path) -> dict[str, object]:
    """What the `BMIF_*` variables set.

    Raises: ConfigError for a list or mapping that is not JSON.
    """
    try:
        return dict(EnvSettingsSource(NodeConfig)())
    except SettingsError as error:
        found = re.search(r'field "(\w+)"', str(error))
        field = found.group(1) if found else "(environment)"
        variable = f"{ENV_PREFIX}{field.upper()}"
        problem = ConfigProblem(
            field, f"{variable} is not JSON", f'Write lists and mappings as JSON: {variable}=\'["a", "b"]\''
        )
        raise ConfigError(path, [problem]) from error


def parse_flags(path: Path, flags: Sequence[str]) -> dict[str, object]:
    """The settings of `section.field=value` texts, nested; a value is read as YAML, like the file's.

    Raises: ConfigError naming a flag without a name or of no YAML.
    """
    document: dict[str, object] = {}
    for flag in flags:
        name, equals, text = flag.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            problem = ConfigProblem(flag, "is no setting", "Write --set section.field=value")
            raise ConfigError(path, [problem])
        try:
            value: object = yaml.safe_load(text)
        except YAML_ERRORS as error:
            problem = ConfigProblem(name, f"{text!r} is not YAML", "Write the value as in the file, quoted")
            raise ConfigError(path, [problem]) from error
        *sections, field = parts
        nested: dict[str, object] = {field: value}
        for section in reversed(sections):
            nested = {section: nested}
        document = _merge(document, nested)
    return document


def find_origins(path: Path, flags: Sequence[str] = ()) -> dict[str, str]:
    """Where each setting that is no default comes from: its dotted name to `file`, `environment` or `flag`.

    Raises: ConfigError as `NodeConfig.load`.
    """
    sources = {
        "file": read_yaml(path),
        "environment": _read_environment(path),
        "flag": parse_flags(path, flags),
    }
    return {name: origin for origin, document in sources.items() for name in _list_names(document)}


def _list_names(document: Mapping[str, object], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in document.items():
        is_section = isinstance(value, dict)
        names += _list_names(value, f"{prefix}{name}.") if is_section else [prefix + name]  # type: ignore[arg-type]
    return names


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
