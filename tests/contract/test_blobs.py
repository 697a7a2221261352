"""The blob store: exact bytes, progress that survives, quota, nothing outside its folder."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consensus.crypto import CHUNK_BYTES, compute_blob_root, compute_chunk_hash
from consensus.task import BlobRef
from consensus.types import Hash32
from node.blobs import BlobError, BlobStore, CorruptBlob, Manifest, QuotaExceeded


def build_data(length: int, seed: int = 0) -> bytes:
    return (bytes((seed + at) % 251 for at in range(1009)) * (length // 1009 + 1))[:length]


def compute_ref(data: bytes) -> BlobRef:
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return BlobRef(compute_blob_root(len(data), [compute_chunk_hash(chunk) for chunk in chunks]), len(data))


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", quota_bytes=16 * CHUNK_BYTES, max_blob_bytes=8 * CHUNK_BYTES)


LENGTHS = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_is_stored_under_its_root(store: BlobStore, length: int) -> None:
    data = build_data(length)
    ref = store.put_bytes(data)
    assert ref == compute_ref(data)
    path = store.get_path(ref.root)
    assert path is not None
    assert path.read_bytes() == data
    manifest = store.get_manifest(ref.root)
    assert manifest is not None
    assert Manifest.decode(ref.root, manifest.encode()) == manifest
    chunks = [store.read_chunk(ref.root, index) for index in range(len(manifest.chunks))]
    assert b"".join(chunk or b"" for chunk in chunks) == data
    assert store.read_chunk(ref.root, len(manifest.chunks)) is None
    assert store.read_chunk(ref.root, -1) is None


@pytest.mark.parametrize("move", [True, False])
async def test_files_are_copied_or_adopted(store: BlobStore, tmp_path: Path, move: bool) -> None:
    data = build_data(2 * CHUNK_BYTES + 5)
    source = tmp_path / "bundle"
    source.write_bytes(data)
    ref = await store.put_file(source, move=move)
    assert ref == compute_ref(data)
    assert source.exists() is not move
    path = store.get_path(ref.root)
    assert path is not None
    assert path.read_bytes() == data
    assert store.used_bytes == len(data)


async def test_streams_of_any_pieces(store: BlobStore) -> None:
    data = build_data(2 * CHUNK_BYTES + 5)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 300_001):
            yield data[at : at + 300_001]

    assert await store.put_stream(pieces()) == compute_ref(data)


async def test_a_stream_that_breaks_off_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield build_data(CHUNK_BYTES + 1)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await store.put_stream(pieces())
    assert store.used_bytes == 0
    assert list((tmp_path / "blobs").iterdir()) == []


def test_storing_twice_is_storing_once(store: BlobStore) -> None:
    data = build_data(CHUNK_BYTES + 1)
    assert store.put_bytes(data) == store.put_bytes(data)
    assert store.used_bytes == len(data)


def test_the_quota_counts_and_names_its_setting(store: BlobStore) -> None:
    with pytest.raises(QuotaExceeded, match=r"limits\.max_blob_bytes"):
        store.put_bytes(build_data(8 * CHUNK_BYTES + 1))
    first = store.put_bytes(build_data(8 * CHUNK_BYTES, 1))
    store.put_bytes(build_data(7 * CHUNK_BYTES, 2))
    with pytest.raises(QuotaExceeded, match=r"limits\.blob_quota_bytes"):
        store.put_bytes(build_data(2 * CHUNK_BYTES, 3))
    assert store.used_bytes == 15 * CHUNK_BYTES
    assert store.remove(first.root)
    assert not store.remove(first.root)
    store.put_bytes(build_data(2 * CHUNK_BYTES, 3))
    assert store.used_bytes == 9 * CHUNK_BYTES


def test_an_unfinished_blob_counts_at_full_length(store: BlobStore, tmp_path: Path) -> None:
    data = build_data(8 * CHUNK_BYTES)
    other = BlobStore(tmp_path / "other")
    manifest = other.get_manifest(other.put_bytes(data).root)
    assert manifest is not None
    partial = store.open_partial(manifest)
    assert store.used_bytes == len(data)
    store.put_bytes(build_data(7 * CHUNK_BYTES, 1))
    with pytest.raises(QuotaExceeded):
        store.put_bytes(build_data(2 * CHUNK_BYTES, 2))
    partial.close()
    store.discard_partial(manifest.ref.root)
    assert store.used_bytes == 7 * CHUNK_BYTES
    assert store.get_info(manifest.ref.root) is None


def test_a_partial_blob_resumes_after_a_crash(store: BlobStore, tmp_path: Path) -> None:
    data = build_data(3 * CHUNK_BYTES + 9)
    other = BlobStore(tmp_path / "other")
    ref = other.put_bytes(data)
    manifest = other.get_manifest(ref.root)
    assert manifest is not None
    partial = store.open_partial(manifest)
    assert partial.missing == (0, 1, 2, 3)
    partial.write_chunk(3, data[3 * CHUNK_BYTES :])
    partial.write_chunk(1, data[CHUNK_BYTES : 2 * CHUNK_BYTES])
    with pytest.raises(BlobError, match="2 chunks are missing"):
        partial.finish()
    # A torn write, as after a power failure: part of chunk 0 is on disk.
    with (tmp_path / "blobs" / f"{ref.root.hex()}.part").open("r+b") as file:
        file.write(data[:1000])
    # The process dies here: nothing is closed.
    reopened = BlobStore(tmp_path / "blobs")
    info = reopened.get_info(ref.root)
    assert info is not None
    assert not info.complete
    assert not reopened.has(ref.root)
    resumed = reopened.open_partial(manifest)
    assert resumed.missing == (0, 2)
    for index in resumed.missing:
        resumed.write_chunk(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    assert resumed.finish().read_bytes() == data
    assert reopened.used_bytes == len(data)
    partial.close()


def test_a_partial_blob_takes_only_true_chunks(store: BlobStore, tmp_path: Path) -> None:
    data = build_data(2 * CHUNK_BYTES)
    other = BlobStore(tmp_path / "other")
    manifest = other.get_manifest(other.put_bytes(data).root)
    assert manifest is not None
    partial = store.open_partial(manifest)
    true = data[:CHUNK_BYTES]
    for index, chunk in [(0, bytes(CHUNK_BYTES)), (1, true[:-1]), (0, b""), (2, true), (-1, true)]:
        with pytest.raises(CorruptBlob):
            partial.write_chunk(index, chunk)
    assert partial.missing == (0, 1)
    partial.close()
    with pytest.raises(BlobError, match="no longer"):
        partial.write_chunk(0, true)


def test_manifests_must_make_up_the_root(store: BlobStore) -> None:
    ref = store.put_bytes(build_data(2 * CHUNK_BYTES))
    manifest = store.get_manifest(ref.root)
    assert manifest is not None
    encoded = manifest.encode()
    wrong_length = (ref.length - 1).to_bytes(8, "big") + encoded[8:]
    swapped = encoded[:8] + encoded[40:72] + encoded[8:40]
    for forged in (
        b"",
        encoded[:-1],
        encoded[:-32],
        encoded + bytes(32),
        wrong_length,
        swapped,
        b"\xff" * 40,
    ):
        with pytest.raises(CorruptBlob):
            Manifest.decode(ref.root, forged)


def test_rot_on_disk_is_found_and_the_blob_dropped(store: BlobStore) -> None:
    ref = store.put_bytes(build_data(2 * CHUNK_BYTES))
    path = store.get_path(ref.root)
    assert path is not None
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"\xff\xff")
    assert store.read_chunk(ref.root, 0) is not None
    with pytest.raises(CorruptBlob, match="chunk 1"):
        store.read_chunk(ref.root, 1)
    assert not store.has(ref.root)


def test_only_the_damaged_chunk_comes_again(store: BlobStore, tmp_path: Path) -> None:
    data = build_data(3 * CHUNK_BYTES + 9)
    ref = store.put_bytes(data)
    manifest, path = store.get_manifest(ref.root), store.get_path(ref.root)
    assert manifest is not None
    assert path is not None
    assert store.verify(ref.root) == ()
    with path.open("r+b") as file:
        file.seek(2 * CHUNK_BYTES)
        file.write(b"\xff\xff")
    assert store.verify(ref.root) == (2,)
    assert store.get_ref(ref.root) is None
    assert store.verify(ref.root) == ()
    assert store.used_bytes == len(data)
    reopened = BlobStore(tmp_path / "blobs")
    partial = reopened.open_partial(manifest)
    assert partial.missing == (2,)
    partial.write_chunk(2, data[2 * CHUNK_BYTES : 3 * CHUNK_BYTES])
    assert partial.finish().read_bytes() == data
    assert reopened.verify(ref.root) == ()


@pytest.mark.parametrize(
    "damage", ["cut", "grown", "manifest lost", "manifest damaged", "manifest of another"]
)
@pytest.mark.parametrize("when", ["before the start", "while running"])
def test_a_blob_whose_files_were_damaged_is_completed_again(tmp_path: Path, damage: str, when: str) -> None:
    data = build_data(2 * CHUNK_BYTES + 9)
    store = BlobStore(tmp_path / "blobs")
    ref, other = store.put_bytes(data), store.put_bytes(b"other")
    whole = store.get_manifest(ref.root)
    path = store.get_path(ref.root)
    assert whole is not None
    assert path is not None
    manifest = path.with_suffix(".manifest")
    match damage:
        case "cut":
            path.write_bytes(data[: CHUNK_BYTES + 5])
        case "grown":
            path.write_bytes(data + b"more")
        case "manifest lost":
            manifest.unlink()
        case "manifest damaged":
            manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
        case _:
            manifest.write_bytes(manifest.with_name(f"{other.root.hex()}.manifest").read_bytes())
    if when == "before the start":
        store = BlobStore(tmp_path / "blobs")
        assert not store.has(ref.root)
        assert store.get_info(other.root) is not None
    else:
        store.verify(ref.root)
        assert not store.has(ref.root)
    partial = store.open_partial(whole)
    for index in partial.missing:
        partial.write_chunk(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    assert partial.finish().read_bytes() == data
    assert [found.root for found in sorted(store.get_refs(), key=lambda found: -found.length)] == [
        ref.root,
        other.root,
    ]


def test_leftovers_of_a_death_are_cleared(tmp_path: Path) -> None:
    """Killed between a blob's two files: while it was removed, and before its folder was synced."""
    directory = tmp_path / "blobs"
    store = BlobStore(directory)
    removed, unsynced = store.put_bytes(b"removed"), store.put_bytes(b"unsynced")
    (directory / removed.root.hex()).unlink()
    (directory / f"{unsynced.root.hex()}.manifest").unlink()
    reopened = BlobStore(directory)
    assert reopened.get_refs() == ()
    assert {path.name for path in directory.iterdir()} == {f"{unsynced.root.hex()}.part"}
    assert reopened.put_bytes(b"unsynced") == unsynced
    assert reopened.used_bytes == len(b"unsynced")
    assert not (directory / f"{unsynced.root.hex()}.part").exists()


