"""How a command ends whose ledger can't be used."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from node.cli.common import CliError, err
from node.ledger.damage import EXIT_DAMAGED, describe, find_ledger_error, is_damage


@contextmanager
def ledger_errors() -> Iterator[None]:
    """An error of the ledger ends the command with one message; damage, with `EXIT_DAMAGED`."""
    try:
        yield
    except Exception as error:
        found = find_ledger_error(error)
        if found is None:
            raise
        if not is_damage(found):
            raise CliError(describe(found)) from error
        err.print("error: ", style="bold red", end="")
        err.print(describe(found), markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_DAMAGED) from error
