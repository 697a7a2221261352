"""`bmif debug`: what somebody else needs to see of a node to find what is wrong, and nothing secret."""

import io
import json as json_text
import shutil
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, JsonValue

from node.api.client import ApiError, SyncClient
from node.cli.common import CliError, ConfigOption, JsonOption, connect_operator, load_config, out, print_json
from node.config import NodeConfig
from node.debug import describe_system, list_packages, measure_directories, redact
from node.processes import LOG_FILE

app = typer.Typer(no_args_is_help=True, help="What a node is doing, for whoever looks for a fault.")

MAX_LOG_BYTES = 2 * 1024 * 1024
"""Of a log file's end."""
MAX_TASKS = 100


@app.callback()
def group() -> None:
    """What a node is doing, for whoever looks for a fault."""


class _Dump:
    """Members of the archive; a part that can't be had is named, and does not keep the others out."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        self.missing: dict[str, JsonValue] = {}

    def add(self, name: str, build: Callable[[], bytes | JsonValue | BaseModel]) -> None:
        try:
            found = build()
        except (ApiError, CliError, OSError, UnicodeDecodeError) as error:
            self.missing[name] = f"{type(error).__name__}: {_hide_paths(str(error))}"
            return
        if isinstance(found, BaseModel):
            found = found.model_dump(mode="json")
        if not isinstance(found, bytes):
            found = json_text.dumps(found, indent=1).encode()
        self.members[name] = found

    def write(self, path: Path) -> None:
        """The archive, all at once or not at all. Raises: OSError."""
        part = path.with_name(path.name + ".part")
        now = int(time.time())
        try:
            with tarfile.open(part, "w:gz") as archive:
                for name, data in sorted(self.members.items()):
                    info = tarfile.TarInfo(f"bmif-debug/{name}")
                    info.size, info.mtime, info.mode = len(data), now, 0o600
                    archive.addfile(info, io.BytesIO(data))
            part.chmod(0o600)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _hide_paths(text: str) -> str:
    """Errors name files; where those lie is nobody else's business."""
    return " ".join("(path)" if "/" in word and "://" not in word else word for word in text.split())


@app.command()
def dump(
    output: Annotated[Path, typer.Option("--output", "-o", help="Archive to write (.tar.gz)")],
    config: ConfigOption = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="The node's log file [default: node.log beside the settings]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Gather what is known of a running or stopped node into one archive, without secrets.

    Versions, settings (private ones left out), status, readiness, metrics, peers, tasks, stacks, sizes and
    the end of the log. Never keys, tokens, a validator's or a custody's data; still, look through it before
    you send it. What can't be had is named in manifest.json. Exit 1 without settings, or if the archive can't
    be written.
    """
    if not output.name.endswith((".tar.gz", ".tgz")):
        raise CliError(f"{output}: the archive is a .tar.gz, name it so")
    settings = load_config(config)
    gathered = _gather(settings, config, log)
    gathered.write(output)
    if json:
        members: list[JsonValue] = [*sorted(gathered.members)]
        print_json({"output": str(output), "members": members, "missing": gathered.missing})
        return
    for name, why in gathered.missing.items():
        out.print(f"without {name}: {why}", markup=False, soft_wrap=True)
    out.print(
        f"{output}: {len(gathered.members)} files; look through them before you send them", markup=False
    )


def _gather(settings: NodeConfig, config: Path | None, log: Path | None) -> _Dump:
    dump = _Dump()
    dump.add("settings.json", lambda: redact(settings))
    dump.add("packages.json", list_packages)
    dump.add("system.json", describe_system)
    dump.add("disk.json", lambda: _measure(settings.data_dir))
    beside = (config or Path("node.yaml")).with_name(LOG_FILE)
    dump.add("log.txt", lambda: _read_end(log or beside))
    dump.add("ledger.json", lambda: _describe_ledger(settings.data_dir / "ledger"))
    try:
        with connect_operator(settings) as client:
            _ask(dump, client)
    except (ApiError, CliError, OSError) as error:
        dump.missing["status.json"] = _hide_paths(str(error))
    manifest: dict[str, JsonValue] = {
        "bmif": version("bmif"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "running": "status.json" in dump.members,
        "missing": dump.missing,
    }
    dump.add("manifest.json", lambda: manifest)
    return dump


def _ask(dump: _Dump, client: SyncClient) -> None:
    """What only the running node knows; the first question decides whether it runs."""
    api = client.api
    status = client.call(api.get_status())
    dump.add("status.json", lambda: status)
    dump.add("readiness.json", lambda: client.call(api.get_readiness()))
    dump.add("metrics.txt", lambda: client.call(api.get_metrics()).encode())
    dump.add("peers.json", lambda: [p.model_dump(mode="json") for p in client.call(api.get_peers()).items])
    dump.add(
        "tasks.json",
        lambda: [item.model_dump(mode="json") for item in client.collect(api.iterate_tasks(), MAX_TASKS)],
    )
    dump.add("inside.json", lambda: client.call(api.get_debug()))


def _measure(data_dir: Path) -> JsonValue:
    usage = shutil.disk_usage(data_dir)
    return {"free": usage.free, "total": usage.total, "data": measure_directories(data_dir)}


def _read_end(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - MAX_LOG_BYTES))
        return file.read()


def _describe_ledger(path: Path) -> JsonValue:
    """Its files by kind: what they hold is the business of `bmif ledger check`."""
    kinds: dict[str, JsonValue] = {}
    for file in sorted(path.iterdir()):
        kind = file.suffix or file.name.partition("-")[0]
        before = kinds.get(kind)
        count, size = (before["files"], before["bytes"]) if isinstance(before, dict) else (0, 0)
        kinds[kind] = {"files": int(str(count)) + 1, "bytes": int(str(size)) + file.stat().st_size}
    return kinds
