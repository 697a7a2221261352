"""`bmif run` and `bmif status`."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from node.api.schemas import SyncModel
from node.cli.common import (
    ApiOption,
    ConfigOption,
    FlagsOption,
    JsonOption,
    connect,
    err,
    load_config,
    print_facts,
    print_json,
)
from node.cli.common import print_table as print_rows
from node.cli.ledger_errors import ledger_errors
from node.logs import configure_logging
from node.protocol import EXIT_UPGRADE, find_upgrade_required


@contextmanager
def _upgrade_errors() -> Iterator[None]:
    """A node that has to be replaced ends with one message and a status of its own."""
    try:
        yield
    except Exception as error:
        found = find_upgrade_required(error)
        if found is None:
            raise
        err.print("error: ", style="bold red", end="")
        err.print(str(found), markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_UPGRADE) from error


def _hide_program() -> None:
    """Keep the commands out of the worker processes.

    A spawned process first runs its parent's main module anew, for what may be pickled from there. Here
    nothing is, and it would cost each worker seconds and memory.
    """
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__file__ = None


def run(config: ConfigOption = None, flags: FlagsOption = None) -> None:
    """Run a node until SIGTERM or SIGINT; it stops gracefully.

    Exit 3: its ledger is damaged. Exit 4: the chain obeys newer rules than this software knows. Exit 5: the
    disk is full.
    """
    settings = load_config(config, flags)
    configure_logging(settings.log, settings.name)
    from node.daemon import run_node

    _hide_program()
    with ledger_errors(), _upgrade_errors():
        asyncio.run(run_node(settings))


def status(api: ApiOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show who a node is, where its chain stands, and its peers."""
    with connect(api, config) as client:
        found = client.call(client.api.get_status())
        peers = client.call(client.api.get_peers())
    if json:
        print_json(
            {**found.model_dump(mode="json"), "peer_list": [p.model_dump(mode="json") for p in peers.items]}
        )
        return
    print_facts(
        [
            ("node", f"{found.name} of {found.organisation} ({', '.join(found.roles) or 'observer'})"),
            ("version", found.version),
            ("network", f"{found.network}, chain {found.chain_id}"),
            ("account", found.address),
            ("head", f"height {found.head.height}, {found.head.hash}"),
            ("final", f"height {found.finalized.height}, {found.finalized.hash}"),
            ("state root", found.head.state_root),
            ("sync", _describe(found.sync)),
            ("ready", "yes" if found.ready else "; ".join(found.reasons)),
            ("mempool", f"{found.mempool} transactions"),
            ("tasks", found.tasks),
        ]
    )
    print_rows(
        None,
        ("peer", "organisation", "connected", "height", "latency (ms)", "received (kB)", "sent (kB)"),
        (
            (
                peer.address,
                peer.organisation,
                "yes" if peer.connected else "no",
                peer.height,
                None if peer.latency_ms is None else f"{peer.latency_ms:.1f}",
                sum(peer.received_bytes.values()) // 1000,
                sum(peer.sent_bytes.values()) // 1000,
            )
            for peer in peers.items
        ),
    )


def _describe(sync: SyncModel) -> str:
    """How far the node is behind its peers, and what it does about it."""
    if sync.synced:
        return "up to date"
    behind = f"{sync.target - sync.height} blocks behind"
    if sync.phase == "idle":
        return behind
    count = f"{sync.done} of {sync.wanted}" if sync.wanted else str(sync.done)
    return f"{behind}: {sync.phase} {count} from {', '.join(sync.asked) or 'nobody yet'}"
