"""Content-addressed blobs on disk: what is stored under a root is exactly the bytes that the root commits to.

A complete blob is a file named by its root in hex, beside `<root>.manifest` (length and chunk hashes). A blob
being fetched is `<root>.part`; how far it is shows from its content, since every chunk's hash is known, so
progress survives a crash without trusting any separate record. A complete blob that turns out to be damaged
becomes one that is being fetched: only what is wrong of it has to come again. All methods may be called from
any thread.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from consensus.crypto import CHUNK_BYTES, compute_blob_root, compute_chunk_hash
from consensus.task import BlobRef
from consensus.types import Hash32
from node.crashpoints import CrashPoint, reach
from node.disk import REMEDY, DiskRoom, describe_full, is_full, measure_room
from node.manifest import BlobError, BlobInfo, CorruptBlob, Manifest, QuotaExceeded

logger = logging.getLogger(__name__)

__all__ = [
    "BlobError",
    "BlobInfo",
    "BlobStore",
    "BlobWriter",
    "CorruptBlob",
    "Manifest",
    "PartialBlob",
    "QuotaExceeded",
]

MANIFEST_SUFFIX = ".manifest"
PART_SUFFIX = ".part"
INCOMING_SUFFIX = ".incoming"
DEFAULT_QUOTA_BYTES = 64 * 1024**3
DEFAULT_MAX_BLOB_BYTES = 1024**3


class BlobStore:
    """Blobs of one node, within a quota that counts complete and unfinished ones at full length."""

    def __init__(
        self,
        directory: Path,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        max_blob_bytes: int = DEFAULT_MAX_BLOB_BYTES,
        min_free_bytes: int = 0,
    ) -> None:
        """`min_free_bytes`: of the disk, that blobs leave to others."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.quota_bytes = quota_bytes
        self.max_blob_bytes = max_blob_bytes
        self._min_free_bytes = min_free_bytes
        self._lock = threading.Lock()
        self._complete: dict[Hash32, int] = {}
        self._reserved: dict[Path, int] = {}
        self._numbers = itertools.count()
        self._scan()

    def _scan(self) -> None:
        """What is here, by names, lengths and manifests; contents are hashed when they are read."""
        for path in sorted(self._directory.iterdir()):
            if path.suffix == INCOMING_SUFFIX:
                path.unlink()  # of a process that died; nobody knows its root
            elif path.suffix == PART_SUFFIX:
                self._reserved[path] = path.stat().st_size
            elif path.suffix == MANIFEST_SUFFIX and _is_root_name(path.stem):
                if not path.with_suffix("").exists() and not path.with_suffix(PART_SUFFIX).exists():
                    path.unlink()  # the process died while it removed the blob
            elif not path.suffix and _is_root_name(path.name):
                root, length = Hash32(bytes.fromhex(path.name)), path.stat().st_size
                manifest = self.get_manifest(root)
                if manifest is not None and manifest.ref.length == length:
                    self._complete[root] = length
                else:
                    logger.error("blob %s is damaged on disk and has to be completed again", path.name)
                    self._reopen(root, length)

    def measure_room(self) -> DiskRoom:
        """What is left of the disk, against what blobs leave to others. Raises: OSError."""
        return measure_room(self._directory, self._min_free_bytes)

    # --- reading ------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(self._complete.values()) + sum(self._reserved.values())

    def has(self, root: Hash32) -> bool:
        """Whether the whole blob is here."""
        return root in self._complete

    def get_ref(self, root: Hash32) -> BlobRef | None:
        length = self._complete.get(root)
        return None if length is None else BlobRef(root, length)

    def get_refs(self) -> tuple[BlobRef, ...]:
        """All complete blobs."""
        with self._lock:
            return tuple(BlobRef(root, length) for root, length in self._complete.items())

    def get_path(self, root: Hash32) -> Path | None:
        """The complete blob's file, to be read only; None if it is not here."""
        return self._path(root) if root in self._complete else None

    def get_info(self, root: Hash32) -> BlobInfo | None:
        """What is here of a complete or unfinished blob; None if nothing is."""
        if (ref := self.get_ref(root)) is not None:
            return BlobInfo(ref, True, ref.length)
        manifest = self.get_manifest(root)
        try:
            status = _part(self._path(root)).stat()
        except FileNotFoundError:
            return None
        # Holes take no blocks, so this is what has come, to a few bytes.
        held = min(status.st_blocks * 512, status.st_size)
        return None if manifest is None else BlobInfo(manifest.ref, False, held)

    def get_manifest(self, root: Hash32) -> Manifest | None:
        """The manifest of a complete or unfinished blob; one that is damaged on disk is dropped."""
        path = self._path(root).with_suffix(MANIFEST_SUFFIX)
        try:
            return Manifest.decode(root, path.read_bytes())
        except FileNotFoundError:
            return None
        except CorruptBlob as error:
            logger.error("the manifest of blob %s is damaged on disk: %s", root.hex(), error)
        path.unlink(missing_ok=True)
        with self._lock:
            length = self._complete.pop(root, None)
        if length is not None:
            self._reopen(root, length)
        return None

    def read_chunk(self, root: Hash32, index: int) -> bytes | None:
        """One verified chunk of a complete blob; None if the blob or the chunk does not exist.

        A chunk that rotted on disk raises `CorruptBlob`, and the blob counts as unfinished from then on.
        """
        manifest = self.get_manifest(root) if root in self._complete else None
        if manifest is None or not 0 <= index < len(manifest.chunks):
            return None
        try:
            with self._path(root).open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                data = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return None
        if compute_chunk_hash(data) != manifest.chunks[index]:
            self._give_up(root, (index,))
            raise CorruptBlob(f"chunk {index} of blob {root.hex()} is damaged on disk")
        return data

    def verify(self, root: Hash32) -> tuple[int, ...]:
        """Hash a complete blob, as long as that takes; its damaged chunks, ascending.

        If there are any, the blob counts as unfinished from then on.
        """
        length = self._complete.get(root)
        manifest = None if length is None else self.get_manifest(root)
        if length is None:
            return ()
        if manifest is None:
            # A lost manifest makes the blob as good as damaged; a damaged one has been dealt with.
            every = tuple(range(-(-length // CHUNK_BYTES)))
            self._give_up(root, every)
            return every
        try:
            with self._path(root).open("rb") as file:
                damaged = tuple(
                    index
                    for index, expected in enumerate(manifest.chunks)
                    if compute_chunk_hash(file.read(CHUNK_BYTES)) != expected
                )
                if file.read(1):
                    damaged = (*damaged, len(manifest.chunks))  # more than there should be
        except FileNotFoundError:
            damaged = tuple(range(len(manifest.chunks)))
        if damaged:
            self._give_up(root, damaged)
        return damaged

    def _give_up(self, root: Hash32, damaged: tuple[int, ...]) -> None:
        chunks = ", ".join(map(str, damaged))
        logger.error(
            "blob %s is damaged on disk (chunks %s) and has to be completed again", root.hex(), chunks
        )
        with self._lock:
            length = self._complete.pop(root, None)
        if length is not None:
            self._reopen(root, length)

    def _reopen(self, root: Hash32, length: int) -> None:
        """Make a damaged blob an unfinished one, so that what is right of it need not come again."""
        path = self._path(root)
        try:
            path.replace(_part(path))
        except FileNotFoundError:
            return
        with self._lock:
            self._reserved[_part(path)] = length
        reach(CrashPoint.BLOB_REOPENED)

    # --- writing ------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> BlobRef:
        """Store a small blob. Raises `QuotaExceeded`."""
        writer = BlobWriter(self)
        try:
            writer.write(data)
            return writer.finish()
        except BaseException:
            writer.abort()
            raise

    def import_file(self, path: Path, *, move: bool = False) -> BlobRef:
        """Store a file's bytes, read chunk by chunk; with `move` the file itself becomes the blob.

        Raises `QuotaExceeded`; then the file is left where it is.
        """
        writer = BlobWriter(self)
        try:
            with path.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    writer.write(data, keep=not move)
                if move:
                    os.fsync(file.fileno())
            return writer.finish(adopt=path if move else None)
        except BaseException:
            writer.abort()
            raise

    async def put_file(self, path: Path, *, move: bool = False) -> BlobRef:
        """`import_file` without blocking the event loop."""
        return await asyncio.to_thread(self.import_file, path, move=move)

    async def put_stream(self, pieces: AsyncIterator[bytes]) -> BlobRef:
        """Store a stream of pieces of any size without holding more than a chunk of it.

        Raises `QuotaExceeded` as soon as the stream is too long.
        """
        writer = BlobWriter(self)
        buffer = bytearray()
        try:
            async for piece in pieces:
                buffer += piece
                if len(buffer) >= CHUNK_BYTES:
                    await asyncio.to_thread(writer.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(writer.write, bytes(buffer))
            return await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abort()
            raise

    def open_partial(self, manifest: Manifest) -> "PartialBlob":
        """Begin or resume fetching a blob. What is already on disk is hashed again, so call it in a thread.

        Raises `QuotaExceeded`, also where the disk is full. Only one `PartialBlob` of a root may be open at a
        time.
        """
        root = manifest.ref.root
        part = _part(self._path(root))
        self._reserve(part, manifest.ref.length)
        try:
            with _naming_full_disk(part):
                return PartialBlob(self, manifest, part)
        except BaseException:
            if not part.exists():
                self.discard_partial(root)
            raise

    def discard_partial(self, root: Hash32) -> None:
        """Forget an unfinished blob and free its quota."""
        path = self._path(root)
        _part(path).unlink(missing_ok=True)
        if root not in self._complete:
            path.with_suffix(MANIFEST_SUFFIX).unlink(missing_ok=True)
        self._release(_part(path))

    def remove(self, root: Hash32) -> bool:
        """Drop a complete blob; True if it was here."""
        with self._lock:
            if self._complete.pop(root, None) is None:
                return False
        path = self._path(root)
        path.unlink(missing_ok=True)
        reach(CrashPoint.BLOB_REMOVING)
        path.with_suffix(MANIFEST_SUFFIX).unlink(missing_ok=True)
        return True

    # --- for BlobWriter and PartialBlob -------------------------------------------------------

    def _path(self, root: Hash32) -> Path:
        # Hex of exactly 32 bytes: no root can name a path outside the folder.
        if len(root) != 32:
            raise BlobError(f"Expected a root of 32 bytes. Got {len(root)}.")
        return self._directory / root.hex()

    def _new_incoming(self) -> Path:
        return self._directory / f"{next(self._numbers)}{INCOMING_SUFFIX}"

    def _reserve(self, path: Path, length: int) -> None:
        """Set what `path` takes of the quota."""
        with self._lock:
            if length > self.max_blob_bytes:
                raise QuotaExceeded(
                    f"a blob of {length} bytes or more exceeds the most allowed, {self.max_blob_bytes} "
                    "(limits.max_blob_bytes)"
                )
            grows = length - self._reserved.get(path, 0)
            if self._min_free_bytes and grows > 0:
                room = measure_room(self._directory, self._min_free_bytes)
                promised = sum(self._count_missing(other) for other in self._reserved if other != path)
                if room.free - promised - grows < room.least:
                    raise QuotaExceeded(
                        f"a blob of {length} bytes does not fit on the disk of {self._directory}: "
                        f"{room.describe()}, {promised} of them for blobs that are being fetched; {REMEDY}"
                    )
            others = sum(self._complete.values()) + sum(self._reserved.values()) - self._reserved.get(path, 0)
            if others + length > self.quota_bytes:
                raise QuotaExceeded(
                    f"a blob of {length} bytes does not fit: {others} of {self.quota_bytes} bytes are used "
                    "(limits.blob_quota_bytes)"
                )
            self._reserved[path] = length

    def _count_missing(self, path: Path) -> int:
        """What an unfinished blob will still take of the disk; holes take nothing yet."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return self._reserved[path]
        return max(0, self._reserved[path] - status.st_blocks * 512)

    def _release(self, path: Path) -> None:
        with self._lock:
            self._reserved.pop(path, None)

    def _write_manifest(self, manifest: Manifest) -> None:
        path = self._path(manifest.ref.root).with_suffix(MANIFEST_SUFFIX)
        temporary = self._new_incoming()
        try:
            with temporary.open("wb") as file:
                file.write(manifest.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        reach(CrashPoint.MANIFEST_WRITTEN)
        temporary.replace(path)
        reach(CrashPoint.MANIFEST_NAMED)

    def _complete_file(self, manifest: Manifest, source: Path, reserved: Path) -> Path:
        """Make a synced file the blob; the manifest is in place before the blob's name is."""
        root = manifest.ref.root
        target = self._path(root)
        self._write_manifest(manifest)
        source.replace(target)
        reach(CrashPoint.BLOB_NAMED)
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        reach(CrashPoint.BLOB_COMPLETE)
        part = _part(target)
        with self._lock:
            self._reserved.pop(reserved, None)
            has_part = self._reserved.pop(part, None) is not None
            self._complete[root] = manifest.ref.length
        if has_part:
            part.unlink(missing_ok=True)  # begun earlier, and had in another way now
        return target


class BlobWriter:
    """Writes a blob whose root is known only at the end. `finish` or `abort` must be called."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._path = store._new_incoming()
        self._file = self._path.open("xb")
        self._length = 0
        self._tail = b""
        self._hashes: list[Hash32] = []
        self._is_closed = False
        # A cancelled caller aborts while its thread may still be writing.
        self._lock = threading.Lock()

    def write(self, data: bytes, *, keep: bool = True) -> None:
        """Append; without `keep` the bytes are only hashed, for a file adopted at the end."""
        with self._lock, _naming_full_disk(self._path):
            self._write(data, keep)

    def _write(self, data: bytes, keep: bool) -> None:
        if self._is_closed:
            raise BlobError("the blob was finished or aborted")
        self._store._reserve(self._path, self._length + len(data))
        self._length += len(data)
        view = memoryview(self._tail + data if self._tail else data)
        whole = len(view) - len(view) % CHUNK_BYTES
        for at in range(0, whole, CHUNK_BYTES):
            self._hashes.append(compute_chunk_hash(view[at : at + CHUNK_BYTES]))
        self._tail = bytes(view[whole:])
        if keep:
            self._file.write(data)

    def finish(self, *, adopt: Path | None = None) -> BlobRef:
        """Make the bytes a blob, durable once this returns; a blob stored before stays as it is."""
        with self._lock, _naming_full_disk(self._path):
            return self._finish(adopt)

    def _finish(self, adopt: Path | None) -> BlobRef:
        if self._is_closed:
            raise BlobError("the blob was finished or aborted")
        if self._tail:
            self._hashes.append(compute_chunk_hash(self._tail))
        root = compute_blob_root(self._length, self._hashes)
        ref = BlobRef(root, self._length)
        if self._store.has(root):
            self._close()
            if adopt is not None:
                adopt.unlink()
            return ref
        source = self._path
        if adopt is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        else:
            source = adopt
        self._store._complete_file(Manifest(ref, tuple(self._hashes)), source, self._path)
        self._close()  # also removes the temporary file where another was adopted
        return ref

    def abort(self) -> None:
        """Drop what was written; harmless after `finish`."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._file.close()  # of a full disk: what is left in its buffer is to go anyway
        self._path.unlink(missing_ok=True)
        self._store._release(self._path)


class PartialBlob:
    """A blob being fetched: accepts only chunks that match their hash, in any order, from any thread."""

    def __init__(self, store: BlobStore, manifest: Manifest, path: Path) -> None:
        """Use `BlobStore.open_partial`."""
        self._store = store
        self._manifest = manifest
        self._path = path
        # A cancelled fetch closes while its threads may still be writing, and descriptors are reused.
        self._lock = threading.Lock()
        store._write_manifest(manifest)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._missing = set(range(len(manifest.chunks)))
        try:
            size = os.fstat(self._descriptor).st_size
            if size != manifest.ref.length:
                os.ftruncate(self._descriptor, manifest.ref.length)
            if size:
                self._verify_held()
        except BaseException:
            self.close()
            raise

    def _verify_held(self) -> None:
        for index, expected in enumerate(self._manifest.chunks):
            data = os.pread(self._descriptor, CHUNK_BYTES, index * CHUNK_BYTES)
            # A hole reads as zeros, which are cheaper to count than to hash.
            if data.count(0) < len(data) and compute_chunk_hash(data) == expected:
                self._missing.discard(index)

    @property
    def missing(self) -> tuple[int, ...]:
        """Chunks still to be written, ascending."""
        return tuple(sorted(self._missing))

    def write_chunk(self, index: int, data: bytes) -> None:
        """Verify and write one chunk.

        Raises `CorruptBlob` with nothing written, or `QuotaExceeded` where the disk is full; what is written
        of a chunk then counts for nothing.
        """
        manifest = self._manifest
        if not 0 <= index < len(manifest.chunks) or len(data) != manifest.get_chunk_length(index):
            raise CorruptBlob(f"chunk {index} of blob {manifest.ref.root.hex()} has {len(data)} bytes")
        if compute_chunk_hash(data) != manifest.chunks[index]:
            raise CorruptBlob(f"chunk {index} of blob {manifest.ref.root.hex()} has another hash")
        view, at = memoryview(data), index * CHUNK_BYTES
        with self._lock, _naming_full_disk(self._path):
            if self._descriptor < 0:
                raise BlobError(f"blob {manifest.ref.root.hex()} is no longer being fetched")
            reach(CrashPoint.CHUNK_WRITING)
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
            self._missing.discard(index)
            reach(CrashPoint.CHUNK_WRITTEN)

    def finish(self) -> Path:
        """Sync and rename; durable once this returns.

        Raises `BlobError` while chunks are missing, and where the disk is full.
        """
        if self._missing:
            raise BlobError(f"{len(self._missing)} chunks are missing")
        with _naming_full_disk(self._path):
            with self._lock:
                os.fsync(self._descriptor)
            self.close()
            present = self._store.get_path(self._manifest.ref.root)
            return present or self._store._complete_file(self._manifest, self._path, self._path)

    def close(self) -> None:
        """Stop; what was written stays for the next `open_partial`."""
        with self._lock:
            if self._descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(self._descriptor)
                self._descriptor = -1


@contextlib.contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """A full disk is one more way in which a blob does not fit."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise QuotaExceeded(describe_full(path.parent)) from error


def _part(path: Path) -> Path:
    return path.with_suffix(PART_SUFFIX)


def _is_root_name(name: str) -> bool:
    return len(name) == 64 and all(character in "0123456789abcdef" for character in name)
