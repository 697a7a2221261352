"""Cores of one chain on a fake clock with evaluators beside them, telling each other everything at once.

Worker processes are real; blobs lie in one store, so that nothing has to be fetched.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from consensus.crypto import SigningKey
from consensus.jobs import JobRecord, RegisterModel, RequestInference
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from node.announcer import EventAnnouncer
from node.blobs import BlobStore
from node.chain import Chain
from node.clock import ManualClock
from node.core import Core
from node.evaluator import Evaluator
from node.events import EventBus
from node.fetch import BlobFetcher
from node.gossip.messages import Kind
from node.history import WeightHistory
from node.ledger.store import MemoryStore
from node.mempool import Mempool
from node.proposer import Proposer
from node.settings import EvaluatorSettings
from node.work import VerdictBook, WorkService
from tests.integration.echo_inference import KEYS, REQUEST, RESULT_BYTES, EchoInference, build_model
from workloads.inference import InferenceWorkload

OWNER = SigningKey(b"o" * 32)
"""Of the registered model; it asks for the jobs, too, and may not evaluate."""
EVALUATORS = tuple(SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
EVIDENCE_MS = 600_000
MONEY = 10**6


class Relay:
    """Carries transactions and blocks to every core at once."""

    def __init__(self, cores: list[Core]) -> None:
        self._cores = cores

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        for core in self._cores:
            if kind is Kind.TRANSACTION:
                core.take_transaction(data, object_id)
            elif kind is Kind.BLOCK:
                core.take_block(data)


class JobBench:
    """Four validators of equal stake; all but the first may evaluate."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.directory = directory
        self.blobs = BlobStore(directory / "blobs")
        keys = (OWNER, *EVALUATORS)
        names = [f"org-{number}" for number in range(4)]
        self._genesis = Genesis(
            "jobs",
            self.clock.now_ms(),
            ChainParams(evidence_ms=EVIDENCE_MS),
            tuple(GenesisAccount(k.address, Amount(MONEY), n) for k, n in zip(keys, names, strict=True)),
            tuple(Validator(key.address, 10) for key in keys),
            tuple(names[1:]),
        )
        self.cores: list[Core] = []
        for key in keys:
            self._build(key)
        self.owner, *self.evaluators = self.cores
        self._running: dict[int, tuple[Evaluator, asyncio.Task[None]]] = {}
        self.model = self.job = ZERO_HASH

    def _build(self, key: SigningKey) -> None:
        verdicts = VerdictBook()
        work = WorkService(self.blobs, verdicts, 1)
        chain = Chain(self._genesis, MemoryStore(), self.clock, verdicts)
        events = EventBus(256, self.clock.now_ms())
        core = Core(chain, Mempool(), self.blobs, work, WeightHistory(chain.ledger), events, self.clock, key)
        chain.on_head_change(core.on_head_change)
        chain.on_accepted(lambda block, data: core.announce(Kind.BLOCK, block, data))
        EventAnnouncer(chain, events, self.clock)
        core.attach_network(Relay(self.cores), BlobFetcher(self.blobs, list, self.clock))
        self.cores.append(core)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, seconds: float = 0.5) -> None:
        """Let time pass; whoever is entitled proposes."""
        self.clock.advance(seconds)
        for core in self.cores:
            while Proposer(core).propose():
                pass

    async def run_until(self, condition: Callable[[], bool], what: str, deadline_s: float = 120.0) -> None:
        """Ticks, until it holds; time stands still while anybody evaluates, however long that takes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not condition():
            assert loop.time() < end, f"{what}: not within {deadline_s:.0f} s"
            if not any(evaluator.is_busy for evaluator, _ in self._running.values()):
                self.tick()
            await asyncio.sleep(0.02)

    def send(self, payload: Payload, core: Core | None = None) -> Hash32:
        """Signed by the owner's core, or another, and in a block when this returns."""
        core = core or self.owner
        admission = core.admit(core.sign(payload))
        assert admission.accepted, admission
        for _ in range(20):
            if core.chain.ledger.find_transaction(admission.id) is not None:
                return admission.id
            self.tick()
        raise AssertionError(f"{payload} is in no block")

    # --- jobs ---------------------------------------------------------------------------------

    def register(self, model: bytes | None = None, price: int = 10, keys_bytes: int = len(KEYS)) -> None:
        ref = self.blobs.put_bytes(build_model() if model is None else model)
        expires = Millis(self.clock.now_ms() + 10**9)
        self.model = self.send(
            RegisterModel(
                "diagnosis",
                "echo",
                "a test",
                ZERO_HASH,
                ref,
                None,
                keys_bytes,
                len(REQUEST),
                RESULT_BYTES,
                Amount(price),
                expires,
            )
        )

    def request(
        self, fee: int = 100, commit_s: float = 30, last_s: float = 300, keys: BlobRef | None = None
    ) -> None:
        now = self.clock.now_ms()
        self.job = self.send(
            RequestInference(
                self.model,
                self.blobs.put_bytes(REQUEST),
                keys or self.blobs.put_bytes(KEYS),
                Amount(fee),
                Millis(now + round(commit_s * 1000)),
                Millis(now + round(last_s * 1000)),
            )
        )

    def get_record(self, core: Core | None = None) -> JobRecord:
        record = (core or self.owner).chain.head_state.get_job(self.job)
        assert record is not None
        return record

    def get_gains(self) -> list[int]:
        """What each account has more than at the beginning."""
        state = self.owner.chain.head_state
        return [state.get_account(core.address).balance - MONEY for core in self.cores]

    # --- evaluators ---------------------------------------------------------------------------

    def start(self, number: int, workload: EchoInference) -> None:
        """An evaluator, as `bmif run` starts it."""

        def get_workload(kind: str) -> InferenceWorkload:
            assert kind == workload.kind
            return workload

        evaluator = Evaluator(
            self.evaluators[number],
            EvaluatorSettings(enabled=True),
            self.directory / f"scratch-{number}",
            get_workload,
        )
        self._running[number] = evaluator, asyncio.create_task(evaluator.run())

    async def stop(self, number: int) -> None:
        _, task = self._running.pop(number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def evaluating(self, *workloads: EchoInference) -> AsyncIterator[None]:
        """One evaluator for each, until the block ends."""
        for number, workload in enumerate(workloads):
            self.start(number, workload)
        try:
            yield
        finally:
            for number in list(self._running):
                await self.stop(number)
