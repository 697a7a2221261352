"""A cluster of whole nodes that carry a task, whose custody and miners do what a caller says.

Rules, ledgers (LevelDB), gossip, proposing, voting, settling and evidence are the real ones. No ciphertext is
computed: bundles and loss ciphertexts are given hashes, and every node counts the losses as recomputed.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from consensus.block import Block
from consensus.crypto import SigningKey
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.params import GenesisAccount
from consensus.payload import Payload, Verdict
from consensus.proposal import get_carrier_proposer
from consensus.state import State, TaskState, TaskStatus
from consensus.task import Available, Claim, DraftTask
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Millis
from consensus.vote import Vote
from consensus.work import LossCheck
from node.equivocation import OpeningWitness
from node.ledger.level import LevelStore
from node.validator import Expirer, Settler
from tests.integration.cluster import OUTSIDER, PARAMS, STEP_S, Cluster, Disk, Peer, build_key
from tests.unit.consensus.world import (
    CIPHERTEXT,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_publication,
    count_money,
)

CUSTODY = build_key(90)
COLLEAGUE = build_key(91)
"""Of the custody's organisation; no node of the cluster is it unless a caller says so."""
BALANCE = Amount(1_000_000)
EVIDENCE_S = 15
VERDICT_S = 6
LIFE_S = 240
IDLE_STEP_S = 0.5
"""Of time in which nothing is expected to happen."""


class TaskPeer(Peer):
    """A node with all of a validator's duties that need no ciphertexts."""

    def __init__(self, name: str, key: SigningKey, cluster: Cluster, disk: Disk) -> None:
        super().__init__(name, key, cluster, disk)
        OpeningWitness(self.core)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(super().run())
                group.create_task(Settler(self.core).run())
                group.create_task(Expirer(self.core).run())
        finally:
            self.chain.ledger.close()

    @property
    def state(self) -> State:
        return self.chain.head_state


class Script(World):
    """Builds what a custody, a miner or a forger sends, from any node's head; adds no block itself."""

    keys: dict[Address, SigningKey]

    def build_votes(self, voters: Sequence[SigningKey] | None = None) -> tuple[Vote, ...]:
        return ()

    def get_turn(self, after: int) -> SigningKey:
        turn = get_carrier_proposer(self.state, self.params, self.header, Millis(self.header.time + after))
        assert turn is not None
        return self.keys[turn]

    def forge_work_block(self, key: SigningKey, time: Millis) -> Block:
        """The next milestone's block in this key's name at this time, whether or not it may have it."""
        template = self.build_carrier()
        body = replace(template.body, work=self.build_work())
        return self.forge(template, key=key, body=body, time=time)


