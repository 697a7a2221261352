"""Key ceremonies over REST: the list, and who is waited for."""

from aiohttp.test_utils import TestClient

from tests.unit.node_api.fakes import CUSTODY, MINER, FakeNode
from tests.unit.node_api.test_operator import AUTH


async def test_a_ceremony_is_listed_and_shown(api: TestClient, node: FakeNode) -> None:
    page = await (await api.get("/v1/ceremonies")).json()
    assert [item["id"] for item in page["items"]] == [node.ceremony.hex()]
    assert (page["items"][0]["status"], page["items"][0]["round_name"]) == ("running", "shares")
    found = await (await api.get(f"/v1/ceremonies/{node.ceremony.hex()}")).json()
    assert (found["threshold"], found["round"], found["is_committed"]) == (2, 1, False)
    assert found["committed"] == [CUSTODY.address.hex()]
    assert found["waits_for"] == [MINER.address.hex()]
    assert [len(blobs) for blobs in found["contributions"]] == [2]


async def test_what_is_unknown_is_not_found(api: TestClient) -> None:
    response = await api.get(f"/v1/ceremonies/{bytes(32).hex()}")
    assert response.status == 404
    assert (await response.json())["remedy"]
    assert (await api.get("/v1/ceremonies/xyz")).status == 400


async def test_the_operator_joins_one(operator: TestClient, node: FakeNode) -> None:
    url = f"/v1/operator/ceremonies/{node.ceremony.hex()}/join"
    response = await operator.post(url, headers=AUTH)
    assert response.status == 200, await response.text()
    assert ((await response.json())["id"], node.joined) == (node.ceremony.hex(), [node.ceremony])
    node.joinable.clear()
    refused = await operator.post(url, headers=AUTH)
    assert refused.status == 409
    assert "no member" in (await refused.json())["detail"]
    unknown = f"/v1/operator/ceremonies/{bytes(32).hex()}/join"
    assert (await operator.post(unknown, headers=AUTH)).status == 404
