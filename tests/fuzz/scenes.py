"""A real chain to judge foreign objects on: every block of a task's life with the state it was valid in."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache

from consensus.block import Block
from consensus.ceremonies import CommitRound, ConfirmCeremony, EndCeremony, RevealRound
from consensus.claims import (
    Presence,
    sign_claim,
    sign_presence,
    verify_claim,
    verify_presence,
    verify_sealed_claim,
)
from consensus.codec import encode
from consensus.committee import sign_opening
from consensus.crypto import SigningKey
from consensus.errors import InvalidBlock
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.governance import sign_governance
from consensus.jobs import CloseCommits, CommitResult, ExpireJob, RequestInference, RetireModel, RevealResult
from consensus.light import (
    FinalityProof,
    SetChange,
    VoteSignature,
    build_set_proof,
    compute_checkpoint,
    pick_votes,
)
from consensus.payload import (
    Accuse,
    Action,
    CancelUpgrade,
    Govern,
    Governance,
    Grant,
    Payload,
    Reinstate,
    ReportOpenings,
    ReportVotes,
    ScheduleUpgrade,
    SetMiningOrganisations,
    SetOrganisation,
    SettleTask,
    SetValidators,
    SignedOpening,
    WrongBundle,
    WrongLoss,
)
from consensus.state import State
from consensus.task import Available, Claim, DraftTask, ExpireTask, OpenGradient, OpenLoss, SealedClaim
from consensus.transaction import SignedTransaction, sign_transaction, verify_transaction
from consensus.types import Address, Amount, Hash32, Height, Millis, Signature
from consensus.vote import Checkpoint, Vote, sign_vote, verify_vote
from node.gossip.messages import FinalityReply
from tests.unit.consensus.ceremonial import MEMBERS, Ceremonies, Committee, build_ceremony, build_committee
from tests.unit.consensus.federated import build_federation
from tests.unit.consensus.world import (
    BY_ADDRESS,
    COLLEAGUE,
    CUSTODY,
    KEYS,
    MINER_A,
    MINER_B,
    OUTSIDER,
    VALIDATORS,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_model,
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A head, and a block that is valid on it."""

    world: World
    block: Block


class _Recorder(World):
    """A world that keeps each of its heads with the block that follows."""

    scenes: list[Scene]

    def add(self, block: Block) -> None:
        before = copy(self)
        before.weights = dict(self.weights)
        super().add(block)
        self.scenes.append(Scene(before, block))


@cache
def get_scenes() -> tuple[Scene, ...]:
    """From genesis to a settled milestone, with governance and a convicted validator."""
    world = _Recorder()
    world.scenes = []
    world.carry(world.transfer(OUTSIDER, MINER_A, 5))
    world.open()
    world.open_loss(900)
    world.open_gradient((MINER_A, MINER_A))
    world.open_gradient((MINER_A, MINER_B))
    world.open_loss(60)
    world.add(world.build_work_block(MINER_A, world.transfer(MINER_B, OUTSIDER, 1)))
    world.carry(world.sign(CUSTODY, world.build_verdict(False)), votes=())
    world.settle()
    world.carry(*(world.sign(OUTSIDER, payload) for payload in build_governance(world)[:3]))
    for _ in range(4):
        carry_in_turn(world)  # until the new set is active
    carry_in_turn(
        world,
        world.sign(OUTSIDER, build_vote_report(world)),
        world.sign(OUTSIDER, build_opening_report(world)),
    )
    carry_in_turn(world, world.sign(OUTSIDER, build_governance(world)[4]))
    return tuple(world.scenes)


def carry_in_turn(world: World, *transactions: SignedTransaction) -> None:
    """A carrier at the first time at which the world's idea of turns, which knows no jail, is right."""
    for after in range(2_000, 20_000, 1_000):
        try:
            block = world.build_carrier(*transactions, after=after)
        except InvalidBlock:
            continue
        return world.add(block)
    raise RuntimeError("it is nobody's turn")


@cache
def get_committee() -> Committee:
    """A committee's task at a step without a loss, and another ceremony in its first round."""
    committee = build_committee()
    committee.open_loss(900)
    committee.open_gradient()
    another = Ceremonies(committee.world).create()
    another.commit(MEMBERS[:2])
    return committee


