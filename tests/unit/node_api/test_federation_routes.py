"""Federated rounds over REST: federations, the round that runs, rounds that ended."""

from aiohttp.test_utils import TestClient

from tests.unit.node_api.fakes import CUSTODY, FakeNode


async def test_a_federation_is_listed_and_shown(api: TestClient, node: FakeNode) -> None:
    page = await (await api.get("/v1/federations")).json()
    assert [item["id"] for item in page["items"]] == [node.federation.hex()]
    assert (page["items"][0]["phase"], page["items"][0]["accepted"]) == ("training", 1)
    found = await (await api.get(f"/v1/federations/{node.federation.hex()}")).json()
    assert (found["custody"], found["status"]) == (CUSTODY.address.hex(), "running")
    assert [item["weight"] for item in found["members"]] in ([1, 3], [3, 1])
    assert (found["current"]["number"], found["current"]["outcome"]) == (1, None)
    assert len(found["current"]["submissions"]) == 1


async def test_rounds_are_shown_while_they_run_and_after(api: TestClient, node: FakeNode) -> None:
    url = f"/v1/federations/{node.federation.hex()}/rounds"
    first = await (await api.get(f"{url}/0")).json()
    assert (first["outcome"], first["weights"], first["rungs"]) == ("accepted", 4, [0])
    assert first["judgements"][0]["after"] == 450
    second = await (await api.get(f"{url}/1")).json()
    assert (second["outcome"], second["phase"], second["listed"]) == (None, "training", [])


async def test_what_is_unknown_is_not_found(api: TestClient, node: FakeNode) -> None:
    response = await api.get(f"/v1/federations/{bytes(32).hex()}")
    assert response.status == 404
    assert (await response.json())["remedy"]
    assert (await api.get(f"/v1/federations/{node.federation.hex()}/rounds/2")).status == 404
    assert (await api.get(f"/v1/federations/{node.federation.hex()}/rounds/-1")).status == 400
    assert (await api.get("/v1/federations/xyz")).status == 400
