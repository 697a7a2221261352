"""What a node says that holds no old bodies: the lists are whole, or others are named that have them."""

from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from consensus.types import Hash32, Height
from node.api.app import build_public_app
from node.api.view import BlockRecord
from node.sync.ports import Phase, SyncProgress
from tests.unit.node_api.conftest import build_config
from tests.unit.node_api.fakes import FakeNode


class YoungNode(FakeNode):
    """Began with a snapshot above its task."""

    def get_base(self) -> Height:
        return self.records[-1].block.header.height

    def get_block(self, block: Hash32) -> BlockRecord | None:
        found = super().get_block(block)
        return None if found is None or found.block.header.height < self.get_base() else found

    def get_sync_progress(self) -> SyncProgress | None:
        return SyncProgress(Height(3), 9, Phase.STATE, 8, 1_234, 0, ("node1",))


@pytest.mark.parametrize("path", ["/v1/blocks/1", "/v1/tasks/{task}/openings", "/v1/tasks/{task}/steps"])
async def test_what_archive_nodes_hold_is_answered_so(tmp_path: Path, path: str) -> None:
    node = YoungNode(tmp_path)
    async with TestClient(TestServer(build_public_app(node, build_config(tmp_path)))) as client:
        response = await client.get(path.format(task=node.task.hex()))
        problem = await response.json()
        assert response.status == 404
        assert problem["type"] == "urn:bmif:problem:held-by-archive-nodes"
        assert f"from height {node.get_base()} on" in problem["detail"]
        # What follows from the state is there all the same, and so is what lies above.
        assert (await client.get(f"/v1/tasks/{node.task.hex()}")).status == 200
        assert (await client.get("/v1/blocks/head")).status == 200
        assert (await client.get("/v1/blocks/999")).status == 404


async def test_the_status_tells_what_synchronising_does(tmp_path: Path) -> None:
    node = YoungNode(tmp_path)
    async with TestClient(TestServer(build_public_app(node, build_config(tmp_path)))) as client:
        sync = (await (await client.get("/v1/status")).json())["sync"]
    assert (sync["phase"], sync["proved"], sync["done"], sync["asked"]) == ("state", 8, 1_234, ["node1"])
    assert sync["base"] == node.get_base()