def get_unsettled() -> World:
    """A milestone was taken and waits for verdicts."""
    return next(
        scene.world for scene in get_scenes() if scene.world.header.height and _has_unsettled(scene.world)
    )


def _has_unsettled(world: World) -> bool:
    task_state = world.state.get_task(world.task) if hasattr(world, "task") else None
    return task_state is not None and bool(task_state.unsettled)


def build_blocks() -> list[Block]:
    return [scene.block for scene in get_scenes()]


def build_transactions() -> list[SignedTransaction]:
    """Those of the chain, and of every other kind one that some head admits or that comes too late."""
    world = get_unsettled()
    waiting = world.task_state.unsettled[0].milestone.loss_opening
    transactions = [item for block in build_blocks() for item in block.body.transactions]
    transactions += [
        world.sign(CUSTODY, world.build_gradient()),
        world.sign(CUSTODY, world.build_loss(10)),
        world.sign(MINER_A, ExpireTask(world.task)),
        world.sign(COLLEAGUE, Available(world.task)),
        world.sign(COLLEAGUE, DraftTask(build_draft(title="another"))),
        world.sign(OUTSIDER, build_contribution(world.draft), 1),
        world.sign(MINER_A, world.build_verdict()),
        world.sign(OUTSIDER, SettleTask(world.task, waiting)),
        *(world.sign(MINER_A, Accuse(accusation)) for accusation in build_accusations(world)),
        *(world.sign(OUTSIDER, payload) for payload in build_governance(world)),
        *(world.sign(MINER_A, payload) for payload in build_job_payloads()),
        *(world.sign(MINER_A, payload) for payload in build_federation_payloads()),
        *(world.sign(MINER_A, payload) for payload in build_ceremony_payloads()),
        *build_shared(),
    ]
    return list(dict.fromkeys(transactions))


def build_job_payloads() -> list[Payload]:
    """Of a model and a job that no head knows, but for the registration."""
    model, job, root = (Hash32(bytes([number]) * 32) for number in (1, 2, 3))
    request, keys = build_blob("request"), build_blob("keys")
    return [
        build_model(),
        RetireModel(model),
        RequestInference(model, request, keys, Amount(1), Millis(1), Millis(2)),
        CommitResult(job, root),
        CloseCommits(job),
        RevealResult(job, root),
        ExpireJob(job),
    ]


def build_federation_payloads() -> list[Payload]:
    """Of a federation that no head knows, but for its creation."""
    federation, root = (Hash32(bytes([number]) * 32) for number in (4, 5))
    blob = build_blob("update")
    return [
        build_federation(),
        SubmitUpdate(federation, 0, blob),
        AttestUpdates(federation, 0, (blob.root,)),
        CloseRound(federation, 0),
        ConfirmSum(federation, 0, root),
        OpenSum(federation, 0, root, blob, blob),
        JudgeRound(federation, 0, root, 2, 1),
        SettleRound(federation, 0),
        EndFederation(federation),
    ]


def build_shared() -> list[SignedTransaction]:
    """What members of a committee send."""
    committee, world = get_committee(), get_committee().world
    running = world.state.get_ceremony_id(1)
    assert running is not None
    there = Ceremonies(world)
    there.ceremony = running
    opening = committee.build_gradient()
    pair = (SignedOpening(item, Signature(b"")) for item in (opening, committee.build_gradient((1, 2, 3))))
    return [
        world.sign(MINER_B, opening),
        world.sign(MINER_B, committee.build_gradient(attempt=2)),
        world.sign(CUSTODY, committee.build_loss(10)),
        world.sign(OUTSIDER, ReportOpenings(*pair)),
        there.build_commit(MEMBERS[2]),
        there.build_reveal(MEMBERS[0]),
        there.build_end(MEMBERS[0]),
    ]


