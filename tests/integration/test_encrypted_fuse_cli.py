"""`bmif fuse-encrypted` as a user runs it, at 128 bits: an image, honest errors, no key on the disk."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from PIL import Image
from typer.testing import CliRunner

from consensus.identifiers import compute_weights_digest
from node.api.app import build_public_app
from node.cli.main import app
from node.clock import SystemClock
from node.fusions import FusionDesk
from node.settings import FusionRequestSettings
from tests.integration.fusion_world import WEIGHTS, ModelNode, fuse_in_clear, make_pair
from tests.unit.node_api.conftest import build_config
from workloads.encrypted_fusion import ENCRYPTED_FUSION, EncryptedFusion, FuseJob

runner = CliRunner()


class Liar(EncryptedFusion):
    """Evaluates other weights and writes the honest header over the result."""

    def run(self, job: FuseJob) -> int:
        length = super().run(job)
        data = bytearray(job.output.read_bytes())
        data[64] ^= 1
        job.output.write_bytes(data)
        return length


class Peer:
    """A node in a thread of its own, since commands run their own event loop."""

    def __init__(self, directory: Path, waiting: int = 4, fusion: EncryptedFusion = ENCRYPTED_FUSION) -> None:
        self.directory = directory
        directory.mkdir()
        self.node = ModelNode(directory)
        self.desk = FusionDesk(
            FusionRequestSettings(waiting=waiting), directory / "fusions", SystemClock(), fusion
        )
        self._loop = asyncio.new_event_loop()
        self._server = TestServer(
            build_public_app(self.node, build_config(directory), fusions=self.desk), loop=self._loop
        )
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        self._started.wait(10)

    @property
    def url(self) -> str:
        return str(self._server.make_url("/")).rstrip("/")

    async def _run(self) -> None:
        self._stopping = asyncio.Event()
        await self._server.start_server()
        working = asyncio.create_task(self.desk.run())
        self._started.set()
        await self._stopping.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await self._server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path / "peer")
    yield made
    made.close()


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, str]:
    pair = make_pair()
    paths = (tmp_path / "mri.png", tmp_path / "ct.png")
    for path, image in zip(paths, (pair.first, pair.second), strict=True):
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(path)
    return str(paths[0]), str(paths[1])


def ask(peer: Peer, images: tuple[str, str], output: Path, *more: str, task: str | None = None):
    task = task or peer.node.task.hex()
    return runner.invoke(
        app,
        ["fuse-encrypted", *images, "--output", str(output), "--peer", peer.url, "--task", task, *more],
    )


def test_the_image_is_the_one_fused_in_clear(peer: Peer, images: tuple[str, str], tmp_path: Path) -> None:
    """With the weights that are settled on the chain, whatever they are."""
    changed = tuple(value + (2**17 if index == 0 else 0) for index, value in enumerate(WEIGHTS))
    peer.node.settle(changed)
    output = tmp_path / "fused.png"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = ask(peer, images, output, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["width"], facts["height"], facts["requests"]) == (26, 20, 1)
    assert facts["uploaded_bytes"] > facts["downloaded_bytes"] > 0
    assert "encrypting" in result.stderr
    with Image.open(output) as image:
        fused = np.asarray(image).astype(int)
        assert image.info["task"] == facts["task"] == peer.node.task.hex()
        assert image.info["weights"] == facts["weights"] == compute_weights_digest(changed).hex()
        assert image.info["block"] == facts["block"]
    clear = np.clip(np.rint(fuse_in_clear(make_pair(), changed) * 255), 0, 255)
    assert np.abs(fused - clear).max() <= 1
    # Neither keys nor ciphertexts stay behind, here or at the peer.
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {output}
    assert not peer.desk._records


@pytest.mark.slow
def test_a_peer_that_lies_is_found_by_another(peer: Peer, images: tuple[str, str], tmp_path: Path) -> None:
    liar = Peer(tmp_path / "liar", fusion=Liar())
    try:
        output = tmp_path / "fused.png"
        result = ask(peer, images, output, "--peer", liar.url)
        assert result.exit_code == 1
        assert "results differ" in result.stderr
        assert not output.exists()
        assert not peer.desk._records
        assert not liar.desk._records
    finally:
        liar.close()


def test_the_command_has_help() -> None:
    result = runner.invoke(app, ["fuse-encrypted", "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_errors_are_one_clear_line(peer: Peer, images: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "fused.png"
    Image.fromarray(np.zeros((20, 25), dtype=np.uint8)).save(tmp_path / "narrow.png")
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "tiny.png")
    narrow, tiny = str(tmp_path / "narrow.png"), str(tmp_path / "tiny.png")
    cases = [
        (ask(peer, (images[0], str(tmp_path / "absent.png")), output), "absent.png"),
        (ask(peer, (images[0], narrow), output), "narrow.png"),
        (ask(peer, (tiny, tiny), output), "too small"),
        (ask(peer, images, output, task="12"), "64 hexadecimal digits"),
        (ask(peer, images, output, task="ab" * 32), "No task"),
    ]
    peer.node.milestones.clear()
    cases.append((ask(peer, images, output), "settled model"))
    for result, words in cases:
        assert result.exit_code == 1, result.output
        assert words in result.stderr
        assert result.stdout == ""
    assert not output.exists()


def test_a_peer_that_takes_none_says_so(images: tuple[str, str], tmp_path: Path) -> None:
    closed = Peer(tmp_path / "closed", waiting=0)
    try:
        result = ask(closed, images, tmp_path / "fused.png")
        assert result.exit_code == 1
        assert "takes no encrypted fusions" in result.stderr
        assert "fusion_requests.waiting" in result.stderr
    finally:
        closed.close()
