"""`bmif custody create|join|status|reshare|end`: keys that a committee makes, and shares anew."""

import time
from itertools import pairwise
from typing import Annotated

import typer

from consensus.ceremonies import MAX_MEMBERS, ROUNDS, CreateCeremony, EndCeremony
from consensus.types import MAX_TIME_MS, ZERO_HASH, Address, Hash32, Millis
from node.api.ceremonies import Ceremony, CeremonySummary
from node.api.client import SyncClient
from node.cli.common import (
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    connect,
    connect_operator,
    load_config,
    out,
    parse_hash,
    print_facts,
    print_json,
    print_table,
    shorten,
    wait_included,
)

MINUTE_MS = 60_000
PRESET = "ckks-16384-60x5"
POLL_S = 1.0

CeremonyArgument = Annotated[str, typer.Argument(metavar="CEREMONY", help="Ceremony id")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for a block", min=1)]


def _parse_members(texts: list[str]) -> tuple[Address, ...]:
    if not 2 <= len(texts) <= MAX_MEMBERS:
        raise CliError(f"--member: give 2 to {MAX_MEMBERS} accounts, this node's among them")
    members = tuple(sorted(Address(parse_hash(text, "--member")) for text in texts))
    for one, other in pairwise(members):
        if one == other:
            raise CliError(f"--member {one.hex()}: given twice")
    return members


def _check_members(client: SyncClient, members: tuple[Address, ...]) -> None:
    """Refuse what the chain would refuse."""
    own = client.call(client.api.get_status()).address
    if own not in {member.hex() for member in members}:
        raise CliError(f"--member {own}: this node's account is missing; whoever creates one takes part")
    names: dict[str, str] = {}
    for member in members:
        address = member.hex()
        name = client.call(client.api.get_account(address)).organisation
        if not name:
            raise CliError(f"--member {address}: belongs to no organisation of this chain")
        if name in names:
            raise CliError(f"--member {address}: {name} has {shorten(names[name])} in it already")
        names[name] = address


def create(
    member: Annotated[list[str], typer.Option(help="Account of a member, this node's included; repeat")],
    threshold: Annotated[int, typer.Option(help="How many of them open together", min=2)] = 2,
    title: Annotated[str, typer.Option(help="Name")] = "committee",
    preset: Annotated[str, typer.Option(help="CKKS preset of the keys")] = PRESET,
    minutes: Annotated[float, typer.Option(help="Time until it is over", min=1)] = 60,
    timeout: TimeoutOption = 60,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Begin a ceremony in which a committee makes a task's keys, and take part in it."""
    members = _parse_members(member)
    _check_threshold(threshold, members)
    with connect_operator(load_config(config)) as client:
        _check_members(client, members)
        payload = CreateCeremony(title, preset, members, threshold, _get_deadline(minutes), ZERO_HASH)
        ceremony, height = _begin(client, payload, timeout)
    _show_begun(ceremony, height, json)


def reshare(
    ceremony: CeremonyArgument,
    member: Annotated[
        list[str] | None, typer.Option(help="Account of a member from now on; repeat [the same as now]")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many of them open together [as many as now]", min=2)
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time until it is over", min=1)] = 60,
    timeout: TimeoutOption = 60,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Share a committee's key anew: to other members, or to the same ones. The keys stay as they are.

    As many of those who have shares as open together must be among the members. Once it is ready, the shares
    of before open nothing, and the nodes erase them.
    """
    with connect_operator(load_config(config)) as client:
        old = _find_current(client, parse_hash(ceremony, "CEREMONY").hex())
        members = _parse_members(list(old.members) if member is None else member)
        _check_old(client, old, members)
        threshold = old.threshold if threshold is None else threshold
        _check_threshold(threshold, members)
        _check_members(client, members)
        renews = Hash32(bytes.fromhex(old.id))
        payload = CreateCeremony(old.title, old.preset, members, threshold, _get_deadline(minutes), renews)
        identifier, height = _begin(client, payload, timeout)
    _show_begun(identifier, height, json)


def _find_current(client: SyncClient, identifier: str) -> Ceremony:
    """Of a ceremony that was renewed, who has the shares now."""
    found = client.call(client.api.get_ceremony(identifier))
    while found.renewed_by is not None:
        found = client.call(client.api.get_ceremony(found.renewed_by))
    return found


def _check_old(client: SyncClient, old: Ceremony, members: tuple[Address, ...]) -> None:
    """Refuse what the chain would refuse."""
    if old.status != "ready":
        raise CliError(f"CEREMONY {old.id}: it is {old.status}, and has no keys to share anew")
    own = client.call(client.api.get_status()).address
    if own not in old.members:
        raise CliError(f"CEREMONY {old.id}: this node's account {own} has no share; a member shares anew")
    count = len(set(old.members) & {member.hex() for member in members})
    if count < old.threshold:
        raise CliError(
            f"--member: {count} of them have shares, {old.threshold} are needed; its members are "
            + ", ".join(old.members)
        )


def _check_threshold(threshold: int, members: tuple[Address, ...]) -> None:
    if not len(members) < 2 * threshold <= 2 * len(members):
        least = len(members) // 2 + 1
        raise CliError(f"--threshold {threshold}: of {len(members)} members, {least} to {len(members)}")


def _get_deadline(minutes: float) -> Millis:
    return Millis(min(MAX_TIME_MS, time.time_ns() // 1_000_000 + round(minutes * MINUTE_MS)))


def _begin(client: SyncClient, payload: CreateCeremony, timeout: float) -> tuple[Hash32, int]:
    """The ceremony's id, and its height; this node takes part."""
    ceremony = client.call(client.api.sign_and_submit(payload))
    height = wait_included(client, ceremony, timeout)
    client.call(client.api.join_ceremony(ceremony.hex()))
    return ceremony, height


def _show_begun(ceremony: Hash32, height: int, json: bool) -> None:
    if json:
        print_json({"ceremony": ceremony.hex(), "height": height})
        return
    out.print(f"ceremony {ceremony.hex()}, in block {height}")
    out.print(f"The other members go on with: bmif custody join {ceremony.hex()}", soft_wrap=True)


def join(
    ceremony: CeremonyArgument,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait until its keys are ready; 0: do not wait", min=0)
    ] = 0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take part in a ceremony of which this node's account is a member; the node does the rest.

    Exit 2: the keys are not ready after --wait.
    """
    identifier = parse_hash(ceremony, "CEREMONY").hex()
    with connect_operator(load_config(config)) as client:
        found = client.call(client.api.get_ceremony(identifier))
        if found.status == "running":
            found = client.call(client.api.join_ceremony(identifier))
        end = time.monotonic() + wait
        while found.status == "running" and time.monotonic() < end:
            time.sleep(min(POLL_S, wait))
            found = client.call(client.api.get_ceremony(identifier))
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_one(found)
    if found.status in ("failed", "ended") or (wait and found.status != "ready"):
        raise typer.Exit(2)


def status(
    ceremony: Annotated[
        str | None, typer.Argument(metavar="CEREMONY", help="Ceremony id [all ceremonies]")
    ] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show how far a key ceremony is and who is waited for; or list all."""
    with connect(api, config) as client:
        if ceremony is None:
            found = client.collect(client.api.iterate_ceremonies())
            if json:
                print_json(found)
            else:
                _print_all(found)
            return
        one = client.call(client.api.get_ceremony(parse_hash(ceremony, "CEREMONY").hex()))
    if json:
        print_json(one.model_dump(mode="json"))
    else:
        _print_one(one)


def end(ceremony: CeremonyArgument, timeout: TimeoutOption = 60, config: ConfigOption = None) -> None:
    """Give up a ceremony: as a member at any time, as anyone after its deadline. Its secrets are erased."""
    identifier = parse_hash(ceremony, "CEREMONY")
    with connect_operator(load_config(config)) as client:
        transaction = client.call(client.api.sign_and_submit(EndCeremony(Hash32(identifier))))
        height = wait_included(client, transaction, timeout)
    out.print(f"given up in block {height}")


def _print_all(found: list[CeremonySummary]) -> None:
    print_table(
        None,
        ("ceremony", "title", "status", "members", "open together", "round"),
        (
            (item.id, item.title, item.status, len(item.members), item.threshold, item.round_name or "-")
            for item in found
        ),
    )


def _print_one(found: Ceremony) -> None:
    is_running = found.status == "running"
    name = "" if found.round_name is None else f", {found.round_name}"
    print_facts(
        (
            ("ceremony", found.id),
            ("title", found.title),
            ("status", found.status),
            ("renews", found.renews),
            ("renewed by", found.renewed_by),
            ("preset", found.preset),
            ("members", "\n".join(found.members)),
            ("threshold", found.threshold),
            ("round", f"{found.round} of {len(ROUNDS)}{name}"),
            ("waits for", "\n".join(found.waits_for) if is_running else None),
            ("public key", found.confirmations[0].public_key.root if found.confirmations else None),
        )
    )
