"""A cluster of whole validators with the services of federations, a custody and participants among them.

Rules, ledgers (LevelDB), gossip, blobs, proposing, voting and worker processes are the real ones; what is
computed in them is `EchoFederation`'s.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from consensus.crypto import SigningKey
from consensus.federations import (
    CreateFederation,
    EndedRound,
    FederationRecord,
    Participant,
    RoundOutcome,
    SubmitUpdate,
)
from consensus.state import State
from consensus.task import Milestone
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from node.announcer import EventAnnouncer
from node.custody_keys import build_folder
from node.federation_custody import FederationCustody
from node.federator import Federator
from node.keystore_files import write_private_file
from node.ledger.level import LevelStore
from node.settings import FederationSettings
from tests.integration.cluster import PARAMS, Cluster, Disk, Peer
from tests.integration.echo_federation import (
    KEYS,
    NETWORK,
    PARAMETERS,
    UPDATE_BYTES,
    EchoFederation,
    encode_values,
    encrypt,
)

CUSTODY = 5
"""Of no stake, as a custody may be: it has to fetch, check and add all updates itself."""
MEMBERS = (1, 2, 3, 4)
WEIGHTS = (1, 2, 3, 4)
TARGET = (100, -100, 50)
"""The model that validators like best."""
EVIDENCE_S = 30


class FederationPeer(Peer):
    """A node with the services of federations."""

    def __init__(self, name: str, key: SigningKey, cluster: "FederationCluster", disk: Disk) -> None:
        super().__init__(name, key, cluster, disk)
        home = cluster.directory / name
        number = int(name[4:])
        settings = FederationSettings(data=cluster.data if number in cluster.judges else None)
        work = cluster.works.get(number, EchoFederation())
        self.federator = Federator(self.core, settings, home / "federated", work)
        opener = replace(work, log=cluster.log)
        self.custody = FederationCustody(self.core, home, settings, opener)
        self.idle = cluster.idle
        EventAnnouncer(self.chain, self.core.events, self.core.clock)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(super().run())
                group.create_task(self.federator.run())
                if not self.idle:
                    group.create_task(self.custody.run())
        finally:
            self.chain.ledger.close()


@dataclass
class FederationCluster(Cluster):
    """Validators node1 to node4, who are the participants, too, and node5, the custody."""

    extra: int = 1
    judges: tuple[int, ...] = (1, 2, 3, 4)
    works: dict[int, EchoFederation] = field(default_factory=dict)
    """Of nodes that compute something else than the right thing."""
    federation: Hash32 = ZERO_HASH
    submitted: int = 0
    idle: bool = False
    """Custodies that are started now do nothing by themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = self.directory / "judge.json"
        self.data.write_text(json.dumps(TARGET))
        self.log = self.directory / "openings"
        self.genesis = replace(self.genesis, params=replace(PARAMS, evidence_ms=1_000 * EVIDENCE_S))

    def start(self, *numbers: int) -> None:
        for number in numbers:
            name = f"node{number}"
            store = LevelStore(self.directory / name / "ledger")
            peer = FederationPeer(name, self.keys[name], self, cast(Disk, store))
            self.running[name] = peer
            self._tasks[name] = asyncio.create_task(peer.run(), name=name)

    def __getitem__(self, number: int) -> FederationPeer:
        return cast(FederationPeer, self.running[f"node{number}"])

    async def wait_for(self, condition: Callable[[], bool], what: str, deadline_s: float = 120.0) -> None:
        """Time stands still while anybody fetches or computes, however long that takes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not condition():
            assert loop.time() < end, f"{what}: not within {deadline_s:.0f} s; {self.get_record().round}"
            peers = [self[number] for number in self.numbers]
            if any(peer.federator.is_computing or peer.custody.is_computing for peer in peers):
                await asyncio.sleep(0.01)
            else:
                await self._step()

    @property
    def numbers(self) -> list[int]:
        """Of the nodes that run."""
        return [int(name[4:]) for name in self.running]

    # --- the federation -----------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.peers[0].chain.head_state

    def get_record(self) -> FederationRecord:
        found = self.state.get_federation(self.federation)
        assert found is not None
        return found

    def get_ended(self, number: int) -> EndedRound | None:
        return self.state.get_ended_round(self.federation, number)

    def get_outcomes(self) -> list[RoundOutcome]:
        found = (self.get_ended(number) for number in range(self.get_record().round.number + 1))
        return [item.outcome for item in found if item is not None]

    def get_openings(self) -> list[tuple[int, list[int]]]:
        """What was ever opened: of how many participants, and the numbers."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(item[0], item[1]) for item in map(json.loads, lines)]

    async def create(
        self, train_s: float = 10.0, rounds: int = 4, life_s: float = 600.0, **terms: int
    ) -> None:
        """By the custody; on every node's chain when this returns."""
        blobs = self[CUSTODY].core.blobs
        members = sorted(
            (
                Participant(self.keys[f"node{number}"].address, weight)
                for number, weight in zip(MEMBERS, WEIGHTS, strict=True)
            ),
            key=lambda item: item.address,
        )
        payload = CreateFederation(
            title="echo",
            statement="a test",
            network=blobs.put_bytes(NETWORK),
            model=blobs.put_bytes(encode_values([0] * PARAMETERS)),
            parameters=PARAMETERS,
            keys=blobs.put_bytes(KEYS),
            update_bytes=UPDATE_BYTES,
            participants=tuple(members),
            min_participants=terms.get("min_participants", 2),
            rounds=rounds,
            max_openings=rounds,
            train_ms=Millis(round(1000 * train_s)),
            open_ms=Millis(60_000),
            judge_ms=Millis(20_000),
            clip=1_000,
            noise_std=terms.get("noise_std", 0),
            slack=0,
            ladder=(Milestone(200, Amount(1_000)), Milestone(10, Amount(500))),
            deadline=Millis(self.clock.now_ms() + round(1000 * life_s)),
        )
        # The custody looks at its secrets before it opens, though nothing is encrypted here.
        keys = build_folder(self.directory / f"node{CUSTODY}", "federations", payload.keys.root.hex())
        for path, _ in keys.files:
            write_private_file(path, bytes(32))
        self.federation = self[CUSTODY].send(payload)
        await self.wait_until(
            lambda: all(
                peer.chain.head_state.get_federation(self.federation) is not None for peer in self.peers
            ),
            "the federation is on the chain",
        )

    def submit(self, number: int, values: tuple[int, ...], data: bytes | None = None) -> Hash32:
        """A participant's update of the current round; `data` instead of an honest one."""
        self.submitted += 1
        peer, weight = self[number], WEIGHTS[MEMBERS.index(number)]
        update = peer.core.blobs.put_bytes(encrypt(values, weight, self.submitted) if data is None else data)
        return peer.send(SubmitUpdate(self.federation, self.get_record().round.number, update))

    async def wait_ended(self, number: int) -> EndedRound:
        await self.wait_for(lambda: self.get_ended(number) is not None, f"round {number} ends")
        found = self.get_ended(number)
        assert found is not None
        return found
