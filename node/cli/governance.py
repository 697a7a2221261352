"""`bmif governance`: changes that validators with two thirds of stake sign, passed round as one file."""

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, TypeAdapter, ValidationError

from consensus.finality import is_quorum
from consensus.governance import sign_governance
from consensus.params import Validator
from consensus.payload import (
    Action,
    Approval,
    CancelUpgrade,
    Govern,
    Governance,
    Grant,
    Reinstate,
    ScheduleUpgrade,
    SetMiningOrganisations,
    SetOrganisation,
    SetValidators,
)
from consensus.types import Address, Amount, Height
from node.api.fields import Hex32, Model
from node.api.judging_payloads import GovernPayload
from node.api.payloads import decode_payload, encode_payload
from node.api.trust import ValidatorsModel
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
    wait_included,
)
from node.cli.common import print_table as print_rows
from node.keystore import load_account_key

app = typer.Typer(
    no_args_is_help=True,
    help="Changes of validators, organisations and suspended miners, signed by two thirds of stake.\n\n"
    "One validator makes a proposal, each approves the file with its node's key, anyone submits it.",
)

FileOption = Annotated[Path, typer.Option("--output", "-o", help="Proposal file to write; never overwritten")]
FileArgument = Annotated[Path, typer.Argument(help="Proposal file", exists=True, dir_okay=False)]


class ProposalModel(Model):
    """What the file holds; the chain's id keeps it from being approved on another chain by mistake."""

    chain_id: Hex32
    govern: Annotated[GovernPayload, Field()]


_ADAPTER: TypeAdapter[ProposalModel] = TypeAdapter(ProposalModel)


def _read(path: Path) -> tuple[bytes, Govern]:
    try:
        model = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CliError(f"{path}: {where}: {first['msg']}; ask for the proposal again") from error
    payload = decode_payload(model.govern)
    if not isinstance(payload, Govern):
        raise CliError(f"{path} holds no proposal")
    return bytes.fromhex(model.chain_id), payload