def test_blobs_survive_reopening_and_strays_are_cleared(tmp_path: Path) -> None:
    directory = tmp_path / "blobs"
    ref = BlobStore(directory).put_bytes(b"kept")
    (directory / "7.incoming").write_bytes(b"of a process that died")
    reopened = BlobStore(directory)
    assert reopened.get_refs() == (ref,)
    assert {path.name for path in directory.iterdir()} == {ref.root.hex(), f"{ref.root.hex()}.manifest"}


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"../canary", b"../../etc/passwd", b"/etc/passwd", b"\x00" * 31, b"a" * 33]
)
def test_roots_name_nothing_outside_the_folder(store: BlobStore, tmp_path: Path, name: bytes) -> None:
    """A root that is no hash is refused, or names nothing, whatever is done with it."""
    for canary in (tmp_path / "canary", tmp_path / "canary.manifest", tmp_path / "canary.part"):
        canary.write_bytes(b"canary")
    root = Hash32(name)
    for refused in (
        lambda: store.get_manifest(root),
        lambda: store.get_info(root),
        lambda: store.discard_partial(root),
        lambda: store.open_partial(Manifest(BlobRef(root, 1), (Hash32(bytes(32)),))),
    ):
        with pytest.raises(BlobError, match="32 bytes"):
            refused()
    assert not store.has(root)
    assert store.get_ref(root) is None
    assert store.get_path(root) is None
    assert store.read_chunk(root, 0) is None
    assert store.verify(root) == ()
    assert not store.remove(root)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "blobs",
        "canary",
        "canary.manifest",
        "canary.part",
    ]
    assert all(path.read_bytes() == b"canary" for path in tmp_path.glob("canary*"))
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["A" * 64, "a" * 63, "a" * 65, "a" * 63 + " ", "a" * 63 + "\n", "\uff11" * 64, "..canary", "-rf"]
)
def test_a_file_whose_name_is_no_root_is_no_blob(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "blobs"
    BlobStore(directory)
    (directory / name).write_bytes(b"put here by somebody")
    store = BlobStore(directory)
    assert store.get_refs() == ()
    assert store.used_bytes == 0
    assert (directory / name).read_bytes() == b"put here by somebody"


async def test_hashing_leaves_the_event_loop_alone(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(build_data(8 * CHUNK_BYTES))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await store.put_file(source)
    turning.cancel()
    assert turns > 10
