"""`bmif audit`: recompute what a block says of training, bit for bit, and show every difference."""

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from consensus.block import Block, Body, Header, Work
from consensus.ceremonies import CreateCeremony
from consensus.errors import ConsensusError
from consensus.identifiers import compute_block_hash, compute_draft_hash, compute_task_id
from consensus.params import ChainParams
from consensus.task import BlobRef, Contribute, Draft, OpenGradient, OpenLoss, PublishTask
from consensus.transaction import SignedTransaction
from consensus.transition import check_transaction
from consensus.types import ZERO_HASH, Address, Hash32, Signature
from consensus.validation import check_block
from consensus.vote import Vote
from node.api.client import ApiError, SyncClient
from node.api.payloads import build_core, decode_payload
from node.api.schemas import BlockModel, TransactionModel
from node.audit import AuditError, Auditor, Finding, Kind, Scope, State, TaskRecord
from node.audit import Progress as AuditProgress
from node.canonical import compute_file_root
from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    connect_operator,
    err,
    load_config,
    out,
    print_json,
    shorten,
)
from node.clock import SystemClock
from node.tasks import TaskDefinition
from node.worker import limit_threads

_ANY_SIZE = replace(ChainParams(), max_body_bytes=2**31, max_transactions=2**31)
"""What an API's JSON could hold: sizes are a rule of the chain, not of what is audited here."""


def rebuild_transaction(model: TransactionModel) -> SignedTransaction:
    """The transaction; its signature is not looked at yet."""
    return SignedTransaction(
        Hash32(bytes.fromhex(model.chain_id)),
        Address(bytes.fromhex(model.sender)),
        model.nonce,
        decode_payload(model.payload),
        Signature(bytes.fromhex(model.signature)),
    )


def rebuild_block(model: BlockModel, chain_id: Hash32) -> Block:
    """The block, if hash, roots and its proposer's signature are right. Raises: AuditError."""
    body = Body(
        tuple(rebuild_transaction(transaction) for transaction in model.transactions),
        None if model.work is None else build_core(Work, model.work),
        tuple(build_core(Vote, vote) for vote in model.votes),
    )
    block = Block(build_core(Header, model.header), Signature(bytes.fromhex(model.signature)), body)
    if compute_block_hash(block.header).hex() != model.hash:
        raise AuditError(f"block {model.hash}: its header hashes to something else")
    try:
        if block.header.height:
            check_block(block, _ANY_SIZE, chain_id)
        for transaction in body.transactions:
            check_transaction(transaction, chain_id)
    except ConsensusError as error:
        raise AuditError(f"block {model.hash}: {error}") from error
    return block


class ApiSource:
    """What a running node gives by its APIs, each thing checked against its hash and signature.

    The node fetches blobs that it does not hold from its peers, by content address.
    """

    def __init__(self, client: SyncClient, chain_id: Hash32, folder: Path) -> None:
        self._client = client
        self._chain_id = chain_id
        self._folder = folder
        self._blocks: dict[str, Block] = {}

    def load_block(self, name: str) -> Block:
        """By hash, height or `head`."""
        if name not in self._blocks:
            model = self._client.call(self._client.api.get_block(name))
            if len(name) == 64 and model.hash != name:
                raise AuditError(f"asked for block {name}, got {model.hash}")
            self._blocks[name] = rebuild_block(model, self._chain_id)
        return self._blocks[name]

    def load_task(self, task: Hash32) -> TaskRecord:
        publication, custody = self._load_publication(task)
        api = self._client.api
        draft = build_core(Draft, self._client.call(api.get_draft(publication.draft.hex())).draft)
        if compute_draft_hash(self._chain_id, draft) != publication.draft:
            raise AuditError(f"draft {publication.draft.hex()}: it hashes to something else")
        given = [self._load_contribution(identifier) for identifier in publication.contributions]
        definition = TaskDefinition(
            task,
            custody,
            draft,
            publication,
            tuple(batch for contribution in given for batch in contribution.training),
            tuple(batch for contribution in given for batch in contribution.validation),
        )
        blocks = dict.fromkeys(
            opening.block for opening in self._client.collect(api.iterate_openings(task.hex()))
        )
        openings = [
            (block.header.height, transaction)
            for block in map(self.load_block, blocks)
            for transaction in block.body.transactions
            if isinstance(transaction.payload, OpenGradient | OpenLoss) and transaction.payload.task == task
        ]
        return TaskRecord(definition, tuple(openings), self._load_committees(draft.ceremony))

    def _load_committees(self, ceremony: Hash32) -> tuple[CreateCeremony, ...]:
        """All who had shares of the task's key, one after the other."""
        found: list[CreateCeremony] = []
        before = ZERO_HASH
        while ceremony != ZERO_HASH:
            payload = self._load_transaction(ceremony, "ceremony").payload
            if not isinstance(payload, CreateCeremony) or payload.renews != before:
                raise AuditError(f"ceremony {ceremony.hex()}: the transaction is another one")
            found.append(payload)
            before = ceremony
            following = self._client.call(self._client.api.get_ceremony(ceremony.hex())).renewed_by
            ceremony = ZERO_HASH if following is None else Hash32(bytes.fromhex(following))
        return tuple(found)

    def _load_publication(self, task: Hash32) -> tuple[PublishTask, Address]:
        """The publication and its sender, who is the custody."""
        height = self._client.call(self._client.api.get_task(task.hex())).published_height
        for transaction in self.load_block(str(height)).body.transactions:
            payload = transaction.payload
            if isinstance(payload, PublishTask) and compute_task_id(payload) == task:
                return payload, transaction.sender
        raise AuditError(f"task {task.hex()} is not published in block {height}")

    def _load_contribution(self, identifier: Hash32) -> Contribute:
        payload = self._load_transaction(identifier, "contribution").payload
        if not isinstance(payload, Contribute):
            raise AuditError(f"contribution {identifier.hex()}: the transaction is another one")
        return payload

    def _load_transaction(self, identifier: Hash32, what: str) -> SignedTransaction:
        found = self._client.call(self._client.api.get_transaction(identifier.hex())).transaction
        transaction = rebuild_transaction(found)
        try:
            known = check_transaction(transaction, self._chain_id)
        except ConsensusError as error:
            raise AuditError(f"{what} {identifier.hex()}: {error}") from error
        if known != identifier:
            raise AuditError(f"{what} {identifier.hex()}: the transaction is another one")
        return transaction

    def fetch(self, ref: BlobRef) -> Path:
        path = self._folder / ref.root.hex()
        if not path.is_file():
            try:
                self._client.call(self._client.api.get_blob(ref, path))
            except ApiError as error:
                raise AuditError(str(error)) from error
            if compute_file_root(path) != ref.root:
                path.unlink()
                raise AuditError(f"blob {ref.root.hex()}: the node gave other bytes")
        return path


