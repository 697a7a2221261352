"""`bmif ledger check`: a full walk over everything stored, for operators and for the tests."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from consensus.block import Header
from consensus.crypto import hash_domain
from consensus.types import Hash32
from node.ledger import schema
from node.ledger.chainstore import SIGN_STATE_PREFIX, Ledger
from node.ledger.damage import Damage
from node.ledger.files import TRIAL_SUFFIX, clone_files, find_damaged_files, lock_files
from node.ledger.indexing import compute_index
from node.ledger.level import LevelStore
from node.ledger.records import is_sign_state_readable
from node.ledger.rows import Rows
from node.ledger.schema import BlockIndex, LedgerDamaged
from node.ledger.store import StoreDamaged

TABLES = {
    schema.VERSION_KEY: "version",
    schema.META_KEY: "head",
    schema.BLOCK_PREFIX: "blocks",
    schema.HEADER_PREFIX: "headers",
    schema.INDEX_PREFIX: "index",
    schema.HEIGHT_PREFIX: "heights",
    schema.TRANSACTION_PREFIX: "transactions",
    schema.SUBJECT_PREFIX: "subjects",
    schema.NODE_PREFIX: "state",
    schema.RECORD_PREFIX: "records",
}
SNAPSHOT_PREFIX = b"snapshot/"
"""Of the records that a snapshot keeps while it is taken over (`node.ledger.snapshot`)."""
_KEY_LENGTHS = {"version": 1, "head": 1, "blocks": 33, "headers": 41, "index": 33, "heights": 9,
                "transactions": 33, "subjects": 45, "state": 33}  # fmt: skip


@dataclass(slots=True)
class Inspection:
    """What a ledger holds and what is wrong with it."""

    height: int = 0
    head: Hash32 | None = None
    base: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by table."""
    damages: list[Damage] = field(default_factory=list)
    unnamed: int = 0
    """Damages beyond those listed."""


