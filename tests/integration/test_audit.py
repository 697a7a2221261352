"""Audits against a running node: what was mined honestly agrees, and every altered number is found."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from consensus.block import Block
from consensus.crypto import hash_domain
from consensus.state import TaskStatus
from consensus.task import BlobRef, OpenGradient, OpenLoss
from consensus.types import Hash32
from node.audit import AuditError, Auditor, Finding, Kind, Scope, State, TaskRecord
from node.cli.audit import ApiSource
from node.cli.common import connect_operator
from node.cli.main import app
from node.clock import SystemClock
from node.config import NodeConfig
from node.miner import Miner
from tests.integration.material import BATCHES, Material
from tests.integration.rig import Rig, wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

OTHER = hash_domain("test", b"other")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(material: Material, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A custody and one hospital, which has mined the task to its end."""
    folder = tmp_path_factory.mktemp("audit")
    made = Rig.make(folder / "rig", 2)
    for name in ("node1", "node2"):
        await made.start(name)
    try:
        await made.publish(material, 0.035)
        miner = asyncio.create_task(Miner(made.nodes["node2"].core, 1, folder / "scratch").run())
        await wait_until(lambda: made.get_task().status is TaskStatus.COMPLETE, "the task completes")
        miner.cancel()
        await asyncio.gather(miner, return_exceptions=True)
        await made.wait_agreement()
        yield made
    finally:
        await made.stop()


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as made:
        yield made


def find_block(rig: Rig, *, with_work: bool) -> Block:
    """The first block with a gradient's opening, or the one with work."""
    chain = rig.nodes["node2"].core.chain
    for height in range(1, chain.get_height() + 1):
        block_hash = chain.get_hash_by_height(height)
        block = None if block_hash is None else chain.get_block(block_hash)
        assert block is not None
        payloads = [transaction.payload for transaction in block.body.transactions]
        if block.body.work if with_work else any(isinstance(p, OpenGradient) for p in payloads):
            return block
    raise LookupError("no such block")


async def run_command(rig: Rig, *arguments: str) -> Result:
    """In a thread, since the node serves from this one."""
    config = str(rig.testnet.get_config_path("node2"))
    return await asyncio.to_thread(CliRunner().invoke, app, ["audit", *arguments, "--config", config])


