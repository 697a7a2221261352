"""`bmif light`: what a chain says, proved by its validators' votes and not by the node that is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from consensus.block import Header
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.light import ConflictingFinality, LightError, LightReason, find_slashable
from consensus.openings import get_credited
from consensus.task import OpenGradient, OpenLoss
from consensus.types import Address
from node.cli.common import (
    DEFAULT_API,
    ApiOption,
    CliError,
    Commands,
    ConfigOption,
    JsonOption,
    compute_file_ref,
    err,
    find_config,
    parse_hash,
    print_facts,
    print_json,
)
from node.clock import SystemClock
from node.config import NodeConfig
from node.genesis import load_genesis
from node.light import LightApi, LightNode, trust_checkpoint, trust_genesis
from node.sync.service import parse_checkpoint

DEFAULT_MAX_AGE_H = 1.0

app = typer.Typer(
    no_args_is_help=True,
    cls=Commands,
    help="Follow a chain's finality and verify what a node says, trusting one block or the genesis document.",
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is trusted, and where to ask."""

    url: str
    trust: str | None
    genesis: Path | None
    max_age_h: float | None
    wait_s: float | None


@app.callback()
def main(
    context: typer.Context,
    trust: Annotated[
        str | None, typer.Option("--trust", help="HEIGHT:HASH of a final block, from somebody you trust")
    ] = None,
    genesis: Annotated[
        Path | None, typer.Option("--genesis", help="The chain's genesis document, trusted at any age")
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            "--max-age",
            min=0,
            help="Hours for which a trusted block binds validators [default: evidence_ms of --genesis, or 1]",
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            min=0,
            help="Seconds to wait until what the node's head holds is final, not just what is",
        ),
    ] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
) -> None:
    """What the commands below start from."""
    if trust is None and genesis is None:
        raise CliError("nothing to trust: give --trust HEIGHT:HASH of a final block, or --genesis FILE")
    context.obj = Anchor(_find_url(api, config), trust, genesis, max_age, wait)


def _find_url(api: str | None, config: Path | None) -> str:
    found = None if api is not None else find_config(config)
    if found is None:
        return api or DEFAULT_API
    settings = NodeConfig.load(found)
    host = "127.0.0.1" if settings.api.host in ("0.0.0.0", "::") else settings.api.host
    return f"http://{host}:{settings.api.port}"


Ask = Callable[[LightNode], Awaitable[dict[str, JsonValue]]]


def _run(context: typer.Context, ask: Ask, json: bool) -> None:
    """Follow the chain, ask, and print what was proved; exit 2 where the node said what does not hold."""
    anchor: Anchor = context.obj
    try:
        facts = asyncio.run(_ask(anchor, ask))
    except ConflictingFinality as conflict:
        culprits = () if conflict.first is None else find_slashable(conflict.first, conflict.second)
        err.print(f"{conflict}; convicted: {len(culprits)} validators", style="bold red")
        raise typer.Exit(2) from None
    except LightError as error:
        if error.reason is LightReason.VERSION:
            raise CliError(error.detail) from error
        err.print(f"not proved: {error}", style="bold red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if json:
        print_json(facts)
    else:
        print_facts(facts.items())


async def _ask(anchor: Anchor, ask: Ask) -> dict[str, JsonValue]:
    genesis = None if anchor.genesis is None else load_genesis(anchor.genesis)
    hours = DEFAULT_MAX_AGE_H if anchor.max_age_h is None else anchor.max_age_h
    evidence_ms = round(hours * 3_600_000)
    if genesis is not None and anchor.max_age_h is None:
        evidence_ms = genesis.params.evidence_ms
    async with LightApi(anchor.url) as api:
        if anchor.trust is not None:
            try:
                checkpoint = parse_checkpoint(anchor.trust)
            except ValueError as error:
                raise CliError(f"--trust: {error}") from error
            state = await trust_checkpoint(api, checkpoint)
            if genesis is not None and state.chain_id != compute_chain_id(genesis):
                raise CliError("the trusted block is of another chain than the genesis document")
        elif genesis is not None:
            state = trust_genesis(genesis)
        else:
            raise CliError("nothing to trust")
        node = LightNode(api, state, SystemClock(), evidence_ms, at_any_age=anchor.trust is None)
        if anchor.wait_s is None:
            await node.follow()
        else:
            await node.catch_up(anchor.wait_s)
        return await ask(node)


def _describe(header: Header) -> dict[str, JsonValue]:
    return {"proved at height": header.height, "block": compute_block_hash(header).hex(), "time": header.time}


@app.command()
def status(context: typer.Context, json: JsonOption = False) -> None:
    """The last block that is proved final, and who validates."""

    async def ask(node: LightNode) -> dict[str, JsonValue]:
        state = node.state
        checkpoint = state.checkpoint
        return {
            "chain": state.chain_id.hex(),
            "height": checkpoint.height,
            "hash": checkpoint.hash.hex(),
            "time": state.trusted.time,
            "trust": f"{checkpoint.height}:{checkpoint.hash.hex()}",
            "set": state.validators.number,
            "validators": len(state.validators.validators),
            "stake": sum(member.stake for member in state.validators.validators),
            "votes": 0 if state.proof is None else len(state.proof.votes),
            "changes of set followed": node.changes,
        }

    _run(context, ask, json)


@app.command()
def account(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="64 hexadecimal digits")],
    json: JsonOption = False,
) -> None:
    """An account's balance, nonce and organisation."""
    name = Address(parse_hash(address, "ADDRESS"))

    async def ask(node: LightNode) -> dict[str, JsonValue]:
        header, found = await node.get_account(name)
        return {
            "address": address,
            "balance": found.balance,
            "nonce": found.nonce,
            "organisation": found.organisation,
            **_describe(header),
        }

    _run(context, ask, json)


