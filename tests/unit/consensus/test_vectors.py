"""Golden bytes and hashes of the protocol, checked by our code and by a second, independent reading.

The second reading knows msgpack, SHA-256 and Ed25519 only and imports nothing of the consensus core.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consensus.ceremonies import CommitRound, ConfirmCeremony, CreateCeremony, EndCeremony, RevealRound
from consensus.ceremony import compute_commitment as compute_round_commitment
from consensus.claims import Presence, sign_claim, sign_presence, sign_sealed_claim
from consensus.codec import decode, encode
from consensus.committee import sign_opening
from consensus.crypto import compute_blob_root, compute_chunk_hash, compute_merkle_root, hash_domain
from consensus.federation_rounds import order_probation
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
from consensus.genesis import build_genesis_state
from consensus.governance import sign_governance
from consensus.identifiers import (
    compute_block_hash,
    compute_chain_id,
    compute_draft_hash,
    compute_opening_hash,
    compute_task_id,
    compute_transactions_root,
    compute_weights_digest,
)
from consensus.inference import compute_commitment
from consensus.jobs import CloseCommits, CommitResult, ExpireJob, RequestInference, RetireModel, RevealResult
from consensus.leases import compute_leases
from consensus.params import Genesis, Validator
from consensus.payload import (
    Accuse,
    Govern,
    Governance,
    ReportOpenings,
    SettleTask,
    SetValidators,
    SignedOpening,
    Verdict,
    WrongBundle,
    WrongLoss,
)
from consensus.task import (
    Available,
    Claim,
    DraftTask,
    ExpireTask,
    OpenGradient,
    OpenLoss,
    PublishTask,
    SealedClaim,
)
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from consensus.vote import Vote
from tests.unit.consensus.federated import build_federation
from tests.unit.consensus.test_evidence import build_double
from tests.unit.consensus.world import (
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_genesis,
    build_milestone_world,
    build_model,
)

PATH = Path(__file__).parents[2] / "vectors" / "consensus.json"
Vector = dict[str, str]


def build_vectors() -> dict[str, Vector]:
    """Every kind of object once, in hex, with the hashes that name it."""
    world = build_milestone_world()
    opening, loss = world.build_gradient((1, -2, 2**53 - 1)), world.build_loss(-5)
    publication = world.state.get_publication(world.task)
    assert publication is not None
    payloads = {
        "transfer": world.transfer(OUTSIDER, MINER_A, 300),
        "draft": world.sign(CUSTODY, DraftTask(build_draft())),
        "contribute": world.sign(OUTSIDER, build_contribution(world.draft)),
        "publish": world.sign(CUSTODY, publication),
        "available": world.sign(MINER_A, Available(world.task)),
        "open gradient": world.sign(CUSTODY, opening),
        "open loss": world.sign(CUSTODY, loss),
        "expire": world.sign(OUTSIDER, ExpireTask(world.task)),
        **build_judgements(world, opening, loss),
        **build_jobs(world),
        **build_rounds(world),
        **build_ceremonies(world),
        "accuse of a loss": world.sign(
            MINER_B,
            Accuse(WrongLoss(loss, world.sign(CUSTODY, loss).signature, hash_domain("test", b"canonical"))),
        ),
    }
    vectors: dict[str, Vector] = {}
    for name, transaction in payloads.items():
        vectors[f"transaction: {name}"] = {
            "encoding": encode(transaction).hex(),
            "id": compute_transaction_id(transaction).hex(),
        }
    genesis = build_genesis()
    vectors["genesis"] = {
        "encoding": encode(genesis).hex(),
        "chain_id": compute_chain_id(genesis).hex(),
        "state_root": build_genesis_state(genesis).root.hex(),
    }
    vectors["draft"] = {
        "encoding": encode(build_draft()).hex(),
        "chain_id": world.chain_id.hex(),
        "hash": compute_draft_hash(world.chain_id, build_draft()).hex(),
    }
    vectors["publication"] = {
        "encoding": encode(publication).hex(),
        "hash": compute_task_id(publication).hex(),
    }
    for name, item in (("opening of a gradient", opening), ("opening of a loss", loss)):
        vectors[name] = {"encoding": encode(item).hex(), "hash": compute_opening_hash(item).hex()}
    vote = world.build_votes()[0]
    vectors["vote"] = {"encoding": encode(vote).hex(), "chain_id": world.chain_id.hex()}
    claim = sign_claim(MINER_A, world.chain_id, world.task, 2, 1, build_blob("bundle"))
    vectors["claim"] = {"encoding": encode(claim).hex(), "chain_id": world.chain_id.hex()}
    sealed = sign_sealed_claim(MINER_B, world.chain_id, world.task, 2, 1, build_blob("bundle").root)
    vectors["sealed-claim"] = {
        "encoding": encode(sealed).hex(),
        "chain_id": world.chain_id.hex(),
        "root": build_blob("bundle").root.hex(),
    }
    shared = replace(opening, confirmations=(sealed,), attempt=2)
    signers = sorted((CUSTODY, MINER_A), key=lambda key: key.address)
    cosignatures = tuple(sign_opening(key, world.chain_id, shared) for key in signers)
    cosigned = replace(shared, cosignatures=cosignatures)
    vectors["opening of a committee"] = {
        "encoding": encode(cosigned).hex(),
        "chain_id": world.chain_id.hex(),
        "hash": compute_opening_hash(cosigned).hex(),
    }
    presence = sign_presence(MINER_A, world.chain_id, world.task, Millis(5_000))
    vectors["presence"] = {"encoding": encode(presence).hex(), "chain_id": world.chain_id.hex()}
    block = world.build_work_block(MINER_A, payloads["transfer"])
    vectors["block"] = {
        "encoding": encode(block).hex(),
        "hash": compute_block_hash(block.header).hex(),
        "state_root": block.header.state_root.hex(),
    }
    weights = (0, 1, -1, 2**40, -(2**40))
    vectors["weights"] = {"numbers": json.dumps(weights), "hash": compute_weights_digest(weights).hex()}
    chunks = [bytes(2**20), b"tail"]
    vectors["blob"] = {
        "zeros": str(2**20),
        "tail": chunks[1].hex(),
        "root": compute_blob_root(2**20 + 4, [compute_chunk_hash(chunk) for chunk in chunks]).hex(),
    }
    vectors["merkle"] = {
        "leaves": json.dumps([b"a".hex(), b"b".hex(), b"c".hex()]),
        "root": compute_merkle_root("transactions", [b"a", b"b", b"c"]).hex(),
        "empty": compute_transactions_root(()).hex(),
    }
    miners = [CUSTODY.address, MINER_A.address, OUTSIDER.address]
    leases = compute_leases(hash_domain("test", b"task"), 3, (0, 1), miners)
    vectors["leases"] = {str(batch): b"".join(order).hex() for batch, order in leases.items()}
    federation = hash_domain("test", b"a federation")
    vectors["probation"] = {"order": b"".join(order_probation(federation, 3, tuple(miners))).hex()}
    return vectors


def build_judgements(world: World, opening: OpenGradient, loss: OpenLoss) -> dict[str, SignedTransaction]:
    """The kinds that judge and govern."""
    first = world.task_state.qualified[0].loss_opening
    claim = opening.claims[0]
    root = hash_domain("test", b"canonical")
    signed = SignedOpening(opening, world.sign(CUSTODY, opening).signature)
    other = replace(opening, gradient=(1, -2, 3))
    members = (Validator(CUSTODY.address, 10), Validator(MINER_A.address, 11))
    governance = Governance(0, SetValidators(members))
    approval = sign_governance(CUSTODY, world.chain_id, governance)
    return {
        "verdict": world.sign(MINER_A, Verdict(world.task, first, False, 2**40, -3)),
        "settle": world.sign(OUTSIDER, SettleTask(world.task, first)),
        "report votes": world.sign(OUTSIDER, build_double(world, MINER_A)),
        "report openings": world.sign(
            OUTSIDER,
            ReportOpenings(signed, SignedOpening(other, world.sign(CUSTODY, other).signature)),
        ),
        "accuse of a bundle": world.sign(MINER_B, Accuse(WrongBundle(claim, root))),
        "govern": world.sign(OUTSIDER, Govern(governance, (approval,))),
    }


def build_jobs(world: World) -> dict[str, SignedTransaction]:
    """The kinds of encrypted inference."""
    model, job, root = (hash_domain("test", name) for name in (b"a model", b"a job", b"a result"))
    request = RequestInference(
        model, build_blob("request", 300), build_blob("keys", 400), Amount(100), Millis(5_000), Millis(9_000)
    )
    return {
        "register model": world.sign(OUTSIDER, build_model(keys=build_blob("keys", 400))),
        "retire model": world.sign(OUTSIDER, RetireModel(model)),
        "request inference": world.sign(OUTSIDER, request),
        "commit result": world.sign(
            MINER_A, CommitResult(job, compute_commitment(job, root, MINER_A.address))
        ),
        "close commits": world.sign(MINER_B, CloseCommits(job)),
        "reveal result": world.sign(MINER_A, RevealResult(job, root)),
        "expire job": world.sign(OUTSIDER, ExpireJob(job)),
    }


def build_rounds(world: World) -> dict[str, SignedTransaction]:
    """The kinds of federated rounds."""
    federation, root, other = (hash_domain("test", name) for name in (b"a federation", b"a sum", b"a model"))
    update = build_blob("update", 500)
    opening = OpenSum(federation, 3, root, build_blob("opened", 80), build_blob("model", 64))
    return {
        "create federation": world.sign(CUSTODY, build_federation()),
        "submit update": world.sign(MINER_A, SubmitUpdate(federation, 3, update)),
        "attest updates": world.sign(MINER_B, AttestUpdates(federation, 3, (update.root,))),
        "close round": world.sign(OUTSIDER, CloseRound(federation, 3)),
        "confirm sum": world.sign(MINER_A, ConfirmSum(federation, 3, root)),
        "open sum": world.sign(CUSTODY, opening),
        "judge round": world.sign(MINER_B, JudgeRound(federation, 3, other, 693_147, 2**40)),
        "settle round": world.sign(OUTSIDER, SettleRound(federation, 3)),
        "end federation": world.sign(OUTSIDER, EndFederation(federation)),
    }


def build_ceremonies(world: World) -> dict[str, SignedTransaction]:
    """The kinds of key ceremonies."""
    ceremony, salt = hash_domain("test", b"a ceremony"), bytes(range(32))
    contribution = build_blob("contribution", 700)
    digest = compute_round_commitment(ceremony, 2, MINER_A.address, contribution.root, salt)
    keys = (build_blob("public key", 400), build_blob("relin keys", 500))
    members = tuple(sorted((CUSTODY.address, MINER_A.address, MINER_B.address)))
    return {
        "create ceremony": world.sign(
            CUSTODY, CreateCeremony("cardiac", "ckks-16384-60x5", members, 2, Millis(2**41), ZERO_HASH)
        ),
        "commit round": world.sign(MINER_A, CommitRound(ceremony, 2, digest)),
        "reveal round": world.sign(MINER_A, RevealRound(ceremony, 2, contribution, salt)),
        "confirm ceremony": world.sign(
            MINER_B, ConfirmCeremony(ceremony, *keys, hash_domain("test", b"a box key"))
        ),
        "end ceremony": world.sign(OUTSIDER, EndCeremony(ceremony)),
    }


VECTORS: dict[str, Vector] = json.loads(PATH.read_text()) if PATH.exists() else {}


def test_we_still_make_these_bytes() -> None:
    assert build_vectors() == VECTORS


TYPES = {
    "genesis": Genesis,
    "publication": PublishTask,
    "opening of a gradient": OpenGradient,
    "opening of a loss": OpenLoss,
    "opening of a committee": OpenGradient,
    "claim": Claim,
    "sealed-claim": SealedClaim,
    "presence": Presence,
    "vote": Vote,
}


@pytest.mark.parametrize("name", [name for name in VECTORS if "encoding" in VECTORS[name]])
def test_we_still_read_these_bytes(name: str) -> None:
    cls = SignedTransaction if name.startswith("transaction") else TYPES.get(name)
    data = bytes.fromhex(VECTORS[name]["encoding"])
    if cls is not None:
        assert encode(decode(cls, data)) == data


# --- the second reading -----------------------------------------------------------------------


def hash_tagged(tag: str, data: bytes) -> bytes:
    full = b"bmif/" + tag.encode()
    return sha256(bytes([len(full)]) + full + data).digest()


def check_signed(address: bytes, tag: str, message: bytes, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(address).verify(signature, hash_tagged("sign/" + tag, message))


def read(vector: Vector) -> list[object]:
    data = bytes.fromhex(vector["encoding"])
    value = msgpack.unpackb(data)
    assert msgpack.packb(value) == data
    return value


def read_merkle(tag: str, leaves: list[bytes]) -> bytes:
    level = [hash_tagged(tag + "-leaf", leaf) for leaf in leaves]
    while len(level) > 1:
        odd = [level.pop()] if len(level) % 2 else []
        level = [
            hash_tagged(tag + "-node", a + b) for a, b in zip(level[::2], level[1::2], strict=True)
        ] + odd
    top = level[0] if level else bytes(32)
    return hash_tagged(tag + "-root", len(leaves).to_bytes(8, "big") + top)


@pytest.mark.parametrize("tag", range(35))
def test_transactions_read_independently(tag: int) -> None:
    name = [name for name in VECTORS if name.startswith("transaction")][tag]
    chain_id, sender, nonce, payload, signature = read(VECTORS[name])
    assert payload[0] == tag
    identifier = hash_tagged("transaction", msgpack.packb([chain_id, sender, nonce, payload, b""]))
    assert identifier.hex() == VECTORS[name]["id"]
    check_signed(sender, "transaction", identifier, signature)


@pytest.mark.parametrize(
    ("name", "tag", "prefix", "key"),
    [
        ("genesis", "genesis", "", "chain_id"),
        ("draft", "draft", "chain_id", "hash"),
        ("publication", "task", "", "hash"),
        ("opening of a gradient", "opening", "", "hash"),
        ("opening of a loss", "opening", "", "hash"),
    ],
)
def test_hashes_read_independently(name: str, tag: str, prefix: str, key: str) -> None:
    vector = VECTORS[name]
    data = bytes.fromhex(vector[prefix] if prefix else "") + bytes.fromhex(vector["encoding"])
    assert hash_tagged(tag, data).hex() == vector[key]


@pytest.mark.parametrize(
    ("name", "miner_at"), [("claim", 4), ("sealed-claim", 4), ("presence", 1), ("vote", 0)]
)
def test_statements_read_independently(name: str, miner_at: int) -> None:
    *fields, signature = read(VECTORS[name])
    message = bytes.fromhex(VECTORS[name]["chain_id"]) + msgpack.packb([*fields, b""])
    check_signed(fields[miner_at], name, message, signature)


def test_block_reads_independently() -> None:
    header, signature, (transactions, work, votes) = read(VECTORS["block"])
    block_hash = hash_tagged("block", msgpack.packb(header))
    assert block_hash.hex() == VECTORS["block"]["hash"]
    check_signed(header[5], "block", block_hash, signature)
    assert header[6] == read_merkle("transactions", [msgpack.packb(item) for item in transactions])
    assert header[7] == read_merkle("work", [msgpack.packb(work)])
    assert votes
    assert header[8] == read_merkle("votes", [msgpack.packb(vote) for vote in votes])
    assert header[9].hex() == VECTORS["block"]["state_root"]


def test_roots_and_digests_read_independently() -> None:
    weights = VECTORS["weights"]
    numbers = msgpack.packb(json.loads(weights["numbers"]))
    assert hash_tagged("weights", numbers).hex() == weights["hash"]
    blob = VECTORS["blob"]
    zeros, tail = int(blob["zeros"]), bytes.fromhex(blob["tail"])
    leaves = hash_tagged("chunk", bytes(zeros)) + hash_tagged("chunk", tail)
    length = (zeros + len(tail)).to_bytes(8, "big")
    assert hash_tagged("blob", length + hash_tagged("blob-node", leaves)).hex() == blob["root"]
    merkle = VECTORS["merkle"]
    leaves_of = [bytes.fromhex(leaf) for leaf in json.loads(merkle["leaves"])]
    assert read_merkle("transactions", leaves_of).hex() == merkle["root"]
    assert read_merkle("transactions", []).hex() == merkle["empty"]


def test_genesis_state_root_reads_independently() -> None:
    """The state tree built recursively from its contents: split by the first bit that differs."""
    _, _, _, accounts, validators, organisations = read(VECTORS["genesis"])
    contents = {b"account/" + address: [balance, 0, name] for address, balance, name in accounts}
    contents[b"members"] = [sorted(address for address, _, name in accounts if name)]
    chain_id = bytes.fromhex(VECTORS["genesis"]["chain_id"])
    root = [0, chain_id]
    contents[b"validators"] = [0, validators]
    contents[b"finality"] = [root, root, 0]
    contents[b"checkpoint/" + bytes(8)] = [chain_id, root, 0, True, [], 0]
    contents[b"organisations"] = [organisations]
    leaves = {int.from_bytes(sha256(key).digest(), "big"): value for key, value in contents.items()}

    def build(paths: list[int]) -> bytes:
        if len(paths) == 1:
            data = paths[0].to_bytes(32, "big") + msgpack.packb(leaves[paths[0]])
            return hash_tagged("tree", b"\x00" + data)
        bit = next(b for b in range(256) if len({path >> (255 - b) & 1 for path in paths}) == 2)
        is_right: Callable[[int], int] = lambda path: path >> (255 - bit) & 1  # noqa: E731
        left, right = ([path for path in paths if is_right(path) == side] for side in (0, 1))
        return hash_tagged("tree", b"\x01" + bytes([bit]) + build(left) + build(right))

    assert build(list(leaves)).hex() == VECTORS["genesis"]["state_root"]


def test_commitments_read_independently() -> None:
    """H("result-commitment", job, result, evaluator)."""
    commit, reveal = (read(VECTORS[f"transaction: {name} result"]) for name in ("commit", "reveal"))
    (_, job, commitment), (_, _, result) = commit[3], reveal[3]
    assert commitment == hash_tagged("result-commitment", job + result + commit[1])


def test_a_committees_opening_reads_independently() -> None:
    """Its name and what members sign are of the content: the cosignatures, the last field, left out."""
    *content, cosignatures = read(VECTORS["opening of a committee"])
    name = hash_tagged("opening", msgpack.packb([*content, []]))
    assert name.hex() == VECTORS["opening of a committee"]["hash"]
    assert content[-1] == 2
    for member, signature in cosignatures:
        message = bytes.fromhex(VECTORS["opening of a committee"]["chain_id"]) + name
        check_signed(member, "opening", message, signature)


def test_seals_and_commitments_of_ceremonies_read_independently() -> None:
    """H("claim-seal", root, miner); H("ceremony", ceremony, round, member, root, salt)."""
    vector = VECTORS["sealed-claim"]
    _, _, _, seal, miner, _ = read(vector)
    assert seal == hash_tagged("claim-seal", bytes.fromhex(vector["root"]) + miner)
    commit, reveal = (read(VECTORS[f"transaction: {name} round"]) for name in ("commit", "reveal"))
    (_, ceremony, number, digest), (_, _, _, (root, _), salt) = commit[3], reveal[3]
    data = ceremony + number.to_bytes(8, "big") + commit[1] + root + salt
    assert digest == hash_tagged("ceremony", data)


def test_leases_read_independently() -> None:
    """First places even, the rest by hash."""
    task, miners = hash_tagged("test", b"task"), [CUSTODY.address, MINER_A.address, OUTSIDER.address]
    firsts: list[bytes] = []
    for batch in (0, 1):
        place = (3).to_bytes(8, "big") + batch.to_bytes(8, "big")
        order: list[bytes] = sorted(miners, key=lambda miner: hash_tagged("lease", task + place + miner))
        first = next(miner for miner in order if miner not in firsts)
        firsts.append(first)
        order = [first, *(miner for miner in order if miner != first)]
        assert b"".join(order).hex() == VECTORS["leases"][str(batch)]
    assert Hash32(task) == hash_domain("test", b"task")


def test_probation_reads_independently() -> None:
    """By H("probation", federation, round, address)."""
    prefix = hash_tagged("test", b"a federation") + (3).to_bytes(8, "big")
    miners = [CUSTODY.address, MINER_A.address, OUTSIDER.address]
    order: list[bytes] = sorted(miners, key=lambda miner: hash_tagged("probation", prefix + miner))
    assert b"".join(order).hex() == VECTORS["probation"]["order"]