def build_ceremony_payloads() -> list[Payload]:
    """Of a ceremony that no head knows, but for its creation."""
    ceremony, root = (Hash32(bytes([number]) * 32) for number in (6, 7))
    blob = build_blob("contribution")
    return [
        build_ceremony(),
        CommitRound(ceremony, 0, root),
        RevealRound(ceremony, 0, blob, bytes(32)),
        ConfirmCeremony(ceremony, blob, build_blob("relin keys"), root),
        EndCeremony(ceremony),
    ]


def build_vote_report(world: World) -> ReportVotes:
    """Of a double vote."""
    source = Checkpoint(Height(1), Hash32(bytes(32)))
    first, second = (Checkpoint(Height(2), Hash32(bytes([number]) * 32)) for number in (1, 2))
    return ReportVotes(
        sign_vote(COLLEAGUE, world.chain_id, source, first),
        sign_vote(COLLEAGUE, world.chain_id, source, second),
    )


def build_opening_report(world: World) -> ReportOpenings:
    """Of two openings of one step."""
    first, second = world.build_gradient(), world.build_gradient((5, 6, 7))
    return ReportOpenings(
        SignedOpening(first, world.sign(CUSTODY, first).signature),
        SignedOpening(second, world.sign(CUSTODY, second).signature),
    )


def build_accusations(world: World) -> list[WrongBundle | WrongLoss]:
    opening = world.build_loss(10)
    return [
        WrongBundle(world.build_claims(world.task_state.step)[0], Hash32(bytes([3]) * 32)),
        WrongLoss(opening, world.sign(CUSTODY, opening).signature, Hash32(bytes([4]) * 32)),
    ]


def build_governance(world: World) -> list[Govern]:
    """One of every action, in the order in which they can follow each other."""
    validators = world.genesis.validators
    actions: list[Action] = [
        SetMiningOrganisations(("lab-a", "lab-b")),
        SetOrganisation(OUTSIDER.address, "lab-c"),
        SetValidators(tuple(replace(item, stake=item.stake + 1) for item in validators)),
        Reinstate("lab-a"),
        Grant(OUTSIDER.address, Amount(3)),
        ScheduleUpgrade(2, Height(10_000)),
        CancelUpgrade(2, Height(10_000)),
    ]
    first = world.state.get_charter().sequence
    payloads = []
    for number, action in enumerate(actions):
        governance = Governance(first + min(number, 2) if number < 3 else first, action)
        keys = sorted((BY_ADDRESS[item.address] for item in validators), key=lambda key: key.address)
        payloads.append(
            Govern(governance, tuple(sign_governance(key, world.chain_id, governance) for key in keys))
        )
    return payloads


def build_claims() -> list[Claim]:
    return [claim for scene in get_scenes()[5:7] for claim in scene.world.build_claims(0)]


def build_presences() -> list[Presence]:
    world = get_scenes()[-1].world
    times = (0, 59_000, 61_000)
    return [
        sign_presence(MINER_A, world.chain_id, world.task, Millis(world.header.time + later))
        for later in times
    ]


def count_money(world: World, state: State, touched: object) -> int:
    """Everything that exists in a state, with what strangers have whom an object names."""
    other = copy(world)
    other.state = state
    strangers = set(_iterate_addresses(touched)) - BY_ADDRESS.keys()
    return other.count_money() + sum(state.get_account(Address(item)).balance for item in strangers)


