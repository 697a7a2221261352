"""Key ceremonies by members' services on one chain: faults of a member, and what the others do.

Rules, ledgers (LevelDB), gossip, blobs, blocks, votes, worker processes and cryptography are the real ones,
at the small ring.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from consensus.ceremonies import (
    CeremonyRecord,
    CeremonyStatus,
    CommitRound,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.ceremony import compute_commitment, is_committed
from consensus.crypto import SigningKey
from consensus.types import ZERO_HASH, Hash32, Millis
from node.ceremonies import Ceremonies, CeremonyError, get_ceremony_folder, join_ceremony
from node.ledger.level import LevelStore
from tests.integration.cluster import Cluster, Disk, Peer
from workloads.ceremony import ROUNDS, get_contribution_bytes

PRESET = "test-2048-60x3"
MEMBERS = (1, 2, 3)
KEPT = ["noise.key", "public.key", "relin.keys", "secret.key"]


class Member(Peer):
    """A node with the service of ceremonies."""

    def __init__(self, name: str, key: SigningKey, cluster: "Committee", disk: Disk) -> None:
        super().__init__(name, key, cluster, disk)
        self.keys_dir = cluster.directory / name / "keys"
        self.service = Ceremonies(self.core, self.keys_dir, allow_insecure=True)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(super().run())
                group.create_task(self._serve())
        finally:
            self.chain.ledger.close()

    async def _serve(self) -> None:
        """Once there is a network, as in a daemon."""
        seen = -1
        while self.core._fetcher is None:
            seen = await self.core.pulse.wait(seen, 1.0)
        await self.service.run()


@dataclass
class Committee(Cluster):
    """Validators node1 to node4; the first three are members."""

    ceremony: Hash32 = ZERO_HASH

    def start(self, *numbers: int) -> None:
        for number in numbers:
            name = f"node{number}"
            store = LevelStore(self.directory / name / "ledger")
            peer = Member(name, self.keys[name], self, cast(Disk, store))
            self.running[name] = peer
            self._tasks[name] = asyncio.create_task(peer.run(), name=name)

    def __getitem__(self, number: int) -> Member:
        return cast(Member, self.running[f"node{number}"])

    @property
    def record(self) -> CeremonyRecord:
        found = self[4].chain.head_state.get_ceremony(self.ceremony)
        assert found is not None
        return found

    async def create(
        self,
        threshold: int = 2,
        life_s: int = 3_600,
        preset: str = PRESET,
        numbers: tuple[int, ...] = MEMBERS,
        renews: Hash32 = ZERO_HASH,
    ) -> None:
        members = tuple(sorted(self.keys[f"node{number}"].address for number in numbers))
        deadline = Millis(self.clock.now_ms() + 1_000 * life_s)
        self.ceremony = self[1].send(CreateCeremony("test", preset, members, threshold, deadline, renews))
        await self.wait_until(
            lambda: all(peer.chain.head_state.get_ceremony(self.ceremony) is not None for peer in self.peers),
            "the ceremony is on the chain",
        )

    def join(self, *numbers: int) -> None:
        for number in numbers:
            join_ceremony(self[number].core, self.ceremony, allow_insecure=True)

    async def wait_for(self, condition: Callable[[], bool], what: str, deadline_s: float = 120.0) -> None:
        """Time stands still while anybody fetches or computes, however long that takes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not condition():
            assert loop.time() < end, f"{what}: not within {deadline_s:.0f} s; {self.record}"
            if any(cast(Member, peer).service.is_computing for peer in self.peers):
                await asyncio.sleep(0.01)
            else:
                await self._step()

    def get_folder(self, number: int) -> Path:
        return get_ceremony_folder(self.directory / f"node{number}" / "keys", self.ceremony)

    def list_files(self, number: int) -> list[str]:
        folder = self.get_folder(number)
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def committee(tmp_path: Path) -> Iterator[Committee]:
    return Committee(tmp_path)


async def test_all_make_the_same_keys_though_one_restarts_in_every_round(committee: Committee) -> None:
    async with committee.run():
        await committee.create()
        committee.join(*MEMBERS)
        for number in range(len(ROUNDS)):
            await committee.wait_for(lambda number=number: committee.record.round > number, "the next round")  # type: ignore[misc]
            await committee.stop(2)
            committee.start(2)
        await committee.wait_for(lambda: committee.record.status is CeremonyStatus.READY, "keys are ready")
        for number in MEMBERS:
            await committee.wait_for(lambda number=number: committee.list_files(number) == KEPT, "only keys")  # type: ignore[misc]
        for name in ("public.key", "relin.keys"):
            assert len({(committee.get_folder(number) / name).read_bytes() for number in MEMBERS}) == 1
        assert len({(committee.get_folder(number) / "secret.key").read_bytes() for number in MEMBERS}) == 3
        # The contributions have served; the keys stay, for whoever wants them.
        for number in MEMBERS:
            blobs = committee[number].core.blobs
            shown = [blob.root for row in committee.record.contributions for blob in row]
            assert all(blobs.get_path(root) is None for root in shown)
            assert blobs.get_path(committee.record.confirmations[0].public_key.root) is not None


