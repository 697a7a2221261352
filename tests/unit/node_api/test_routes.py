"""Answers of the public API: content, paging, caching, and a problem document for everything wrong."""

from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient

from consensus.codec import encode
from consensus.records import CheckpointRecord, Lock
from consensus.state import get_account_key
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.tree import Proof, ProofLeaf, ProofStep, verify_proof
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Millis
from consensus.vote import Checkpoint
from node.api.view import Criterion, Readiness
from tests.unit.node_api.fakes import CUSTODY, MINER, FakeNode


async def get(api: TestClient, path: str, status: int = 200) -> dict:
    response = await api.get(path)
    body = await response.json(content_type=None)
    assert response.status == status, body
    return body


async def test_status_says_where_the_node_stands(api: TestClient, node: FakeNode) -> None:
    body = await get(api, "/v1/status")
    assert body["chain_id"] == node.chain_id.hex()
    assert body["head"]["height"] == len(node.records) - 1
    assert body["sync"]["synced"] is True
    assert body["peers"] == 1
    assert body["tasks"] == 1


async def test_blocks_page_back_to_genesis_without_gap_or_double(api: TestClient, node: FakeNode) -> None:
    for name in ("blocks", "headers"):
        heights, path = [], f"/v1/{name}?limit=3"
        while path:
            body = await get(api, path)
            heights += [item["height"] for item in body["items"]]
            path = f"/v1/{name}?limit=3&cursor={body['next']}" if body["next"] else ""
            node.grow()  # a head that moves on does not disturb the pages
        assert heights == list(range(heights[0], -1, -1))


async def test_block_by_hash_height_and_head(api: TestClient, node: FakeNode) -> None:
    record = node.records[1]
    by_hash = await get(api, f"/v1/blocks/{record.hash.hex()}")
    assert by_hash == await get(api, "/v1/blocks/1")
    assert by_hash["transactions"][0]["payload"]["kind"] == "open-loss"
    assert by_hash["size"] == record.size
    head = await get(api, "/v1/blocks/head")
    assert head["hash"] == node.records[-1].hash.hex()
    assert (await get(api, "/v1/blocks/0"))["header"]["height"] == 0


async def test_immutable_answers_are_cached_by_etag(api: TestClient, node: FakeNode) -> None:
    path = f"/v1/blocks/{node.records[1].hash.hex()}"
    first = await api.get(path)
    assert "immutable" in first.headers["Cache-Control"]
    again = await api.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status == 304
    assert await again.read() == b""
    assert "immutable" not in (await api.get("/v1/blocks/head")).headers["Cache-Control"]


async def test_a_final_transaction_never_changes(api: TestClient, node: FakeNode) -> None:
    found = node.openings[0]
    path = f"/v1/transactions/{found.transaction.hex()}"
    waiting = await api.get(path)
    assert waiting.headers["Cache-Control"] == "no-cache"
    node.state = node.state.with_finality(
        replace(node.state.get_finality(), finalized=Checkpoint(found.height, found.block))
    )
    final = await api.get(path)
    assert await final.json() == await waiting.json()
    assert "immutable" in final.headers["Cache-Control"]
    again = await api.get(path, headers={"If-None-Match": f'"x", {final.headers["ETag"]}'})
    assert (again.status, await again.read()) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/v1/status", "/v1/blocks", "/v1/tasks", "/v1/validators", "/v1/accounts/" + "07" * 32]
)
async def test_what_changes_is_asked_for_by_its_etag(api: TestClient, node: FakeNode, path: str) -> None:
    first = await api.get(path)
    assert first.headers["ETag"].startswith('W/"')
    assert first.headers["Cache-Control"] == "no-cache"
    known = {"If-None-Match": first.headers["ETag"]}
    again = await api.get(path, headers=known)
    assert (again.status, await again.read()) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (await api.get(path, headers={"If-None-Match": 'W/"other"'})).status == 200
    assert (await api.get(f"{path}?nothing=1", headers=known)).status == 400
    node.grow()
    node.state = node.state.with_jailed((MINER.address,))
    changed = await api.get(path, headers=known)
    assert changed.status == (304 if "tasks" in path else 200)


