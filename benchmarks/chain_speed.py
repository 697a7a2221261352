"""Block verification and transfers over a synced LevelDB: `python -m benchmarks.chain_speed`.

A source makes the blocks; a second core that has never seen them judges and stores their bytes, as a
node does that gets them from a peer, with every listener of a running node attached.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, Stopwatch, describe_spread, format_table
from benchmarks.source import (
    CUSTODY,
    KEYS,
    MINERS,
    PAYERS,
    Source,
    SourceError,
    TaskPlan,
    Transfers,
    build_claims,
    build_genesis,
    build_gradient,
    build_loss,
    get_target,
    open_core,
    publish_task,
    require_task,
)
from consensus.codec import decode, encode
from consensus.crypto import SigningKey, hash_domain
from consensus.transaction import SignedTransaction
from consensus.turns import get_carrier_entitled_time
from consensus.work import LossCheck
from node.chain import ImportStatus
from node.clock import ManualClock
from node.core import Core
from node.proposer import Proposer

MAX_BLOCK_S = 0.020
MIN_TRANSFERS_PER_S = 500.0
CIPHERTEXT = hash_domain("bench", b"loss ciphertext")


@dataclass(frozen=True, slots=True)
class Times:
    """Of judging and storing blocks one after the other."""

    work: Stopwatch
    carrier: Stopwatch


def _take(core: Core, clock: ManualClock, data: bytes, watch: Stopwatch) -> None:
    clock.advance(3_600.0)
    with watch:
        outcome = core.take_block(data)
    if outcome.status is not ImportStatus.ACCEPTED:
        raise SourceError(f"a block was not accepted: {outcome.status} {outcome.reason} {outcome.detail}")


def measure_blocks(directory: Path, milestones: int, carriers: int) -> Times:
    """Work blocks with their verdict at hand, and carrier blocks of ten transfers."""
    genesis = build_genesis()
    clock, later = ManualClock(genesis.time), ManualClock(genesis.time)
    times, other = Times(Stopwatch(), Stopwatch()), Stopwatch()
    with (
        open_core(genesis, CUSTODY, clock, directory / "source") as making,
        open_core(genesis, MINERS[0], later, directory / "judge") as judge,
    ):
        source = Source(making, clock, KEYS)
        task, blocks = publish_task(source, TaskPlan(milestones, 4, 2, milestones))
        publication = making.chain.head_state.get_publication(task)
        if publication is None:
            raise SourceError("the task was not published")
        for block in blocks:
            _take(judge, later, block, other)
        for step in range(milestones):
            # A first loss that meets nothing, then one rung a step.
            state = require_task(making, task)
            if step == 0:
                first = source.sign(CUSTODY, build_loss(task, state, 2 * 10**6, CIPHERTEXT), counted=False)
                _take(judge, later, source.carry([first]), other)
                state = require_task(making, task)
            claims = build_claims(source.chain.chain_id, task, step, publication)
            opening = source.sign(CUSTODY, build_gradient(task, state, claims), counted=False)
            _take(judge, later, source.carry([opening]), other)
            state = require_task(making, task)
            loss = source.sign(CUSTODY, build_loss(task, state, get_target(step), CIPHERTEXT), counted=False)
            _take(judge, later, source.carry([loss]), other)
            for core in (making, judge):
                check = LossCheck(task, state.step, state.weights)
                core.work.verdicts.remember(check, CIPHERTEXT)
            best = require_task(making, task).qualified[0].credits[0].miner
            _take(judge, later, source.take_milestone(task, state.weights, KEYS[best]), times.work)
        transfers = Transfers(source.chain.chain_id, PAYERS)
        for _ in range(carriers):
            _take(judge, later, source.carry(transfers.take(10)), times.carrier)
    return times


@dataclass(frozen=True, slots=True)
class TransferTimes:
    transfers: int
    admit: Stopwatch
    """From their bytes into the proposer's mempool."""
    propose: Stopwatch
    """Building the blocks out of the mempool and storing them."""
    follow: Stopwatch
    """Another node's judging and storing of those blocks."""


def measure_transfers(directory: Path, transfers: int) -> TransferTimes:
    """Transfers through a proposer's own loop: into its mempool, out of it into full blocks."""
    genesis = build_genesis()
    clock, later = ManualClock(genesis.time), ManualClock(genesis.time)
    result = TransferTimes(transfers, Stopwatch(), Stopwatch(), Stopwatch())
    with (
        open_core(genesis, CUSTODY, clock, directory / "proposer") as core,
        open_core(genesis, MINERS[0], later, directory / "follower") as follower,
    ):
        waiting = [encode(t) for t in Transfers(core.chain.chain_id, PAYERS).take(transfers)]
        with result.admit:
            admitted = [core.admit(decode(SignedTransaction, data)).accepted for data in waiting]
        if not all(admitted):
            raise SourceError("a transfer was not admitted")
        while len(core.mempool):
            clock.advance(_get_wait(core, CUSTODY))
            with result.propose:
                is_proposed = Proposer(core).propose()
            data = core.chain.ledger.get_block(core.chain.head_hash)
            if not is_proposed or data is None:
                raise SourceError("nothing was proposed")
            _take(follower, later, data, result.follow)
    return result


def _get_wait(core: Core, key: SigningKey) -> float:
    """Seconds until the key's turn."""
    chain, now = core.chain, core.clock.now_ms()
    time = get_carrier_entitled_time(chain.head_state, chain.params, chain.head, key.address, now)
    if time is None:
        raise SourceError("the proposer is no validator")
    return max(0.0, (time - now) / 1000)


def run(directory: Path, *, quick: bool) -> list[Figure]:
    """The figures of this module; `directory` is left full."""
    blocks = measure_blocks(directory / "blocks", 5 if quick else 40, 50 if quick else 300)
    figures = [
        Figure(
            what,
            describe_spread(watch.walls),
            "<= 20 ms",
            statistics.median(watch.walls) <= MAX_BLOCK_S,
            describe_spread(watch.cpus),
        )
        for what, watch in (
            ("rest of verification: work block, 112 weights, stored", blocks.work),
            ("rest of verification: carrier block, 10 transfers, stored", blocks.carrier),
        )
    ]
    times = measure_transfers(directory / "transfers", 1_000 if quick else 6_000)

    def describe(what: str, watches: list[Stopwatch], *, promised: bool) -> Figure:
        rate = times.transfers / sum(watch.wall_s for watch in watches)
        cpu_rate = times.transfers / sum(watch.cpu_s for watch in watches)
        return Figure(
            what,
            f"{rate:,.0f}/s",
            f">= {MIN_TRANSFERS_PER_S:.0f}/s" if promised else "",
            rate >= MIN_TRANSFERS_PER_S if promised else None,
            f"{cpu_rate:,.0f}/s",
        )

    figures += [
        describe("signed transfers applied and stored, from a block's bytes", [times.follow], promised=True),
        describe("the same at the proposer: built into blocks and stored", [times.propose], promised=True),
        describe("the same with admission to the mempool", [times.admit, times.propose], promised=True),
        describe("admission to the mempool alone", [times.admit], promised=False),
    ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(format_table(run(Path(scratch), quick=options.quick)))


if __name__ == "__main__":
    main()
