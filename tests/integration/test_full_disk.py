"""Disks that fill while a blob comes, a snapshot file is written, or a ledger made of one; no half file."""

import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.voted_chain import VotedChain
from consensus.crypto import CHUNK_BYTES
from node.blobs import BlobStore, QuotaExceeded
from node.cli.main import app
from node.clock import SystemClock
from node.fetch import BlobFetcher, FetchError
from node.genesis import save_genesis
from node.ledger.damage import EXIT_DISK_FULL
from node.ledger.level import LevelStore
from tests.disks import fill, small_disk
from tests.integration.syncing import ChainNode, build_chain
from tests.integration.test_fetch import Peer, build_peers

pytestmark = pytest.mark.slow
CHUNKS = 8


@pytest.fixture(scope="module")
def source() -> VotedChain:
    return build_chain(12)


def list_names(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}


async def test_a_disk_that_fills_while_a_blob_comes(tmp_path: Path) -> None:
    origin = BlobStore(tmp_path / "origin")
    ref = origin.put_bytes(os.urandom(CHUNKS * CHUNK_BYTES))
    with small_disk(tmp_path / "disk", (CHUNKS + 1) * CHUNK_BYTES):
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(4 * CHUNK_BYTES))
        store = BlobStore(tmp_path / "disk" / "blobs")
        peers = build_peers(origin, ref, 2)
        fetcher = BlobFetcher(store, lambda: peers, SystemClock())
        with pytest.raises(FetchError, match=r"is full.*make room"):
            await fetcher.fetch(ref)
        assert store.get_refs() == ()
        assert store.get_path(ref.root) is None
        # What came stays, for the next attempt, also of a node that is started again; nothing else is there.
        store = BlobStore(tmp_path / "disk" / "blobs")
        assert store.get_refs() == ()
        root = ref.root.hex()
        assert list_names(tmp_path / "disk" / "blobs") == {f"{root}.part", f"{root}.manifest"}
        filler.unlink()
        held = _count_asked(peers)
        path = await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
        assert path.stat().st_size == ref.length
        assert store.verify(ref.root) == ()
        assert list_names(tmp_path / "disk" / "blobs") == {root, f"{root}.manifest"}
        assert _count_asked(peers) - held < CHUNKS


def _count_asked(peers: list[Peer]) -> int:
    return sum(len(peer.asked) for peer in peers)


async def test_a_disk_without_room_for_a_blobs_first_byte(tmp_path: Path) -> None:
    origin = BlobStore(tmp_path / "origin")
    ref = origin.put_bytes(os.urandom(CHUNK_BYTES))
    peers = build_peers(origin, ref, 1)
    with small_disk(tmp_path / "disk", CHUNK_BYTES):
        store = BlobStore(tmp_path / "disk" / "blobs")
        fill(tmp_path / "disk" / "filler")
        with pytest.raises(FetchError, match=r"is full.*make room"):
            await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
        assert list_names(tmp_path / "disk" / "blobs") == set()
        assert store.used_bytes == 0
        with pytest.raises(QuotaExceeded, match=r"is full.*make room"):
            store.put_bytes(b"some")
        assert list_names(tmp_path / "disk" / "blobs") == set()


def _build_config(directory: Path, chain: VotedChain) -> Path:
    directory.mkdir()
    save_genesis(directory / "genesis.json", chain.genesis)
    settings = {
        "name": "node1", "data_dir": "data", "genesis": "genesis.json", "account_key": "account.key",
        "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
    }  # fmt: skip
    path = directory / "node.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def _bmif(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_a_disk_that_fills_while_a_snapshot_is_written_or_restored(
    source: VotedChain, tmp_path: Path
) -> None:
    config = _build_config(tmp_path / "node", source)
    store = LevelStore(tmp_path / "node" / "data" / "ledger")
    ChainNode("node1", source.genesis, store).fill(source.encoded)
    store.close()
    whole = tmp_path / "whole.snapshot"
    assert _bmif("ledger", "snapshot", "-o", str(whole), "--config", str(config))[0] == 0
    size = whole.stat().st_size
    disk = tmp_path / "disk"
    with small_disk(disk, 4096 * (size // 8192)):
        code, text = _bmif("ledger", "snapshot", "-o", str(disk / "file"), "--config", str(config))
        assert (code, "make room" in text) == (EXIT_DISK_FULL, True), text
        assert list_names(disk) == set()
        other = _build_config(tmp_path / "other", source)
        (tmp_path / "other" / "data").symlink_to(disk)
        code, text = _bmif("ledger", "restore", str(whole), "--config", str(other))
        assert (code, "make room" in text) == (EXIT_DISK_FULL, True), text
        assert list_names(disk) == set()
    print(f"the snapshot file has {size} bytes")
