"""A custody against its miners and validators: it equivocates, vanishes, or has a friend for a miner."""

from functools import partial

from benchmarks.adversary.profile import (
    CLUSTER,
    MINTED,
    Outcome,
    Profile,
    Scene,
    note,
    require,
    require_most,
)
from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import Reason
from consensus.state import TaskState, TaskStatus
from consensus.transaction import compute_transaction_id
from consensus.types import Millis
from tests.integration.taskcluster import BALANCE, CUSTODY, EVIDENCE_S, TaskCluster
from tests.unit.consensus.world import build_publication

PUBLICATION = build_publication(hash_domain("none", b""), ())
"""Its fee, bond and rewards are those of every task of the cluster."""
FEE, BOND = int(PUBLICATION.batch_fee), int(PUBLICATION.bond)
REWARDS = sum(rung.reward for rung in PUBLICATION.ladder)
RUNG = int(PUBLICATION.ladder[0].reward)
BATCHES = PUBLICATION.batches_per_step
LIFE_S = 15
GRACE_S = 60
"""Within this after the deadline validators have ended a task."""


def is_at(status: TaskStatus, task: TaskState) -> bool:
    return task.status is status


# --- two openings of one step -------------------------------------------------------------------


async def equivocate(scene: Scene) -> Outcome:
    """Two halves of the network each include another opening of one step, with other credits."""
    async with TaskCluster(scene.directory).run() as cluster:
        money, keys = cluster.count_money(), cluster.keys
        await cluster.open()
        await cluster.open_loss(900)
        script = cluster.build_script()
        openings = (
            script.build_gradient(gradient, claims=script.build_claims(0, [keys[name]]))
            for name, gradient in (("node2", (5, 6, -7)), ("node4", (-5, -6, 7)))
        )
        first, second = (cluster.sign(CUSTODY, opening) for opening in openings)
        halves = (1, 2, 5), (3, 4)
        cluster.split(*halves)
        await cluster.carry(first, at=1, among=halves[0])
        await cluster.carry(second, at=3, among=halves[1])
        states = [cluster[number].chain.head_state.get_task(cluster.task) for number in (1, 3)]
        models = len({state.weights for state in states if state is not None})
        await cluster.pass_time(10.0)
        final = [
            (cluster[number].find_height(compute_transaction_id(opening)) or 0) <= cluster[number].final
            for number, opening in ((1, first), (3, second))
        ]
        cluster.heal(*halves)
        closed_s = await cluster.wait_for(partial(is_at, TaskStatus.CLOSED), "the task is closed")
        await cluster.finalize(at=3)
        cluster.check_agreement()
        paid = [cluster.get_balance(keys[name]) - BALANCE for name in ("node2", "node4")]
        figures = (
            require("models that the halves had while they were apart", models, 2),
            require("openings that became final while they were apart", sum(final), 0),
            require("conflicts of final blocks", sum(len(peer.conflicts) for peer in cluster.peers), 0),
            require("milestones paid", int(cluster.task_state.settled is not None), 0),
            require("bond in the treasury", cluster.state.get_charter().treasury, BOND),
            require(
                "change of the custody's balance",
                cluster.get_balance(CUSTODY) - BALANCE,
                -BOND - BATCHES * FEE,
            ),
            require("fees on the branch that was left, and on the other", sorted(paid), [0, BATCHES * FEE]),
            require("honest validators in jail", len(cluster.state.get_jailed()), 0),
            require(MINTED, cluster.count_money() - money, 0),
            note("seconds from the meeting of the halves to the end of the task", closed_s),
        )
        return Outcome(
            "nothing",
            f"its bond of {BOND}, to the treasury; its task is closed",
            f"a step's fees ({BATCHES * FEE}) of the miners on the branch that was left",
            figures,
        )


# --- nothing more is opened ---------------------------------------------------------------------


async def vanish(scene: Scene) -> Outcome:
    """One step is opened and credited, then never anything again."""
    async with TaskCluster(scene.directory).run() as cluster:
        money = cluster.count_money()
        deadline = Millis(cluster.clock.now_ms() + 1_000 * LIFE_S)
        await cluster.open(deadline=deadline)
        await cluster.open_loss(900)
        await cluster.open_gradient(2, 3)
        await cluster.wait_idle(
            lambda: is_at(TaskStatus.EXPIRED, cluster.task_state), "the task expires", LIFE_S + 2 * GRACE_S
        )
        late_s = (cluster.clock.now_ms() - deadline) / 1_000
        at_end = cluster.get_balance(CUSTODY) - BALANCE
        await cluster.pass_evidence_time()
        paid = [cluster.get_balance(cluster.keys[name]) - BALANCE for name in ("node2", "node3")]
        figures = (
            require_most("seconds after the deadline until the validators had ended it", late_s, GRACE_S),
            require("fees of the two credited miners", paid, [FEE, FEE]),
            require("change of the custody's balance at the end", at_end, -BOND - BATCHES * FEE),
            require(
                "the same once evidence is out of date",
                cluster.get_balance(CUSTODY) - BALANCE,
                -BATCHES * FEE,
            ),
            require(MINTED, cluster.count_money() - money, 0),
        )
        return Outcome(
            f"one opened gradient sum for its fees of {BATCHES * FEE}, no penalty",
            f"rewards of {REWARDS} locked to the deadline, the bond of {BOND} {EVIDENCE_S} s longer",
            "bundles computed and not opened by then are not paid",
            figures,
        )


