"""`bmif diagnose`: encrypted inference, from a model to a diagnosis."""

import typer

from node.cli.diagnose_jobs import fetch, register, retire, status, submit
from node.cli.diagnose_local import compile_network, decrypt, encrypt, make_keys, train
from node.cli.diagnose_sequence import app as sequence_app

app = typer.Typer(no_args_is_help=True, help="Encrypted diagnosis by peers that see neither image nor model.")
app.command()(train)
app.command("compile")(compile_network)
app.command("keys")(make_keys)
app.command()(encrypt)
app.command()(decrypt)
app.command()(register)
app.command()(retire)
app.command()(submit)
app.command()(status)
app.command()(fetch)
app.add_typer(sequence_app, name="sequence")