async def test_what_was_mined_agrees(rig: Rig, tmp_path: Path) -> None:
    """The node is asked for batches that only another one has; both kinds of blocks; all or a sample."""
    height = str(find_block(rig, with_work=False).header.height)
    result = await run_command(rig, height, "--json", "--blobs", str(tmp_path / "blobs"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["agrees"]
    kinds = [finding["kind"] for finding in report["findings"]]
    assert kinds.count("bundle") % BATCHES == 0
    assert kinds.count("bundle") > 0
    assert {"block", "openings", "weights"} <= set(kinds)
    sampled = await run_command(
        rig, height, "--steps", "--batches", "1", "--json", "--blobs", str(tmp_path / "blobs")
    )
    kinds = [finding["kind"] for finding in json.loads(sampled.stdout)["findings"]]
    assert kinds.count("bundle") == report_steps(report)
    assert "loss" not in kinds

    work = find_block(rig, with_work=True)
    shown = await run_command(rig, str(work.header.height), "--losses", "--blobs", str(tmp_path / "blobs"))
    assert shown.exit_code == 0, shown.output
    for word in ("milestone", "credits", "loss", "0 differ"):
        assert word in shown.output


def report_steps(report: dict[str, list[dict[str, str]]]) -> int:
    bundles = [finding for finding in report["findings"] if finding["kind"] == "bundle"]
    return len({finding["subject"].partition(",")[0] for finding in bundles})


async def test_a_block_that_is_not_there_ends_in_one_line(rig: Rig) -> None:
    result = await run_command(rig, "99999")
    assert result.exit_code == 1
    assert "Traceback" not in result.output


class Lying:
    """A source that alters what the real one gives."""

    def __init__(self, source: ApiSource) -> None:
        self.source = source
        self.opening: OpenGradient | OpenLoss | None = None
        self.is_poor = False

    def load_task(self, task: Hash32) -> TaskRecord:
        record = self.source.load_task(task)
        altered = self.opening
        if altered is None:
            return record
        openings = tuple(
            (height, replace(transaction, payload=altered))
            if isinstance(transaction.payload, type(altered)) and transaction.payload.step == altered.step
            else (height, transaction)
            for height, transaction in record.openings
        )
        return replace(record, openings=openings)

    def fetch(self, ref: BlobRef) -> Path:
        if self.is_poor:
            raise AuditError("nobody has it")
        return self.source.fetch(ref)


async def audit(
    rig: Rig, executor: Executor, folder: Path, block: Block, opening: object = None, *, poor: bool = False
) -> list[Finding]:
    """Of a block as it is given, whatever its hash."""

    def run() -> list[Finding]:
        settings = NodeConfig.load(rig.testnet.get_config_path("node2"))
        chain_id = rig.nodes["node2"].core.chain.chain_id
        folder.mkdir(exist_ok=True)
        with connect_operator(settings) as client:
            source = Lying(ApiSource(client, chain_id, folder))
            source.opening = opening if isinstance(opening, OpenGradient | OpenLoss) else None
            source.is_poor = poor
            auditor = Auditor(chain_id, source, executor, folder, SystemClock())
            return auditor.audit(block, Scope(), lambda progress: None)

    return await asyncio.to_thread(run)


def alter(block: Block, index: int, payload: OpenGradient | OpenLoss) -> Block:
    transactions = list(block.body.transactions)
    transactions[index] = replace(transactions[index], payload=payload)
    return replace(block, body=replace(block.body, transactions=tuple(transactions)))


async def test_altered_numbers_are_found(rig: Rig, executor: Executor, tmp_path: Path) -> None:
    """Another bundle, loss ciphertext, gradient, credit, weight."""
    block = find_block(rig, with_work=False)
    for index, transaction in enumerate(block.body.transactions):
        opening = transaction.payload
        if isinstance(opening, OpenGradient):
            first = replace(opening.claims[0], bundle=replace(opening.claims[0].bundle, root=OTHER))
            wrong = replace(opening, claims=(first, *opening.claims[1:]))
            found = await audit(rig, executor, tmp_path, alter(block, index, wrong))
            assert [f.subject for f in found if f.state is State.MISMATCH] == [
                f"step {opening.step}, batch 0"
            ]
            pushed = replace(opening, gradient=(opening.gradient[0] + 2**30, *opening.gradient[1:]))
            found = await audit(rig, executor, tmp_path, find_block(rig, with_work=True), pushed)
            assert {f.kind for f in found if f.state is State.MISMATCH} >= {Kind.OPENINGS, Kind.WEIGHTS}
            break
    work = find_block(rig, with_work=True)
    assert work.body.work is not None
    credit = work.body.work.credits[0]
    richer = replace(work.body.work, credits=(replace(credit, batches=credit.batches + 1),))
    heavier = replace(work.body.work, weights=(work.body.work.weights[0] + 1, *work.body.work.weights[1:]))
    for altered, kind in ((richer, Kind.CREDITS), (heavier, Kind.WEIGHTS)):
        changed = replace(work, body=replace(work.body, work=altered))
        found = await audit(rig, executor, tmp_path, changed)
        assert [f.kind for f in found if f.state is State.MISMATCH] == [kind]


async def test_a_wrong_loss_is_found(rig: Rig, executor: Executor, tmp_path: Path) -> None:
    chain = rig.nodes["node2"].core.chain
    for height in range(1, chain.get_height() + 1):
        block_hash = chain.get_hash_by_height(height)
        block = None if block_hash is None else chain.get_block(block_hash)
        assert block is not None
        for index, transaction in enumerate(block.body.transactions):
            if isinstance(transaction.payload, OpenLoss):
                wrong = replace(transaction.payload, ciphertext=OTHER)
                found = await audit(rig, executor, tmp_path, alter(block, index, wrong))
                losses = [finding for finding in found if finding.kind is Kind.LOSS]
                assert [finding.state for finding in losses] == [State.MISMATCH]
                assert losses[0].claimed == OTHER.hex()
                return
    raise LookupError("no loss was opened")


async def test_what_nobody_has_is_said_to_be_missing(rig: Rig, executor: Executor, tmp_path: Path) -> None:
    found = await audit(rig, executor, tmp_path, find_block(rig, with_work=False), poor=True)
    assert {finding.state for finding in found if finding.kind is Kind.BUNDLE} == {State.MISSING}
