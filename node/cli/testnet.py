"""`bmif testnet`: make, start, stop and show a testnet of this machine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from node import processes
from node.cli.common import JsonOption, err, out, print_json, print_table
from node.testnet import Profile, Testnet, init_testnet

app = typer.Typer(no_args_is_help=True, help="A testnet of node processes on this machine.")

DirOption = Annotated[Path, typer.Option("--dir", "-d", help="Directory of the testnet")]
DEFAULT_DIR = Path("testnet")
NamesArgument = Annotated[
    list[str] | None, typer.Argument(help="Names of nodes, such as node2 [default: all]")
]


class Hosts(StrEnum):
    """How nodes reach each other."""

    LOCAL = "local"
    COMPOSE = "compose"


@app.command()
def init(
    nodes: Annotated[
        int, typer.Option("--nodes", "-n", help="Number of nodes; node1 is the custody", min=2)
    ] = 4,
    miners: Annotated[
        int | None, typer.Option("--miners", "-m", help="How many hospitals mine [default: all]", min=0)
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    base_port: Annotated[
        int | None, typer.Option("--base-port", help="First of three ports a node (API, operator, peers)")
    ] = None,
    hosts: Annotated[
        Hosts, typer.Option("--hosts", help="`local` processes, or `compose` services named node1, node2 ...")
    ] = Hosts.LOCAL,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Chain parameters and settings (YAML), see configs/")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write keys, authority, certificates, genesis and settings of a new testnet."""
    testnet = init_testnet(
        directory,
        nodes,
        miners,
        profile=Profile.load(profile) if profile else None,
        base_port=base_port,
        compose=hosts is Hosts.COMPOSE,
    )
    if json:
        print_json([_describe(testnet, node.name) for node in testnet.nodes])
        return
    print_table(
        f"{testnet.name} in {testnet.directory}",
        ("node", "organisation", "roles", "API", "peer port"),
        (
            (node.name, node.organisation, ", ".join(node.roles), testnet.get_api_url(node), node.peer_port)
            for node in testnet.nodes
        ),
    )
    out.print(f"Start it with: bmif testnet up --dir {directory}")


def _describe(testnet: Testnet, name: str) -> dict[str, JsonValue]:
    node = testnet.select((name,))[0]
    return {
        "name": node.name,
        "organisation": node.organisation,
        "roles": list(node.roles),
        "api": testnet.get_api_url(node),
        "address": node.address,
        "config": str(testnet.get_config_path(node.name)),
    }


@app.command()
def up(
    names: NamesArgument = None,
    directory: DirOption = DEFAULT_DIR,
    deadline_s: Annotated[
        float, typer.Option("--deadline", help="Longest wait until ready, seconds", min=1)
    ] = 90.0,
) -> None:
    """Start the nodes that do not run yet and wait until each is ready."""
    testnet = Testnet.load(directory)
    processes.start_nodes(
        testnet,
        tuple(names or ()),
        deadline_s=deadline_s,
        report=lambda node: err.print(f"{node.name} is ready: {testnet.get_api_url(node)}"),
    )


@app.command()
def down(
    names: NamesArgument = None,
    directory: DirOption = DEFAULT_DIR,
    deadline_s: Annotated[
        float, typer.Option("--deadline", help="Seconds for a graceful stop, then they are killed", min=1)
    ] = 30.0,
) -> None:
    """Stop the nodes gracefully; kill those that do not stop in time."""
    killed = processes.stop_nodes(Testnet.load(directory), tuple(names or ()), deadline_s=deadline_s)
    if killed:
        err.print(f"had to kill {', '.join(killed)} after {deadline_s:.0f} s")
        raise typer.Exit(1)


@app.command()
def status(names: NamesArgument = None, directory: DirOption = DEFAULT_DIR, json: JsonOption = False) -> None:
    """Show which nodes run and are ready; exit 1 unless all are."""
    statuses = processes.get_statuses(Testnet.load(directory), tuple(names or ()))
    if json:
        print_json(
            [
                {
                    "node": s.node.name,
                    "pid": s.pid,
                    "ready": s.ready,
                    "detail": s.detail,
                    "api_port": s.node.api_port,
                }
                for s in statuses
            ]
        )
    else:
        print_table(
            None,
            ("node", "organisation", "roles", "pid", "API port", "state"),
            (
                (s.node.name, s.node.organisation, ", ".join(s.node.roles), s.pid, s.node.api_port, s.detail)
                for s in statuses
            ),
        )
    if not all(s.ready for s in statuses):
        raise typer.Exit(1)
