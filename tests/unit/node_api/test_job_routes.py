"""Encrypted inference over REST: what is registered, how jobs stand, who was right, results by their job."""

from aiohttp.test_utils import TestClient

from consensus.types import Hash32
from tests.unit.node_api.fakes import CUSTODY, MINER, FakeNode


async def test_models_and_jobs_are_listed_and_shown(api: TestClient, node: FakeNode) -> None:
    page = await (await api.get("/v1/inference/models")).json()
    assert [item["id"] for item in page["items"]] == [node.model.hex()]
    model = await (await api.get(f"/v1/inference/models/{node.model.hex()}")).json()
    assert (model["weights"], model["retired"], model["price"]) == ("clear", False, 1)
    page = await (await api.get("/v1/inference/jobs?limit=1")).json()
    assert page["next"] is None
    assert (page["items"][0]["commits"], page["items"][0]["reveals"]) == (2, 2)
    job = await (await api.get(f"/v1/inference/jobs/{node.job.hex()}")).json()
    assert (job["status"], job["escrow"]) == ("settled", 0)
    assert job["receipt"]["evaluators"] == [MINER.address.hex()]
    assert job["receipt"]["caught"] == [CUSTODY.address.hex()]
    assert job["result"] == {"root": "09" * 32, "length": 1000}
    assert [item["organisation"] for item in job["evaluations"]] == ["hospital-1", "custody-org"]


async def test_what_is_unknown_is_not_found(api: TestClient) -> None:
    for path in ("models", "jobs"):
        response = await api.get(f"/v1/inference/{path}/{bytes(32).hex()}")
        assert response.status == 404
        assert (await response.json())["remedy"]
    assert (await api.get("/v1/inference/jobs/xyz")).status == 400


async def test_a_result_is_given_where_it_is_held(api: TestClient, node: FakeNode) -> None:
    url = f"/v1/inference/jobs/{node.job.hex()}/result"
    assert (await api.get(url)).status == 404
    path = node.directory / "result"
    path.write_bytes(b"ciphertext")
    node.blobs[Hash32(bytes([9]) * 32)] = path
    response = await api.get(url)
    assert (response.status, await response.read()) == (200, b"ciphertext")


async def test_evaluators_have_their_counts(api: TestClient) -> None:
    found = await (await api.get("/v1/inference/evaluators")).json()
    assert found["items"] == [
        {"organisation": "hospital-1", "suspended": False, "right": 1, "wrong": 0, "silent": 0}
    ]
