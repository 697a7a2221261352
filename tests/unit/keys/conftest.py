"""Passphrases that cost little, and an environment that names none."""

import pytest

from node import passphrase
from workloads import sealed

CHEAP = sealed.Cost(2**4, 8, 1)
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "DEFAULT_COST", CHEAP)
    monkeypatch.setattr(passphrase, "_taken", {})
    for purpose in passphrase.Purpose:
        monkeypatch.delenv(purpose.variable, raising=False)
        monkeypatch.delenv(f"{purpose.variable}_FILE", raising=False)
    for name in ("CREDENTIALS_DIRECTORY", "XDG_RUNTIME_DIR", "BMIF_AGENT_SOCKET"):
        monkeypatch.delenv(name, raising=False)
