"""Evaluators in whole nodes' cores: jobs computed, committed to, shown and paid; liars, restarts, ends."""

from pathlib import Path

import pytest

from consensus.jobs import EvaluatorRecord, ExpireJob, JobStatus, RetireModel
from consensus.task import Transfer
from consensus.types import Amount, Hash32
from node.events import EventKind
from node.jobs import RESULT_PREFIX, JobExpirer, JobPruner
from node.settings import RetentionSettings
from tests.integration.echo_inference import EchoInference, build_model, compute_result
from tests.integration.jobbench import EVIDENCE_MS, JobBench

HONEST = EchoInference()
LIAR = EchoInference(lies=True)


@pytest.fixture
def bench(tmp_path: Path) -> JobBench:
    bench = JobBench(tmp_path)
    bench.register()
    bench.request()
    return bench


def is_settled(bench: JobBench) -> bool:
    return bench.get_record().status is JobStatus.SETTLED


def has_shown(bench: JobBench) -> bool:
    """The first evaluator."""
    parts = bench.get_record().evaluations
    return any(p.result is not None for p in parts if p.evaluator == bench.evaluators[0].address)


def get_result(bench: JobBench) -> bytes:
    root = bench.get_record().result
    assert root is not None
    path = bench.blobs.get_path(root)
    assert path is not None
    return path.read_bytes()


async def test_the_liar_is_caught_and_the_others_are_paid(bench: JobBench) -> None:
    async with bench.evaluating(HONEST, LIAR, HONEST):
        await bench.run_until(lambda: is_settled(bench), "the job is settled")
    assert get_result(bench) == compute_result(build_model())
    state = bench.owner.chain.head_state
    receipt = state.get_receipt(bench.job)
    assert receipt is not None
    honest = {bench.evaluators[number].address for number in (0, 2)}
    assert (set(receipt.evaluators), receipt.caught) == (honest, (bench.evaluators[1].address,))
    assert bench.get_gains() == [-90, 45, 0, 45]
    assert state.get_evaluator("org-2") == EvaluatorRecord(0, 1, 0)
    assert len({core.chain.head_hash for core in bench.cores}) == 1
    events = bench.owner.events.get_since(0)[1]
    statuses = [event.data["status"] for event in events if event.kind is EventKind.JOB]
    assert statuses[0] == "open"
    assert statuses[-1] == "settled"


async def test_two_agree_once_the_time_for_commitments_is_over(bench: JobBench) -> None:
    async with bench.evaluating(HONEST, HONEST):
        await bench.run_until(lambda: is_settled(bench), "the job is settled")
    assert bench.clock.now_ms() >= bench.get_record().request.commit_until
    assert bench.get_gains() == [-90, 45, 45, 0]


async def test_a_restarted_evaluator_goes_on_where_it_was(bench: JobBench, tmp_path: Path) -> None:
    """Between commitment and result: nothing is computed or committed to again."""
    log = tmp_path / "log"
    async with bench.evaluating(EchoInference(log=log), HONEST):
        await bench.run_until(lambda: len(bench.get_record().evaluations) == 2, "both have committed")
        await bench.stop(0)
        bench.tick(40.0)
        await bench.run_until(
            lambda: bench.get_record().status is JobStatus.REVEALING, "the other closes the list"
        )
        bench.start(0, EchoInference(log=log))
        await bench.run_until(lambda: is_settled(bench), "the job is settled")
    assert log.read_text().splitlines() == ["evaluated"]
    assert len(bench.get_record().evaluations) == 2


