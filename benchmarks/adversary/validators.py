"""Validators against the others: they reject what is good, sign twice, or propose before their time."""

from collections.abc import Sequence
from functools import partial

from benchmarks.adversary.custody import BATCHES, BOND, FEE, PUBLICATION, RUNG, is_at
from benchmarks.adversary.profile import (
    CLUSTER,
    MINTED,
    Outcome,
    Profile,
    Scene,
    note,
    require,
    require_least,
    require_most,
)
from consensus.block import Block
from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.errors import Reason
from consensus.identifiers import compute_block_hash
from consensus.state import TaskStatus
from consensus.types import Hash32, Millis
from node.chain import Imported, ImportStatus
from node.gossip.messages import Kind
from tests.integration.intruder import Intruder, record_blocks
from tests.integration.taskcluster import BALANCE, CUSTODY, VERDICT_S, TaskCluster
from tests.integration.test_equivocation import check_jailed, sign_twice

LOSSES = (60, 40, 10)
"""Each meets one rung of the ladder."""
SLACK_S = 8.0
"""Seconds of the cluster within which what is due gets into a block."""


# --- rejecting what is good -----------------------------------------------------------------------


async def _settle_ladder(cluster: TaskCluster, rejecting: Sequence[int]) -> list[float]:
    """Mine the whole ladder; how long each milestone took to settle once it was taken."""
    await cluster.open()
    await cluster.open_loss(900)
    waits = []
    for rung, loss in enumerate(LOSSES):
        await cluster.take_milestone(loss, 1, 2)
        verdicts = [cluster.build_verdict(number, accept=False) for number in rejecting]
        if rung:  # on the first rung the others say nothing
            verdicts += [cluster.build_verdict(number, accept=True) for number in (1, 2, 3)]
        for verdict in verdicts:
            cluster.admit(verdict)
        waits.append(
            await cluster.wait_for(
                lambda task, rung=rung: task.settled is not None and task.settled.last_rung >= rung,  # type: ignore[misc]
                "the milestone settles",
            )
        )
    return waits


async def reject_as_minority(scene: Scene) -> Outcome:
    """A quarter of stake rejects every milestone."""
    quiet = []
    if not scene.quick:
        async with TaskCluster(scene.directory / "quiet").run() as cluster:
            quiet = await _settle_ladder(cluster, ())
    async with TaskCluster(scene.directory / "attacked").run() as cluster:
        money = cluster.count_money()
        waits = await _settle_ladder(cluster, (4,))
        await cluster.wait_for(partial(is_at, TaskStatus.COMPLETE), "the task completes")
        paid = sum(cluster.get_balance(cluster.keys[name]) - BALANCE for name in ("node1", "node2"))
        figures = (
            require("milestones settled, of three", len(waits), 3),
            require_most("seconds while the others are silent", waits[0], VERDICT_S + SLACK_S, " s"),
            require_most("seconds once the others accept", max(waits[1:]), SLACK_S, " s"),
            require(
                "paid to the miners",
                paid,
                sum(rung.reward for rung in PUBLICATION.ladder) + 3 * 2 * BATCHES * FEE,
            ),
            require(
                "stake of the rejecting one", cluster.state.get_stake(cluster.keys["node4"].address), 100
            ),
            require(MINTED, cluster.count_money() - money, 0),
            note("the same without anybody who rejects, seconds", [round(wait, 1) for wait in quiet]),
        )
        return Outcome("nothing", "nothing: a verdict is an opinion", "nothing", figures)


