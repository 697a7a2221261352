"""Blobs of federations: kept as evidence, then dropped; the model that stands is kept, and so are others'."""

from pathlib import Path

from consensus.federations import (
    CloseRound,
    CreateFederation,
    EndFederation,
    FederationStatus,
    Participant,
    RoundOutcome,
    SubmitUpdate,
)
from consensus.task import Transfer
from consensus.types import Amount, Millis
from node.federation_retention import FederationPruner
from node.federations import compute_round_owner
from node.jobs import JobPruner, note_held
from node.settings import RetentionSettings
from tests.integration.jobbench import EVIDENCE_MS, JobBench


async def test_what_was_fetched_or_uploaded_for_a_round_goes_when_it_is_no_evidence(tmp_path: Path) -> None:
    bench = JobBench(tmp_path)
    put = bench.blobs.put_bytes
    network, model, keys = put(b"network"), put(b"model"), put(b"keys")
    federation = bench.send(
        CreateFederation(
            title="lungs",
            statement="",
            network=network,
            model=model,
            parameters=3,
            keys=keys,
            update_bytes=7,
            participants=tuple(
                sorted((Participant(c.address, 1) for c in bench.evaluators), key=lambda item: item.address)
            ),
            min_participants=2,
            rounds=2,
            max_openings=2,
            train_ms=Millis(10_000),
            open_ms=Millis(10_000),
            judge_ms=Millis(10_000),
            clip=10,
            noise_std=0,
            slack=0,
            ladder=(),
            deadline=Millis(bench.clock.now_ms() + 5 * EVIDENCE_MS),
        )
    )
    updates = [put(f"update{number}".encode()) for number in (1, 2)]
    stranger = put(b"named by nobody")
    for core, update in zip(bench.evaluators, updates, strict=False):
        bench.send(SubmitUpdate(federation, 0, update), core)
    pruners: list[FederationPruner] = []
    for core in bench.cores:
        job_pruner = JobPruner(core, RetentionSettings())
        pruner = FederationPruner(core, RetentionSettings())
        pruner.spare(job_pruner.get_needed)
        pruners.append(pruner)

    def prune() -> None:
        for pruner in pruners:
            pruner.prune()

    # Here before it was named: note_held notes nothing, and nobody but its participant drops it.
    note_held(bench.owner, compute_round_owner(federation, 0), updates[0].root)
    bench.clock.advance(EVIDENCE_MS / 1000)
    prune()
    assert all(bench.blobs.has(update.root) for update in updates)  # its round still runs

    bench.send(CloseRound(federation, 0))
    ended = bench.owner.chain.head_state.get_ended_round(federation, 0)
    assert ended is not None
    assert ended.outcome is RoundOutcome.LAPSED
    prune()
    bench.clock.advance(EVIDENCE_MS / 1000 - 5)
    bench.tick()
    prune()
    assert all(bench.blobs.has(update.root) for update in updates)
    bench.clock.advance(10.0)
    bench.send(Transfer(bench.evaluators[0].address, Amount(1)))
    prune()
    assert not any(bench.blobs.has(update.root) for update in updates)
    assert all(map(bench.blobs.has, (network.root, model.root, keys.root, stranger.root)))

    bench.clock.advance(5 * EVIDENCE_MS / 1000)
    bench.send(EndFederation(federation))
    record = bench.owner.chain.head_state.get_federation(federation)
    assert record is not None
    assert record.status is FederationStatus.ENDED
    prune()
    bench.clock.advance(EVIDENCE_MS / 1000 + 1)
    bench.send(Transfer(bench.evaluators[0].address, Amount(1)))
    prune()
    assert not bench.blobs.has(keys.root)
    assert all(map(bench.blobs.has, (network.root, model.root, stranger.root)))
