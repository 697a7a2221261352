"""Attacks with real ciphertexts: wrong and copied bundles, a lying custody, a false accuser, no data."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.adversary.profile import MINTED, Outcome, Profile, Scene, note, require, require_least
from consensus.evidence import compute_accusation_id
from consensus.state import State, TaskStatus
from consensus.task import OpenGradient, OpenLoss
from tests.integration.hostile_mining import (
    Copycat,
    claim_wrong_bundles,
    mine_to_the_end,
    wait_suspended,
)
from tests.integration.material import BATCH_FEE, BATCHES, BOND, REWARD
from tests.integration.rig import MAX_BALANCE, Mallory, Rig, wait_until
from tests.integration.test_accusations import HOSPITALS, OTHER, lie_until_closed

REAL = (
    "Whole nodes as `bmif run` starts them (LevelDB, HTTPS with mutual TLS, worker processes), with a task "
    "of real ciphertexts on the full ring and the smallest network."
)
TARGET = 0.035
"""Met by the loss after the first steps."""


def get_credited(rig: Rig) -> list[bytes]:
    """The miner of each credited batch."""
    openings = rig.nodes["node1"].core.get_openings(rig.task)
    return [c.miner for opening in openings if isinstance(opening, OpenGradient) for c in opening.claims]


def get_change(state: State, address: bytes) -> int:
    return state.get_account(address).balance - MAX_BALANCE  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    scene: Scene, *names: str, nodes: int, publish: bool = True
) -> AsyncIterator[tuple[Rig, int]]:
    """These nodes of a testnet and an open task; all money that there is."""
    rig = Rig.make(scene.directory / "rig", nodes)
    try:
        for name in names:
            await rig.start(name)
        money = rig.count_money()
        if publish:
            await rig.publish(scene.get_material(), TARGET)
        yield rig, money
    finally:
        await rig.stop()


# --- bundles ------------------------------------------------------------------------------------


async def claim_wrongly(scene: Scene) -> Outcome:
    """A listed miner claims another batch's bundle and one of zeros; an honest one mines."""
    async with (
        running(scene, "node1", "node2", nodes=3) as (rig, money),
        Mallory(rig, "node3", scene.directory) as mallory,
    ):
        begun = time.perf_counter()
        await claim_wrong_bundles(rig, mallory, scene.get_material(), scene.directory)
        await mine_to_the_end(rig, scene.directory)
        await wait_suspended(rig, mallory)
        seconds = time.perf_counter() - begun
        state, credited = rig.get_state(), get_credited(rig)
        custody, hospital = (rig.nodes[name].core.address for name in ("node1", "node2"))
        earned = REWARD + BATCH_FEE * len(credited)
        figures = (
            require("batches credited to the attacker", credited.count(mallory.key.address), 0),
            require("change of its balance", get_change(state, mallory.key.address), 0),
            require("its organisation may still mine", state.may_account_mine(mallory.key.address), False),
            require("earned by the honest miner", get_change(state, hospital), earned),
            require("change of the custody's balance", get_change(state, custody), -earned - BOND),
            require("organisations suspended", len(state.get_suspended()), 1),
            require(MINTED, rig.count_money() - money, 0),
            note("wrong bundles, and bundles credited", [2, len(credited)]),
            note("seconds from the first claim to the suspension, the task mined meanwhile", seconds),
        )
        return Outcome(
            "nothing",
            "its organisation is suspended once two thirds of stake have recomputed one bundle",
            "the custody checks and recomputes each wrong bundle, each validator one",
            figures,
        )


async def copy_claims(scene: Scene) -> Outcome:
    """A listed miner computes nothing and signs every bundle that it hears claimed."""
    async with (
        running(scene, "node1", "node2", nodes=3) as (rig, money),
        Copycat(rig, "node3", scene.directory) as copycat,
    ):
        await mine_to_the_end(rig, scene.directory)
        await rig.wait_agreement()
        state, credited = rig.get_state(), get_credited(rig)
        hospital = rig.nodes["node2"].core.address
        mine, theirs = (get_change(state, address) for address in (copycat.key.address, hospital))
        copies = len(copycat.copied) // 2
        got = credited.count(copycat.key.address)
        figures = (
            require("paid to both together", mine + theirs, REWARD + BATCH_FEE * len(credited)),
            require("batches credited to anybody else", len(credited) - got - credited.count(hospital), 0),
            require("honest organisations suspended", state.get_suspended(), ()),
            require(MINTED, rig.count_money() - money, 0),
            note("claims copied", copies),
            note("batches credited to the copycat, of all", f"{got} of {len(credited)}"),
            note("paid to the copycat", mine),
        )
        return Outcome(
            f"{got} of {len(credited)} credits for {copies} copies: {mine} of the rewards",
            "nothing",
            f"{mine} less for who computed",
            figures,
        )


# --- a custody that lies, and who accuses falsely -------------------------------------------------


