"""The ledger after kill -9: a real process dies while it writes, and nothing that it reported is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from consensus.types import Hash32
from node.blobs import BlobStore
from node.ledger.chainstore import Ledger
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore

CHAIN = Hash32(b"\x11" * 32)
ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from node.ledger.chainstore import HeadChange, Ledger
from node.ledger.level import LevelStore
from tests.contract.test_ledger import CHAIN, build_block, build_node, build_transfer

ledger = Ledger.open(LevelStore(Path(sys.argv[1])), CHAIN)
while True:
    # Now and then a fork: the head is taken back by one and another block put in its place.
    height, parent, undone = ledger.height + 1, ledger.head, ()
    header = ledger.get_header(ledger.head)
    if height % 7 == 0 and header is not None:
        height, parent, undone = height - 1, header.parent, (ledger.head,)
    transactions = [build_transfer(height * 1000 + at) for at in range(10)]
    block, block_hash, nodes = build_block(parent, height, transactions, time=len(undone) + 1)
    nodes |= dict(build_node(f"{height} {at}".ljust(1000)) for at in range(50))
    ledger.put_block(block, nodes, head=HeadChange((block_hash,), undone))
    ledger.put_record(b"last", block_hash)
    print(block_hash.hex(), flush=True)
    if undone:
        block, block_hash, nodes = build_block(block_hash, height + 1, [], time=9)
        ledger.put_block(block, nodes, head=HeadChange((block_hash,)))
        block, block_hash, nodes = build_block(block_hash, height + 2, [], time=9)
        ledger.put_block(block, nodes, head=HeadChange((block_hash,)))
"""


@pytest.mark.parametrize("blocks", [1, 25, 80])
def test_everything_reported_is_there_after_a_kill(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "db"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    reported = [process.stdout.readline().strip() for _ in range(blocks)]
    process.kill()
    # What it reported between our last read and its death counts too.
    rest, _ = process.communicate()
    reported += [line for line in rest.split("\n") if len(line) == 64]

    store = LevelStore(path)
    ledger = Ledger.open(store, CHAIN)
    assert check_ledger(ledger, deep=True) == []
    for block in reported:
        assert ledger.has_block(Hash32(bytes.fromhex(block)))
    last = ledger.get_record(b"last")
    assert last is not None
    assert last.hex() in (reported[-1], ledger.head.hex())
    ledger.close()


def test_a_killed_blob_import_leaves_no_blob_and_no_reserved_room(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from node.blobs import BlobStore, BlobWriter

writer = BlobWriter(BlobStore(Path(sys.argv[1])))
while True:
    writer.write(bytes(1 << 20))
    print("chunk", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "blobs")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.communicate()
    store = BlobStore(tmp_path / "blobs")
    assert store.used_bytes == 0
    assert list((tmp_path / "blobs").iterdir()) == []
