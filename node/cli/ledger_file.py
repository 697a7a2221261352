"""`bmif ledger snapshot|restore`: a final state as one file, and a new ledger from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from consensus.vote import Checkpoint
from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    connect_operator,
    err,
    load_config,
    out,
    print_json,
)
from node.cli.ledger_errors import ledger_errors
from node.cli.ledger_upkeep import opened
from node.config import NodeConfig
from node.genesis import load_genesis


def snapshot(
    output: Annotated[Path, typer.Option("--output", "-o", help="New file")],
    height: Annotated[
        int | None,
        typer.Option("--height", min=1, help="Of this block, or the nearest below that votes prove final"),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write the state of a final block as one file that proves itself, from a running or a stopped node.

    It holds all headers, votes and changes of validators that prove the block final from genesis on, the
    block, and its whole state; no keys, no blobs, nothing of this node's own. `bmif ledger restore` makes a
    ledger of it. Print and keep the HEIGHT:HASH: it is what others compare.
    """
    settings = load_config(config)
    if output.exists():
        raise CliError(f"{output} exists already; choose another name")
    part = output.with_name(output.name + ".part")
    try:
        with ledger_errors(), err.status("writing") as status:
            _write(settings, part, height, status.update)
            checkpoint = _verify(settings, part)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    _print(json, checkpoint, {"file": str(output), "bytes": output.stat().st_size})


def _write(settings: NodeConfig, part: Path, height: int | None, progress: Callable[[str], None]) -> None:
    from node.ledger.portable import SnapshotError
    from node.ledger.store import StoreError
    from node.snapshots import build_snapshot
    from node.sync.serving import FinalityProver

    try:
        with opened(settings) as (chain, _), part.open("wb") as file:
            _, pieces = build_snapshot(chain, FinalityProver(chain), height)
            size = 0
            for piece in pieces:
                size += file.write(piece)
                progress(f"{size:,} bytes")
        return
    except SnapshotError as error:
        raise CliError(str(error)) from error
    except StoreError as error:
        if "in use by another process" not in str(error):
            raise
    with connect_operator(settings) as client:
        client.call(client.api.get_ledger_snapshot(part, height))


def _verify(settings: NodeConfig, path: Path) -> Checkpoint:
    """What the file proves. Raises: CliError."""
    from node.ledger.portable import SnapshotError, Verification
    from node.ledger.restore import CountingSink

    try:
        with path.open("rb") as file:
            head, _, _ = Verification(load_genesis(settings.genesis), CountingSink()).run(file)
    except SnapshotError as error:
        raise CliError(f"the snapshot came out wrong: {error}; try again") from error
    return head.proof.checkpoint


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `bmif ledger snapshot`")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make a new ledger from a snapshot file; the node then syncs on from its block.

    Nothing in the file is believed: it has to prove its block final from the genesis of these settings on,
    and to hold `trusted_checkpoint` among its blocks if that is set and not above. The validators of the
    past are believed by that; for a chain older than `evidence_ms` set `trusted_checkpoint` to the file's own
    HEIGHT:HASH, from somebody you trust (with `stale_trust: refuse` it has to be). An existing ledger is
    never replaced. The new one does not know what this node's key has signed, so a validator stays silent
    until its peers have said what they saw of its votes.
    """
    from node.clock import SystemClock
    from node.ledger.portable import SnapshotError
    from node.ledger.restore import restore_ledger
    from node.sync.service import parse_checkpoint

    settings = load_config(config)
    genesis = load_genesis(settings.genesis)
    given = settings.trusted_checkpoint
    trusted = None if given is None else parse_checkpoint(given)
    is_old = SystemClock().now_ms() - genesis.time > genesis.params.evidence_ms
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with file.open("rb") as content, ledger_errors(), err.status("reading") as status:
            if is_old and settings.stale_trust == "refuse":
                _require_named(file, settings, trusted)
            ledger = settings.data_dir / "ledger"
            done = restore_ledger(content, ledger, genesis, trusted, status.update)
    except SnapshotError as error:
        raise CliError(f"{file}: {error}; nothing is made of it, take another copy or file") from error
    if is_old and trusted != done.checkpoint:
        err.print(
            "the chain is older than evidence_ms, so validators of its beginning may have left with their "
            "stake: compare the block below with somebody you trust before you start the node",
            soft_wrap=True,
        )
    _print(json, done.checkpoint, {"headers": done.headers, "state_nodes": done.nodes})


def _require_named(file: Path, settings: NodeConfig, trusted: Checkpoint | None) -> None:
    checkpoint = _verify(settings, file)
    if trusted != checkpoint:
        raise CliError(
            "stale_trust is refuse, and the chain is older than evidence_ms: set trusted_checkpoint to "
            f"{checkpoint.height}:{checkpoint.hash.hex()}, once somebody you trust has said that this is it"
        )


def _print(json: bool, checkpoint: Checkpoint, more: dict[str, str | int]) -> None:
    name = f"{checkpoint.height}:{checkpoint.hash.hex()}"
    if json:
        print_json(
            {"height": int(checkpoint.height), "hash": checkpoint.hash.hex(), "checkpoint": name, **more}
        )
        return
    out.print(f"final block {name}", soft_wrap=True)
    for what, value in more.items():
        out.print(f"{what.replace('_', ' ')}: {value}", soft_wrap=True)