async def lie_about_losses(scene: Scene) -> Outcome:
    """The custody opens losses whose hashes do not recompute; a validator accuses an honest miner."""
    rig = Rig.make(scene.directory / "rig", 4)
    rig.set_roles("node1", "validator")
    try:
        for name in ("node1", *HOSPITALS):
            await rig.start(name)
        money = rig.count_money()
        await rig.publish(scene.get_material(), 0.001)
        begun = time.perf_counter()
        false = await lie_until_closed(rig, scene.directory)
        seconds = time.perf_counter() - begun
        custody, hospital = (rig.nodes[name].core for name in ("node1", "node2"))
        state, credited = rig.get_state("node3"), get_credited(rig)
        openings = hospital.get_openings(rig.task)
        lies = sum(isinstance(opening, OpenLoss) and opening.ciphertext == OTHER for opening in openings)
        record = state.get_accusation(compute_accusation_id(false))
        fees = BATCH_FEE * len(credited)
        figures = (
            require_least("lies on the chain", lies, 1),
            require("milestones paid", int(rig.get_task("node3").settled is not None), 0),
            require("bond in the treasury", state.get_charter().treasury, int(BOND)),
            require("change of the custody's balance", get_change(state, custody.address), -fees - BOND),
            require("fees of the honest miner", get_change(state, hospital.address), fees),
            require("signers of the false accusation", 0 if record is None else len(record.signers), 1),
            require("organisations suspended", len(state.get_suspended()), 0),
            require(MINTED, rig.count_money() - money, 0),
            note("steps that were opened before the task was closed", len(credited) // BATCHES),
            note("seconds from the start of mining to the end of the task", seconds),
        )
        return Outcome(
            "nothing",
            f"its bond of {BOND}, to the treasury; its task is closed",
            "nothing: all credited batches are paid; each validator recomputes for the false accusation once",
            figures,
        )
    finally:
        await rig.stop()


# --- data that nobody gets ----------------------------------------------------------------------


async def withhold(scene: Scene) -> Outcome:
    """A task is published whose validation batches nobody can fetch."""
    life_s = 15.0
    async with running(scene, "node1", "node2", "node3", nodes=3, publish=False) as (rig, money):
        await rig.announce_task(scene.get_material(), TARGET, life_s, withheld=True)
        begun = time.perf_counter()
        seen: set[TaskStatus] = set()

        def is_ended() -> bool:
            status = rig.get_task().status
            seen.add(status)
            return status not in (TaskStatus.PENDING, TaskStatus.OPEN)

        await wait_until(is_ended, "the task ends")
        seconds = time.perf_counter() - begun
        await rig.wait_agreement()
        state, task = rig.get_state(), rig.get_task()
        custody = rig.nodes["node1"].core.address
        figures = (
            require("states that the task was in", sorted(seen), [TaskStatus.EXPIRED, TaskStatus.PENDING]),
            require("stake that promised its data", task.available_stake, 0),
            require("steps that were mined", task.step, 0),
            require("change of the custody's balance", get_change(state, custody), -BOND),
            require("bond that comes back when evidence is out of date", state.get_locks()[0].amount, BOND),
            require(MINTED, rig.count_money() - money, 0),
            note("seconds from the publication to the end, its deadline included", seconds),
        )
        return Outcome("nothing", "escrow and bond locked meanwhile", "nothing: nobody mines before", figures)


PROFILES = (
    Profile(
        "wrong-bundles",
        "a miner of a listed organisation",
        "claims another batch's bundle for its batch, and right-sized zeros for another one",
        REAL,
        claim_wrongly,
        is_slow=True,
        covered="tests/integration/test_hostile_claims.py",
        remark="The custody opens nothing before every patch agrees with the clear, so a wrong bundle never "
        "reaches the model. Governance may reinstate an organisation.",
    ),
    Profile(
        "copied-claims",
        "a miner of a listed organisation",
        "computes nothing; signs every claim that it hears of in its own name",
        REAL,
        copy_claims,
        is_slow=True,
        remark="Copying is not against the rules: bundles are public and canonical, so a copy proves "
        "nothing. The custody credits the claim that it hears first: the computing miner's, unless the "
        "network favours the copier (or the custody does: puppet-miner). What a copier earns, others miss.",
    ),
    Profile(
        "lying-custody",
        "custody with 25 % of stake; apart from it a validator with 25 %",
        "signs losses of ciphertexts that do not exist, from the third on; the validator accuses an honest "
        "miner of a wrong bundle",
        REAL,
        lie_about_losses,
        is_slow=True,
        covered="tests/integration/test_accusations.py",
        remark="The hash is what can be recomputed. That the *number* is what the ciphertext decrypts to is "
        "the single custodian's word; verdicts of validators with pairs of their own stand against it.",
    ),
    Profile(
        "withheld-blobs",
        "contributor or custody, no stake",
        "publishes a task whose validation batches nobody can fetch",
        REAL,
        withhold,
        is_slow=True,
        remark="Data that were promised and dropped later are another matter: nobody checks that a validator "
        "keeps what it promised.",
    ),
)
