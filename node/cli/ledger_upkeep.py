"""`bmif ledger prune|rollback|migrate`: upkeep of a stopped node's ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consensus.identifiers import compute_chain_id
from node.cli.common import CliError, ConfigOption, JsonOption, err, load_config, out, print_json
from node.cli.ledger_errors import ledger_errors
from node.config import NodeConfig
from node.genesis import load_genesis

if TYPE_CHECKING:
    from node.chain import Chain
    from node.ledger.level import LevelStore


def find_ledger(settings: NodeConfig) -> Path:
    """Where the ledger is. Raises: CliError where none is."""
    path = settings.data_dir / "ledger"
    if not (path / "CURRENT").exists():
        raise CliError(f"there is no ledger in {settings.data_dir}; the node has not run yet")
    return path


@contextmanager
def opened(settings: NodeConfig) -> "Iterator[tuple[Chain, LevelStore]]":
    """A stopped node's chain, as the node itself would open it."""
    from consensus.types import Hash32
    from consensus.work import NoProofVerifier
    from node.chain import Chain
    from node.clock import SystemClock
    from node.ledger.level import LevelStore

    store = LevelStore(find_ledger(settings))
    try:
        # No block is judged here, so that nothing has to be recomputed.
        yield (
            Chain(load_genesis(settings.genesis), store, SystemClock(), NoProofVerifier(Hash32(bytes(32)))),
            store,
        )
    finally:
        store.close()


def prune(
    config: ConfigOption = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", metavar="BLOCKS", min=1, help="Keep so many below the last final block"),
    ] = None,
    before: Annotated[
        int | None, typer.Option("--before", metavar="HEIGHT", min=1, help="Drop what is below this height")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Drop old bodies, states and places of transactions from a stopped node's ledger, and shrink its files.

    Headers stay, and what proves finality to light clients and new nodes. Others are told that the rest is
    held elsewhere, so some node of the consortium should keep all. Nothing goes that is not proved final, nor
    what living tasks need. Without an option `retention.blocks` of the settings says how much is kept; a node
    with that setting prunes itself while it runs. Interrupted, the ledger is whole; the next call goes on.
    """
    settings = load_config(config)
    keep = keep or settings.retention.blocks or None
    if before is None and keep is None:
        raise CliError("say how much to keep: --keep BLOCKS, --before HEIGHT, or retention.blocks")
    with ledger_errors(), err.status("opening") as status, opened(settings) as (chain, store):
        from node.ledger.prune import prune_steps
        from node.ledger_retention import find_bound, keep_proofs, measure_bytes
        from node.sync.serving import FinalityProver

        wanted = before if before is not None else max(0, chain.finalized.height - (keep or 0))
        prover = FinalityProver(chain)
        bound = find_bound(chain, prover, wanted)
        size = measure_bytes(store.path)
        keep_proofs(chain, prover)
        bodies = nodes = 0
        for done in prune_steps(chain.ledger, max(bound.height, chain.ledger.base), [chain.genesis_root]):
            bodies, nodes = done.bodies, done.nodes
            status.update(f"{done.bodies} bodies and {done.nodes} state nodes dropped")
        status.update("giving disk space back")
        store.compact()
        base, left = int(chain.ledger.base), measure_bytes(store.path)
    if json:
        print_json(
            {
                "base": base,
                "held_back": bound.why,
                "bodies": bodies,
                "state_nodes": nodes,
                "bytes_before": size,
                "bytes_after": left,
            }
        )
        return
    out.print(f"bodies and states begin at height {base}: {bodies} bodies, {nodes} state nodes dropped")
    out.print(f"{size:,} bytes before, {left:,} after")
    if bound.why:
        out.print(f"not up to height {wanted}: {bound.why}", soft_wrap=True)


def rollback(
    to: Annotated[int, typer.Option("--to", metavar="HEIGHT", min=0, help="Height of the new head")],
    config: ConfigOption = None,
    force_unsafe: Annotated[
        bool,
        typer.Option(
            "--force-unsafe",
            help="Go below the final block: only together with `trusted_checkpoint`, which is printed",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Take a stopped node's head back to HEIGHT and forget the blocks above it; it then syncs forward again.

    For a node that took blocks by a fault of its own software: blocks are judged anew. What the node signed
    is not undone: sign-state, openings and verdicts stay, so that it never contradicts itself.

    Below the final block it refuses. What is final is never undone by the chain, so a node that forgets it
    could be led onto another branch by a third of stake that lies, or by old keys. --force-unsafe does it all
    the same and prints the final block as HEIGHT:HASH: set `trusted_checkpoint` to that before you start the
    node, which then follows no chain without it.
    """
    settings = load_config(config)
    with ledger_errors(), err.status("opening"), opened(settings) as (chain, _):
        from node.ledger.rollback import find_final, roll_back
        from node.ledger.schema import LedgerError

        ledger = chain.ledger
        try:
            done = roll_back(ledger, to, find_final(ledger), below_final=force_unsafe)
        except LedgerError as error:
            raise CliError(str(error)) from error
    checkpoint = f"{done.final.height}:{done.final.hash.hex()}"
    is_below = to < done.final.height
    if json:
        print_json(
            {
                "old_height": done.old_height,
                "height": int(done.head.height),
                "head": done.head.hash.hex(),
                "forgotten": done.forgotten,
                "final": checkpoint,
                "below_final": is_below,
            }
        )
        return
    out.print(f"head {done.head.hash.hex()} at height {done.head.height}; {done.forgotten} blocks forgotten")
    if is_below:
        out.print("set this before the node starts, so that it follows no other final chain:")
        out.print(f"trusted_checkpoint: {checkpoint}", soft_wrap=True)


def migrate(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Bring a stopped node's ledger to the schema of this version of bmif.

    A copy of the ledger is kept beside it (`ledger.schema-N`; its tables are links, so it takes little room).
    Interrupted, it goes on when it is called again. A ledger that a newer version wrote is refused.
    """
    from node.ledger.migration import migrate_ledger

    settings = load_config(config)
    path = find_ledger(settings)
    with ledger_errors(), err.status("opening") as status:
        done = migrate_ledger(path, compute_chain_id(load_genesis(settings.genesis)), status.update)
    backup = None if done.backup is None else str(done.backup)
    if json:
        print_json({"found": done.found, "version": done.version, "backup": backup, "rows": done.rows})
    elif backup is None:
        out.print(f"the ledger is of version {done.version} already")
    else:
        out.print(
            f"from version {done.found} to {done.version}: {done.rows} rows; as it was: {backup}",
            soft_wrap=True,
        )