async def test_transaction_goes_from_mempool_to_chain(api: TestClient, node: FakeNode) -> None:
    transaction = sign_transaction(MINER, node.chain_id, 0, Transfer(CUSTODY.address, Amount(5)))
    data = encode(transaction)
    posted = await api.post("/v1/transactions", data=data, headers={"Content-Type": "application/msgpack"})
    assert posted.status == 202
    assert (await api.post("/v1/transactions", json={"transaction": data.hex()})).status == 202
    location = posted.headers["Location"]
    body = await get(api, location)
    assert body["status"] == "pending"
    assert body["transaction"]["payload"] == {"kind": "transfer", "to": CUSTODY.address.hex(), "amount": 5}
    assert (await get(api, "/v1/mempool"))["items"][0]["kind"] == "transfer"
    node.mempool.clear()
    node.grow([transaction])
    body = await get(api, location)
    assert body["status"] == "included"
    assert body["inclusion"]["height"] == len(node.records) - 1


async def test_task_shows_ladder_credits_and_what_was_spent(api: TestClient, node: FakeNode) -> None:
    listed = await get(api, "/v1/tasks")
    task = listed["items"][0]["id"]
    assert task == node.task.hex()
    body = await get(api, f"/v1/tasks/{task}")
    assert body["last_loss_value"] == 1.5
    assert body["next_target_value"] == 1.0
    assert [rung["state"] for rung in body["ladder"]] == ["settled", "open"]
    assert body["ladder"][0]["proposer"] == MINER.address.hex()
    assert body["gradient_openings"] == {"spent": 1, "most": 8}
    assert body["credits"] == [{"miner": MINER.address.hex(), "organisation": "hospital-1", "batches": 2}]
    assert (body["batches"], body["training_patches"], body["validation_patches"]) == (2, 1500, 300)
    assert body["privacy"]["epsilon"] == 3.5


async def test_steps_and_openings_follow_the_chain(api: TestClient, node: FakeNode) -> None:
    task = node.task.hex()
    steps = (await get(api, f"/v1/tasks/{task}/steps"))["items"]
    assert [(step["step"], step["loss_value"]) for step in steps] == [(0, 1.5)]
    assert steps[0]["miners"] == [{"miner": MINER.address.hex(), "batches": 2}]
    first = await get(api, f"/v1/tasks/{task}/openings?limit=1")
    second = await get(api, f"/v1/tasks/{task}/openings?limit=1&cursor={first['next']}")
    assert [first["items"][0]["kind"], second["items"][0]["kind"]] == ["loss", "gradient"]
    assert second["items"][0]["previous"] == first["items"][0]["hash"]
    assert second["next"] is None


async def test_model_is_that_of_the_last_milestone(api: TestClient, node: FakeNode) -> None:
    body = await get(api, f"/v1/models/{node.task.hex()}")
    assert body["weights"] == [1, 2, 3]
    assert body["specification"] == "93010203"
    assert (await get(api, "/v1/models"))["items"][0]["task"] == node.task.hex()
    node.milestones.clear()
    assert (await get(api, "/v1/models"))["items"] == []
    problem = await get(api, f"/v1/models/{node.task.hex()}", 404)
    assert "milestone" in problem["remedy"]


async def test_account_comes_with_a_proof_that_verifies(api: TestClient, node: FakeNode) -> None:
    for address, balance in ((MINER.address, 1000), (Address(bytes([200]) * 32), 0)):
        body = await get(api, f"/v1/accounts/{address.hex()}")
        assert body["balance"] == balance
        proof = body["proof"]
        steps = tuple(ProofStep(s["bit"], Hash32(bytes.fromhex(s["sibling"]))) for s in proof["steps"])
        leaf = ProofLeaf(Hash32(bytes.fromhex(proof["leaf"]["path"])), bytes.fromhex(proof["leaf"]["value"]))
        value = leaf.value if balance else None
        assert verify_proof(node.state.root, get_account_key(address), value, Proof(steps, leaf))


