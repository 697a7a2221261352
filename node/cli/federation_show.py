"""`bmif federation status|export`: what a federation's rounds came to, and its model as a file."""

import json as json_module
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from node.api.client import SyncClient
from node.api.federations import Federation, FederationSummary, RoundModel
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    compute_file_ref,
    connect,
    connect_operator,
    load_config,
    out,
    parse_hash,
    print_facts,
    print_json,
    print_table,
    shorten,
)
from node.cli.federation_train import FederationArgument, to_ref


def status(
    federation: Annotated[
        str | None, typer.Argument(metavar="FEDERATION", help="Federation id [all federations]")
    ] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show a federation with its rounds, lists, losses and openings; or list all."""
    with connect(api, config) as client:
        if federation is None:
            _print_all(client.collect(client.api.iterate_federations()), json)
            return
        found = client.call(client.api.get_federation(parse_hash(federation, "FEDERATION").hex()))
        rounds = collect_rounds(client, found)
    if json:
        print_json(
            {
                "federation": found.model_dump(mode="json"),
                "rounds": [one.model_dump(mode="json") for one in rounds],
            }
        )
        return
    _print_one(found, rounds)


def collect_rounds(client: SyncClient, found: Federation) -> list[RoundModel]:
    """All that are over, and the current one."""
    return [
        client.call(client.api.get_federation_round(found.id, number))
        for number in range(found.current.number + 1)
    ]


def _print_all(found: list[FederationSummary], json: bool) -> None:
    if json:
        print_json(found)
        return
    print_table(
        None,
        ("federation", "title", "status", "hospitals", "round", "accepted", "openings"),
        (
            (item.id, item.title, item.status, item.participants, item.round, item.accepted, item.openings)
            for item in found
        ),
    )


def _print_one(found: Federation, rounds: list[RoundModel]) -> None:
    print_facts(
        [
            ("federation", found.id),
            ("title", found.title),
            ("status", found.status),
            ("custody", found.custody),
            ("model", f"{found.model.root}, {found.accepted} rounds accepted"),
            ("openings", f"{found.openings} of {found.max_openings}"),
            ("rungs met", f"{found.next_rung} of {len(found.ladder)}, {found.escrow} left"),
            ("suspects", ", ".join(found.suspects) or "none"),
            ("still to be left out", ", ".join(found.probation) or "none"),
            ("statement", found.statement),
        ]
    )
    print_table(
        "Rounds",
        ("round", "outcome", "sent", "listed", "opened", "left out", "loss before", "loss after", "judges"),
        (
            (
                one.number,
                one.outcome or one.phase,
                len(one.submissions),
                len(one.listed),
                "-" if one.opened is None else "yes",
                "-" if one.left_out is None else shorten(one.left_out),
                *get_losses(one),
                len(one.judgements),
            )
            for one in rounds
        ),
    )


def get_losses(found: RoundModel) -> tuple[str, str]:
    """The median judge's losses before and after."""
    if not found.judgements:
        return "-", "-"
    middle = len(found.judgements) // 2
    before = sorted(item.before for item in found.judgements)[middle]
    after = sorted(item.after for item in found.judgements)[middle]
    return f"{before / 1e6:.6f}", f"{after / 1e6:.6f}"


def export(
    federation: FederationArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .npz")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write the global model with where it is from: federation, round, block. Loads without pickle."""
    identifier = parse_hash(federation, "FEDERATION").hex()
    if output.exists():
        raise CliError(f"{output} exists already; choose another --output")
    if output.suffix != ".npz":
        raise CliError(f"--output {output}: expected a name that ends in .npz")
    with connect_operator(load_config(config)) as client, tempfile.TemporaryDirectory() as scratch:
        standing = client.call(client.api.get_status())
        found = client.call(client.api.get_federation(identifier))
        rounds = collect_rounds(client, found)
        files = {}
        for name, ref in (("network", found.network), ("model", found.model)):
            files[name] = Path(scratch) / name
            client.call(client.api.get_blob(to_ref(ref), files[name]))
            if compute_file_ref(files[name]) != to_ref(ref):
                raise CliError(f"{name}: the node gave other bytes than {ref.root}; ask another node")
        made = [one.number for one in rounds if one.outcome == "accepted"]
        provenance: dict[str, JsonValue] = {
            "chain": standing.chain_id,
            "federation": identifier,
            "title": found.title,
            "model": found.model.root,
            "network": found.network.root,
            "round": made[-1] if made else None,
            "rounds accepted": len(made),
            "openings": found.openings,
            "head": standing.head.hash,
            "final block": standing.finalized.hash,
            "final height": standing.finalized.height,
            "statement": found.statement,
        }
        from workloads.federated import run_apart
        from workloads.federated_export import write_model

        text = json_module.dumps(provenance, sort_keys=True)
        run_apart(write_model, files["network"], files["model"], text, output)
    if json:
        print_json({"output": str(output), "provenance": provenance})
    else:
        out.print(f"{output}: {found.parameters} weights of {len(made)} accepted rounds")
