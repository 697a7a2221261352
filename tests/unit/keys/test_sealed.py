"""Sealed bytes: what opens them, what is refused, and the format byte by byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads import sealed
from workloads.sealed import Cost, SealError, SealingKey, derive_key, open_sealed, read_header, seal

CHEAP = Cost(2**4, 8, 1)
KEY = derive_key(b"correct horse battery staple", bytes(16), CHEAP)
SEALED = seal(b"secret bytes", KEY, "account-key", "00" * 32)


def test_what_is_sealed_opens_again() -> None:
    header = read_header(SEALED)
    assert (header.kind, header.name, header.cost, header.salt) == (
        "account-key",
        "00" * 32,
        CHEAP,
        bytes(16),
    )
    key = sealed.unlock(header, b"correct horse battery staple")
    assert open_sealed(SEALED, key, "account-key") == b"secret bytes"
    assert b"secret" not in SEALED.replace(b"bmif-sealed", b"")
    assert "secret" not in repr(key).replace("SealingKey", "")


def test_the_key_is_scrypt_s_by_another_implementation() -> None:
    import hashlib

    salt = bytes(range(16))
    found = derive_key(b"pleaseletmein", salt, Cost(2**14, 8, 1))
    assert found.secret == hashlib.scrypt(b"pleaseletmein", salt=salt, n=2**14, r=8, p=1, dklen=32)


@pytest.mark.parametrize("other", [b"correct horse battery stapl", b"Correct horse battery staple"])
def test_another_passphrase_opens_nothing(other: bytes) -> None:
    key = sealed.unlock(read_header(SEALED), other)
    with pytest.raises(SealError, match="another passphrase"):
        open_sealed(SEALED, key, "account-key")


def test_another_kind_and_another_key_are_named() -> None:
    with pytest.raises(SealError, match="holds account-key, not custody-backup"):
        open_sealed(SEALED, KEY, "custody-backup")
    with pytest.raises(SealError, match="another key"):
        open_sealed(SEALED, SealingKey(KEY.secret), "account-key")
    with pytest.raises(SealError, match="key of shares"):
        sealed.unlock(read_header(seal(b"", sealed.draw_key(), "x", "")), b"passphrase")


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_is_taken(place: int, flip: int) -> None:
    data = bytearray(SEALED)
    data[place] ^= flip
    with pytest.raises(SealError):
        open_sealed(bytes(data), KEY, "account-key")


@given(st.integers(0, len(SEALED) - 1))
@settings(max_examples=30, deadline=None)
def test_no_shorter_file_is_taken(length: int) -> None:
    with pytest.raises(SealError):
        open_sealed(SEALED[:length], KEY, "account-key")


def change(**kdf: object) -> bytes:
    line, _, body = SEALED.partition(b"\n")
    document = json.loads(line)
    document["kdf"].update(kdf)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n" + body


@pytest.mark.parametrize(
    ("kdf", "words"),
    [
        ({"n": 2**31, "r": 8}, "costs more"),
        ({"n": 2**4, "r": 2**20}, "costs more"),
        ({"n": 2**10, "p": 2**20}, "costs more"),
        ({"n": 2**64}, "damaged header"),
        ({"n": 15}, "power of two"),
        ({"n": True}, "damaged header"),
        ({"n": 16.0}, "damaged header"),
        ({"n": -16}, "damaged header"),
        ({"salt": "00"}, "damaged header"),
        ({"extra": 1}, "damaged header"),
    ],
)
def test_a_header_that_would_cost_too_much_is_refused_before_any_work(
    kdf: dict[str, object], words: str
) -> None:
    with pytest.raises(SealError, match=words):
        read_header(change(**kdf))


def test_a_later_version_is_named() -> None:
    line, _, body = SEALED.partition(b"\n")
    with pytest.raises(SealError, match="another version"):
        read_header(line.replace(b'"version":1', b'"version":2') + b"\n" + body)
    for bad in (b"", b'{"cipher":', b'{"cipher":' + b"[" * 60_000 + b"\n" + bytes(16), b"x" * 99):
        with pytest.raises(SealError):
            read_header(bad)


def test_the_default_costs_what_the_documents_say() -> None:
    # Read from the sources: the fixture of this folder makes it cheap.
    assert sealed.derive_key.__defaults__ == (None, None)
    Cost(2**17, 8, 1).check()
    Cost(2**20, 8, 1).check()
