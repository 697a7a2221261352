"""`bmif ledger`: check a stopped node's ledger, export the chain of a running one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from consensus.identifiers import compute_chain_id
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    connect,
    err,
    load_config,
    out,
    print_json,
)
from node.genesis import load_genesis

app = typer.Typer(no_args_is_help=True, help="The ledger of a node.")


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Walk through everything a stopped node has stored; exit 1 if anything is inconsistent."""
    settings = load_config(config)
    path = settings.data_dir / "ledger"
    if not path.exists():
        raise CliError(f"there is no ledger in {settings.data_dir}; the node has not run yet")
    from node.ledger.chainstore import Ledger
    from node.ledger.check import check_ledger
    from node.ledger.level import LevelStore
    from node.ledger.schema import LedgerError
    from node.ledger.store import StoreError

    try:
        ledger = Ledger.open(LevelStore(path), compute_chain_id(load_genesis(settings.genesis)))
    except (LedgerError, StoreError) as error:
        raise CliError(f"{path}: {error}") from error
    try:
        problems = list(check_ledger(ledger))
        height, head = ledger.height, ledger.head
    finally:
        ledger.close()
    if json:
        print_json({"height": height, "head": head.hex(), "problems": list(problems)})
    else:
        for problem in problems:
            err.print(problem, markup=False)
        out.print(f"height {height}, head {head.hex()}: {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New file [default: standard output]")
    ] = None,
    start: Annotated[int, typer.Option("--from", help="First height", min=0)] = 0,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the head chain as JSON lines, one block a line, ascending."""
    if output is not None and output.exists():
        raise CliError(f"{output} exists already; choose another name")
    with connect(api, config) as client:
        top = client.call(client.api.get_status()).head.height
        file = sys.stdout if output is None else output.open("x", encoding="utf-8")
        try:
            for height in range(start, top + 1):
                block = client.call(client.api.get_block(str(height)))
                file.write(block.model_dump_json() + "\n")
        finally:
            if output is not None:
                file.close()
    if output is not None:
        err.print(f"{max(0, top + 1 - start)} blocks in {output}")