@app.command()
def task(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="TASK", help="64 hexadecimal digits")],
    json: JsonOption = False,
) -> None:
    """How far a task has come."""
    task_id = parse_hash(name, "TASK")

    async def ask(node: LightNode) -> dict[str, JsonValue]:
        header, found = await node.get_task(task_id)
        if found is None:
            return {"task": name, "exists": False, **_describe(header)}
        settled = found.settled
        return {
            "task": name,
            "exists": True,
            "status": found.status.value,
            "custody": found.custody.hex(),
            "step": found.step,
            "last loss": found.last_loss,
            "gradient openings": found.gradient_openings,
            "loss openings": found.loss_openings,
            "rungs met": found.next_rung,
            "rungs taken": found.next_taken_rung,
            "settled rung": None if settled is None else settled.last_rung,
            "settled loss": None if settled is None else settled.loss,
            "escrow": found.escrow,
            "bond": found.bond,
            **_describe(header),
        }

    _run(context, ask, json)


@app.command()
def receipt(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="JOB", help="64 hexadecimal digits")],
    result: Annotated[
        Path | None, typer.Option("--result", help="File that must be the job's confirmed result")
    ] = None,
    json: JsonOption = False,
) -> None:
    """What a job of encrypted inference came to: its confirmed result, and who was right, wrong or silent."""
    job = parse_hash(name, "JOB")
    held = None if result is None else compute_file_ref(result)

    async def ask(node: LightNode) -> dict[str, JsonValue]:
        header, found = await node.get_receipt(job)
        if found is None:
            return {"job": name, "exists": False, **_describe(header)}
        if held is not None and held != found.result:
            raise LightError(LightReason.VALUE, f"{result} is not the job's result {found.result.root.hex()}")
        facts: dict[str, JsonValue] = {
            "job": name,
            "exists": True,
            "model": found.model.hex(),
            "requester": found.requester.hex(),
            "request": found.request.root.hex(),
            "keys": found.keys.root.hex(),
            "result": found.result.root.hex(),
            "evaluators": _join(found.evaluators),
            "caught": _join(found.caught),
            "silent": _join(found.silent),
            "confirmed at height": found.height,
        }
        return facts | _describe(header)

    _run(context, ask, json)


def _join(addresses: tuple[Address, ...]) -> str:
    return ", ".join(address.hex() for address in addresses)


@app.command()
def opening(
    context: typer.Context,
    transaction: Annotated[
        str, typer.Argument(help="Id of the opening's transaction: 64 hexadecimal digits")
    ],
    json: JsonOption = False,
) -> None:
    """That an opening, or any other transaction, stands in a final block."""
    name = parse_hash(transaction, "TRANSACTION")

    async def ask(node: LightNode) -> dict[str, JsonValue]:
        header, found = await node.get_transaction(name)
        facts: dict[str, JsonValue] = {
            "transaction": transaction,
            "kind": type(found.payload).__name__,
            "sender": found.sender.hex(),
        }
        payload = found.payload
        if isinstance(payload, OpenGradient | OpenLoss):
            facts |= {
                "task": payload.task.hex(),
                "step": payload.step,
                "previous": payload.previous.hex(),
                "weights": payload.weights.hex(),
            }
        if isinstance(payload, OpenLoss):
            facts |= {"loss": payload.loss, "ciphertext": payload.ciphertext.hex()}
        if isinstance(payload, OpenGradient):
            facts |= {"credited batches": len(get_credited(payload)), "numbers": len(payload.gradient)}
        return facts | _describe(header)

    _run(context, ask, json)
