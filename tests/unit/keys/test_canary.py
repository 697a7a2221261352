"""The search for secrets finds one in every form, at every place in a text."""

import base64
import json
import secrets

import pytest

from tests.testnet.canary import Finder

SECRET = secrets.token_bytes(32)


@pytest.mark.parametrize("before", range(7))
def test_each_form_is_found(before: int) -> None:
    finder = Finder({"key": SECRET})
    padding = b"x" * before
    for data in (
        SECRET,
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        base64.b64encode(padding + SECRET + b"more"),
        base64.urlsafe_b64encode(padding + SECRET),
        str(int.from_bytes(SECRET)).encode(),
        str(int.from_bytes(SECRET, "little")).encode(),
        str(list(SECRET)).encode(),
        json.dumps(list(SECRET), separators=(",", ":")).encode(),
        SECRET[:16].hex().encode(),  # a piece alone
    ):
        assert finder.find(b"in a log: " + padding + data + b" end")
    assert not finder.find(secrets.token_bytes(1000) + secrets.token_hex(1000).encode())