# --- a friend among the miners ------------------------------------------------------------------


async def credit_a_friend(scene: Scene) -> Outcome:
    """Honest miners compute; the custody credits copies of their claims, signed by a miner of its own."""
    copied, reward = 2 * BATCHES, RUNG + 2 * BATCHES * FEE
    ladder = PUBLICATION.ladder[:1]
    async with TaskCluster(scene.directory / "friend", friend="friend").run() as cluster:
        money, friend = cluster.count_money(), cluster.keys["node5"]
        await cluster.open(ladder=ladder)
        await cluster.open_loss(900)
        await _credit_copies(cluster, friend)
        await cluster.wait_for(partial(is_at, TaskStatus.COMPLETE), "the task completes")
        await cluster.pass_evidence_time()
        friends, clinics = (cluster.get_balance(key) - BALANCE for key in (friend, CUSTODY))
        honest = [cluster.get_balance(cluster.keys[name]) - BALANCE for name in COMPUTING]
        minted = cluster.count_money() - money
    async with TaskCluster(scene.directory / "colleague", friend="clinic").run() as cluster:
        money, colleague = cluster.count_money(), cluster.keys["node5"]
        await cluster.open(ladder=ladder)
        await cluster.open_loss(900)
        await _credit_copies(cluster, colleague)
        script = cluster.build_script()
        forged = script.forge_work_block(colleague, Millis(script.header.time + 1_000))
        refused = cluster[1].core.take_block(encode(forged))
        waited_s = await cluster.wait_for(lambda task: task.next_taken_rung > 0, "somebody else proposes")
        await cluster.wait_for(partial(is_at, TaskStatus.COMPLETE), "the task completes")
        await cluster.pass_evidence_time()
        colleagues, clinics_too = (cluster.get_balance(key) - BALANCE for key in (colleague, CUSTODY))
        minted += cluster.count_money() - money
    figures = (
        require("the friend's gain", friends, reward),
        require("gain of friend and custody together", friends + clinics, 0),
        require("paid to the miners who computed", honest, [0, 0]),
        require("a credited colleague's block", str(refused.reason), str(Reason.W2_CUSTODY)),
        require("gain of colleague and custody together", colleagues + clinics_too, 0),
        require(MINTED, minted, 0),
        note("seconds until a validator proposed the colleague's milestone", waited_s),
    )
    return Outcome(
        f"the work of {copied} bundles for nothing; of money only its own back ({reward})",
        "none by the rules; openings tell everybody whom it credits",
        f"{copied} bundles computed and unpaid",
        figures,
    )


COMPUTING = ("node2", "node3")


async def _credit_copies(cluster: TaskCluster, friend: SigningKey) -> None:
    """Two steps, none credited to who computed them, then a loss that meets a rung."""
    for _ in range(2):
        script = cluster.build_script()
        honest = script.build_claims(cluster.task_state.step, [cluster.keys[name] for name in COMPUTING])
        copies = tuple(
            sign_claim(friend, script.chain_id, claim.task, claim.step, claim.batch, claim.bundle)
            for claim in honest
        )
        await cluster.open_gradient(claims=copies)
    await cluster.open_loss(60)


PROFILES = (
    Profile(
        "equivocating-custody",
        "custody, no stake",
        "signs two openings of one step, for other weights and other credits, one for each half of a parted "
        "network",
        CLUSTER,
        equivocate,
        remark="Which of the two openings counts is decided by the branch that stays; the task is closed "
        "either way. Neither half can finalise while they are apart, so no milestone is paid on an opening "
        "that is later dropped.",
    ),
    Profile(
        "vanishing-custody",
        "custody, no stake",
        "opens one step and then nothing more",
        CLUSTER,
        vanish,
        remark="Vanishing is not punished: an honest hospital may lose its machine. Whoever mines for a "
        "custody bears the risk of the step under way.",
    ),
    Profile(
        "puppet-miner",
        "custody and a listed miner that is its friend, no stake",
        "credits copies of honest miners' claims, signed by the friend; once with a friend of another "
        "organisation, once with a colleague of the custody's own",
        CLUSTER,
        credit_a_friend,
        remark="The custody can use honest miners' work without paying them. It gets its own escrow back, no "
        "more, and everybody sees in the openings who is credited, so miners can leave after a step. A "
        "colleague may be credited, too, but may not propose (W2).",
    ),
)