def audit(
    block: Annotated[str, typer.Argument(help="Hash or height of a block, or `head`")],
    steps: Annotated[bool, typer.Option("--steps", help="Recompute gradient bundles")] = False,
    losses: Annotated[bool, typer.Option("--losses", help="Recompute loss ciphertexts")] = False,
    batches: Annotated[
        int | None,
        typer.Option("--batches", help="So many batches of a step, at random [default: all]", min=1),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of that choice", min=0)] = 0,
    blobs: Annotated[
        Path | None, typer.Option("--blobs", help="Keep what was fetched here [default: a temporary folder]")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes for ciphertexts", min=1)] = 1,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Recompute a block's training bit for bit and compare it with what the block says.

    Reads blocks and blobs from your own *running* node (its `--config`), which fetches from its peers what it
    lacks; everything else happens in this process, and nothing that the node says is believed: hashes,
    signatures and weights are checked on the way. Gradient bundles are compared with the miners' claims, loss
    ciphertexts with the custody's openings. Without --steps and --losses both are recomputed.

    Exit status: 0 all agrees, 1 something differs, 2 something could not be had.
    """
    scope = Scope(steps or not losses, losses or not steps, batches, seed)
    settings = load_config(config)
    with tempfile.TemporaryDirectory(prefix="bmif-audit-") as scratch, connect_operator(settings) as client:
        folder = Path(scratch) if blobs is None else blobs
        folder.mkdir(parents=True, exist_ok=True)
        chain_id = Hash32(bytes.fromhex(client.call(client.api.get_status()).chain_id))
        source = ApiSource(client, chain_id, folder)
        limit_threads()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as executor, _show(json) as report:
            auditor = Auditor(chain_id, source, executor, Path(scratch), SystemClock())
            try:
                found = source.load_block(block)
                findings = [_describe_block(found), *auditor.audit(found, scope, report)]
            except AuditError as error:
                raise CliError(str(error)) from error
    _print(found, findings, json)
    states = {finding.state for finding in findings}
    if State.MISMATCH in states:
        raise typer.Exit(1)
    if State.MISSING in states:
        raise typer.Exit(2)


def _describe_block(block: Block) -> Finding:
    name = compute_block_hash(block.header).hex()
    count = len(block.body.transactions)
    return Finding(
        Kind.BLOCK, f"height {block.header.height}", name, f"{count} transactions signed", State.OK
    )


@contextmanager
def _show(json: bool) -> Iterator[Callable[[AuditProgress], None]]:
    """A progress bar on standard error."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=json, transient=True) as bar:
        line = bar.add_task("reading the chain", total=None)
        yield lambda progress: bar.update(
            line, description=progress.what, completed=progress.done, total=progress.total
        )


def _print(block: Block, findings: Sequence[Finding], json: bool) -> None:
    counts = Counter(finding.state for finding in findings)
    if json:
        items: list[JsonValue] = [
            {
                "kind": finding.kind.value,
                "subject": finding.subject,
                "claimed": finding.claimed,
                "found": finding.found,
                "state": finding.state.value,
                "seconds": round(finding.seconds, 3),
            }
            for finding in findings
        ]
        print_json(
            {
                "block": compute_block_hash(block.header).hex(),
                "height": block.header.height,
                "agrees": not counts[State.MISMATCH] and not counts[State.MISSING],
                "findings": items,
            }
        )
        return
    colours = {State.OK: "green", State.MISMATCH: "bold red", State.MISSING: "yellow"}
    table = Table("what", "of", "claimed", "recomputed", "state", "s", title_justify="left")
    table.title = f"Block {compute_block_hash(block.header).hex()}, height {block.header.height}"
    for finding in findings:
        is_same = finding.state is State.OK
        table.add_row(
            finding.kind.value,
            finding.subject,
            _cut(finding.claimed) if is_same else finding.claimed,
            _cut(finding.found) if is_same else finding.found,
            f"[{colours[finding.state]}]{finding.state.value}[/]",
            f"{finding.seconds:.2f}" if finding.seconds else "",
        )
    out.print(table)
    agree, differ, unknown = (counts[state] for state in (State.OK, State.MISMATCH, State.MISSING))
    out.print(f"{agree} agree, {differ} differ, {unknown} could not be checked")


def _cut(text: str) -> str:
    """The head of a hash; other text whole."""
    return shorten(text) if len(text) == 64 and " " not in text else text
