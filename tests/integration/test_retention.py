"""Blobs go when their task's evidence is out of date, and not a moment earlier; archives keep them."""

from pathlib import Path

import pytest

from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.task import ExpireTask, Transfer
from consensus.types import Amount, Hash32
from node.miner import Miner
from node.retention import Pruner, iterate_roots
from node.settings import RetentionSettings
from tests.integration.bench import Bench

ARCHIVE = RetentionSettings(policy="archive")


def list_roots(bench: Bench) -> set[Hash32]:
    definition = bench.custody.get_definition(bench.task)
    assert definition is not None
    return set(iterate_roots(definition))


def list_held(bench: Bench) -> set[Hash32]:
    return {ref.root for ref in bench.blobs.get_refs()}


def pass_time(bench: Bench, milliseconds: int) -> None:
    """To a block that is so much later."""
    bench.clock.advance(milliseconds / 1000)
    bench.include(Transfer(bench.miners[0].address, Amount(1)))


async def test_a_promise_is_kept_until_the_evidence_is_out_of_date(bench: Bench) -> None:
    core, roots = bench.custody, list_roots(bench)
    pruner = Pruner(core, RetentionSettings())
    evidence_ms = core.chain.params.evidence_ms
    pass_time(bench, 3_600_000)
    pruner.prune()
    assert roots <= list_held(bench)  # open, however old

    bench.include(ExpireTask(bench.task))
    pruner.prune()
    ended = core.chain.head.time
    pass_time(bench, evidence_ms - 4_000)
    assert core.chain.head.time < ended + evidence_ms
    Pruner(core, RetentionSettings()).prune()  # after a restart it is dated as before
    assert roots <= list_held(bench)
    pass_time(bench, 4_000)
    pruner.prune()
    assert not roots & list_held(bench)
    pruner.prune()  # and again: nothing to do


async def test_an_archive_keeps_everything(bench: Bench) -> None:
    roots = list_roots(bench)
    pass_time(bench, 3_600_000)
    bench.include(ExpireTask(bench.task))
    pass_time(bench, 2 * bench.custody.chain.params.evidence_ms)
    await Pruner(bench.custody, ARCHIVE).run()
    assert roots <= list_held(bench)


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (RetentionSettings(bundle_steps=0), [3]),
        (RetentionSettings(bundle_steps=2), [1, 2, 3]),
        (ARCHIVE, [0, 1, 2, 3]),
    ],
)
async def test_a_miner_keeps_the_bundles_of_its_last_steps(
    bench: Bench, tmp_path: Path, retention: RetentionSettings, kept: list[int]
) -> None:
    """Claims end with their step, bundles some steps later, at once when the task ends; over restarts."""
    core = bench.miners[0]
    refs = []
    for step in range(4):
        ref = bench.blobs.put_bytes(f"bundle of step {step}".encode())
        refs.append(ref)
        claim = sign_claim(core.key, core.chain.chain_id, bench.task, step, 0, ref)
        key = b"claim/" + claim.task + claim.step.to_bytes(4, "big") + claim.batch.to_bytes(4, "big")
        core.chain.ledger.put_record(key, encode(claim))
    for step in (2, 3):
        miner = Miner(core, 1, tmp_path, retention)
        miner._load_claims()
        miner._forget_before(bench.task, step)
        assert {claim.step for claim in miner._own.values()} == set(range(step, 4))
    assert [step for step, ref in enumerate(refs) if bench.blobs.has(ref.root)] == kept
    Miner(core, 1, tmp_path, retention)._forget_closed([])
    left = [step for step, ref in enumerate(refs) if bench.blobs.has(ref.root)]
    assert left == ([0, 1, 2, 3] if retention.policy == "archive" else [3])  # of which a claim is still there
