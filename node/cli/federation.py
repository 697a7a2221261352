"""`bmif federation`: hospitals train one network together; only sums of encrypted updates are opened."""

import typer

from node.cli.federation_create import create
from node.cli.federation_show import export, status
from node.cli.federation_train import join, train

app = typer.Typer(no_args_is_help=True, help="Federated rounds: hospitals train one network, encrypted.")
app.command()(create)
app.command()(join)
app.command()(train)
app.command()(status)
app.command()(export)