async def reject_as_majority(scene: Scene) -> Outcome:
    """Half of stake rejects the second milestone while a third one is being judged; the first is settled."""
    async with TaskCluster(scene.directory).run() as cluster:
        money, keys = cluster.count_money(), cluster.keys
        await cluster.open(loss_schedule=(0, 2, 3, 4))
        await cluster.open_loss(900)
        await cluster.take_milestone(LOSSES[0], 1, 2)
        await cluster.carry(*(cluster.build_verdict(number, accept=True) for number in (1, 2, 3)))
        await cluster.wait_for(lambda task: task.settled is not None, "the first milestone settles")
        await cluster.take_milestone(LOSSES[1], 1, 2, steps=1)
        await cluster.take_milestone(LOSSES[2], 1, 2, steps=1)
        steps = cluster.task_state.step
        for number in (3, 4):
            cluster.admit(cluster.build_verdict(number, accept=False), at=number)
        closed_s = await cluster.wait_for(partial(is_at, TaskStatus.CLOSED), "the task is closed")
        settled = cluster.task_state.settled
        paid = sum(cluster.get_balance(keys[name]) - BALANCE for name in ("node1", "node2"))
        clinic = cluster.get_balance(CUSTODY) - BALANCE
        jailed = len(cluster.state.get_jailed())
        await cluster.finalize(at=1)
        first = cluster.task
        await cluster.open(order=(0, 1, 2))
        if not scene.quick:
            await cluster.open_loss(900)
            await cluster.take_milestone(LOSSES[0], 1, 2)
        cluster.check_agreement()
        figures = (
            require("rungs that stay settled", -1 if settled is None else settled.last_rung, 0),
            require("paid to the miners", paid, RUNG + steps * BATCHES * FEE),
            require("change of the custody's balance", clinic, -RUNG - steps * BATCHES * FEE - BOND),
            require("validators in jail", jailed, 0),
            require("another task is opened afterwards", cluster.task != first, True),
            require(MINTED, cluster.count_money() - money, 0),
            note("rewards not paid", sum(rung.reward for rung in PUBLICATION.ladder[1:])),
            note("seconds from the rejections to the end of the task", closed_s),
        )
        return Outcome(
            "it stops any task it likes: two milestones are not paid",
            "nothing",
            f"the rewards of the voided milestones; the fees of all {steps} steps are paid",
            figures,
        )


# --- signing twice ------------------------------------------------------------------------------


async def vote_twice(scene: Scene) -> Outcome:
    """A quarter of stake signs two votes for one height and gives each to another node."""
    async with TaskCluster(scene.directory).run() as cluster:
        money = cluster.count_money()
        await cluster.finalize()
        liar, stake = cluster[4], cluster.genesis.validators[3].stake
        first, second = sign_twice(liar)
        await cluster.stop(4)
        before, begun = cluster[1].final, cluster.clock.monotonic()
        taken = [cluster[1].core.take_vote(first).value, cluster[2].core.take_vote(second).value]
        await check_jailed(cluster, liar)
        seconds = cluster.clock.monotonic() - begun
        figures = (
            require("the two votes, each at another node", taken, ["accept", "accept"]),
            require("stake of the liar", cluster.state.get_stake(liar.key.address), 0),
            require("in the treasury", cluster.state.get_charter().treasury, stake),
            require("validators in jail", len(cluster.state.get_jailed()), 1),
            require("conflicting final blocks", sum(len(peer.conflicts) for peer in cluster.peers), 0),
            require_least("blocks that became final since", cluster[1].final - before, 1),
            require(MINTED, cluster.count_money() - money, 0),
            note("seconds to jail and the next final transfer", seconds),
        )
        return Outcome("nothing", f"its whole stake of {stake} and its place", "nothing", figures)


# --- proposing early ----------------------------------------------------------------------------


async def propose_early(scene: Scene) -> Outcome:
    """A validator makes blocks before its turn or rank, and one ahead of everybody's clock."""
    async with TaskCluster(scene.directory).run(1, 2, 3, 4) as cluster:
        await cluster.open(loss_schedule=(0, 1))
        await cluster.open_loss(900)
        await cluster.open_gradient(5)  # away, so that its milestone stands until its rank's time is over
        await cluster.stop(4)
        seen = [record_blocks(peer) for peer in cluster.peers]
        async with Intruder(cluster, "node4") as intruder:
            await cluster.open_loss(60)
            forged = forge_early(cluster, cluster.keys["node4"])
            for block in forged.values():
                block_hash = compute_block_hash(block.header)
                intruder.announce(Kind.BLOCK, block_hash, encode(block))
                await cluster.wait_until(partial(_is_judged, seen, block_hash), "every node judges it")
            await cluster.wait_until(
                lambda: all(map(intruder.is_banned, cluster.peers)), "every node bans the proposer"
            )
            await cluster.wait_for(lambda task: task.next_taken_rung > 0, "an honest one takes the milestone")
            await cluster.finalize(at=2)
        cluster.check_agreement()
        verdicts = {
            reason: {told[compute_block_hash(block.header)] for told in seen}
            for reason, block in forged.items()
        }
        figures = [
            require(
                f"block {what}, at each node",
                sorted({str(imported.reason or imported.status) for imported in verdicts[reason]}),
                [reason],
            )
            for reason, what in EARLY.items()
        ]
        refused = [compute_block_hash(block.header) for reason, block in forged.items() if reason != HELD]
        known = sum(peer.chain.has_block(block) for peer in cluster.peers for block in refused)
        figures += [
            require("refused blocks that any node holds", known, 0),
            require("honest nodes blamed by others", _count_blamed(cluster, "node4"), 0),
            note("blocks it took to be banned by all three", len(refused)),
        ]
        return Outcome(
            "nothing", f"banned by every node after {len(refused)} blocks", "nothing", tuple(figures)
        )


