"""Where passphrases come from, and the agent, each as processes use it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node import keystore_agent, passphrase
from node.cli.main import app
from node.keystore import create_account_key
from node.keystore_agent import Agent, AgentError, ask_agent, get_agent_status, stop_agent
from node.keystore_files import KeyFileError
from node.passphrase import PassphraseError, Purpose, find_passphrase, get_passphrase, take_environment

WORDS = "correct horse battery staple"


def read(purpose: Purpose = Purpose.NODE) -> str | None:
    found = find_passphrase(purpose)
    return None if found is None else found.reveal().decode()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_order_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read() is None
    monkeypatch.setenv("BMIF_PASSPHRASE", "from the environment")
    assert read() == "from the environment"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    write(credentials / "bmif-passphrase", "from the manager\n", 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert read() == "from the manager"
    monkeypatch.setenv("BMIF_PASSPHRASE_FILE", str(write(tmp_path / "file", "from a file\r\n")))
    assert read() == "from a file"
    assert read(Purpose.CUSTODY) is None
    write(credentials / "bmif-custody-passphrase", "the custody's", 0o400)
    assert read(Purpose.CUSTODY) == "the custody's"


def test_no_later_process_inherits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMIF_PASSPHRASE", WORDS)
    monkeypatch.setenv("BMIF_CUSTODY_PASSPHRASE", "another for custody")
    take_environment()
    child = subprocess.run([sys.executable, "-c", "import os; print(os.environ)"], capture_output=True)
    assert b"staple" not in child.stdout
    assert b"another for" not in child.stdout
    assert read() == WORDS


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("words", 0o644, "open to others"),
        ("", 0o600, "1 to 1024 bytes"),
        ("\n", 0o600, "1 to 1024 bytes"),
        ("x" * 2000, 0o600, "more than"),
    ],
)
def test_a_source_that_is_named_must_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int, words: str
) -> None:
    monkeypatch.setenv("BMIF_PASSPHRASE_FILE", str(write(tmp_path / "file", text, mode)))
    with pytest.raises(KeyFileError, match=words):
        read()
    monkeypatch.setenv("BMIF_PASSPHRASE_FILE", str(tmp_path / "absent"))
    with pytest.raises(KeyFileError, match="cannot be read"):
        read()


def test_one_form_of_its_characters(tmp_path: Path) -> None:
    composed = passphrase.build_passphrase("Gr\u00fc\u00dfe aus dem Keller", "test")
    decomposed = passphrase.build_passphrase("Gru\u0308\u00dfe aus dem Keller", "test")
    assert composed.reveal() == decomposed.reveal()


def test_without_a_terminal_nobody_is_asked() -> None:
    with pytest.raises(PassphraseError, match=r"account\.key needs a passphrase"):
        get_passphrase(Purpose.NODE, "account.key")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A terminal, and what is typed on it."""
    answers: list[str] = []
    monkeypatch.setattr(passphrase, "is_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt, stream: answers.pop(0))
    return answers


def test_what_nothing_is_tried_on_is_asked_for_twice(typed: list[str]) -> None:
    typed += [WORDS, "correct horse battery stable"]
    with pytest.raises(PassphraseError, match="the two differ"):
        get_passphrase(Purpose.CUSTODY, "custody keys", twice=True)
    typed += [WORDS, WORDS]
    assert get_passphrase(Purpose.CUSTODY, "custody keys", twice=True).reveal().decode() == WORDS
    assert typed == []


def test_the_agent_asks_twice_for_what_it_can_not_try(
    typed: list[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the account's, which opens a file; `bmif custody encrypt` would seal with a mistyped one."""
    account = tmp_path / "account.key"
    create_account_key(account, passphrase.build_passphrase(WORDS, "test"))
    served: list[dict[str, bytes]] = []
    monkeypatch.setattr(Agent, "run", lambda agent: served.append(agent._passphrases))
    monkeypatch.setattr("node.cli.keys.protect_process", lambda: None)
    command = ["keys", "agent", str(account), "--for", "node", "--for", "custody"]
    typed += [WORDS, "the custody's own words", "the custody's other words"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "the two differ" in " ".join(refused.output.split())
    passphrase._taken.clear()
    typed += [WORDS, "the custody's own words", "the custody's own words"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert served == [{"node": WORDS.encode(), "custody": b"the custody's own words"}]


@contextmanager
def serve(path: Path, held: dict[str, bytes], lifetime_s: float = 60.0) -> Iterator[threading.Thread]:
    agent = Agent(path, held, lifetime_s)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield thread
    finally:
        stop_agent()
        thread.join()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "agent.sock"
    monkeypatch.setenv("BMIF_AGENT_SOCKET", str(path))
    return path


def test_the_agent_gives_what_it_holds(place: Path) -> None:
    assert (read(), get_agent_status(), stop_agent()) == (None, None, False)
    with serve(place, {"node": WORDS.encode()}):
        assert place.stat().st_mode & 0o777 == 0o600
        assert place.parent.stat().st_mode & 0o777 == 0o700
        assert read() == WORDS
        assert read(Purpose.CUSTODY) is None
        assert (get_agent_status() or "").startswith("node ")
        with pytest.raises(AgentError, match="already"):
            Agent(place, {}, 1)
        shown = CliRunner().invoke(app, ["keys", "agent", "--status"])
        assert "node, for" in shown.output
        assert WORDS not in shown.output
        stopped = CliRunner().invoke(app, ["keys", "agent", "--stop"])
        assert stopped.exit_code == 0, stopped.output
    assert not place.exists()
    assert CliRunner().invoke(app, ["keys", "agent", "--stop"]).exit_code == 1


def test_the_agent_forgets_when_its_time_is_over(place: Path) -> None:
    with serve(place, {"node": WORDS.encode()}, lifetime_s=0.05) as thread:
        thread.join()
        assert read() is None
    assert not place.exists()


def test_an_agent_that_ends_before_it_answers_is_none(place: Path) -> None:
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(1)
        # Closed with what it was asked still unread, as by an agent that was told to stop just before.
        ending = threading.Thread(target=lambda: listener.accept()[0].close())
        ending.start()
        assert (get_agent_status(), ending.join()) == (None, None)


def test_other_users_get_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(place, {"node": WORDS.encode()}):
        with monkeypatch.context() as patch:
            # The kernel's answer for the connection of another user, at either end.
            patch.setattr(keystore_agent, "get_peer_user", lambda connection: os.geteuid() + 1)
            with pytest.raises(AgentError, match="another user"):
                ask_agent("node")
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(place))
                # The agent hangs up at once, perhaps before anything is sent.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    raw.sendall(b"get node\n")
                    assert raw.recv(100) == b""
        assert read() == WORDS


def test_foreign_bytes_hurt_neither_end(place: Path) -> None:
    with serve(place, {"node": WORDS.encode()}):
        for line in (b"\n", b"\xff\xfe\n", b"get\n", b"get " + b"x" * 5000, b""):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(place))
                raw.sendall(line)
                raw.shutdown(socket.SHUT_WR)
                assert b"staple" not in raw.recv(100)
        assert read() == WORDS
    place.write_text("no socket")
    with pytest.raises(AgentError, match="no socket"):
        ask_agent("node")


def test_an_agent_of_its_own_process(place: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "passphrase", WORDS)
    environment = {**os.environ, "BMIF_PASSPHRASE_FILE": str(file)}
    command = [sys.executable, "-m", "node.cli.main", "keys", "agent"]
    made = subprocess.run([*command, "--background"], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    try:
        assert read() == WORDS
    finally:
        assert stop_agent()
