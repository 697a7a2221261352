"""Roots of canonical bundles that this node computed itself: what a claim must name (DESIGN 3.4)."""

import asyncio
from pathlib import Path

from consensus.crypto import CHUNK_BYTES, compute_blob_root, compute_chunk_hash
from consensus.identifiers import compute_weights_digest
from consensus.types import Hash32
from node.core import Core
from node.tasks import TaskDefinition


async def compute_canonical_root(
    core: Core, definition: TaskDefinition, batch: int, weights: tuple[int, ...], scratch: Path
) -> Hash32:
    """Blob root of the batch's gradient bundle at these weights; computed once, then remembered.

    So whatever number of claims is called wrong, a batch of a step costs one computation.
    Raises: BlobError, WorkloadError.
    """
    digest = compute_weights_digest(weights)
    key = b"canonical/" + definition.id + digest + batch.to_bytes(4, "big")
    known = core.chain.ledger.get_record(key)
    if known is not None:
        return Hash32(known)
    await core.hold_training(definition, batch)
    await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
    output = scratch / f"canonical-{definition.id.hex()[:16]}-{digest.hex()[:16]}-{batch}.bundle"
    try:
        await core.work.compute_bundle(definition, batch, weights, output)
        root = await asyncio.to_thread(compute_file_root, output)
    finally:
        output.unlink(missing_ok=True)
    core.chain.ledger.put_record(key, root)
    return root


def compute_file_root(path: Path) -> Hash32:
    """The blob root of a file."""
    with path.open("rb") as file:
        hashes = [compute_chunk_hash(chunk) for chunk in iter(lambda: file.read(CHUNK_BYTES), b"")]
    return compute_blob_root(path.stat().st_size, hashes)
