"""`bmif genesis`: the document that founds a consortium's chain, and its identity for comparing."""

import time
from pathlib import Path
from typing import Annotated

import typer

from consensus.genesis import GenesisError as InvalidGenesis
from consensus.genesis import check_genesis
from consensus.identifiers import compute_chain_id
from consensus.params import Genesis, GenesisAccount, Validator
from consensus.types import MAX_AMOUNT, Address, Amount, Millis
from node.cli.common import CliError, JsonOption, out, parse_hash, print_facts, print_json, print_table
from node.genesis import build_params, load_genesis, save_genesis

app = typer.Typer(no_args_is_help=True, help="The document that founds a chain.")

DEFAULT_BALANCE = 1_000_000_000
DEFAULT_STAKE = 100_000_000


@app.callback()
def group() -> None:
    """The document that founds a chain."""


@app.command()
def new(
    output: Annotated[Path, typer.Option("--output", "-o", help="New document (JSON); never overwritten")],
    member: Annotated[
        list[str],
        typer.Option(
            "--member",
            metavar="ADDRESS:ORGANISATION",
            help="An account and its organisation; `bmif init` prints an address. Repeat it",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the network")] = "consortium",
    validator: Annotated[
        list[str] | None,
        typer.Option(
            "--validator", metavar="ADDRESS[:STAKE]", help="A member that validates [default: every member]"
        ),
    ] = None,
    miner: Annotated[
        list[str] | None,
        typer.Option(
            "--miner", metavar="ORGANISATION", help="Organisation that may mine and evaluate. Repeat it"
        ),
    ] = None,
    balance: Annotated[
        int, typer.Option("--balance", help="Each account's money, smallest units", min=0, max=MAX_AMOUNT)
    ] = DEFAULT_BALANCE,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A chain parameter that differs from its default"),
    ] = None,
) -> None:
    """Write the genesis document that every node of a new chain starts from.

    Its hash is the chain id. Hand the file to every member; compare `bmif genesis show` by another channel.
    """
    if output.exists():
        raise CliError(f"{output} exists already; choose another --output or move it away")
    accounts = tuple(_parse_member(text, Amount(balance)) for text in member)
    addresses = [account.address.hex() for account in accounts]
    validators = tuple(_parse_validator(text) for text in validator or addresses)
    genesis = Genesis(
        name=name,
        time=Millis(time.time_ns() // 1_000_000),
        params=build_params(dict(_parse_param(text) for text in param or ())),
        accounts=accounts,
        validators=validators,
        mining_organisations=tuple(sorted(set(miner or ()))),
    )
    unknown = set(genesis.mining_organisations) - {account.organisation for account in accounts}
    if unknown:
        raise CliError(f"--miner: no member is of {', '.join(sorted(unknown))}; name it as in --member")
    try:
        check_genesis(genesis)
    except InvalidGenesis as error:
        raise CliError(f"{error}; correct --member, --validator or --balance") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    save_genesis(output, genesis)
    out.print(f"{output}: chain {compute_chain_id(load_genesis(output)).hex()}", soft_wrap=True)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Genesis document (JSON)")], json: JsonOption = False
) -> None:
    """Check a genesis document and print its chain id, members and validators."""
    genesis = load_genesis(path)
    try:
        check_genesis(genesis)
    except InvalidGenesis as error:
        raise CliError(f"{path}: {error}; ask for the right document") from error
    stakes = {validator.address: validator.stake for validator in genesis.validators}
    chain = compute_chain_id(genesis).hex()
    if json:
        print_json(
            {
                "chain_id": chain,
                "name": genesis.name,
                "time": genesis.time,
                "accounts": [
                    {
                        "address": account.address.hex(),
                        "organisation": account.organisation,
                        "balance": account.balance,
                        "stake": stakes.get(account.address, 0),
                        "mines": account.organisation in genesis.mining_organisations,
                    }
                    for account in genesis.accounts
                ],
            }
        )
        return
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(genesis.time / 1000))
    print_facts([("chain", chain), ("network", genesis.name), ("time", moment)])
    rows = (
        (
            account.address.hex(),
            account.organisation,
            account.balance,
            stakes.get(account.address, "-"),
            "yes" if account.organisation in genesis.mining_organisations else "no",
        )
        for account in genesis.accounts
    )
    print_table(None, ("account", "organisation", "balance", "stake (units)", "mines"), rows)


def _parse_member(text: str, balance: Amount) -> GenesisAccount:
    address, _, organisation = text.partition(":")
    if not 0 < len(organisation) <= 64:
        raise CliError(
            f"--member {text}: expected ADDRESS:ORGANISATION, the organisation of 1 to 64 characters"
        )
    return GenesisAccount(Address(parse_hash(address, "--member")), balance, organisation)


def _parse_validator(text: str) -> Validator:
    address, colon, stake = text.partition(":")
    if colon and not (stake.isascii() and stake.isdigit() and 0 < int(stake) <= MAX_AMOUNT):
        raise CliError(f"--validator {text}: the stake must be 1 to {MAX_AMOUNT}")
    return Validator(Address(parse_hash(address, "--validator")), int(stake) if colon else DEFAULT_STAKE)


def _parse_param(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not (value.isascii() and value.isdigit()):
        raise CliError(f"--param {text}: expected NAME=VALUE with a positive integer")
    return name, int(value)