async def test_draft_validators_and_peers(api: TestClient, node: FakeNode) -> None:
    publication = node.state.get_publication(node.task)
    assert publication is not None
    draft = await get(api, f"/v1/drafts/{publication.draft.hex()}")
    assert draft["draft"]["title"] == "MRI and CT"
    validators = await get(api, "/v1/validators")
    assert (validators["total_stake"], validators["number"], validators["pending"]) == (200, 0, None)
    assert [item["jailed"] for item in validators["items"]] == [False, False]
    assert (await get(api, "/v1/peers"))["items"][0]["organisation"] == "hospital-1"


async def test_finality_shows_the_votes_for_what_is_not_final(api: TestClient, node: FakeNode) -> None:
    record = CheckpointRecord(
        ZERO_HASH, node.get_finalized(), 0, is_justified=False, voters=(CUSTODY.address,)
    )
    node.state = node.state.with_checkpoint(1, record)
    body = await get(api, "/v1/finality")
    assert body["finalized"] == body["justified"] == {"height": 0, "hash": node.chain_id.hex()}
    (pending,) = body["checkpoints"]
    assert (pending["height"], pending["stake"], pending["justified"]) == (1, 100, False)
    assert pending["voters"] == [CUSTODY.address.hex()]


async def test_governance_shows_what_evidence_took(api: TestClient, node: FakeNode) -> None:
    lock = Lock(MINER.address, Amount(7), Millis(9), None)
    node.state = node.state.with_forfeit(5).with_jailed((MINER.address,)).with_locks((lock,))
    node.state = node.state.with_suspended(("hospital-1",))
    body = await get(api, "/v1/governance")
    assert (body["treasury"], body["suspended"]) == (5, ["hospital-1"])
    assert body["jailed"] == [MINER.address.hex()]
    assert body["locks"] == [{"owner": MINER.address.hex(), "amount": 7, "release": 9, "task": None}]
    validators = await get(api, "/v1/validators")
    assert [item["jailed"] for item in validators["items"]] == [False, True]


async def test_milestones_come_with_their_verdicts(api: TestClient, node: FakeNode) -> None:
    body = await get(api, f"/v1/tasks/{node.task.hex()}/milestones")
    (milestone,) = body["items"]
    assert (milestone["state"], milestone["settles"]) == ("settled", None)
    assert (milestone["accepted_stake"], milestone["rejected_stake"], body["total_stake"]) == (100, 0, 200)
    (verdict,) = milestone["verdicts"]
    assert (verdict["accept"], verdict["before_value"], verdict["after_value"]) == (True, 2.0, 1.0)
    await get(api, f"/v1/tasks/{'ab' * 32}/milestones", 404)


async def test_health_and_metrics(api: TestClient, node: FakeNode) -> None:
    assert (await get(api, "/livez"))["live"] is True
    assert (await get(api, "/readyz"))["ready"] is True
    lag = Criterion("lag", False, "12 blocks behind")
    node.ready = Readiness(False, ("12 blocks behind",), (lag,))
    problem = await get(api, "/readyz", 503)
    assert problem["detail"] == "12 blocks behind"
    assert problem["criteria"] == [
        {"name": "lag", "ok": False, "blocking": True, "detail": "12 blocks behind"}
    ]
    node.ready = Readiness(True, (), (replace(lag, ok=True),))
    assert (await get(api, "/readyz"))["criteria"][0]["name"] == "lag"
    for path in ("/readyz", "/livez"):
        head = await api.head(path)
        assert (head.status, await head.read()) == (200, b"")
    text = await (await api.get("/metrics")).text()
    assert f"bmif_head_height {len(node.records) - 1}.0" in text
    assert f'bmif_task_loss{{task="{node.task.hex()}"}} 1.5' in text
    assert 'route="/readyz"' in text


