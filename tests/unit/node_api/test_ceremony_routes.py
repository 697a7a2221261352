"""Key ceremonies over REST: which there are, how far one is, how one ended."""

from aiohttp.test_utils import TestClient

from consensus.ceremonies import ROUNDS
from consensus.task import Draft
from node.api.ceremonies import build_ceremony, get_phase
from node.api.payloads import build_core
from node.api.task_payloads import DraftModel, OpenLossPayload
from tests.unit.consensus.ceremonial import MEMBERS, PUBLIC_KEY, Ceremonies
from tests.unit.node_api.fakes import CUSTODY, DRAFT, MINER, FakeNode


async def test_ceremonies_are_listed_and_shown(api: TestClient, node: FakeNode) -> None:
    page = await (await api.get("/v1/ceremonies?limit=1")).json()
    assert [item["status"] for item in page["items"]] == ["aborted"]
    page = await (await api.get(f"/v1/ceremonies?cursor={page['next']}")).json()
    assert [item["id"] for item in page["items"]] == [node.ceremony.hex()]
    assert (page["items"][0]["members"], page["items"][0]["threshold"]) == (2, 2)
    found = await (await api.get(f"/v1/ceremonies/{node.ceremony.hex()}")).json()
    assert (found["status"], found["round"], found["phase"]) == ("running", 1, "shares")
    assert found["accounts"] == sorted([CUSTODY.address.hex(), MINER.address.hex()])
    assert [item["name"] for item in found["complete"]] == ["coins"]
    assert [part["contribution"] is None for part in found["parts"]] == [False, True]
    assert (found["committed_height"], found["ended_by"], found["public_key"]) == (3, None, None)
    over = await (await api.get(f"/v1/ceremonies/{(bytes([5]) * 32).hex()}")).json()
    assert (over["status"], over["ended_by"], over["ended_height"]) == ("aborted", MINER.address.hex(), 2)


async def test_what_is_unknown_is_not_found(api: TestClient) -> None:
    response = await api.get(f"/v1/ceremonies/{bytes(32).hex()}")
    assert response.status == 404
    assert (await response.json())["remedy"]
    assert (await api.get("/v1/ceremonies/xyz")).status == 400


def test_a_real_one_is_shown_in_every_phase() -> None:
    there = Ceremonies().create()
    for name in ROUNDS:
        assert get_phase(there.record) == name
        there.run_round()
    assert get_phase(there.record) == "keys"
    there.world.carry(*map(there.build_confirm, MEMBERS))
    shown = build_ceremony(there.ceremony, there.record)
    assert (shown.status, shown.round, shown.phase) == ("ready", len(ROUNDS), "keys")
    assert shown.public_key is not None
    assert shown.public_key.root == PUBLIC_KEY.root.hex()
    assert [item.name for item in shown.complete] == list(ROUNDS)
    assert set(shown.confirmed) == set(shown.accounts)


def test_documents_of_a_single_custodian_need_not_name_what_committees_have() -> None:
    document = DraftModel.model_validate(DRAFT).model_dump()
    del document["ceremony"]
    assert build_core(Draft, DraftModel.model_validate(document)) == DRAFT
    hashes = dict.fromkeys(("task", "previous", "weights", "ciphertext"), "0" * 64)
    loss = OpenLossPayload.model_validate({"step": 0, "loss": 5, **hashes})
    assert (loss.attempt, loss.cosignatures) == (1, ())
