"""What a cluster's worker does for a miner: one gradient bundle from blobs that it keeps by their roots.

Runs in a Dask worker on another machine of the same operator. It needs no ledger, no key of the node and no
secret: a bundle is computed from public keys and ciphertexts alone.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consensus.crypto import CHUNK_BYTES, compute_blob_root, compute_chunk_hash
from workloads import base

CACHE = "bmif-blobs"
CACHE_BYTES = 16 * 1024**3
"""Of all blobs kept; the ones used longest ago go first."""


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A gradient job without paths: blobs are named by their roots."""

    kind: str
    preset: str
    model: bytes
    weights: tuple[int, ...]
    relin_keys: bytes
    batch: bytes

    @property
    def roots(self) -> tuple[bytes, bytes]:
        """Of the blobs that the worker must have."""
        return self.relin_keys, self.batch


@dataclass(frozen=True, slots=True)
class RemoteResult:
    """The bundle, or the roots of what the worker lacks; or why the job was refused."""

    bundle: bytes | None = field(default=None, repr=False)
    seconds: float = 0.0
    """Of computing it."""
    missing: tuple[bytes, ...] = ()
    refused: str | None = None


def compute_root(data: bytes) -> bytes:
    """The blob root of bytes at hand."""
    view = memoryview(data)
    hashes = [compute_chunk_hash(view[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    return bytes(compute_blob_root(len(data), hashes))


class BlobCache:
    """Blobs of one machine's workers, in files named by root; several processes may share it."""

    def __init__(self, folder: Path, limit: int = CACHE_BYTES) -> None:
        self.folder, self._limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def find(self, root: bytes) -> Path | None:
        """The file, marked as used; None if it is not here."""
        path = self.folder / root.hex()
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def add(self, root: bytes, data: bytes) -> Path:
        """Keep a blob that came over the wire.

        Raises: WorkloadError if the bytes are not those of the root.
        """
        if compute_root(data) != root:
            raise base.WorkloadError(f"blob {root.hex()}: other bytes came over the wire")
        self._make_room(len(data))
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
            file.write(data)
        path = self.folder / root.hex()
        os.replace(file.name, path)
        return path

    def _make_room(self, wanted: int) -> None:
        files = [(entry.stat().st_atime, entry.stat().st_size, entry) for entry in os.scandir(self.folder)]
        total = sum(size for _, size, _ in files) + wanted
        for _, size, entry in sorted(files, key=lambda item: item[0]):
            if total <= self._limit:
                return
            Path(entry.path).unlink(missing_ok=True)  # a job that reads it keeps its open file
            total -= size


def _get_folder() -> Path:
    from distributed import get_worker

    # One folder for all workers that were started in one place, so that a batch lies on a machine once.
    return Path(get_worker().local_directory).parent / CACHE


def run_remote(job: RemoteJob, blobs: Mapping[bytes, bytes], folder: Path | None = None) -> RemoteResult:
    """Compute a bundle on this machine, if all its blobs are here or came with the call."""
    cache = BlobCache(folder or _get_folder())
    try:
        paths = {root: cache.add(root, data) for root, data in blobs.items()}
        paths |= {root: path for root in job.roots if root not in paths and (path := cache.find(root))}
        missing = tuple(root for root in job.roots if root not in paths)
        if missing:
            return RemoteResult(missing=missing)
        with tempfile.TemporaryDirectory(dir=cache.folder.parent, prefix="bmif-bundle-") as scratch:
            output = Path(scratch) / "bundle"
            keys = base.KeyFile(job.relin_keys, paths[job.relin_keys])
            work = base.GradientJob(job.preset, job.model, job.weights, keys, paths[job.batch], output)
            begun = time.perf_counter()
            base.get_workload(job.kind).run_gradient(work)
            seconds = time.perf_counter() - begun
            return RemoteResult(bundle=output.read_bytes(), seconds=seconds)
    except base.WorkloadError as error:
        return RemoteResult(refused=str(error))
