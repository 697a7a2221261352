"""The codec: one encoding for each value, and refusals that name what was expected."""

import pickle
import tracemalloc
from dataclasses import dataclass, replace
from enum import StrEnum

import pytest

from consensus.block import Block, Body
from consensus.codec import CodecError, NonCanonicalError, decode, decode_stored, encode
from consensus.crypto import (
    CHUNK_BYTES,
    SigningKey,
    compute_blob_root,
    compute_chunk_hash,
    compute_merkle_root,
    hash_domain,
    sign,
    verify,
)
from consensus.params import Genesis
from consensus.task import Transfer
from consensus.transaction import SignedTransaction, verify_transaction
from consensus.types import Address, Amount, Hash32, Signature
from tests.unit.consensus.world import CUSTODY, MINER_A, OUTSIDER, World, build_genesis


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Sample:
    number: int
    data: bytes
    text: str
    flag: bool
    colour: Colour
    maybe: int | None
    numbers: tuple[int, ...]


SAMPLE = Sample(1, b"\x01", "x", True, Colour.RED, None, (1, -1, 2**64 - 1, -(2**63)))


def test_round_trip() -> None:
    assert decode(Sample, encode(SAMPLE)) == SAMPLE
    assert decode_stored(Sample, encode(SAMPLE)) == SAMPLE
    genesis = build_genesis()
    assert decode(Genesis, encode(genesis)) == genesis


@pytest.mark.parametrize(
    "changes",
    [
        {"number": True},
        {"number": 1.0},
        {"number": 2**64},
        {"number": -(2**63) - 1},
        {"data": "text"},
        {"data": bytearray(b"x")},
        {"text": b"bytes"},
        {"text": "\ud800"},
        {"flag": 1},
        {"colour": "red"},
        {"maybe": "x"},
        {"numbers": [1]},
        {"numbers": (1, None)},
        {"numbers": (2**64,)},
    ],
)
def test_values_of_other_types_have_no_encoding(changes: dict[str, object]) -> None:
    with pytest.raises(CodecError):
        encode(replace(SAMPLE, **changes))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b"\x97\x01", b"\x97\xcc\x01", NonCanonicalError),
        (b"\x97\x01", b"\x97\xd3\x00\x00\x00\x00\x00\x00\x00\x01", NonCanonicalError),
        (b"\x97\x01", b"\x97\xc0", CodecError),
        (b"\x97\x01", b"\x97\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", CodecError),
        (b"\x97\x01", b"\x96\x01", CodecError),
        (b"\x97\x01", b"\xdc\x00\x07\x01", NonCanonicalError),
        (b"\xc4\x01\x01", b"\xc5\x00\x01\x01", NonCanonicalError),
        (b"\xc4\x01\x01", b"\xa1\x01", CodecError),
        (b"\xa1x", b"\xd9\x01x", NonCanonicalError),
        (b"\xa1x", b"\xa1\xff", CodecError),
        (b"\xa1x", b"\xc4\x01x", CodecError),
        (b"\xa3red", b"\xa3rad", CodecError),
        (b"\xc3", b"\x01", CodecError),
        (b"\xc0", b"\xc1", CodecError),
        (b"\xd3\x80", b"\xd3", CodecError),
    ],
)
def test_other_bytes_are_refused(old: bytes, new: bytes, error: type[CodecError]) -> None:
    data = encode(SAMPLE)
    assert data.count(old) == 1
    with pytest.raises(error):
        decode(Sample, data.replace(old, new))


def test_lengths_and_ranges_of_identifiers_are_enforced() -> None:
    transfer = Transfer(Address(bytes(32)), Amount(1))
    for wrong in (
        replace(transfer, to=Address(bytes(31))),
        replace(transfer, amount=Amount(-1)),
        replace(transfer, amount=Amount(2**63)),
    ):
        with pytest.raises(CodecError):
            encode(wrong)
    transaction = SignedTransaction(Hash32(bytes(32)), Address(bytes(32)), 0, transfer, Signature(b""))
    for length in (1, 63, 65):
        with pytest.raises(CodecError):
            encode(replace(transaction, signature=Signature(bytes(length))))