async def test_a_lost_result_is_computed_again_to_the_same_bytes(bench: JobBench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bench.request(commit_s=1_000, last_s=10_000)
    async with bench.evaluating(EchoInference(log=log), HONEST):
        await bench.run_until(lambda: len(bench.get_record().evaluations) == 2, "both have committed")
        for number in (0, 1):
            await bench.stop(number)
        own = bench.evaluators[0].chain.ledger.get_record(RESULT_PREFIX + bench.job)
        assert own is not None
        assert bench.blobs.remove(Hash32(own))
        log.unlink()
        bench.clock.advance(1_000)
        bench.start(0, EchoInference(log=log))
        await bench.run_until(lambda: has_shown(bench), "it is shown")
    assert log.read_text().splitlines() == ["evaluated"]
    assert bench.blobs.has(Hash32(own))


async def test_what_does_not_fit_is_not_evaluated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that is not as registered, or takes too long; keys that the gate refuses; too small a fee."""
    bench = JobBench(tmp_path)
    bench.register(build_model(weights="encrypted"))
    bench.request()
    first = bench.job
    bench.register(build_model(seconds=4_000.0))
    bench.request()
    long = bench.job
    bench.register()
    bench.request(keys=bench.blobs.put_bytes(bytes(40)))
    second = bench.job
    bench.request(fee=10)
    async with bench.evaluating(HONEST, HONEST, HONEST):
        await bench.run_until(lambda: caplog.text.count("is refused") == 9, "three are refused by all")
        bench.tick(40.0)
    assert "weights: registered as 'clear', the model's bytes say 'encrypted'" in caplog.text
    assert "model: 4000.0 s predicted, longest is 3600" in caplog.text
    assert "keys: no keys" in caplog.text
    for job in (first, long, second, bench.job):
        record = bench.owner.chain.head_state.get_job(job)
        assert record is not None
        assert record.evaluations == ()


async def test_a_job_that_nobody_takes_is_refunded_by_the_requesters_node(bench: JobBench) -> None:
    expirer = JobExpirer(bench.owner)
    for job, record in expirer._jobs.get():
        expirer._consider(job, record)
    assert not len(bench.owner.mempool)
    bench.clock.advance(301.0)
    # No validator: it leaves what others asked for to them. A validator lets the requester go first.
    for other in (JobExpirer(bench.evaluators[0], own_only=True), JobExpirer(bench.evaluators[1])):
        for job, record in other._jobs.get():
            other._consider(job, record)
    assert not len(bench.owner.mempool)
    for job, record in expirer._jobs.get():
        expirer._consider(job, record)
    bench.tick()
    assert bench.get_record().status is JobStatus.REFUNDED
    assert bench.get_gains() == [0, 0, 0, 0]


async def test_blobs_go_when_evidence_is_out_of_date(bench: JobBench) -> None:
    """Results with their evaluators, the rest with whoever uploaded it; a model stays while it is offered."""
    stranger = bench.blobs.put_bytes(b"named by nobody")
    async with bench.evaluating(HONEST, HONEST, HONEST):
        await bench.run_until(lambda: is_settled(bench), "the job is settled")
    record, model = bench.get_record(), bench.owner.chain.head_state.get_model(bench.model)
    assert record.result is not None
    assert model is not None
    pruners = [JobPruner(core, RetentionSettings()) for core in bench.cores]

    def prune() -> None:
        for pruner in pruners:
            pruner.prune()

    prune()
    assert bench.blobs.has(record.result)
    bench.clock.advance(EVIDENCE_MS / 1000)
    bench.request()  # the same keys and request, which are needed again
    bench.tick()
    prune()
    assert not bench.blobs.has(record.result)
    assert all(map(bench.blobs.has, (record.request.request.root, record.request.keys.root)))
    bench.clock.advance(301.0)
    bench.send(ExpireJob(bench.job), bench.evaluators[0])
    bench.send(RetireModel(bench.model))
    prune()
    bench.clock.advance(EVIDENCE_MS / 1000 + 1)
    bench.send(Transfer(bench.evaluators[0].address, Amount(1)))
    prune()
    roots = (record.request.request.root, record.request.keys.root, model.register.model.root)
    assert not any(map(bench.blobs.has, roots))
    assert bench.blobs.has(stranger.root)
