"""What a validator signs after it lost its memory, in whole or in part: nothing that contradicts what it
signed before, and something again as soon as that is sure."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.codec import encode
from consensus.types import Height
from consensus.vote import Checkpoint, Vote, is_slashable, sign_vote
from node.gossip.messages import WitnessReply, WitnessRequest
from node.ledger.chainstore import SIGN_STATE_PREFIX, SIGN_STATE_UNKNOWN
from node.voter import WitnessDesk
from node.voting import VotingState
from node.witness import sign_witness
from tests.integration.cluster import Cluster, Disk, Peer


class Collector:
    """Every vote that anybody sees of each validator."""

    def __init__(self) -> None:
        self.votes: set[Vote] = set()

    def watch(self, *peers: Peer) -> None:
        for peer in peers:
            peer.core.on_vote(self.votes.add)

    def get_of(self, peer: Peer) -> list[Vote]:
        return [vote for vote in self.votes if vote.validator == peer.key.address]

    def check(self) -> None:
        """Nobody can be convicted."""
        votes = list(self.votes)
        guilty = [(a, b) for at, a in enumerate(votes) for b in votes[:at] if is_slashable(a, b)]
        assert not guilty


def get_targets(votes: Iterable[Vote]) -> list[int]:
    return sorted(vote.target.height for vote in votes)


async def test_a_vote_is_on_disk_before_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in between: the vote is sent after the restart, the same and no other."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        seen = Collector()
        seen.watch(cluster[1], cluster[2], cluster[3])
        victim = cluster[4]
        before = victim.voter.signed.signed

        class Crash(BaseException):
            pass

        def crash(vote: Vote) -> bool:
            raise Crash

        monkeypatch.setattr(victim.core, "add_vote", crash)
        transaction = cluster[1].send(cluster.build_transfer())
        with pytest.raises(BaseExceptionGroup):
            await cluster.wait_until(lambda: False, "it dies", 20.0)
        with pytest.raises(BaseExceptionGroup):
            await cluster.stop(4)
        cluster.start(4)
        revived = cluster[4]
        last = revived.voter.signed.last
        assert last is not None
        assert revived.voter.signed.signed.target > before.target
        assert not seen.get_of(victim)
        await cluster.wait_until(lambda: last in seen.votes, "the vote leaves after all")
        height = cluster[1].find_height(transaction)
        assert height is not None
        await cluster.wait_until(lambda: all(p.final >= height for p in cluster.peers), "it is final")
        seen.check()


async def test_an_old_backup_waits_until_nothing_can_contradict(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        seen = Collector()
        seen.watch(*cluster.peers)
        await cluster.finalize()
        await cluster.stop(4)
        backup = cluster.disks["node4"].copy()
        cluster.start(4)
        seen.watch(cluster[4])
        for _ in range(3):
            await cluster.finalize()
        former = max(get_targets(seen.get_of(cluster[4])))
        await cluster.stop(4)
        cluster.disks["node4"] = backup
        cluster.start(4)
        restored = cluster[4]
        seen.watch(restored)
        assert restored.voter.signed.signed.target < former
        # Finality goes on without it, and as soon as a block above all that it may have signed is justified,
        # with it.
        transaction = cluster[1].send(cluster.build_transfer())
        await cluster.wait_until(
            lambda: restored.core.voting.state is VotingState.WAITING, "it knows that it does not know"
        )
        assert "may have signed" in restored.core.voting.detail
        await cluster.wait_until(
            lambda: (h := cluster[1].find_height(transaction)) is not None and cluster[1].final >= h, "final"
        )
        await cluster.finalize()
        await cluster.stop(1)
        await cluster.finalize(at=4)
        again = [vote for vote in seen.get_of(restored) if vote.target.height > former]
        assert again
        assert min(vote.source.height for vote in again) > former
        assert restored.core.voting.state is VotingState.VOTING
        seen.check()
        # It is settled for good: the next start has nothing to wait for.
        await cluster.stop(4)
        cluster.start(1, 4)
        await cluster.finalize(at=4)
        assert cluster[4].core.voting.state is VotingState.VOTING


@pytest.mark.parametrize("loss", ["wiped", "unknown"])
async def test_a_lost_sign_state(tmp_path: Path, loss: str) -> None:
    """A new disk, and a rebuilt ledger that does not know what was signed."""
    async with Cluster(tmp_path).run() as cluster:
        seen = Collector()
        seen.watch(*cluster.peers)
        for _ in range(2):
            await cluster.finalize()
        former = max(get_targets(seen.get_of(cluster[4])))
        await cluster.stop(4)
        if loss == "wiped":
            cluster.disks["node4"] = Disk()
        cluster.start(4)
        if loss == "unknown":
            ledger = cluster[4].chain.ledger
            ledger.delete_record(SIGN_STATE_PREFIX + cluster[4].key.address)
            ledger.put_record(SIGN_STATE_UNKNOWN, b"rebuilt")
            await cluster.stop(4)
            cluster.start(4)
        lost = cluster[4]
        seen.watch(lost)
        await cluster.wait_until(
            lambda: lost.chain.head_hash == cluster[1].chain.head_hash, "it has the chain again"
        )
        await cluster.finalize()
        await cluster.finalize()
        await cluster.stop(2)
        await cluster.finalize(at=4)
        assert min(v.source.height for v in seen.get_of(lost) if v.target.height > former) > former
        assert lost.chain.ledger.get_record(SIGN_STATE_UNKNOWN) is None
        seen.check()


async def test_too_many_lost_at_once_go_on_when_all_are_there(tmp_path: Path) -> None:
    """Two of four lost their disks: the others can justify nothing, and the two have signed nothing that the
    four together do not know of."""
    async with Cluster(tmp_path).run() as cluster:
        seen = Collector()
        seen.watch(*cluster.peers)
        for _ in range(2):
            await cluster.finalize()
        await cluster.stop(3, 4)
        cluster.disks["node3"], cluster.disks["node4"] = Disk(), Disk()
        cluster.start(3, 4)
        seen.watch(cluster[3], cluster[4])
        await cluster.finalize()
        seen.check()


async def test_a_lone_validator_that_lost_its_disk(tmp_path: Path) -> None:
    """Nobody else can justify anything: it goes on above all that an observer has seen of it."""
    async with Cluster(tmp_path, size=1, extra=1).run() as cluster:
        seen = Collector()
        seen.watch(*cluster.peers)
        for _ in range(2):
            await cluster.finalize()
        await cluster.stop(1)
        cluster.disks["node1"] = Disk()
        cluster.start(1)
        seen.watch(cluster[1])
        await cluster.finalize(at=2)
        await cluster.finalize(at=1)
        seen.check()
        cluster.check_agreement()


async def test_nobody_votes_who_can_ask_too_few(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.run(1, 2):
        await cluster.include()
        await cluster.pass_time(5.0)
        assert {peer.core.voting.state for peer in cluster.peers} == {VotingState.ASKING}
        assert cluster[1].voter.signed.is_missing
        # Newcomers of whom nobody has seen a vote: they vote although the chain has begun without them.
        cluster.start(3)
        await cluster.finalize(at=3)


async def test_a_key_used_twice(tmp_path: Path) -> None:
    """A vote of its own key that the node did not sign: it waits until no contradiction can come of it."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        victim = cluster[4]
        chain = victim.chain
        target = Checkpoint(chain.head.height + 5, victim.key.address)  # type: ignore[arg-type]
        foreign = sign_vote(victim.key, chain.chain_id, chain.justified, target)
        assert cluster[1].core.take_vote(encode(foreign)).value == "accept"
        await cluster.include()
        await cluster.wait_until(lambda: victim.core.voting.state is VotingState.WAITING, "it notices")
        signed = victim.voter.signed.signed.target
        for _ in range(3):
            await cluster.finalize()
            if victim.core.voting.state is VotingState.WAITING:
                assert victim.voter.signed.signed.target == signed
        await cluster.wait_until(
            lambda: victim.core.voting.state is VotingState.VOTING, "it votes again", 5.0
        )
        last = victim.voter.signed.last
        assert last is not None
        assert last.source.height > target.height
        assert not cluster[1].chain.head_state.get_jailed()


class Lying(WitnessDesk):
    """Claims a head far above all others', and no vote of anybody."""

    def __init__(self, liar: Peer, height: Height) -> None:
        super().__init__(liar.core)
        self._liar = liar
        self._height = height

    def answer(self, request: WitnessRequest) -> WitnessReply:
        honest = super().answer(request)
        lie = replace(honest, head=Checkpoint(self._height, honest.head.hash), votes=())
        return sign_witness(self._liar.key, request.chain_id, request, lie)


async def test_a_liar_holds_nobody_back(tmp_path: Path) -> None:
    """One validator's claim of a far higher head does not keep a restored one silent."""
    async with Cluster(tmp_path).run() as cluster:
        for _ in range(2):
            await cluster.finalize()
        liar = cluster[1]
        true_height = liar.chain.head.height
        await cluster.stop(4)
        cluster.disks["node4"] = Disk()

        liar.network.serve_witness(Lying(liar, Height(true_height + 10_000)))
        cluster.start(4)
        for _ in range(2):
            await cluster.finalize()
        await cluster.stop(3)
        await cluster.finalize(at=4)
