"""The operator's API: nobody without the token; signing; blobs in and out, streaming."""

from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient

from consensus.task import BlobRef, Transfer
from consensus.types import Amount, Hash32
from node.api.client import ApiError, Client
from node.api.operator import load_token
from tests.unit.node_api.fakes import MINER, FakeNode

TOKEN = "the-operator-token"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def connect(api: TestClient, operator: TestClient, token: str = TOKEN) -> Client:
    return Client(str(api.make_url("/")), operator_url=str(operator.make_url("/")), token=token)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}", "Bearer \u00e9"]
)
@pytest.mark.parametrize("path", ["/v1/operator/blobs/00", "/openapi.json", "/nothing"])
async def test_every_path_needs_the_token(operator: TestClient, path: str, header: str | None) -> None:
    response = await operator.get(path, headers={} if header is None else {"Authorization": header})
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert (await response.json(content_type=None))["field"] == "Authorization"


def test_the_token_file_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "data" / "operator.token"
    token = load_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_token(path) == token


async def test_a_payload_is_signed_with_the_nodes_key(
    api: TestClient, operator: TestClient, node: FakeNode
) -> None:
    payload = Transfer(MINER.address, Amount(7))
    async with connect(api, operator) as client:
        transaction = await client.sign_and_submit(payload)
        assert (await client.get_transaction(transaction.hex())).status == "pending"
    assert node.signed == [payload]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "payload"),
        ({"payload": {"kind": "open-loss"}}, "payload"),
        ({"payload": {"kind": "transfer", "to": "12", "amount": 1}}, "payload.transfer.to"),
        ({"payload": {"kind": "transfer", "to": "ab" * 32, "amount": "1"}}, "payload.transfer.amount"),
        ({"payload": {"kind": "expire", "task": "ab" * 32}, "nonce": 1}, "nonce"),
    ],
)
async def test_a_wrong_payload_is_refused_by_field(
    operator: TestClient, node: FakeNode, body: dict[str, object], field: str
) -> None:
    response = await operator.post("/v1/operator/transactions", json=body, headers=AUTH)
    problem = await response.json(content_type=None)
    assert (response.status, problem["field"]) == (422, field)
    assert node.signed == []


async def test_blobs_go_in_and_come_out(
    api: TestClient, operator: TestClient, node: FakeNode, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 9000)
    sent: list[int] = []
    async with connect(api, operator) as client:
        ref = await client.put_blob(source, sent.append)
        await client.get_blob(ref, target)
        assert target.read_bytes() == source.read_bytes()
        assert sum(sent) == ref.length == source.stat().st_size
        with pytest.raises(ApiError, match="no peer has it"):
            await client.get_blob(BlobRef(Hash32(bytes(32)), 5), tmp_path / "absent")
        assert not (tmp_path / "absent.part").exists()
        with pytest.raises(ApiError, match="token"):
            async with connect(api, operator, token="wrong") as stranger:
                await stranger.put_blob(source)
    info = await operator.get(f"/v1/operator/blobs/{ref.root.hex()}/info", headers=AUTH)
    assert (await info.json())["complete"] is True


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/octet-stream", b"", 422),
        ("application/octet-stream", bytes(3_000_001), 413),
    ],
)
async def test_a_wrong_upload_is_refused(
    operator: TestClient, node: FakeNode, media: str, body: bytes, status: int
) -> None:
    response = await operator.put("/v1/operator/blobs", data=body, headers={**AUTH, "Content-Type": media})
    assert response.status == status
    assert (await response.json(content_type=None))["remedy"]
    assert node.blobs == {}


async def test_a_stream_above_the_limit_is_refused(operator: TestClient, node: FakeNode) -> None:
    async def stream():
        for _ in range(4):
            yield bytes(1_000_000)

    response = await operator.put(
        "/v1/operator/blobs", data=stream(), headers={**AUTH, "Content-Type": "application/octet-stream"}
    )
    assert response.status == 413
    assert node.blobs == {}


async def test_a_blob_that_is_nowhere(operator: TestClient) -> None:
    root = "ab" * 32
    assert (await operator.get(f"/v1/operator/blobs/{root}", headers=AUTH)).status == 404
    assert (await operator.get(f"/v1/operator/blobs/{root}?length=x", headers=AUTH)).status == 400
    assert (await operator.get(f"/v1/operator/blobs/{root}?length=5", headers=AUTH)).status == 409
    assert (await operator.get(f"/v1/operator/blobs/{root}/info", headers=AUTH)).status == 404


async def test_a_snapshot_of_the_ledger_is_streamed(operator: TestClient) -> None:
    response = await operator.get("/v1/operator/ledger/snapshot", headers=AUTH)
    assert (response.status, await response.read()) == (200, b"bmif snapshot")
    for query, status in (("height=0", 400), ("height=x", 400), ("height=5", 409)):
        refused = await operator.get(f"/v1/operator/ledger/snapshot?{query}", headers=AUTH)
        assert refused.status == status
        assert (await refused.json())["remedy"]