def test_unknown_tags_and_members_are_refused() -> None:
    transaction = World().transfer(OUTSIDER, MINER_A, 5)
    data = encode(transaction)
    assert data.count(b"\x93\x00\xc4\x20") == 1
    for tag in (b"\x08", b"\xff", b"\xc0"):
        with pytest.raises(CodecError):
            decode(SignedTransaction, data.replace(b"\x93\x00\xc4\x20", b"\x93" + tag + b"\xc4\x20"))
    with pytest.raises(CodecError):
        encode(replace(transaction, payload=transaction))
    with pytest.raises(CodecError):
        encode(5)


def test_bombs_of_nested_arrays_cost_no_memory() -> None:
    bomb = b"\xdd\x00\x3f\xff\xff" * 200_000
    tracemalloc.start()
    for cls in (Block, Body, Genesis, Sample):
        with pytest.raises(CodecError):
            decode(cls, bomb)
    with pytest.raises(CodecError):
        decode(Body, b"\x93" + bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(bomb)


# --- signatures and roots ---------------------------------------------------------------------


def test_signatures_hold_for_one_key_tag_and_message() -> None:
    signature = sign(CUSTODY, "claim", b"data")
    assert verify(CUSTODY.address, "claim", b"data", signature)
    assert not verify(MINER_A.address, "claim", b"data", signature)
    assert not verify(CUSTODY.address, "block", b"data", signature)
    assert not verify(CUSTODY.address, "claim", b"datb", signature)
    assert not verify(CUSTODY.address, "claim", b"data", Signature(b""))
    assert not verify(Address(b"short"), "claim", b"data", signature)
    assert not verify(Address(b"\xff" * 32), "claim", b"data", signature)


def test_malleated_signature_is_refused() -> None:
    """S plus the group's order verifies the same equation; only the smaller S counts."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = sign(CUSTODY, "claim", b"data")
    larger = int.from_bytes(signature[32:], "little") + order
    malleated = Signature(signature[:32] + larger.to_bytes(32, "little"))
    assert not verify(CUSTODY.address, "claim", b"data", malleated)


def test_a_signing_key_never_shows_itself() -> None:
    key = SigningKey(b"\x5a" * 32)
    assert "5a" * 32 not in repr(key)
    assert key.address.hex() in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_transactions_are_bound_to_every_field() -> None:
    transaction = World().transfer(OUTSIDER, MINER_A, 5)
    assert verify_transaction(transaction)
    for changes in (
        {"chain_id": hash_domain("test", b"other")},
        {"sender": MINER_A.address},
        {"nonce": 1},
        {"payload": Transfer(MINER_A.address, Amount(6))},
    ):
        assert not verify_transaction(replace(transaction, **changes))


def test_merkle_root_binds_number_order_and_bytes() -> None:
    lists = [[], [b""], [b"a"], [b"a", b"b"], [b"b", b"a"], [b"a", b"b", b"b"], [b"a", b"b", b"b", b"b"]]
    roots = {compute_merkle_root("test", leaves) for leaves in lists}
    assert len(roots) == len(lists)
    assert compute_merkle_root("other", [b"a"]) not in roots


def test_blob_root_binds_length_and_chunks() -> None:
    chunks = [bytes(CHUNK_BYTES), b"\x01" * 10]
    hashes = [compute_chunk_hash(chunk) for chunk in chunks]
    assert hashes[1] == compute_chunk_hash(memoryview(chunks[1])) == hash_domain("chunk", chunks[1])
    roots = {compute_blob_root(CHUNK_BYTES + length, hashes) for length in (9, 10, 11)}
    assert len(roots) == 3
    assert compute_blob_root(CHUNK_BYTES + 10, hashes[::-1]) not in roots
    for length, given in ((CHUNK_BYTES, hashes), (0, hashes), (-1, []), (1, [])):
        with pytest.raises(ValueError, match="chunks"):
            compute_blob_root(length, given)
    assert compute_blob_root(0, []) != compute_blob_root(1, hashes[:1])
