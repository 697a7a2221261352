"""How a command ends whose ledger can't be used."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from node.cli.common import CliError, err
from node.ledger.damage import describe, find_ledger_error, get_exit_status


@contextmanager
def ledger_errors() -> Iterator[None]:
    """An error of the ledger ends the command with one message; damage and a full disk,
    with a status of their own."""
    try:
        yield
    except Exception as error:
        found = find_ledger_error(error)
        if found is None:
            raise
        status = get_exit_status(found)
        if status == 1:
            raise CliError(describe(found)) from error
        err.print("error: ", style="bold red", end="")
        err.print(describe(found), markup=False, soft_wrap=True)
        raise typer.Exit(status) from error