def _write(path: Path, chain_id: str, payload: Govern) -> None:
    model = encode_payload(payload)
    document = {"chain_id": chain_id, "govern": model.model_dump(mode="json")}
    part = path.with_name(path.name + ".part")
    part.write_text(json_module.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _propose(action: Action, output: Path, api: str | None, config: Path | None) -> None:
    if output.exists():
        raise CliError(f"{output} exists already; choose another name or move it away")
    with connect(api, config) as client:
        chain_id = client.call(client.api.get_status()).chain_id
        sequence = client.call(client.api.get_governance()).sequence
    _write(output, chain_id, Govern(Governance(sequence, action), ()))
    out.print(
        f"{output}: change number {sequence}; validators approve it with: bmif governance approve {output}"
    )


def _parse_validator(text: str) -> Validator:
    address, _, stake = text.partition("=")
    if not stake.isdecimal() or int(stake) < 1:
        raise CliError(f"validator {text!r}: expected ADDRESS=STAKE with a stake of 1 or more")
    return Validator(Address(parse_hash(address, "validator")), int(stake))


@app.command("set-validators")
def set_validators(
    validators: Annotated[list[str], typer.Argument(help="ADDRESS=STAKE of every member, in order of turns")],
    output: FileOption,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose a whole validator set; it takes over when the change is final.

    More stake is taken from the validator's account and needs its own approval; less stays locked a while.
    """
    _propose(SetValidators(tuple(map(_parse_validator, validators))), output, api, config)


@app.command("set-miners")
def set_miners(
    organisations: Annotated[list[str], typer.Argument(help="Every organisation that may mine")],
    output: FileOption,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose which organisations' accounts may claim batches."""
    _propose(SetMiningOrganisations(tuple(organisations)), output, api, config)


@app.command("set-organisation")
def set_organisation(
    address: Annotated[str, typer.Argument(help="Account")],
    organisation: Annotated[str, typer.Argument(help="Its organisation; empty for none")],
    output: FileOption,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose to put an account into an organisation."""
    _propose(SetOrganisation(Address(parse_hash(address, "account")), organisation), output, api, config)


@app.command()
def reinstate(
    organisation: Annotated[str, typer.Argument(help="Suspended organisation")],
    output: FileOption,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose to let an organisation mine again that evidence has suspended."""
    _propose(Reinstate(organisation), output, api, config)


@app.command()
def grant(
    address: Annotated[str, typer.Argument(help="Account that is paid")],
    amount: Annotated[int, typer.Argument(min=1, help="Smallest units")],
    output: FileOption,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose to pay out forfeited money from the treasury."""
    _propose(Grant(Address(parse_hash(address, "account")), Amount(amount)), output, api, config)


@app.command("schedule-upgrade")
def schedule_upgrade(
    version: Annotated[int, typer.Argument(min=2, help="Protocol version; `bmif governance show` has yours")],
    height: Annotated[int, typer.Argument(min=1, help="Of the first block that obeys it")],
    output: FileOption,
    min_delay: Annotated[
        int, typer.Option("--min-delay", min=0, help="Least number of blocks from the head to that height")
    ] = 1_000,
    force: Annotated[
        bool, typer.Option("--force", help="Propose a version that this node's software does not know")
    ] = False,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose that blocks from a height on obey the rules of another protocol version.

    The chain asks for a notice of its own: `evidence_ms` of the quickest blocks. Every node that does not
    know the version stops before that height. Within the notice nothing can be changed.
    """
    with connect(api, config) as client:
        head = client.call(client.api.get_status()).head.height
        protocol = client.call(client.api.get_governance()).protocol
    if version <= protocol.version:
        raise CliError(f"version {version}: version {protocol.version} is in force already")
    if version > protocol.known and not force:
        raise CliError(
            f"version {version}: this node knows versions up to {protocol.known} and would stop; install a "
            "release that knows it first, or say --force"
        )
    if height < head + min_delay:
        raise CliError(
            f"height {height} is {height - head} blocks ahead of the head, at least {min_delay} are asked "
            "for: choose a greater height, or a smaller --min-delay"
        )
    _propose(ScheduleUpgrade(version, Height(height)), output, api, config)


@app.command("cancel-upgrade")
def cancel_upgrade(output: FileOption, api: ApiOption = None, config: ConfigOption = None) -> None:
    """Propose to take back the upgrade that is scheduled; it has to be included before its notice begins."""
    with connect(api, config) as client:
        head = client.call(client.api.get_status()).head.height
        upgrades = client.call(client.api.get_governance()).protocol.upgrades
    coming = next((item for item in upgrades if item.height > head), None)
    if coming is None:
        raise CliError("no upgrade is scheduled")
    _propose(CancelUpgrade(coming.version, Height(coming.height)), output, api, config)


@app.command()
def approve(proposal: FileArgument, api: ApiOption = None, config: ConfigOption = None) -> None:
    """Sign a proposal with this node's account key; look at it first with `bmif governance show FILE`."""
    settings = load_config(config)
    chain_id, payload = _read(proposal)
    with connect(api, config) as client:
        ours = client.call(client.api.get_status()).chain_id
        sequence = client.call(client.api.get_governance()).sequence
    if ours != chain_id.hex():
        raise CliError(f"{proposal} is for chain {chain_id.hex()[:12]}, this node is of {ours[:12]}")
    if sequence != payload.governance.sequence:
        raise CliError(
            f"{proposal} is change number {payload.governance.sequence}, the next one is {sequence}; "
            "propose it again"
        )
    key = load_account_key(settings.account_key)
    approvals = {item.validator: item for item in payload.approvals}
    approvals[key.address] = sign_governance(key, parse_hash(ours, "chain"), payload.governance)
    ordered: tuple[Approval, ...] = tuple(approvals[address] for address in sorted(approvals))
    _write(proposal, ours, Govern(payload.governance, ordered))
    out.print(f"{proposal}: {len(ordered)} approvals, now with that of {key.address.hex()}")


@app.command()
def submit(
    proposal: FileArgument,
    config: ConfigOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the block that holds it")] = 120,
    json: JsonOption = False,
) -> None:
    """Send an approved proposal to the chain."""
    _, payload = _read(proposal)
    with connect_operator(load_config(config)) as client:
        transaction = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, transaction, timeout)
    if json:
        print_json({"transaction": transaction.hex(), "height": height})
    else:
        out.print(f"transaction {transaction.hex()}, in block {height}")


@app.command()
def show(
    proposal: Annotated[
        Path | None, typer.Argument(help="Proposal file; without one, what the chain holds")
    ] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show a proposal with what it still lacks; without one, validators, suspensions and treasury."""
    with connect(api, config) as client:
        validators = client.call(client.api.get_validators())
        state = client.call(client.api.get_governance())
    if proposal is not None:
        _show_proposal(proposal, validators, json)
        return
    if json:
        print_json(
            {"validators": validators.model_dump(mode="json"), "governance": state.model_dump(mode="json")}
        )
        return
    print_rows(
        f"validator set {validators.number}, total stake {validators.total_stake}",
        ("validator", "organisation", "stake (units)", "jailed"),
        ((v.address, v.organisation, v.stake, "yes" if v.jailed else "no") for v in validators.items),
    )
    print_facts(
        [
            ("next change", f"number {state.sequence}"),
            ("pending set", None if validators.pending is None else f"of block {validators.pending.height}"),
            ("may mine", ", ".join(state.mining_organisations)),
            ("suspended", ", ".join(state.suspended) or None),
            ("treasury", state.treasury),
            ("locked", sum(lock.amount for lock in state.locks)),
            ("protocol", f"version {state.protocol.version}; this node knows up to {state.protocol.known}"),
            *((f"version {item.version}", f"from height {item.height}") for item in state.protocol.upgrades),
        ]
    )


def _show_proposal(path: Path, validators: ValidatorsModel, json: bool) -> None:
    _, payload = _read(path)
    stakes = {item.address: 0 if item.jailed else item.stake for item in validators.items}
    signers: Sequence[str] = [item.validator.hex() for item in payload.approvals]
    stake = sum(stakes.get(signer, 0) for signer in signers)
    is_enough = is_quorum(stake, validators.total_stake)
    model = encode_payload(payload)
    if json:
        print_json({"proposal": model.model_dump(mode="json"), "stake": stake, "quorum": is_enough})
        return
    out.print_json(data=model.model_dump(mode="json")["governance"])
    print_rows(
        None, ("approved by", "stake (units)"), ((signer, stakes.get(signer, 0)) for signer in signers)
    )
    verdict = "enough" if is_enough else "not enough yet: two thirds are needed"
    out.print(f"{stake} of {validators.total_stake} stake: {verdict}")
