"""What every command shares: options, connections, output, and errors that end in one clear line."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, JsonValue
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from consensus.crypto import CHUNK_BYTES, compute_blob_root, compute_chunk_hash
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.types import Hash32
from node.api.client import ApiError, SyncClient
from node.cluster import ClusterSetupError
from node.config import ConfigError, NodeConfig
from node.genesis import GenesisError
from node.keystore import KeyFileError
from node.testnet import TestnetError
from node.tls import TlsError
from workloads.base import WorkloadError

DEFAULT_API = "http://127.0.0.1:8100"
DEFAULT_CONFIG = Path("node.yaml")
POLL_S = 0.25

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ApiOption = Annotated[
    str | None,
    typer.Option("--api", envvar="BMIF_API_URL", help=f"URL of a node's public API [default: {DEFAULT_API}]"),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="BMIF_CONFIG", help="A node's settings (YAML) [default: node.yaml, if here]"
    ),
]
FlagsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A setting instead of the file's, as api.port=9000; may be repeated",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Longest wait, seconds", min=1)]


class CliError(Exception):
    """A command can't be done; the text says why and what to do."""


KNOWN_ERRORS = (
    CliError,
    ApiError,
    ConfigError,
    GenesisError,
    KeyFileError,
    TestnetError,
    TlsError,
    ClusterSetupError,
    WorkloadError,
    OSError,
)


class Commands(TyperGroup):
    """Expected errors go to standard error as one message with exit status 1; others keep their traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # click's, or typer's copy of it
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            err.print(f"[bold red]error:[/] {error.source}", soft_wrap=True)
            for problem in error.problems:
                err.print(
                    f"  {problem.field}: {problem.message}. {problem.remedy}", markup=False, soft_wrap=True
                )
        except KNOWN_ERRORS as error:
            err.print("error: ", style="bold red", end="")
            err.print(str(error), markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        raise typer.Exit(1)


def find_config(path: Path | None) -> Path | None:
    """The given file, else `node.yaml` of this directory if it exists."""
    if path is not None:
        return path
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


def load_config(path: Path | None, flags: Sequence[str] | None = None) -> NodeConfig:
    """Raises: CliError when no file is named; ConfigError naming each wrong field."""
    found = find_config(path)
    if found is None:
        raise CliError("no settings: give --config PATH, set BMIF_CONFIG, or run beside a node.yaml")
    return NodeConfig.load(found, flags or ())


def _get_host(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def connect(api: str | None, config: Path | None = None) -> SyncClient:
    """The public API by URL, or by a node's settings."""
    if api is not None:
        return SyncClient(api)
    found = find_config(config)
    if found is None:
        return SyncClient(DEFAULT_API)
    settings = NodeConfig.load(found)
    return SyncClient(f"http://{_get_host(settings.api.host)}:{settings.api.port}")


def connect_operator(settings: NodeConfig) -> SyncClient:
    """Both APIs of the node with these settings; reads its token file."""
    if not settings.operator.enabled:
        raise CliError(
            "operator.enabled is false in this node's settings; set it to true and restart the node"
        )
    try:
        token = settings.token_file.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise CliError(f"{settings.token_file} is not there yet; start the node once (`bmif run`)") from error
    return SyncClient(
        f"http://{_get_host(settings.api.host)}:{settings.api.port}",
        operator_url=f"http://{_get_host(settings.operator.host)}:{settings.operator.port}",
        token=token,
        timeout_s=120,
    )


def parse_hash(text: str, what: str) -> Hash32:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 32:
        raise CliError(f"{what}: expected 64 hexadecimal digits, got {text!r}")
    return Hash32(data)


def wait_included(client: SyncClient, transaction: Hash32, timeout_s: float) -> int:
    """Height of the block that holds the transaction.

    Raises: CliError when it is not in a block in time.
    """
    end = time.monotonic() + timeout_s
    while True:
        found = client.call(client.api.get_transaction(transaction.hex()))
        if found.inclusion is not None:
            return found.inclusion.height
        if time.monotonic() > end:
            raise CliError(
                f"transaction {transaction.hex()} is not in a block after {timeout_s:.0f} s; "
                "are enough validators running?"
            )
        time.sleep(POLL_S)


def submit_alone(payload: Payload, done: str, config: Path | None, timeout_s: float, json: bool) -> None:
    """Sign and submit what needs nothing uploaded, wait for its block, and print what is done by it."""
    with connect_operator(load_config(config)) as client:
        transaction = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, transaction, timeout_s)
    if json:
        print_json({"transaction": transaction.hex(), "height": height})
    else:
        out.print(f"{done} in block {height}")


def compute_file_ref(path: Path) -> BlobRef:
    """The file as a blob: root and length. Raises: OSError."""
    hashes, length = [], 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            hashes.append(compute_chunk_hash(data))
            length += len(data)
    return BlobRef(compute_blob_root(length, hashes), length)


Document = BaseModel | Mapping[str, JsonValue]


def print_json(value: Document | Sequence[Document]) -> None:
    """One JSON document on standard output."""
    plain: JsonValue = [_convert(item) for item in value] if isinstance(value, Sequence) else _convert(value)
    typer.echo(json.dumps(plain, indent=2))


def _convert(value: Document) -> JsonValue:
    if isinstance(value, BaseModel):
        document: JsonValue = value.model_dump(mode="json")
        return document
    return dict(value)


def print_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numeric = column.endswith((")", "#")) or column in ("height", "step", "pid", "balance", "peers")
        # An address that is cut or folded can't be copied.
        table.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=column in ("API", "task")
        )
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    out.print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Name and value, one a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(f"[bold]{name}[/]", "-" if value is None else str(value))
    out.print(table)


def shorten(identifier: str) -> str:
    """Enough of an identifier to tell it apart on a screen."""
    return identifier[:12]
