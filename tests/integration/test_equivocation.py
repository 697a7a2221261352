"""Validators that sign what no honest one does: whoever notices reports it, and they lose stake and voice."""

from functools import partial
from pathlib import Path

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.types import Height
from consensus.vote import Checkpoint, Vote, sign_vote
from node.votes import compute_vote_id
from tests.integration.cluster import Cluster, Peer

OTHER = hash_domain("test", b"another block")


def sign_twice(liar: Peer) -> tuple[bytes, bytes]:
    """Two votes for one height above all others."""
    chain = liar.chain
    height = Height(chain.head.height + 3)
    votes = [
        sign_vote(liar.key, chain.chain_id, chain.justified, Checkpoint(height, target))
        for target in (OTHER, chain.head_hash)
    ]
    return encode(votes[0]), encode(votes[1])


async def check_jailed(cluster: Cluster, liar: Peer) -> None:
    """It is, everywhere; the others go on without it."""
    stake = cluster.genesis.validators[0].stake
    await cluster.wait_until(
        lambda: all(p.chain.head_state.get_jailed() == (liar.key.address,) for p in cluster.peers), "jailed"
    )
    state = cluster[1].chain.head_state
    assert state.get_charter().treasury == stake
    assert not state.get_stake(liar.key.address)
    await cluster.finalize(at=2)
    assert not any(peer.conflicts for peer in cluster.peers)
    cluster.check_agreement()


async def test_two_votes_for_one_height_that_reach_different_nodes(tmp_path: Path) -> None:
    """Neither node alone was told both: they meet by gossip."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        liar = cluster[4]
        first, second = sign_twice(liar)
        await cluster.stop(4)
        assert cluster[1].core.take_vote(first).value == "accept"
        assert cluster[2].core.take_vote(second).value == "accept"
        await check_jailed(cluster, liar)


async def test_votes_inside_blocks_of_a_branch_convict(tmp_path: Path) -> None:
    """A validator votes in both halves of a split; the blocks of one half tell the other."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        liar = cluster[4]
        await cluster.stop(4)
        cluster.split((1, 2), (3,))
        cluster[1].send(cluster.build_transfer(1))
        cluster[3].send(cluster.build_transfer(2))
        await cluster.wait_until(
            lambda: (
                cluster[1].chain.head_hash == cluster[2].chain.head_hash != cluster[3].chain.head_hash
                and cluster[1].chain.head.height == cluster[3].chain.head.height
            ),
            "two blocks of one height",
        )
        votes = []
        for peer in (cluster[1], cluster[3]):
            head = Checkpoint(peer.chain.head.height, peer.chain.head_hash)
            source = peer.chain.head_state.get_finality().justified
            vote = sign_vote(liar.key, peer.chain.chain_id, source, head)
            assert peer.core.take_vote(encode(vote)).value == "accept"
            votes.append((peer, vote))
        for peer, vote in votes:
            await cluster.wait_until(partial(is_in_block, peer, vote), "a block has the vote", 300.0)
        cluster.heal((1, 2), (3,))
        await check_jailed(cluster, liar)


def is_in_block(peer: Peer, vote: Vote) -> bool:
    chain = peer.chain
    blocks = (chain.get_block(block) for block in chain.ledger.get_hashes(vote.target.height, 100))
    return any(block is not None and vote in block.body.votes for block in blocks)


async def test_a_vote_that_surrounds_another(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        for _ in range(2):
            await cluster.finalize()
        liar = cluster[4]
        chain = liar.chain
        await cluster.stop(4)
        genesis = Checkpoint(Height(0), chain.genesis_hash)
        outer = sign_vote(liar.key, chain.chain_id, genesis, Checkpoint(Height(chain.head.height + 9), OTHER))
        assert cluster[3].core.take_vote(encode(outer)).value == "accept"
        await check_jailed(cluster, liar)


async def test_one_honest_vote_twice_is_no_evidence(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        await cluster.include()
        vote = cluster[2].voter.signed.last
        assert vote is not None
        for peer in cluster.peers:
            peer.core.take_vote(encode(vote))
            peer.core.take_vote(encode(vote))
        await cluster.finalize()
        assert not cluster[1].chain.head_state.get_jailed()


async def test_a_forged_vote_blames_its_sender(tmp_path: Path) -> None:
    async with Cluster(tmp_path).run() as cluster:
        await cluster.include()
        vote = cluster[2].voter.signed.last
        assert vote is not None
        receiver = cluster[1].core
        data = encode(vote)
        assert receiver.take_vote(data[:-1] + bytes([data[-1] ^ 1])).value == "reject"
        assert receiver.take_vote(data[:-1]).value == "reject"
        assert receiver.take_vote(data + bytes(300)).value == "reject"
        assert receiver.take_vote(data).value == "ignore"
        assert compute_vote_id(vote) in receiver.votes


async def test_a_conflict_of_quorums_is_an_alarm_and_names_who_lied(tmp_path: Path) -> None:
    """Two validators of four sign for another block at a justified height: with one who was fooled that is a
    quorum, and both lose their stake."""
    async with Cluster(tmp_path).run() as cluster:
        await cluster.finalize()
        justified = cluster[1].chain.justified
        chain_id = cluster[1].chain.chain_id
        root = Checkpoint(Height(0), cluster[1].chain.genesis_hash)
        keys = [cluster[number].key for number in (2, 3, 4)]
        await cluster.stop(2, 3, 4)
        watcher = cluster[1]
        for key in keys:
            lie = sign_vote(key, chain_id, root, Checkpoint(justified.height, OTHER))
            watcher.core.take_vote(encode(lie))
        assert [conflict.other.hash for conflict in watcher.conflicts] == [OTHER]
        watcher.watch.report()
        accused = {
            pooled.transaction.payload.first.validator  # type: ignore[union-attr]
            for pooled in watcher.core.mempool.get_all()
        }
        assert len(accused) == 3
