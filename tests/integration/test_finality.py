"""Finality among whole nodes in one process: when it comes, when it stops, and that nothing undoes it."""

from pathlib import Path

import pytest

from consensus.errors import Reason
from consensus.governance import sign_governance
from consensus.params import Validator
from consensus.payload import Govern, Governance, SetValidators
from consensus.task import Transfer
from consensus.types import ZERO_HASH, Amount, Hash32
from consensus.vote import Checkpoint
from consensus.work import NoProofVerifier
from node import chain as chain_module
from node.chain import Chain, ImportStatus
from node.voting import VotingState
from tests.integration.cluster import OUTSIDER, Cluster, Peer


async def test_a_transaction_is_final_in_the_second_block_after_its_own(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        for _ in range(3):
            transaction = await cluster.finalize()
            for peer in cluster.peers:
                height = peer.find_height(transaction)
                assert height is not None
                after = peer.chain.get_hash_by_height(height + 2)
                assert after is not None
                assert peer.chain.get_state(after).get_finality().finalized.height >= height
        cluster.check_agreement()


async def test_finality_goes_on_with_one_of_four_away(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.run(1, 2, 3):
        for number in (1, 2, 3):
            await cluster.finalize(at=number)
        cluster.start(4)
        await cluster.wait_until(lambda: cluster[4].final == cluster[1].final, "the late one catches up")
        await cluster.finalize(at=4)
        cluster.check_agreement()


async def test_with_two_of_four_away_nothing_is_lost_and_finality_resumes(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        before = cluster[1].final
        await cluster.stop(3, 4)
        kept = [await cluster.include(at=number) for number in (1, 2, 1)]
        await cluster.pass_time(30.0)
        assert cluster[1].final == cluster[2].final == before
        # Blocks that bring nothing come ever more rarely.
        assert cluster[1].chain.head.height < before + 20
        cluster.start(3, 4)
        heights = [cluster[1].find_height(transaction) for transaction in kept]
        await cluster.wait_until(
            lambda: all(peer.final >= max(h for h in heights if h) for peer in cluster.peers),
            "what was sent meanwhile is final",
        )
        assert [cluster[4].find_height(transaction) for transaction in kept] == heights
        cluster.check_agreement()


async def test_a_split_in_halves_stops_finality_and_heals(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        before = cluster[1].final
        cluster.split((1, 2), (3, 4))
        here, there = cluster[1].send(_pay(1)), cluster[3].send(_pay(2))
        await cluster.pass_time(15.0)
        assert {peer.final for peer in cluster.peers} == {before}
        assert cluster[1].chain.head_hash != cluster[3].chain.head_hash
        cluster.heal((1, 2), (3, 4))

        def is_final(peer: Peer) -> bool:
            heights = [peer.find_height(transaction) for transaction in (here, there)]
            return all(height is not None and height <= peer.final for height in heights)

        await cluster.wait_until(lambda: all(map(is_final, cluster.peers)), "both halves' transactions")
        cluster.check_agreement()
        assert not any(peer.conflicts for peer in cluster.peers)
        assert not cluster[1].chain.head_state.get_jailed()


async def test_votes_that_split_between_two_blocks_of_a_height_meet_at_the_next(tmp_path: Path) -> None:
    """Two validators sign for each of two blocks of one height: neither is justified, the chain goes on."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        cluster.split((1, 2), (3, 4))
        cluster[1].send(_pay(1))
        cluster[3].send(_pay(2))
        await cluster.wait_until(
            lambda: (
                len({peer.chain.head_hash for peer in cluster.peers}) == 2
                and len({peer.chain.head.height for peer in cluster.peers}) == 1
                and all(peer.voter.signed.signed.target == peer.chain.head.height for peer in cluster.peers)
            ),
            "one height, two blocks, all have voted",
        )
        cluster.heal((1, 2), (3, 4))
        took = await cluster.wait_until(lambda: all(p.final > 1 for p in cluster.peers), "one is final")
        assert took < 30.0
        cluster.check_agreement()


async def test_a_whole_cluster_restarts_at_once(tmp_path: Path) -> None:
    """Cold: nothing in memory survives, and nobody has to be asked to vote again."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        transaction = await cluster.include()
        states = [(p.chain.head_hash, p.chain.justified, p.chain.finalized) for p in cluster.peers]
        assert any(peer.find_height(transaction) for peer in cluster.peers)
        await cluster.stop(1, 2, 3, 4)
        cluster.start(1, 2, 3, 4)
        assert [(p.chain.head_hash, p.chain.justified, p.chain.finalized) for p in cluster.peers] == states
        height = cluster[1].find_height(transaction)
        assert height is not None
        await cluster.wait_until(lambda: all(p.final >= height for p in cluster.peers), "it is final")
        await cluster.finalize(at=3)
        cluster.check_agreement()


async def test_one_validator_is_a_chain(tmp_path: Path) -> None:
    async with Cluster(tmp_path, size=1).run() as cluster:
        await cluster.finalize()
        await cluster.stop(1)
        cluster.start(1)
        await cluster.finalize()


async def test_late_blocks_never_undo_what_is_final(tmp_path: Path) -> None:
    """A branch that was hidden while another became final is refused without blame, however long it is."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        cluster.split((1, 2, 3), (4,))
        await cluster.finalize(among=(1, 2, 3))
        hidden = cluster[4]
        hidden.send(_pay(3))
        await cluster.pass_time(20.0)
        receiver = cluster[1].core
        height = hidden.chain.head.height
        branch = hidden.chain.ledger.get_hashes(1, height)
        blocks = [hidden.chain.ledger.get_block(b) for b in branch if not receiver.chain.has_block(b)]
        assert len(blocks) > 1
        head, final = receiver.chain.head_hash, receiver.chain.finalized
        for data in blocks:
            assert data is not None
            imported = receiver.take_block(data)
            assert imported.reason is Reason.FORK_FINAL or imported.status is ImportStatus.ORPHAN
            assert not imported.peer_at_fault
        assert (receiver.chain.head_hash, receiver.chain.finalized) == (head, final)
        cluster.heal((1, 2, 3), (4,))
        await cluster.finalize()
        cluster.check_agreement()
        assert not any(peer.conflicts for peer in cluster.peers)


async def test_pruning_and_restarts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that forgets what is below the final block, one that never does and one that restarts again and
    again have the same head, justified and final blocks after every block."""
    monkeypatch.setattr(chain_module, "PRUNED_AT_ONCE", 4)
    async with Cluster(tmp_path).run() as cluster:
        for round_number in range(3):
            for at in (1, 2, 3, 4):
                cluster[at].send(_pay(1))
            await cluster.finalize()
            # A fork in every round, one side of which dies.
            cluster.split((1, 2, 3), (4,))
            cluster[4].send(_pay(2))
            await cluster.finalize(among=(1, 2, 3))
            cluster.heal((1, 2, 3), (4,))
            await cluster.finalize(at=4)
            marks = {get_mark(peer.chain) for peer in cluster.peers}
            assert len(marks) == 1
            for name, disk in cluster.disks.items():
                restarted = Chain(cluster.genesis, disk.copy(), cluster.clock, NoProofVerifier(ZERO_HASH))
                assert get_mark(restarted) in marks, (name, round_number)
            await cluster.stop(round_number + 1)
            cluster.start(round_number + 1)
        assert all(len(peer.chain.fork_choice) < peer.chain.head.height for peer in cluster.peers)


def get_mark(chain: Chain) -> tuple[Hash32, Hash32, Checkpoint, Checkpoint]:
    assert chain.ledger.head == chain.head_hash == chain.fork_choice.get_head()
    return chain.head_hash, chain.head_state.root, chain.justified, chain.finalized


async def test_blocks_kept_aside_go_with_their_branch(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        cluster.split((1, 2, 3), (4,))
        hidden, receiver = cluster[4].chain, cluster[1]
        fork = hidden.head.height
        cluster[4].send(_pay(2))
        await cluster.wait_until(lambda: hidden.head.height >= fork + 2, "two blocks of its own")
        data = hidden.ledger.get_block(hidden.head_hash)
        assert data is not None
        imported = receiver.core.take_block(data)
        assert imported.status is ImportStatus.ORPHAN
        assert imported.hash is not None
        assert receiver.chain.is_waiting(imported.hash)
        while receiver.final < hidden.head.height:
            await cluster.finalize(among=(1, 2, 3))
        assert not receiver.chain.is_waiting(imported.hash)


async def test_validators_join_and_leave_by_governance(tmp_path: Path) -> None:
    """node5 takes node4's place: the change is final, then the new set votes, and the old stake is locked."""
    async with Cluster(tmp_path, extra=1).run() as cluster:
        await cluster.finalize()
        keys = {number: cluster[number].key for number in range(1, 6)}
        members = tuple(Validator(keys[number].address, 100) for number in (1, 2, 3, 5))
        governance = Governance(0, SetValidators(members))
        chain_id = cluster[1].chain.chain_id
        approvals = [sign_governance(keys[number], chain_id, governance) for number in (1, 2, 3, 5)]
        govern = Govern(governance, tuple(sorted(approvals, key=lambda approval: approval.validator)))
        cluster[2].send(govern)
        await cluster.wait_until(
            lambda: all(p.chain.head_state.get_validators() == members for p in cluster.peers),
            "the new set is active",
        )
        await cluster.finalize(at=2)
        # The newcomer's vote is needed now, and the leaver's is not.
        await cluster.stop(3, 4)
        await cluster.finalize(at=5)
        state = cluster[5].chain.head_state
        assert [lock.owner for lock in state.get_locks()] == [keys[4].address]
        assert state.get_account(keys[5].address).balance == 1_000_000 - 100 - 1
        assert cluster[5].core.voting.state is VotingState.VOTING


def _pay(amount: int) -> Transfer:
    return Transfer(OUTSIDER, Amount(amount))
