"""`bmif drain`: have a node finish what it has begun before it is stopped."""

import time
from typing import Annotated

import typer

from node.cli.common import ConfigOption, JsonOption, connect_operator, load_config, out, print_json

POLL_S = 0.5


def drain(
    config: ConfigOption = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait until nothing is under way; 0: do not wait", min=0)
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Have a node take no new work: no leases, jobs or rounds, no writes to its API.

    It goes on following the chain, voting and answering reads; `/readyz` says `draining`. Only a restart
    ends that. SIGTERM does the same by itself, for three quarters of `stop_timeout_s` at most.
    Exit 2: something is still under way after --wait.
    """
    with connect_operator(load_config(config)) as client:
        found = client.call(client.api.drain())
        end = time.monotonic() + wait
        while found.under_way and time.monotonic() < end:
            time.sleep(min(POLL_S, wait))
            found = client.call(client.api.get_drain())
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        left = ", ".join(f"{item.count} {item.kind}" for item in found.under_way)
        out.print(f"draining; under way: {left or 'nothing, it can be stopped'}")
    if wait and found.under_way:
        raise typer.Exit(2)
