"""The `bmif` command."""

import typer

from node.cli import (
    audit,
    config,
    data,
    debug,
    diagnose,
    drain,
    encrypted_fuse,
    escrow,
    evaluate,
    federation,
    fuse,
    genesis,
    governance,
    init,
    keys,
    ledger,
    light,
    model,
    preflight,
    run,
    task,
    testnet,
    tls,
    watch,
)
from node.cli.common import Commands

app = typer.Typer(
    name="bmif",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="A blockchain node whose peers mine by training an image-fusion network on encrypted images.",
)
app.command("init")(init.init)
app.command("preflight")(preflight.preflight)
app.command("run")(run.run)
app.command("status")(run.status)
app.command("drain")(drain.drain)
app.command("fuse")(fuse.fuse)
app.command("fuse-encrypted")(encrypted_fuse.fuse_encrypted)
app.command("evaluate")(evaluate.evaluate)
app.command("audit")(audit.audit)
app.add_typer(testnet.app, name="testnet")
app.add_typer(genesis.app, name="genesis")
app.add_typer(task.app, name="task")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(diagnose.app, name="diagnose")
app.add_typer(federation.app, name="federation")
app.add_typer(keys.app, name="keys")
app.add_typer(escrow.app, name="custody")
app.add_typer(tls.app, name="tls")
app.add_typer(ledger.app, name="ledger")
app.add_typer(light.app, name="light")
app.add_typer(governance.app, name="governance")
app.add_typer(config.app, name="config")
app.add_typer(debug.app, name="debug")
task.app.command("watch")(watch.watch)

if __name__ == "__main__":
    app()