UNKNOWN = "ab" * 32


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/blocks/zz", 400, "block"),
        ("/v1/blocks/00", 400, "block"),
        (f"/v1/blocks/{UNKNOWN}", 404, "block"),
        ("/v1/blocks/999999", 404, "block"),
        ("/v1/blocks?limit=0", 400, "limit"),
        ("/v1/blocks?limit=101", 400, "limit"),
        ("/v1/blocks?limit=1&limit=2", 400, "limit"),
        ("/v1/blocks?cursor=%F0%9F%8D%8F", 400, "cursor"),
        ("/v1/blocks?cursor=dGFza3M6MQ", 400, "cursor"),
        ("/v1/blocks?page=2", 400, "page"),
        ("/v1/transactions/0x12", 400, "transaction"),
        (f"/v1/transactions/{UNKNOWN}", 404, "transaction"),
        ("/v1/tasks/AB", 400, "task"),
        (f"/v1/tasks/{UNKNOWN}", 404, "task"),
        (f"/v1/tasks/{UNKNOWN}/steps", 404, "task"),
        (f"/v1/models/{UNKNOWN}", 404, "task"),
        (f"/v1/drafts/{UNKNOWN}", 404, "draft"),
        ("/v1/accounts/12", 400, "address"),
        ("/v1/events?kinds=gossip", 400, "kinds"),
        ("/v1/events?after=-1", 400, "after"),
        ("/v2/blocks", 404, None),
    ],
)
async def test_malformed_reads_get_a_problem_that_names_the_field(
    api: TestClient, path: str, status: int, field: str | None
) -> None:
    response = await api.get(path)
    assert response.status == status
    assert response.content_type == "application/problem+json"
    body = await response.json(content_type=None)
    assert body["status"] == status
    assert body.get("field") == field
    assert body["remedy"]
    assert body["type"].startswith("urn:bmif:problem:")


@pytest.mark.parametrize(
    ("media", "body", "status", "field"),
    [
        ("text/plain", b"hello", 415, "Content-Type"),
        ("application/json", b"{", 422, "(body)"),
        ("application/json", b"[]", 422, "(body)"),
        ("application/json", b'{"transaction": "xyz"}', 422, "transaction"),
        ("application/json", b'{"transaction": ""}', 422, "transaction"),
        ("application/json", b'{"tx": "00"}', 422, "transaction"),
        ("application/msgpack", b"", 422, "transaction"),
        ("application/msgpack", b"\xc1", 422, "transaction"),
        ("application/msgpack", bytes(5000), 413, "(body)"),
    ],
)
async def test_malformed_posts_get_a_problem_that_names_the_field(
    api: TestClient, media: str, body: bytes, status: int, field: str
) -> None:
    response = await api.post("/v1/transactions", data=body, headers={"Content-Type": media})
    problem = await response.json(content_type=None)
    assert (response.status, problem.get("field")) == (status, field), problem
    assert response.content_type == "application/problem+json"


async def test_chunked_body_above_the_limit_is_refused(api: TestClient) -> None:
    async def stream():
        for _ in range(10):
            yield bytes(1000)

    response = await api.post(
        "/v1/transactions", data=stream(), headers={"Content-Type": "application/msgpack"}
    )
    assert response.status == 413


async def test_wrong_method_names_the_right_one(api: TestClient) -> None:
    response = await api.delete("/v1/status")
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert (await response.json(content_type=None))["remedy"] == "Use GET, HEAD"


async def test_refusal_names_the_rule_and_a_full_mempool_asks_to_wait(
    api: TestClient, node: FakeNode
) -> None:
    response = await api.post("/v1/transactions", json={"transaction": "c1"})
    assert (await response.json(content_type=None))["reason"] == "TX_MALFORMED"
    transaction = sign_transaction(MINER, node.chain_id, 0, Transfer(CUSTODY.address, Amount(5)))
    anonymous = encode(replace(transaction, sender=Address(bytes(32))))
    response = await api.post("/v1/transactions", json={"transaction": anonymous.hex()})
    assert response.status == 503
    assert response.headers["Retry-After"] == "2"


async def test_posts_are_rate_limited_by_client(api: TestClient) -> None:
    """A hundred at once; while more come, a slow machine's clock refills some."""
    statuses = [(await api.post("/v1/transactions", json={"transaction": "c1"})).status for _ in range(300)]
    assert statuses[:100] == [422] * 100
    assert 429 in statuses[100:]
