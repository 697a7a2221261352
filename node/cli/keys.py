"""`bmif keys`: account keys on disk; only addresses are ever printed."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.common import CliError, ConfigOption, JsonOption, load_config, out, print_json
from node.keystore import create_account_key, load_account_key

app = typer.Typer(no_args_is_help=True, help="Account keys (Ed25519).")

KeyArgument = Annotated[Path | None, typer.Argument(help="Key file (PEM) [default: the node's account_key]")]


@app.command()
def show(path: KeyArgument = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the address of a key file, never the key."""
    chosen = path or load_config(config).account_key
    address = load_account_key(chosen).address.hex()
    if json:
        print_json({"path": str(chosen), "address": address})
    else:
        out.print(address)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="New key file (PEM, mode 0600); never overwritten")],
    json: JsonOption = False,
) -> None:
    """Make a fresh key and print its address."""
    if path.exists():
        raise CliError(f"{path} exists already; choose another name or move it away")
    address = create_account_key(path).hex()
    if json:
        print_json({"path": str(path), "address": address})
    else:
        out.print(address)
