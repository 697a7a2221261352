"""Looks for secrets wherever they could have slipped to: raw, in hexadecimal, base64, decimal."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

ENOUGH = 16
"""Bytes of a secret that are looked for: a piece that leaked counts as well."""


def build_needles(secret: bytes) -> dict[str, bytes]:
    """The forms in which a secret may show, by a word for each."""
    piece = secret[:ENOUGH]
    forms = {"raw": piece, "hex": piece.hex().encode(), "HEX": piece.hex().upper().encode()}
    for shift in range(3):
        # In longer base64 the piece may begin at any of three places; cut what its neighbours touch.
        for name, code in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            text = code(bytes(shift) + piece)
            forms[f"{name}+{shift}"] = text[(0, 2, 3)[shift] : (len(piece) + shift) * 8 // 6]
    for order in ("big", "little"):
        forms[f"decimal, {order}"] = str(int.from_bytes(secret, order)).encode()
    forms["list"] = ", ".join(map(str, piece)).encode()
    forms["json list"] = ",".join(map(str, piece)).encode()
    return forms


class Finder:
    """All forms of all secrets, looked for together."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        assert all(len(secret) >= ENOUGH for secret in secrets.values()), "too short to look for"
        self._needles = {
            f"{name} ({form})": needle
            for name, secret in secrets.items()
            for form, needle in build_needles(secret).items()
        }

    def find(self, data: bytes) -> list[str]:
        """Names and forms of the secrets in these bytes."""
        return [name for name, needle in self._needles.items() if needle in data]

    def find_in_files(self, directory: Path) -> Iterator[tuple[Path, str]]:
        """Every file below the directory in which a secret stands, links and sockets left out."""
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                for name in self.find(path.read_bytes()):
                    yield path, name