HELD = str(ImportStatus.HELD)
EARLY = {
    HELD: "of its own turn, ahead of the clock",
    str(Reason.B7_RANK): "with a milestone, before its rank",
    str(Reason.B7_TURN): "in another validator's turn",
    str(Reason.B7_IDLE): "before anybody's turn",
    str(Reason.B3_EARLY): "right behind the last one",
}


def forge_early(cluster: TaskCluster, key: SigningKey) -> dict[str, Block]:
    """One block of each kind, by what must become of it."""
    script = cluster.build_script()
    idle, slot = script.params.idle_ms, script.params.slot_ms
    turns = {after: script.get_turn(after) for after in range(idle, idle + 5 * slot, slot)}
    mine = max(after for after, turn in turns.items() if turn == key) + 40 * slot
    others = next(after for after, turn in turns.items() if turn != key)
    template = script.build_carrier()

    def forge(after: int) -> Block:
        return script.forge(template, key=key, time=Millis(script.header.time + after))

    return {
        HELD: forge(mine),
        str(Reason.B7_RANK): script.forge_work_block(key, Millis(script.header.time + idle)),
        str(Reason.B7_TURN): forge(others),
        str(Reason.B7_IDLE): forge(idle - 1),
        str(Reason.B3_EARLY): forge(script.params.min_block_ms - 1),
    }


def _is_judged(seen: list[dict[Hash32, Imported]], block: Hash32) -> bool:
    return all(block in told for told in seen)


def _count_blamed(cluster: TaskCluster, but: str) -> int:
    return sum(
        info.score > 0 for peer in cluster.peers for info in peer.network.peers() if info.node_id != but
    )


PROFILES = (
    Profile(
        "rejecting-minority",
        "a validator with 25 % of stake",
        "rejects every milestone; on the first the others stay silent, on the rest they accept",
        CLUSTER,
        reject_as_minority,
        remark="A milestone that two thirds of stake accept settles at once. Without their word it stands "
        "`verdict_ms`, rejected by a minority or not. The verdicts of this run are scripted; that judges "
        "with pairs of their own judge a model by what it does is tested in "
        "tests/integration/test_verdicts.py.",
    ),
    Profile(
        "rejecting-majority",
        "two validators with 50 % of stake",
        "reject the second milestone while a third one waits",
        CLUSTER,
        reject_as_majority,
        remark="More than a third of stake can end any task this way, and that is meant: so many hospitals "
        "that find a model bad on their own patients are believed. The chain itself goes on, settled "
        "milestones stay paid, and the fees of all opened batches are paid.",
    ),
    Profile(
        "equivocating-validator",
        "a validator with 25 % of stake",
        "signs two votes for one height, gives each to another node, and leaves",
        CLUSTER,
        vote_twice,
        covered="tests/integration/test_equivocation.py",
        remark="Votes in blocks of two branches, surrounding votes and quorums that conflict are convicted "
        "the same way; by seeded runs with up to a third of stake: tests/simulation.",
    ),
    Profile(
        "early-proposer",
        "a validator with 25 % of stake",
        "sends blocks before its time: behind the last block, before any turn, in another's turn, with a "
        "milestone before its rank, and one of its own turn ahead of the clock",
        CLUSTER,
        propose_early,
        remark="The block that is ahead of the clock is no fault: it is kept until its time and then counts "
        "like any other of its turn.",
    ),
)
