"""Where passphrases come from: a file, the service manager, the environment, an agent, or a terminal.

Each purpose has its own: node keys, custody's keys, and backups. A passphrase given in the environment is
taken out of it at once, so that no worker process inherits it.
"""

import contextlib
import getpass
import logging
import os
import sys
import unicodedata
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from node.keystore_agent import AgentError, ask_agent
from node.keystore_files import KeyFileError, read_private_file

logger = logging.getLogger(__name__)

MAX_BYTES = 1024
MIN_CHARACTERS = 12
"""Of a new passphrase: a stolen file can be tried against for ever."""


class Purpose(StrEnum):
    """What a passphrase is for."""

    NODE = "node"
    """Account and TLS keys."""
    CUSTODY = "custody"
    """Secret and noise keys of tasks and federations."""
    BACKUP = "backup"
    """Archives of custody's keys."""

    @property
    def variable(self) -> str:
        """The environment's name for it; with `_FILE`, that of a file that holds it."""
        return {
            Purpose.NODE: "BMIF_PASSPHRASE",
            Purpose.CUSTODY: "BMIF_CUSTODY_PASSPHRASE",
            Purpose.BACKUP: "BMIF_BACKUP_PASSPHRASE",
        }[self]

    @property
    def credential(self) -> str:
        """Its name in the service manager's directory of credentials."""
        return self.variable.lower().replace("_", "-")


class PassphraseError(KeyFileError):
    """There is no passphrase, or not one that can be used."""


class Passphrase:
    """A passphrase that never shows itself: not in repr, not by pickle."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def reveal(self) -> bytes:
        """The bytes."""
        return self._data

    def __repr__(self) -> str:
        return "Passphrase(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase is never pickled")


_taken: dict[Purpose, Passphrase] = {}


def build_passphrase(text: str, source: str) -> Passphrase:
    """The passphrase that somebody typed, in one form of its characters. Raises: PassphraseError."""
    data = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    if not 0 < len(data) <= MAX_BYTES:
        raise PassphraseError(f"{source}: expected a passphrase of 1 to {MAX_BYTES} bytes, got {len(data)}")
    return Passphrase(data)


def take_environment() -> None:
    """Take the passphrases out of the environment, so that no process started later inherits them."""
    for purpose in Purpose:
        text = os.environ.pop(purpose.variable, None)
        if text is not None:
            logger.warning(
                "%s: the process's first environment stays readable in /proc; use %s_FILE instead",
                purpose.variable,
                purpose.variable,
            )
            _taken[purpose] = build_passphrase(text, purpose.variable)


def _read(path: Path, forbidden: int) -> Passphrase:
    data = read_private_file(path, MAX_BYTES + 2, forbidden=forbidden)
    try:
        return build_passphrase(data.decode("utf-8").rstrip("\r\n"), str(path))
    except UnicodeDecodeError as error:
        raise PassphraseError(f"{path} is not UTF-8 text") from error


def find_passphrase(purpose: Purpose) -> Passphrase | None:
    """What is there without asking anybody; None if nothing is.

    In this order: `BMIF_PASSPHRASE_FILE`, the credential `bmif-passphrase` of the service manager,
    `BMIF_PASSPHRASE`, the agent. Raises: KeyFileError if a source is named and can't be used.
    """
    take_environment()
    named = os.environ.get(f"{purpose.variable}_FILE")
    if named:
        return _read(Path(named), 0o077)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (path := Path(folder) / purpose.credential).exists():
        # The service manager lets the unit's user in by a list, which shows as the group's bits.
        return _read(path, 0o007)
    if purpose in _taken:
        return _taken[purpose]
    try:
        answer = ask_agent(purpose)
    except AgentError as error:
        raise PassphraseError(str(error)) from error
    return None if answer is None else build_passphrase(answer, "agent")


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(prompt: str) -> Passphrase:
    with contextlib.suppress(EOFError):
        return build_passphrase(getpass.getpass(f"{prompt}: ", sys.stderr), "the passphrase")
    raise PassphraseError("no passphrase was given")


def _ask_twice(prompt: str, remedy: str) -> Passphrase:
    found = _ask(prompt)
    if _ask("the same again").reveal() != found.reveal():
        raise PassphraseError(f"the two differ; {remedy}")
    return found


def get_passphrase(purpose: Purpose, what: str, *, twice: bool = False) -> Passphrase:
    """The passphrase that opens `what`; asked for on a terminal where no other source has it.

    `twice`: there it is asked for twice, because nothing is at hand on which it could be tried.
    Raises: PassphraseError with the remedy.
    """
    found = find_passphrase(purpose)
    if found is not None:
        return found
    if not is_terminal():
        raise PassphraseError(
            f"{what} needs a passphrase: name a file that holds it by {purpose.variable}_FILE, give your "
            f"service manager the credential {purpose.credential}, or start `bmif keys agent`"
        )
    # Kept, so that a node asks once for all its keys.
    prompt = f"passphrase of {what}"
    _taken[purpose] = _ask_twice(prompt, "start again") if twice else _ask(prompt)
    return _taken[purpose]


def get_new_passphrase(purpose: Purpose, what: str, *, ask: bool = False) -> Passphrase:
    """A passphrase to seal `what` with: as above, but a terminal asks for it twice; `ask`: there alone.

    Raises: PassphraseError.
    """
    found = None if ask else find_passphrase(purpose)
    if found is None:
        if not is_terminal():
            raise PassphraseError(
                f"{what} needs a new passphrase: name a file that holds it by {purpose.variable}_FILE, or "
                "run this on a terminal"
            )
        found = _ask_twice(f"new passphrase of {what}", "nothing is changed")
    check_new(found)
    return found


def check_new(passphrase: Passphrase) -> None:
    """Raises: PassphraseError for one that is too short to keep a file with."""
    if len(passphrase.reveal().decode("utf-8", "surrogatepass")) < MIN_CHARACTERS:
        raise PassphraseError(
            f"a passphrase of fewer than {MIN_CHARACTERS} characters is soon found; take six random words"
        )


def read_passphrase_file(path: Path) -> Passphrase:
    """A passphrase from a private file that a command names. Raises: KeyFileError."""
    return _read(path, 0o077)
