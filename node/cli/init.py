"""`bmif init`: a node's directory with key and settings, ready for what the consortium adds."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml

from node.cli.common import CliError, out
from node.config import NodeConfig, Role
from node.genesis import load_genesis
from node.keystore import create_account_key, load_account_key

NAMES = ("node.yaml", "account.key", "genesis.json", "ca.pem", "tls.pem", "tls.key")


def init(
    directory: Annotated[Path, typer.Argument(help="The node's directory; what is there already is kept")],
    name: Annotated[str, typer.Option("--name", help="Name of the node, [a-z0-9-]")] = "node",
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="What it does [default: none, an observer]. Repeat it")
    ] = None,
    genesis: Annotated[
        Path | None, typer.Option("--genesis", help="The chain's document, copied into the directory")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option("--advertise", metavar="HOST:PORT", help="What other nodes dial")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="HOST:PORT", help="A node to dial. Repeat it")
    ] = None,
) -> None:
    """Make a node's directory: account key, settings, data directory; then say what is still missing.

    The account key is made without a passphrase, which `bmif keys encrypt` gives it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings, key = directory / "node.yaml", directory / "account.key"
    if settings.exists():
        raise CliError(f"{settings} exists already; change it by hand, or choose another directory")
    if genesis is not None:
        load_genesis(genesis)
        shutil.copyfile(genesis, directory / "genesis.json")
    host = advertise.rpartition(":")[0] if advertise else "127.0.0.1"
    port = advertise.rpartition(":")[2] if advertise else "8102"
    document: dict[str, object] = {
        "name": name,
        "data_dir": "data",
        "genesis": "genesis.json",
        "account_key": "account.key",
        "roles": [item.value for item in role or ()],
        "peer": {
            "host": "127.0.0.1" if host in ("127.0.0.1", "localhost") else "0.0.0.0",
            "port": int(port) if port.isascii() and port.isdigit() else port,
            **({"advertise": advertise} if advertise else {}),
            "peers": peer or [],
        },
        "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
    }
    text = (
        f"# Every setting, with its default: configs/node.yaml\n{yaml.safe_dump(document, sort_keys=False)}"
    )
    part = directory / "node.yaml.part"
    part.write_text(text, encoding="utf-8")
    try:
        NodeConfig.load(part)
    except ValueError:
        part.unlink()
        raise
    address = load_account_key(key).address if key.exists() else create_account_key(key)
    (directory / "data").mkdir(mode=0o700, exist_ok=True)
    part.rename(settings)
    out.print(f"account  {address.hex()}", soft_wrap=True)
    missing = [name for name in NAMES if not (directory / name).exists()]
    if missing:
        out.print(f"missing  {', '.join(missing)}")
        out.print(
            "Hand the address to the consortium; it hands you the genesis document, and its authority's"
        )
        out.print(f"ca.pem. A certificate: `bmif tls request --help`. Then `bmif preflight -c {settings}`.")