def inspect_ledger(
    path: Path,
    chain_id: Hash32,
    *,
    genesis_root: Hash32 | None = None,
    deep: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Inspection:
    """Check the ledger of a stopped node, whatever state its files are in; it stays exactly as it is.

    `genesis_root`: the genesis state is walked too. `deep`: so is the state after every block.

    Raises:
        StoreError: another process holds it.
        LedgerError: it is of another chain or version.
    """
    with lock_files(path):
        trial = path.with_name(path.name + TRIAL_SUFFIX)
        shutil.rmtree(trial, ignore_errors=True)
        clone_files(path, trial)
        try:
            inspection = _inspect(trial, chain_id, genesis_root, deep, progress)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        if any(damage.table in ("database", "file") for damage in inspection.damages):
            progress("looking for the damaged file")
            inspection.damages += [Damage("file", found) for found in find_damaged_files(path)]
    inspection.damages = [_rename(damage, trial, path) for damage in inspection.damages]
    return inspection


def _rename(damage: Damage, trial: Path, path: Path) -> Damage:
    what = damage.what.replace(str(trial), str(path))
    return Damage(damage.table, what, damage.key, damage.height, damage.block, damage.remedy)


def _inspect(
    path: Path, chain_id: Hash32, genesis_root: Hash32 | None, deep: bool, progress: Callable[[str], None]
) -> Inspection:
    try:
        store = LevelStore(path)
    except StoreDamaged as error:
        return Inspection(damages=[Damage("file", str(error))])
    try:
        ledger = Ledger.open_unchecked(store, chain_id)
        return LedgerCheck(ledger, genesis_root, deep, progress).run()
    except StoreDamaged as error:
        return Inspection(damages=[Damage("database", str(error))])
    except LedgerDamaged as error:
        return Inspection(damages=[Damage("head", str(error))])
    finally:
        store.close()


def check_ledger(ledger: Ledger, *, deep: bool = False) -> list[Damage]:
    """Everything that is wrong with an open ledger; empty when it is whole.

    Each header's hash, body and roots agree and its parent is there; the height index is exactly the head's
    ancestry; transactions and subjects are indexed exactly where they stand; the head's state is complete
    (with `deep`, every block's from the base on); every row can be read.
    """
    return LedgerCheck(ledger, None, deep).run().damages


class LedgerCheck:
    """One walk over an open ledger."""

    def __init__(
        self,
        ledger: Ledger,
        genesis_root: Hash32 | None,
        deep: bool,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._rows = Rows(ledger.store)
        self._genesis_root = genesis_root
        self._deep = deep
        self._progress = progress
        self._visited: set[Hash32] = set()
        self._counts: Counter[str] = Counter()

    def run(self) -> Inspection:
        self._check_rows()
        if not self._is_taking_over():
            self._check_blocks()
            self._check_head_chain()
        self._check_states()
        ledger, rows = self._ledger, self._rows
        return Inspection(ledger.height, ledger.head, ledger.base, self._counts, rows.damages, rows.unnamed)

    def _is_taking_over(self) -> bool:
        """Whether a snapshot was on its way in: until its last batch no block counts."""
        staged = self._rows.iterate(schema.record_key(SNAPSHOT_PREFIX), "records")
        return not self._ledger.height and next(staged, None) is not None

    def _check_rows(self) -> None:
        """Read all; LevelDB tells of the blocks it can't read at the end."""
        self._progress("reading every row")
        for key, value in self._rows.iterate(b"", "database"):
            table = TABLES.get(key[:1])
            if table is None:
                self._rows.add("database", f"a row of no known table: {key[:40].hex()}", key)
                continue
            self._counts[table] += 1
            if len(key) != _KEY_LENGTHS.get(table, len(key)):
                self._rows.add(table, f"a key of {len(key)} bytes: {key[:40].hex()}", key)
            elif key.startswith(schema.record_key(SIGN_STATE_PREFIX)):
                if not is_sign_state_readable(key[1:], value):
                    self._rows.add("records", f"the sign-state {key[1:].hex()} can't be read", key)
            elif table == "state" and hash_domain("tree", value) != key[1:]:
                self._rows.add("state", f"node {key[1:].hex()} has another hash", key)

    def _check_blocks(self) -> None:
        """Every stored block, in the head chain or beside it."""
        rows, ledger = self._rows, self._ledger
        known = {ledger.chain_id}
        for key, value in rows.iterate(schema.HEADER_PREFIX, "headers"):
            if len(key) != _KEY_LENGTHS["headers"]:
                continue
            height, block = schema.decode_header_key(key)
            if height % 1000 == 0:
                self._progress(f"blocks: height {height} of {ledger.height}")
            known.add(block)
            header = rows.decode_header(value, block, height)
            index = rows.get_index(block, height)
            if header is not None:
                self._check_block(block, header, index, known)
        for table, prefix in (("blocks", schema.BLOCK_PREFIX), ("index", schema.INDEX_PREFIX)):
            for key, _ in rows.iterate(prefix, table):
                if Hash32(key[1:]) not in known:
                    rows.add(table, f"block {key[1:].hex()} has no header", key, block=Hash32(key[1:]))

    def _check_block(
        self, block: Hash32, header: Header, index: BlockIndex | None, known: set[Hash32]
    ) -> None:
        rows, height = self._rows, header.height
        if header.parent not in known:
            what = f"the parent {header.parent.hex()} of block {block.hex()} at height {height} is missing"
            rows.add("headers", what, schema.header_key(height, block), height, block)
        if index is not None and (index.height, index.parent) != (height, header.parent):
            what = f"the index of block {block.hex()} at height {height} is of another block"
            rows.add("index", what, schema.index_key(block), height, block)
        if height < self._ledger.base:
            return
        body = rows.get_block(block, header)
        if body is not None and index is not None and compute_index(body) != index:
            what = f"the index of block {block.hex()} at height {height} is not that of its transactions"
            rows.add("index", what, schema.index_key(block), height, block)
        if self._deep:
            rows.walk_state(header.state_root, height, block, self._visited)

    def _check_head_chain(self) -> None:
        """The height index is the head's ancestry, and what it holds is indexed, and nothing else is."""
        rows, ledger = self._rows, self._ledger
        self._progress("indices")
        chain = self._get_ancestry()
        for key, value in rows.iterate(schema.HEIGHT_PREFIX, "heights"):
            if len(key) != _KEY_LENGTHS["heights"]:
                continue
            height = schema.decode_height_key(key)
            if height > ledger.height:
                rows.add("heights", f"the height index goes on above the head: {height}", key, height)
            elif height in chain and chain[height] != value:
                what = f"the height index at {height} is not the head's ancestor {chain[height].hex()}"
                rows.add("heights", what, key, height, chain[height])
        transactions: dict[bytes, bytes] = {}
        subjects: dict[bytes, bytes] = {}
        for height, block in chain.items():
            if height == 0:
                continue
            rows.get(schema.height_key(height), "heights", f"the height index at {height}", height, block)
            index = rows.peek_index(block)
            if index is None:
                continue  # named already
            for at, transaction in enumerate(index.transactions):
                transactions[schema.transaction_key(transaction)] = schema.encode_location(block, at)
            for at, subject in index.subjects:
                subjects[schema.subject_key(subject, height, at)] = bytes(block)
        self._compare("transactions", schema.TRANSACTION_PREFIX, transactions)
        self._compare("subjects", schema.SUBJECT_PREFIX, subjects)

    def _get_ancestry(self) -> dict[int, Hash32]:
        """The head chain by its headers' parents, as far down as they can be read."""
        rows, ledger = self._rows, self._ledger
        chain: dict[int, Hash32] = {}
        block, height = ledger.head, int(ledger.height)
        while height > 0:
            chain[height] = block
            header = rows.peek_header(block, height)
            if header is None:
                what = (
                    f"the head chain breaks off: the header at height {height}, {block.hex()}, can't be read"
                )
                rows.add("headers", what, schema.header_key(height, block), height, block)
                return chain
            block, height = header.parent, height - 1
        chain[0] = block
        if block != ledger.chain_id:
            rows.add("headers", "the head chain does not begin at genesis", height=0, block=block)
        return chain

    def _compare(self, table: str, prefix: bytes, expected: dict[bytes, bytes]) -> None:
        rows = self._rows
        for key, value in rows.iterate(prefix, table):
            found = expected.pop(key, None)
            if found is None:
                rows.add(table, f"the head chain holds nothing of {key[1:].hex()}", key)
            elif found != value:
                block = Hash32(found[:32])
                rows.add(table, f"{key[1:].hex()} is not indexed where it stands", key, block=block)
        for key, value in expected.items():
            block = Hash32(value[:32])
            rows.add(table, f"{key[1:].hex()} of block {block.hex()} is not indexed", key, block=block)

    def _check_states(self) -> None:
        self._progress("the head's state")
        rows, ledger = self._rows, self._ledger
        if self._genesis_root is not None and not ledger.base and (self._deep or not ledger.height):
            rows.walk_state(self._genesis_root, 0, ledger.chain_id, self._visited)
        header = rows.peek_header(ledger.head, ledger.height)
        if header is not None:
            rows.walk_state(header.state_root, header.height, ledger.head, self._visited)