async def test_shares_pass_on_and_those_of_before_are_erased(committee: Committee) -> None:
    """node4 comes in node3's place; node3 is away, and erases its share once it hears of it."""
    async with committee.run():
        await committee.create()
        committee.join(*MEMBERS)
        await committee.wait_for(lambda: committee.record.status is CeremonyStatus.READY, "keys are ready")
        for number in MEMBERS:
            await committee.wait_for(lambda number=number: committee.list_files(number) == KEPT, "only keys")  # type: ignore[misc]
        before, first = committee.ceremony, committee.record.confirmations[0]
        public_key = (committee.get_folder(1) / "public.key").read_bytes()
        folders = [committee.get_folder(number) for number in MEMBERS]
        await committee.stop(3)
        await committee.create(numbers=(1, 2, 4), renews=before)
        committee.join(1, 2, 4)
        await committee.wait_for(lambda: committee.record.round == ROUNDS.index("test"), "the last round")
        await committee.stop(2)
        committee.start(2)
        await committee.wait_for(lambda: committee.record.status is CeremonyStatus.READY, "shares are dealt")
        made = committee.record.confirmations[0]
        assert (made.public_key, made.relin_keys) == (first.public_key, first.relin_keys)
        for number in (1, 2, 4):
            await committee.wait_for(lambda number=number: committee.list_files(number) == KEPT, "only keys")  # type: ignore[misc]
            assert (committee.get_folder(number) / "public.key").read_bytes() == public_key
        await committee.wait_for(lambda: not any(folder.exists() for folder in folders[:2]), "old ones go")
        assert folders[2].exists()
        committee.start(3)
        await committee.wait_for(lambda: not folders[2].exists(), "so does that of who was away")


@pytest.mark.parametrize("length", [-1, 0], ids=["short", "of the right length"])
async def test_a_malformed_contribution_ends_it_and_secrets_are_erased(
    committee: Committee, length: int
) -> None:
    async with committee.run():
        await committee.create()
        committee.join(1, 2)
        liar = committee[3]
        place = committee.record.create.members.index(liar.core.address)
        size = get_contribution_bytes(PRESET, 3, 2, place, "coins", allow_insecure=True) + length
        blob, salt = liar.core.blobs.put_bytes(secrets.token_bytes(size)), bytes(32)
        digest = compute_commitment(committee.ceremony, 0, liar.core.address, blob.root, salt)
        liar.send(CommitRound(committee.ceremony, 0, digest))
        await committee.wait_for(
            lambda: is_committed(liar.chain.head_state, committee.record), "all have committed"
        )
        liar.send(RevealRound(committee.ceremony, 0, blob, salt))
        await committee.wait_for(lambda: committee.record.status is CeremonyStatus.ENDED, "it is given up")
        assert committee.record.ended_by in {committee[number].core.address for number in (1, 2)}
        for number in (1, 2):
            await committee.wait_for(lambda number=number: committee.list_files(number) == [], "nothing left")  # type: ignore[misc]


async def test_nothing_is_shown_while_one_has_not_committed(committee: Committee) -> None:
    async with committee.run():
        await committee.create(life_s=60)
        committee.join(1, 2)
        await committee.wait_for(lambda: len(committee.record.commitments) == 2, "two commitments")
        assert committee.record.reveals == ()
        for number in (1, 2):
            assert committee.list_files(number) == ["coins.blob", "coins.secret"]
        # Neither its root nor its bytes are anywhere but with their owner.
        await committee.wait_for(
            lambda: committee.record.status is CeremonyStatus.ENDED, "the deadline ends it"
        )
        assert committee.record.ended_by is None
        for number in (1, 2):
            await committee.wait_for(lambda number=number: committee.list_files(number) == [], "nothing left")  # type: ignore[misc]


async def test_who_may_join(committee: Committee) -> None:
    async with committee.run():
        with pytest.raises(CeremonyError, match="no such ceremony"):
            committee.join(1)
        await committee.create()
        with pytest.raises(CeremonyError, match="no member"):
            committee.join(4)
        with pytest.raises(CeremonyError, match="preset"):
            join_ceremony(committee[1].core, committee.ceremony)
        committee[1].send(EndCeremony(committee.ceremony))
        await committee.wait_for(lambda: committee.record.status is CeremonyStatus.ENDED, "it ends")
        with pytest.raises(CeremonyError, match="ended"):
            committee.join(1)
