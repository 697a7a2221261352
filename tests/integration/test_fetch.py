"""Fetching blobs from several peers, honest, forgetful, slow and lying."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.crypto import CHUNK_BYTES
from consensus.task import BlobRef
from consensus.types import Hash32
from node.blobs import BlobStore
from node.clock import ManualClock, SystemClock
from node.fetch import BlobFetcher, BlobUnavailable, FetchError, FetchLimits, SourceBusy, SourceError

DATA = (bytes(at * 7 % 251 for at in range(251)) * (6 * CHUNK_BYTES // 251 + 1))[: 6 * CHUNK_BYTES + 99]
CHUNKS = 7


class Peer:
    """An honest peer; tests make others of it by replacing `answer`."""

    def __init__(self, node_id: str, store: BlobStore, root: Hash32) -> None:
        self.node_id = node_id
        self.faults: list[str] = []
        self.asked: list[int] = []
        self._store = store
        self._root = root
        self.answer: Callable[[int, bytes], bytes | None] = lambda index, data: data
        self.manifest: Callable[[bytes], bytes | None] = lambda data: data

    async def get_manifest(self, root: Hash32) -> bytes | None:
        found = self._store.get_manifest(root)
        return None if found is None else self.manifest(found.encode())

    async def get_chunk(self, root: Hash32, index: int) -> bytes | None:
        self.asked.append(index)
        data = await asyncio.to_thread(self._store.read_chunk, root, index)
        return None if data is None else self.answer(index, data)

    def report_corrupt(self, detail: str) -> None:
        self.faults.append(detail)


def fail(index: int, data: bytes) -> bytes | None:
    raise SourceError("connection lost")


@pytest.fixture
def origin(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "origin")


@pytest.fixture
def ref(origin: BlobStore) -> BlobRef:
    return origin.put_bytes(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def build_peers(origin: BlobStore, ref: BlobRef, count: int) -> list[Peer]:
    return [Peer(f"peer{number}", origin, ref.root) for number in range(count)]


async def test_chunks_come_from_several_peers(store: BlobStore, origin: BlobStore, ref: BlobRef) -> None:
    peers = build_peers(origin, ref, 3)
    path = await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
    assert path.read_bytes() == DATA
    assert sorted(index for peer in peers for index in peer.asked) == list(range(CHUNKS))
    assert all(peer.asked for peer in peers)


async def test_a_corrupt_chunk_is_fetched_elsewhere_and_the_liar_reported(
    store: BlobStore, origin: BlobStore, ref: BlobRef
) -> None:
    peers = build_peers(origin, ref, 2)
    peers[0].answer = lambda index, data: bytes(len(data))
    path = await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
    assert path.read_bytes() == DATA
    assert peers[0].faults
    assert not peers[1].faults


async def test_a_forged_manifest_is_refused(store: BlobStore, origin: BlobStore, ref: BlobRef) -> None:
    peers = build_peers(origin, ref, 2)
    peers[0].manifest = lambda data: data[:8] + bytes(len(data) - 8)
    await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
    assert peers[0].faults
    assert peers[0].asked == []


async def test_failing_and_forgetful_peers_are_passed_over(
    store: BlobStore, origin: BlobStore, ref: BlobRef
) -> None:
    peers = build_peers(origin, ref, 3)
    peers[0].answer = fail
    peers[1].answer = lambda index, data: data if index < 2 else None
    path = await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref)
    assert path.read_bytes() == DATA
    assert not any(peer.faults for peer in peers)


async def test_a_busy_peer_is_given_time_and_nothing_is_held_against_it(
    store: BlobStore, origin: BlobStore, ref: BlobRef
) -> None:
    """It refuses more often than a failing peer would be forgiven, and is the only one that has the blob."""
    (peer,) = peers = build_peers(origin, ref, 1)
    limits = FetchLimits(busy_pause_s=0.01)
    refusals = iter(range(4 * limits.failures_per_source))

    def answer(index: int, data: bytes) -> bytes:
        if next(refusals, None) is not None:
            raise SourceBusy("too many requests")
        return data

    peer.answer = answer
    path = await BlobFetcher(store, lambda: peers, SystemClock(), limits).fetch(ref, patience_s=0)
    assert path.read_bytes() == DATA
    assert not peer.faults


async def test_a_peer_that_is_always_busy_is_passed_over(
    store: BlobStore, origin: BlobStore, ref: BlobRef, tmp_path: Path
) -> None:
    peers = build_peers(origin, ref, 2)

    def answer(index: int, data: bytes) -> bytes:
        raise SourceBusy("too many requests")

    peers[0].answer = answer
    limits = FetchLimits(busy_pause_s=0.001, busy_per_source=5)
    path = await BlobFetcher(store, lambda: peers, SystemClock(), limits).fetch(ref)
    assert path.read_bytes() == DATA
    with pytest.raises(BlobUnavailable):
        await BlobFetcher(BlobStore(tmp_path / "alone"), lambda: peers[:1], SystemClock(), limits).fetch(
            ref, patience_s=0
        )


async def test_progress_survives_and_only_the_rest_is_fetched(
    store: BlobStore, origin: BlobStore, ref: BlobRef, tmp_path: Path
) -> None:
    (peer,) = peers = build_peers(origin, ref, 1)
    peer.answer = lambda index, data: data if index < 4 else None
    with pytest.raises(BlobUnavailable, match="of 7 chunks"):
        await BlobFetcher(store, lambda: peers, SystemClock()).fetch(ref, patience_s=0)
    (other,) = others = build_peers(origin, ref, 1)
    restarted = BlobFetcher(BlobStore(tmp_path / "blobs"), lambda: others, SystemClock())
    path = await restarted.fetch(ref)
    assert path.read_bytes() == DATA
    assert not {0, 1, 2, 3} & set(other.asked)


async def test_waiting_for_a_peer_that_comes_later(store: BlobStore, origin: BlobStore, ref: BlobRef) -> None:
    clock, peers = ManualClock(), list[Peer]()
    fetching = asyncio.create_task(BlobFetcher(store, lambda: peers, clock).fetch(ref, patience_s=60))
    await clock.run_for(3)
    assert not fetching.done()
    peers += build_peers(origin, ref, 1)
    async with asyncio.timeout(10):
        while not fetching.done():
            await clock.run_for(0.5)
    assert (await fetching).read_bytes() == DATA


async def test_patience_ends(store: BlobStore, ref: BlobRef) -> None:
    clock = ManualClock()
    fetching = asyncio.create_task(BlobFetcher(store, list, clock).fetch(ref, patience_s=60))
    await clock.run_for(61)
    with pytest.raises(BlobUnavailable, match="none of 0 peers"):
        await fetching


async def test_many_callers_fetch_once_and_one_may_leave(
    store: BlobStore, origin: BlobStore, ref: BlobRef
) -> None:
    peers = build_peers(origin, ref, 1)
    fetcher = BlobFetcher(store, lambda: peers, SystemClock())
    callers = [asyncio.create_task(fetcher.fetch(ref)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    paths = await asyncio.gather(*callers[1:])
    assert paths[0] == paths[1]
    assert sorted(peers[0].asked) == list(range(CHUNKS))
    assert fetcher.running == ()


async def test_nobody_waiting_ends_the_fetch(store: BlobStore, ref: BlobRef) -> None:
    fetcher = BlobFetcher(store, list, ManualClock())
    caller = asyncio.create_task(fetcher.fetch(ref, patience_s=1e9))
    await asyncio.sleep(0)
    assert fetcher.running == (ref.root,)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert fetcher.running == ()
    await fetcher.close()


async def test_a_wrong_length_and_a_full_store_are_errors_at_once(
    store: BlobStore, origin: BlobStore, ref: BlobRef, tmp_path: Path
) -> None:
    peers = build_peers(origin, ref, 1)
    with pytest.raises(FetchError, match=f"to have {ref.length + 1} bytes"):
        await BlobFetcher(store, lambda: peers, ManualClock()).fetch(BlobRef(ref.root, ref.length + 1))
    small = BlobStore(tmp_path / "small", quota_bytes=CHUNK_BYTES)
    with pytest.raises(FetchError, match="quota"):
        await BlobFetcher(small, lambda: peers, ManualClock()).fetch(ref)
