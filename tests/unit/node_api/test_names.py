"""What stands for a hash in an address is 64 lower-case hexadecimal digits, or a problem; never a path."""

import pytest

from node.api.errors import Problem
from node.api.requests import parse_hash

HOSTILE = (
    *("", ".", "..", "../account.key", "..\\account.key", "/etc/passwd", "-rf", "con", "\x00", "%2e%2e"),
    *("a" * 63, "a" * 65, "A" * 64, "0x" + "a" * 62, "a" * 64 + "/..", "a" * 64 + ".part"),
    *("a" * 64 + "\n", "\n" + "a" * 64, "a" * 63 + "\x00", " " + "a" * 63, "\u202e" + "a" * 63),
    *("\uff11" * 64, "\u0663" * 64, "<script>".ljust(64, "a"), "../" * 21 + "a"),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused(text: str) -> None:
    with pytest.raises(Problem, match="64 lower-case hexadecimal digits") as refused:
        parse_hash(text, "root")
    assert refused.value.status == 400
    assert refused.value.field == "root"


def test_a_hash_is_taken_as_it_is_written() -> None:
    assert parse_hash("0f" * 32, "root").hex() == "0f" * 32
