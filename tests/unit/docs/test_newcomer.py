"""The rehearsal of docs/QUICKSTART.md notices what hangs, what fails, what ends without its closing words."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testnet.newcomer import (
    CLOSINGS,
    LIMITS_S,
    NewcomerError,
    Shell,
    check_closing,
    get_limit_s,
    read_commands,
)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def test_the_shell_keeps_its_folder_and_says_what_was_printed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    shell.run("cd there", 30)
    assert shell.run("pwd", 30) == f"{tmp_path / 'there'}\n"


def test_a_command_that_fails_is_named(shell: Shell) -> None:
    with pytest.raises(NewcomerError, match=r"^ls absent: exit status 2$"):
        shell.run("ls absent", 30)
    with pytest.raises(NewcomerError, match=r"^exit 3: the shell ended$"):
        shell.run("exit 3", 30)


def test_a_command_that_hangs_is_ended_and_named(shell: Shell) -> None:
    begun = time.monotonic()
    with pytest.raises(NewcomerError, match=r"^sleep 600: not done after 1 s$"):
        shell.run("sleep 600", 1)
    assert time.monotonic() - begun < 60


def test_a_last_line_without_its_words_is_named() -> None:
    command = "python examples/verify_task.py http://127.0.0.1:19403 net/genesis.json 00"
    check_closing(command, "...\nfinal block 20 proves: complete, step 6\n")
    check_closing("bmif status", "")
    for output in (
        "",
        "final block 20 proves: open, step 6\n",
        "proves: complete\nand then more\n",
    ):
        with pytest.raises(NewcomerError, match=r"^python examples/verify_task.py .* expected a last line"):
            check_closing(command, output)


def test_limits_and_closing_words_are_of_commands_that_the_page_has() -> None:
    commands = read_commands()
    assert len(commands) > 15
    for begin in (*CLOSINGS, *LIMITS_S):
        assert any(command.startswith(begin) for command in commands), begin
    assert get_limit_s("make setup") > get_limit_s("bmif status --config net/node2/node.yaml")