def _iterate_addresses(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes) and len(value) == 32:
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _iterate_addresses(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _iterate_addresses(getattr(value, field.name))


def build_nodes() -> Iterator[bytes]:
    """Small nodes of a state tree."""
    for _, data in get_scenes()[2].world.state.tree.new_nodes():
        if data[0] == 1 or len(data) < 120:
            yield data


def build_finality(height: int) -> FinalityReply:
    """That the block at a height is final, by everyone's votes for the next one."""
    source, target = (get_scenes()[at].world for at in (height, height + 1))
    checkpoints = compute_checkpoint(source.header), compute_checkpoint(target.header)
    votes = [sign_vote(key, source.chain_id, *checkpoints) for key in VALIDATORS]
    proof = FinalityProof(
        source.header,
        build_set_proof(source.state),
        target.header,
        build_set_proof(target.state),
        pick_votes(votes, *checkpoints),
    )
    return FinalityReply((), proof)


def build_set_change() -> FinalityReply:
    """That governance changed the set, and that the block after is final."""
    worlds = [scene.world for scene in get_scenes()]
    number = worlds[0].state.get_validator_set().number
    after = next(world for world in worlds if world.state.get_validator_set().number > number)
    source = compute_checkpoint(worlds[5].header)
    target = compute_checkpoint(after.header)
    votes = [sign_vote(key, after.chain_id, source, target) for key in VALIDATORS]
    change = SetChange(after.header, build_set_proof(after.state), source, pick_votes(votes, source, target))
    return FinalityReply((change,), build_finality(after.header.height).proof)


# --- signing again what a mutation changed ----------------------------------------------------


def find_key(address: bytes) -> SigningKey:
    """The address's key; for an address of nobody some key of the world."""
    return BY_ADDRESS.get(address) or KEYS[sum(address) % len(KEYS)]


def seal(value: object, world: World) -> object:
    """The value with every signature in it valid on the world's chain; valid ones stay as they are.

    So a mutation reaches the rules behind the signatures, as whoever has a key could.
    """
    if isinstance(value, tuple):
        return tuple(seal(item, world) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {field.name: seal(getattr(value, field.name), world) for field in fields(value)}
    if any(changes[name] is not getattr(value, name) for name in changes):
        value = replace(value, **changes)
    return _sign(value, world)


def _sign(value: object, world: World) -> object:
    chain_id = world.chain_id
    if isinstance(value, SignedTransaction):
        if value.chain_id == chain_id and verify_transaction(value):
            return value
        return sign_transaction(find_key(value.sender), chain_id, value.nonce, value.payload)
    if isinstance(value, Presence) and not verify_presence(chain_id, value):
        return sign_presence(find_key(value.miner), chain_id, value.task, value.time)
    if isinstance(value, Claim) and not verify_claim(chain_id, value):
        key = find_key(value.miner)
        return sign_claim(key, chain_id, value.task, value.step, value.batch, value.bundle)
    if isinstance(value, SealedClaim) and not verify_sealed_claim(chain_id, value):
        unsigned = replace(value, signature=Signature(b""))
        signature = find_key(value.miner).sign("sealed-claim", chain_id + encode(unsigned))
        return replace(value, signature=signature)
    if isinstance(value, OpenGradient | OpenLoss):
        signed = (sign_opening(find_key(item.member), chain_id, value) for item in value.cosignatures)
        return replace(value, cosignatures=tuple(signed))
    if isinstance(value, Vote) and not verify_vote(chain_id, value):
        return sign_vote(find_key(value.validator), chain_id, value.source, value.target)
    if isinstance(value, SignedOpening | WrongLoss):
        return replace(value, signature=sign_transaction(CUSTODY, chain_id, 0, value.opening).signature)
    if isinstance(value, FinalityProof):
        checkpoints = compute_checkpoint(value.source), compute_checkpoint(value.target)
        return replace(value, votes=_vote(value.votes, *checkpoints, world))
    if isinstance(value, SetChange):
        return replace(value, votes=_vote(value.votes, value.source, compute_checkpoint(value.target), world))
    if isinstance(value, Govern):
        keys = [find_key(approval.validator) for approval in value.approvals]
        return replace(
            value, approvals=tuple(sign_governance(key, chain_id, value.governance) for key in keys)
        )
    return value


def _vote(
    votes: tuple[VoteSignature, ...], source: Checkpoint, target: Checkpoint, world: World
) -> tuple[VoteSignature, ...]:
    signed = [sign_vote(find_key(vote.validator), world.chain_id, source, target) for vote in votes]
    return tuple(VoteSignature(vote.validator, vote.signature) for vote in signed)


def iterate_worlds() -> Iterator[World]:
    """A few heads that differ in what they admit: no task, pending, open, qualified, unsettled, settled.

    And one with a committee's task; the first and last are of the chain.
    """
    scenes = get_scenes()
    for at in (0, 4, 7, 9, 10):
        yield scenes[at].world
    yield get_committee().world
    yield scenes[-1].world
