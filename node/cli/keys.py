"""`bmif keys`: key files on disk and their passphrases; only addresses are ever printed."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from node.cli.common import CliError, ConfigOption, JsonOption, err, load_config, out, print_json
from node.keystore import (
    Protection,
    create_account_key,
    load_account_key,
    read_address,
    read_protection,
    set_passphrase,
)
from node.keystore_agent import (
    SOCKET_NAME,
    SOCKET_VARIABLE,
    Agent,
    AgentError,
    detach,
    get_agent_status,
    get_socket_path,
    protect_process,
    stop_agent,
)
from node.passphrase import (
    Passphrase,
    Purpose,
    check_new,
    find_passphrase,
    get_new_passphrase,
    get_passphrase,
    is_terminal,
    read_passphrase_file,
)

app = typer.Typer(no_args_is_help=True, help="Key files (Ed25519 accounts, TLS) and their passphrases.")

KeyArgument = Annotated[Path | None, typer.Argument(help="Key file [default: the node's account_key]")]
NewFileOption = Annotated[
    Path | None, typer.Option("--new-file", help="Private file of the new passphrase, instead of asking")
]
PemOption = Annotated[
    bool, typer.Option("--pem", help="Write PKCS#8 PEM, as TLS needs it (default for all but Ed25519)")
]


def _choose(path: Path | None, config: Path | None) -> Path:
    return path or load_config(config).account_key


def _get_new(path: Path, new_file: Path | None, *, ask: bool = False) -> Passphrase:
    if new_file is None:
        return get_new_passphrase(Purpose.NODE, str(path), ask=ask)
    found = read_passphrase_file(new_file)
    check_new(found)
    return found


@app.command()
def show(path: KeyArgument = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the address of an account's key file, never the key; a sealed one needs no passphrase."""
    chosen = _choose(path, config)
    address, protection = read_address(chosen).hex(), read_protection(chosen)
    if json:
        print_json({"path": str(chosen), "address": address, "protection": protection})
    else:
        out.print(address)


@app.command()
def check(path: KeyArgument = None, config: ConfigOption = None) -> None:
    """Open an account's key file as the node does: file mode, folders, passphrase, key."""
    chosen = _choose(path, config)
    out.print(f"{load_account_key(chosen).address.hex()}  {read_protection(chosen)}")


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="New key file (mode 0600); never overwritten")],
    encrypt: Annotated[
        bool | None,
        typer.Option(
            "--encrypt/--plain",
            help="With a passphrase or without [default: with, on a terminal or where one is set]",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a fresh account key and print its address."""
    if path.exists() or path.is_symlink():
        raise CliError(f"{path} exists already; choose another name or move it away")
    if encrypt is None:
        encrypt = is_terminal() or find_passphrase(Purpose.NODE) is not None
    passphrase = get_new_passphrase(Purpose.NODE, str(path)) if encrypt else None
    address = create_account_key(path, passphrase).hex()
    if passphrase is None:
        err.print(f"{path} has no passphrase; `bmif keys encrypt` gives it one", soft_wrap=True)
    if json:
        print_json({"path": str(path), "address": address})
    else:
        out.print(address)


@app.command()
def encrypt(
    path: KeyArgument = None,
    config: ConfigOption = None,
    new_file: NewFileOption = None,
    pem: PemOption = False,
) -> None:
    """Give a plain key file a passphrase; the file's old bytes may live on in backups and free blocks."""
    chosen = _choose(path, config)
    if read_protection(chosen) != Protection.PLAIN:
        raise CliError(f"{chosen} has a passphrase already; `bmif keys passphrase` changes it")
    set_passphrase(chosen, None, _get_new(chosen, new_file), as_pem=pem)
    out.print(f"{chosen}: {read_protection(chosen)}", soft_wrap=True)


@app.command()
def decrypt(path: KeyArgument = None, config: ConfigOption = None, pem: PemOption = False) -> None:
    """Take a key file's passphrase away: whoever reads the file then has the key."""
    chosen = _choose(path, config)
    if read_protection(chosen) == Protection.PLAIN:
        raise CliError(f"{chosen} has no passphrase")
    set_passphrase(chosen, get_passphrase(Purpose.NODE, str(chosen)), None, as_pem=pem)
    out.print(f"{chosen}: {read_protection(chosen)}", soft_wrap=True)


@app.command()
def passphrase(
    path: KeyArgument = None,
    config: ConfigOption = None,
    new_file: NewFileOption = None,
) -> None:
    """Change a key file's passphrase: the old one comes from where the node takes it."""
    chosen = _choose(path, config)
    kept = read_protection(chosen)
    if kept == Protection.PLAIN:
        raise CliError(f"{chosen} has no passphrase; `bmif keys encrypt` gives it one")
    old = get_passphrase(Purpose.NODE, str(chosen))
    set_passphrase(chosen, old, _get_new(chosen, new_file, ask=True), as_pem=kept == Protection.PEM)
    out.print(f"{chosen}: passphrase changed", soft_wrap=True)


# --- the agent --------------------------------------------------------------------------------


def _ask_all(purposes: list[Purpose], path: Path | None) -> dict[str, bytes]:
    """A mistyped passphrase shows now, not at the next start, or once keys have been sealed with it."""
    held = {}
    for item in purposes:
        tried = path if item is Purpose.NODE else None
        held[item.value] = get_passphrase(item, f"{item.value} keys", twice=tried is None).reveal()
        if tried is not None:
            load_account_key(tried)
    return held


def _no_agent(call: Callable[[], str | bool | None]) -> str | bool:
    answer = call()
    if not answer:
        raise CliError("no agent runs for this user; start one with `bmif keys agent`")
    return answer


@app.command()
def agent(
    path: Annotated[Path | None, typer.Argument(help="Account's key file to try the passphrase on")] = None,
    purpose: Annotated[
        list[Purpose] | None, typer.Option("--for", help="Which passphrases to hold [node]; repeat")
    ] = None,
    hours: Annotated[float, typer.Option(help="How long", min=0.0002, max=24 * 365)] = 12.0,
    background: Annotated[bool, typer.Option("--background", help="Go on apart from the terminal")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the running agent, which forgets all")] = False,
    status: Annotated[bool, typer.Option("--status", help="What the running agent holds")] = False,
) -> None:
    """Hold passphrases in memory, for this user's nodes and commands to ask.

    It listens at $XDG_RUNTIME_DIR/bmif-agent.sock (or $BMIF_AGENT_SOCKET), mode 0600, and asks the kernel who
    is calling.
    """
    try:
        if stop:
            _no_agent(stop_agent)
            out.print("stopped")
            return
        if status:
            held, _, seconds = str(_no_agent(get_agent_status)).partition(" ")
            out.print(f"{held}, for {seconds} s")
            return
        socket = get_socket_path()
        if socket is None:
            raise CliError(
                f"no place for the socket: set XDG_RUNTIME_DIR (for {SOCKET_NAME}) or {SOCKET_VARIABLE}"
            )
        protect_process()
        server = Agent(socket, _ask_all(purpose or [Purpose.NODE], path), hours * 3600)
        if background and not detach():
            out.print(f"agent listens at {socket}", soft_wrap=True)
            return
        if not background:
            err.print(f"agent listens at {socket}; Ctrl-C ends it", soft_wrap=True)
        server.run()
    except AgentError as error:
        raise CliError(str(error)) from error