@dataclass
class TaskCluster(Cluster):
    """Four validators, node1 to node4, and one node without stake, node5, of the organisation `friend`.

    The custody is an account of the organisation `clinic`, whose transactions come in at any node.
    """

    friend: str = "friend"
    extra: int = 1
    task: Hash32 = ZERO_HASH

    def __post_init__(self) -> None:
        super().__post_init__()
        organisations = {name: f"org-{number}" for number, name in enumerate(self.names, 1)}
        organisations[self.names[-1]] = self.friend
        clinic = tuple(GenesisAccount(key.address, BALANCE, "clinic") for key in (CUSTODY, COLLEAGUE))
        self.genesis = replace(
            self.genesis,
            params=replace(PARAMS, verdict_ms=1_000 * VERDICT_S, evidence_ms=1_000 * EVIDENCE_S),
            accounts=clinic
            + tuple(
                GenesisAccount(key.address, BALANCE, organisations[name]) for name, key in self.keys.items()
            ),
            mining_organisations=tuple(sorted({*organisations.values(), "clinic"})),
        )

    def start(self, *numbers: int) -> None:
        for number in numbers:
            name = f"node{number}"
            store = LevelStore(self.directory / name / "ledger")
            peer = TaskPeer(name, self.keys[name], self, cast(Disk, store))
            self.running[name] = peer
            self._tasks[name] = asyncio.create_task(peer.run(), name=name)

    # --- what is -------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Of the first running node."""
        return self.peers[0].chain.head_state

    @property
    def task_state(self) -> TaskState:
        found = self.state.get_task(self.task)
        assert found is not None
        return found

    def get_balance(self, key: SigningKey) -> int:
        return self.state.get_account(key.address).balance

    def count_money(self) -> int:
        keys = (CUSTODY, COLLEAGUE, *self.keys.values())
        return count_money(self.state, [*(key.address for key in keys), OUTSIDER])

    def build_script(self, at: int = 1) -> Script:
        """At a node's head."""
        script = Script(self.genesis)
        script.keys = {key.address: key for key in self.keys.values()}
        script.state, script.header = self[at].chain.head_state, self[at].chain.head
        script.task = self.task
        task = script.state.get_task(self.task)
        if task is not None:
            script.weights[task.step] = task.weights
        return script

    async def wait_for(
        self, condition: Callable[[TaskState], bool], what: str, most_s: float = 120.0
    ) -> float:
        """Let time pass until every running node's head says so of the task; seconds of the cluster."""

        def holds() -> bool:
            tasks = [peer.chain.head_state.get_task(self.task) for peer in self.peers]
            return all(task is not None and condition(task) for task in tasks)

        return await self.wait_until(holds, what, most_s)

    async def wait_agreement(self) -> float:
        return await self.wait_until(
            lambda: len({peer.chain.head_hash for peer in self.peers}) == 1, "one head", 120.0
        )

    async def wait_idle(self, condition: Callable[[], bool], what: str, most_s: float) -> float:
        """Let time pass in larger steps until the condition holds; seconds of the cluster."""
        begun = self.clock.monotonic()
        while not condition():
            if self.clock.monotonic() > begun + most_s:
                raise TimeoutError(f"{what}: not within {most_s:.0f} s of the cluster's time")
            self.clock.advance(IDLE_STEP_S - STEP_S)
            await self.pass_time(STEP_S)
        return self.clock.monotonic() - begun

    async def pass_evidence_time(self) -> None:
        """Until evidence of what happened so far is out of date, and a block has released what was locked."""
        end = self.clock.monotonic() + EVIDENCE_S
        await self.wait_idle(lambda: self.clock.monotonic() > end, "time passes", EVIDENCE_S + 1)
        await self.finalize()

    # --- what is sent --------------------------------------------------------------------------

    def sign(self, key: SigningKey, payload: Payload, at: int = 1) -> SignedTransaction:
        return self.build_script(at).sign(key, payload)

    def admit(self, transaction: SignedTransaction, at: int = 1) -> Hash32:
        admission = self[at].core.admit(transaction)
        assert admission.accepted, (admission.reason, admission.detail)
        return admission.id

    async def carry(self, *transactions: SignedTransaction, at: int = 1, among: Sequence[int] = ()) -> None:
        """In a block of every running node's head chain, or of those named, when this returns."""
        names = [self.admit(transaction, at) for transaction in transactions]
        peers = [self[number] for number in among] or self.peers
        await self.wait_until(
            lambda: all(peer.find_height(name) is not None for peer in peers for name in names),
            "it is included",
        )

    async def publish(self, *promising: int, **changes: object) -> None:
        """A task that these nodes have promised the blobs of; open if they are enough."""
        number = len(self.state.get_tasks())
        keys = {name: build_blob(f"{name} {number}") for name in ("public_key", "relin_keys")}
        draft = build_draft(**keys)
        await self.carry(self.sign(CUSTODY, DraftTask(draft)))
        draft_hash = compute_draft_hash(self[1].chain.chain_id, draft)
        contribution = self.sign(self.keys["node2"], build_contribution(draft_hash))
        await self.carry(contribution)
        life = {"deadline": Millis(self.clock.now_ms() + 1_000 * LIFE_S)}
        publication = build_publication(
            draft_hash, (compute_transaction_id(contribution),), **(life | changes)
        )
        self.task = compute_task_id(publication)
        await self.carry(self.sign(CUSTODY, publication))
        promises = [self.sign(self.keys[f"node{number}"], Available(self.task)) for number in promising]
        await self.carry(*promises)

    async def open(self, **changes: object) -> None:
        await self.publish(1, 2, 3, **changes)
        assert self.task_state.status is TaskStatus.OPEN
        height = self.task_state.published_height
        await self.wait_until(lambda: all(peer.final >= height for peer in self.peers), "it is final")

    async def open_gradient(self, *miners: int, claims: tuple[Claim, ...] = ()) -> None:
        """The next step, its batches credited to these nodes in turn."""
        script = self.build_script()
        keys = [self.keys[f"node{number}"] for number in miners]
        opening = script.build_gradient(claims=claims or script.build_claims(self.task_state.step, keys))
        await self.carry(self.sign(CUSTODY, opening))

    async def open_loss(self, loss: int) -> None:
        """Of the current step; every running node counts it as recomputed."""
        self.trust_loss()
        await self.carry(self.sign(CUSTODY, self.build_script().build_loss(loss)))

    def trust_loss(self) -> None:
        check = LossCheck(self.task, self.task_state.step, self.task_state.weights)
        for peer in self.peers:
            peer.core.work.verdicts.remember(check, CIPHERTEXT)

    async def take_milestone(self, loss: int, *miners: int, steps: int = 2) -> None:
        """So many steps by these miners, then a loss that meets a rung; taken when this returns."""
        taken = self.task_state.next_taken_rung
        for _ in range(steps):
            await self.open_gradient(*miners)
        await self.open_loss(loss)
        await self.wait_for(lambda task: task.next_taken_rung > taken, "a work block takes the milestone")

    def build_verdict(self, number: int, *, accept: bool, at: int = 0) -> SignedTransaction:
        """A validator's word on one of the unsettled milestones."""
        milestone = self.task_state.unsettled[at].milestone
        verdict = Verdict(self.task, milestone.loss_opening, accept, 900, 800)
        return self.sign(self.keys[f"node{number}"], verdict)
