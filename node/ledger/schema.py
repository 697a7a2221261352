"""Keys and small values of the ledger: binary, one prefix byte a table, big-endian numbers.

| Prefix | Key | Value |
|---|---|---|
| `v` | - | schema version |
| `m` | - | msgpack [chain id, head hash, head height, base] |
| `b` | block hash | encoded block |
| `e` | height, block hash | encoded header: iterates parents before children |
| `i` | block hash | msgpack `BlockIndex` |
| `h` | height | hash of the head chain's block |
| `t` | transaction id | block hash, position: head chain only |
| `k` | subject, height, position | block hash: head chain's entries about a task or a draft |
| `n` | node hash | state tree node |
| `r` | free | small records of the node |
"""

import struct
from dataclasses import dataclass

import msgpack

from consensus.types import Hash32

SCHEMA_VERSION = 2

VERSION_KEY = b"v"
META_KEY = b"m"
BLOCK_PREFIX = b"b"
HEADER_PREFIX = b"e"
INDEX_PREFIX = b"i"
HEIGHT_PREFIX = b"h"
TRANSACTION_PREFIX = b"t"
SUBJECT_PREFIX = b"k"
NODE_PREFIX = b"n"
RECORD_PREFIX = b"r"

WORK_POSITION = 0xFFFFFFFF
"""Position of a block's work in the subject table, after all transactions."""

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class LedgerError(Exception):
    """The ledger is of another chain or damaged, or a change does not fit it; nothing was changed."""


class SchemaError(LedgerError):
    """The database is of another version, or holds something else than a ledger."""


class LedgerDamaged(LedgerError):
    """Something that the ledger must hold is missing from it, or is not what was stored: rebuild it."""


@dataclass(frozen=True, slots=True)
class Meta:
    chain_id: Hash32
    head: Hash32
    height: int
    base: int = 0
    """Lowest height whose bodies are kept: below it there are headers, indices and perhaps nothing more.
    0 when nothing was ever left out."""


@dataclass(frozen=True, slots=True)
class BlockIndex:
    """What indexing a block, or taking it out of the index, needs to know of it."""

    height: int
    parent: Hash32
    transactions: tuple[Hash32, ...]
    subjects: tuple[tuple[int, Hash32], ...]
    """(position of the transaction or `WORK_POSITION`, task id or draft hash)"""


@dataclass(frozen=True, slots=True)
class Location:
    """Where something stands in the head chain."""

    block: Hash32
    height: int
    position: int
    """Index into the block's transactions, or `WORK_POSITION`."""


def block_key(block: Hash32) -> bytes:
    return BLOCK_PREFIX + block


def header_key(height: int, block: Hash32) -> bytes:
    return HEADER_PREFIX + _U64.pack(height) + block


def header_prefix(height: int) -> bytes:
    """Of all headers of a height."""
    return HEADER_PREFIX + _U64.pack(height)


def index_key(block: Hash32) -> bytes:
    return INDEX_PREFIX + block


def height_key(height: int) -> bytes:
    return HEIGHT_PREFIX + _U64.pack(height)


def transaction_key(transaction: Hash32) -> bytes:
    return TRANSACTION_PREFIX + transaction


def subject_prefix(subject: Hash32) -> bytes:
    return SUBJECT_PREFIX + subject


def subject_key(subject: Hash32, height: int, position: int) -> bytes:
    return SUBJECT_PREFIX + subject + _U64.pack(height) + _U32.pack(position)


def node_key(node: bytes) -> bytes:
    return NODE_PREFIX + node


def record_key(key: bytes) -> bytes:
    return RECORD_PREFIX + key


def describe_version(version: int) -> str:
    """Why a ledger of another version is not opened, and what to do."""
    expected = f"Expected a ledger of schema version {SCHEMA_VERSION}. Got {version}:"
    if 1 <= version < SCHEMA_VERSION:
        return f"{expected} run `bmif ledger migrate` while the node is stopped; it keeps a copy beside it."
    return (
        f"{expected} run the version of bmif that wrote it, or `bmif ledger rebuild` to sync again from "
        "peers."
    )


def encode_version(version: int) -> bytes:
    return _U32.pack(version)


def decode_version(data: bytes) -> int:
    if len(data) != _U32.size:
        raise LedgerDamaged(f"the schema version is damaged: it has {len(data)} bytes")
    return int(_U32.unpack(data)[0])


def encode_meta(meta: Meta) -> bytes:
    return bytes(msgpack.packb((meta.chain_id, meta.head, meta.height, meta.base)))


def decode_meta(data: bytes) -> Meta:
    """Of this version, or of version 1, which knew no base. Raises `LedgerDamaged`."""
    try:
        chain_id, head, height, *rest = msgpack.unpackb(data)
        (base,) = rest or (0,)
        meta = Meta(_check_hash(chain_id), _check_hash(head), _check_number(height), _check_number(base))
        if meta.base > meta.height:
            raise ValueError("its fields are out of range")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise LedgerDamaged(f"the head record is damaged: {error}") from error
    return meta


def encode_index(index: BlockIndex) -> bytes:
    return bytes(msgpack.packb((index.height, index.parent, b"".join(index.transactions), index.subjects)))


def decode_index(data: bytes) -> BlockIndex:
    try:
        height, parent, joined, subjects = msgpack.unpackb(data)
        if type(joined) is not bytes or type(subjects) is not list:
            raise ValueError("a field of another type")
        return BlockIndex(
            _check_number(height),
            _check_hash(parent),
            tuple(_check_hash(joined[at : at + 32]) for at in range(0, len(joined), 32)),
            tuple((_check_number(position), _check_hash(subject)) for position, subject in subjects),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise LedgerDamaged(f"an index record is damaged: {error}") from error


def encode_location(block: Hash32, position: int) -> bytes:
    return block + _U32.pack(position)


def decode_location(data: bytes) -> tuple[Hash32, int]:
    if len(data) != 32 + _U32.size:
        raise LedgerDamaged(f"a transaction's location is damaged: it has {len(data)} bytes")
    return Hash32(data[:32]), int(_U32.unpack(data[32:])[0])


def decode_header_key(key: bytes) -> tuple[int, Hash32]:
    """(height, block). Raises `LedgerDamaged`, as the other keys' decoders do."""
    _check_key(key, 1 + 8 + 32)
    return int(_U64.unpack(key[1:9])[0]), Hash32(key[9:])


def decode_height_key(key: bytes) -> int:
    _check_key(key, 1 + 8)
    return int(_U64.unpack(key[1:])[0])


def decode_subject_key(key: bytes) -> tuple[int, int]:
    """(height, position)"""
    _check_key(key, 1 + 32 + 8 + 4)
    return int(_U64.unpack(key[33:41])[0]), int(_U32.unpack(key[41:])[0])


def _check_key(key: bytes, length: int) -> None:
    if len(key) != length:
        raise LedgerDamaged(f"a key of {len(key)} bytes, not {length}: {key[:48].hex()}")


def _check_hash(value: object) -> Hash32:
    if type(value) is not bytes or len(value) != 32:
        raise ValueError("a hash of another type or length")
    return Hash32(value)


def _check_number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a number of another type or range")
    return value
