"""`bmif config check`."""

import typer

from node.cli.common import ConfigOption, JsonOption, find_config, load_config, out, print_json
from node.config import ConfigError

app = typer.Typer(no_args_is_help=True, help="Settings of a node.")


@app.callback()
def group() -> None:
    """Settings of a node."""


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check a node's settings and the files they name; exit 1 if anything is wrong."""
    settings = load_config(config)
    problems = settings.check_files()
    path = find_config(config)
    if problems and path is not None:
        raise ConfigError(path, problems)
    if json:
        print_json(settings)
    else:
        out.print(f"{path}: {settings.name} ({', '.join(sorted(settings.roles)) or 'observer'}) is in order")
