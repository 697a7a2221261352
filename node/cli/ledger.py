"""`bmif ledger`: check or rebuild a stopped node's ledger, export the chain of a running one; upkeep."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from consensus.genesis import build_genesis_state
from consensus.identifiers import compute_chain_id
from consensus.params import Genesis
from node.cli import ledger_file, ledger_upkeep
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
from node.cli.ledger_errors import ledger_errors
from node.clock import SystemClock
from node.config import NodeConfig
from node.genesis import load_genesis
from node.ledger.damage import EXIT_DAMAGED, Damage

app = typer.Typer(no_args_is_help=True, help="The ledger of a node.")
app.command("prune")(ledger_upkeep.prune)
app.command("rollback")(ledger_upkeep.rollback)
app.command("migrate")(ledger_upkeep.migrate)
app.command("snapshot")(ledger_file.snapshot)
app.command("restore")(ledger_file.restore)

SHOWN = 20
"""Damages that are printed in full; `--json` has them all."""


def _find_ledger(settings: NodeConfig) -> Path:
    path = settings.data_dir / "ledger"
    if not any(path.with_name(name).is_dir() for name in (path.name, path.name + ".rebuilding")):
        raise CliError(f"there is no ledger in {settings.data_dir}; the node has not run yet")
    return path


@app.command()
def check(
    config: ConfigOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also walk the state after every block")] = False,
    blobs: Annotated[
        bool, typer.Option("--blobs", help="Also hash every blob; damaged ones are fetched again")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Walk through everything a stopped node has stored; exit 3 if anything is damaged.

    The ledger stays exactly as it is.
    """
    from node.ledger.check import inspect_ledger

    settings = load_config(config)
    path = _find_ledger(settings)
    genesis = load_genesis(settings.genesis)
    with ledger_errors(), err.status("opening") as status:
        found = inspect_ledger(
            path,
            compute_chain_id(genesis),
            genesis_root=build_genesis_state(genesis).root,
            deep=deep,
            progress=status.update,
        )
        damages = found.damages
        if blobs:
            damages += _check_blobs(settings, status.update)
    if json:
        print_json(
            {
                "height": found.height,
                "head": "" if found.head is None else found.head.hex(),
                "base": found.base,
                "deep": deep,
                "rows": dict(found.counts),
                "problems": [_build_document(damage) for damage in damages],
                "more": found.unnamed,
            }
        )
    else:
        _print_damages(damages)
        if found.head is not None:
            rows = ", ".join(f"{count} {table}" for table, count in sorted(found.counts.items()))
            out.print(f"rows: {rows}")
            base = f", bodies from {found.base} on" if found.base else ""
            out.print(f"height {found.height}, head {found.head.hex()}{base}")
        out.print(f"{len(damages) + found.unnamed} problems")
    if damages:
        raise typer.Exit(EXIT_DAMAGED)


def _check_blobs(settings: NodeConfig, progress: Callable[[str], None]) -> list[Damage]:
    """A damaged blob becomes an unfinished one: the node fetches the chunks that it lacks."""
    from node.blobs import BlobStore

    directory = settings.data_dir / "blobs"
    if not directory.is_dir():
        return []
    limits = settings.limits
    store = BlobStore(directory, limits.blob_quota_bytes, limits.max_blob_bytes)
    damages = []
    refs = store.get_refs()
    for number, ref in enumerate(refs):
        progress(f"blobs: {number} of {len(refs)}")
        if chunks := store.verify(ref.root):
            what = f"blob {ref.root.hex()}: chunks {', '.join(map(str, chunks))} are damaged"
            remedy = "nothing to do: it is an unfinished blob now, and the node fetches these chunks again"
            damages.append(Damage("blobs", what, ref.root, remedy=remedy))
    return damages


def _build_document(damage: Damage) -> JsonValue:
    return {
        "table": damage.table,
        "what": damage.what,
        "key": damage.key.hex(),
        "height": damage.height,
        "block": None if damage.block is None else damage.block.hex(),
        "remedy": damage.remedy,
    }


def _print_damages(damages: list[Damage]) -> None:
    for damage in damages[:SHOWN]:
        err.print(str(damage), markup=False, soft_wrap=True)
    if len(damages) > SHOWN:
        err.print(f"… and {len(damages) - SHOWN} more (--json has them)", markup=False)
    for remedy in dict.fromkeys(damage.remedy for damage in damages):
        err.print(f"remedy: {remedy}", markup=False, soft_wrap=True)


@app.command()
def rebuild(
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild a ledger that is whole, too")] = False,
    json: JsonOption = False,
) -> None:
    """Move a stopped node's damaged ledger aside; the node then syncs anew from its peers.

    Nothing is deleted: the damaged one becomes `ledger.damaged-TIME`. The node's own records (sign-state,
    openings, verdicts, claims) are kept where they can be read. Where it is not certain that the sign-state
    is the newest, the voter starts in its safe mode.
    """
    from node.ledger.rebuild import rebuild_ledger

    settings = load_config(config)
    path = _find_ledger(settings)
    genesis = load_genesis(settings.genesis)
    with ledger_errors(), err.status("checking") as status:
        if not force and path.is_dir() and _is_whole(path, genesis):
            raise CliError(f"{path} is whole: nothing to rebuild (--force does it all the same)")
        status.update("rebuilding")
        nodes = dict(build_genesis_state(genesis).tree.new_nodes())
        rebuilt = rebuild_ledger(path, compute_chain_id(genesis), nodes, SystemClock().now_ms())
    aside = None if rebuilt.aside is None else str(rebuilt.aside)
    if json:
        print_json(
            {"aside": aside, "records": rebuilt.records, "sign_state_known": rebuilt.is_sign_state_known}
        )
        return
    if aside is not None:
        out.print(f"the damaged ledger is {aside}", soft_wrap=True)
    out.print(f"{rebuilt.records} records kept; start the node: it syncs from its peers")
    if not rebuilt.is_sign_state_known:
        out.print("votes may have been signed that no record tells of: the voter starts in its safe mode")


def _is_whole(path: Path, genesis: Genesis) -> bool:
    from node.ledger.check import inspect_ledger
    from node.ledger.schema import LedgerError

    try:
        return not inspect_ledger(path, compute_chain_id(genesis)).damages
    except LedgerError:
        return False  # of another chain or version


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
